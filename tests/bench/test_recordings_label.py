"""Labels: from the rows that provoke, never from a verdict; and what is recorded at all."""

from __future__ import annotations

import json

import pytest

from analysis.causes import CAUSE_IDS, GOOD_CAUSES
from bench.recordings import catalogue, label
from bench.recordings.label import Provoked
from harness.matrix import scenario
from harness.matrix.scenario import Expectation, Row
from harness.options import run as run_options
from probes.contract.errors import RunDirError

RECORDINGS = {each.id: each for each in catalogue.all_recordings()}


def of(expect, **extra):
    row = Row("row", "shows", {}, expect, extra={"label": extra})
    return label.of_row(row, expect, recording="own/row", group=label.OWN, provoked_by="run")


def test_the_verdicts_cause_is_the_root_and_what_is_named_besides_follows():
    made = of(Expectation("fd-limit-process", "accept-spin", "server", also=("fd-limit-process",)))
    assert made.provoked == (
        Provoked("fd-limit-process", "server"),
        Provoked("accept-spin", "server", follows_from="fd-limit-process"),
    )


def test_a_fault_that_does_not_stop_the_run_is_the_root():
    made = of(Expectation("reached", "hot-worker-code", "server", "server", 1))
    assert made.provoked == (Provoked("hot-worker-code", "server", "server", 1),)
    assert made.verdict == "reached"


def test_a_row_may_say_what_its_root_is():
    made = of(
        Expectation(named="worker-crash", also=("fd-limit-process",)), root="fd-limit-process"
    )
    assert [each.cause for each in made.roots] == ["fd-limit-process"]
    assert [each.follows_from for each in made.provoked] == ["", "fd-limit-process"]


def test_a_healthy_row_provokes_nothing():
    assert of(Expectation("reached")).is_healthy
    assert not of(Expectation("reached")).is_outside


def test_a_word_that_the_catalogue_lacks_is_outside_until_it_gets_one():
    made = of(Expectation(), root="bad-luck", side="server")
    assert made.is_outside
    assert not made.is_healthy
    assert not of(Expectation(), root="worker-crash").is_outside


def test_a_label_is_read_as_it_was_written(tmp_path):
    for number, recording in enumerate(RECORDINGS.values()):
        path = tmp_path / f"{number}.json"
        path.write_text(recording.label.to_json())
        assert label.read(path) == recording.label


@pytest.mark.parametrize(
    "wrong",
    [
        {"group": "others"},
        {"may": ["bad-luck"]},
        {"provoked": [{"cause": "worker-crash", "follows_from": "bad-luck"}]},
        {"provoked": 7},
        {"more": 1},
    ],
)
def test_what_is_no_label_is_refused(tmp_path, wrong):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(json.loads(of(Expectation("reached")).to_json()) | wrong))
    with pytest.raises(RunDirError) as error:
        label.read(path)
    assert "\n" not in error.value.message


# -- the catalogue ------------------------------------------------------------------------------


def test_every_row_of_both_scenarios_is_recorded():
    for name in ("every-cause", "the-2016-log"):
        rows = {f"{name}/{row.id}" for row in scenario.load(name).rows}
        assert rows == {each for each in RECORDINGS if each.startswith(f"{name}/")}


def test_there_are_watches_foreign_servers_and_runs_that_lack_something():
    groups = [each.label.group for each in RECORDINGS.values()]
    assert min(groups.count(group) for group in label.GROUPS) >= 6
    ends = {each.end for each in RECORDINGS.values()}
    assert ends == set(catalogue.ENDS)
    assert any(each.cut < 1 for each in RECORDINGS.values())
    assert any(not each.is_root for each in RECORDINGS.values())
    assert any("--probes" in each.words for each in RECORDINGS.values())


def test_all_of_them_are_small():
    for recording in RECORDINGS.values():
        options = run_options.parse(list(recording.words))
        # a search for a port costs something only among many
        most_count = 20_000 if recording.id == "every-cause/port-search" else 6_000
        assert options.connections <= most_count, recording.id


def test_every_cause_that_is_provoked_anew_is_recorded_too():
    provoked = {p.cause for each in RECORDINGS.values() for p in each.label.provoked}
    rows = scenario.load("every-cause").rows
    assert provoked >= {row.expect.named or row.expect.cause for row in rows} - {*GOOD_CAUSES}
    assert provoked & CAUSE_IDS
