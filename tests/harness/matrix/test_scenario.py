"""Scenario files: what they may say, and what a verdict is held against."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from harness.matrix import scenario
from harness.options import run as run_options
from probes.contract.errors import UsageError

FILES = sorted(path.stem for path in scenario.FOLDER.glob("*.toml"))


@pytest.mark.parametrize("name", FILES)
def test_the_rows_that_come_with_the_program_are_command_lines(name):
    rows = scenario.load(name).rows
    assert rows
    for row in rows:
        run_options.parse(row.arguments())


def test_options_become_words():
    row = scenario.Row(
        "a",
        "b",
        {"connections": 5, "at_fd_limit": "spin", "force": True, "inject": ["x:0", "y:1"]},
        scenario.Expectation(),
    )
    assert row.arguments() == [
        *("--connections", "5", "--at-fd-limit", "spin", "--force"),
        *("--inject", "x:0", "--inject", "y:1"),
    ]


def test_a_server_of_others_is_found_where_the_source_tree_has_it():
    row = scenario.Row(
        "a",
        "b",
        {"connections": 5},
        scenario.Expectation(),
        server="{python} {foreign}/own_limit.py {port} 7",
    )
    option, command, *rest = row.arguments()
    assert (option, rest) == ("--server-cmd", ["--connections", "5"])
    python, script, *words = shlex.split(command)
    assert (python, words) == (sys.executable, ["{port}", "7"])
    assert Path(script).is_file()


def test_an_installed_copy_leaves_rows_out_whose_servers_it_lacks(tmp_path, monkeypatch):
    file = scenario.load("every-cause")
    assert file.without_missing_servers() == (file, ())
    monkeypatch.setattr(scenario, "FOREIGN", tmp_path / "nowhere")
    runnable, left_out = file.without_missing_servers()
    assert {row.id for row in left_out} == {row.id for row in file.rows if row.server}
    assert runnable.rows
    assert not {row.id for row in runnable.rows} & {row.id for row in left_out}


def finding(cause, severity="binding", side="server", role="server", worker=0):
    return {
        "cause": cause,
        "severity": severity,
        "side": side,
        "subject": {"role": role, "pid": 1, "worker": worker},
    }


def verdict(cause, *findings):
    return {"verdict": {"cause": cause}, "findings": list(findings)}


def test_a_verdict_that_meets_everything_has_no_complaint():
    expect = scenario.Expectation(
        cause="fd-limit-process", side="server", role="server", worker=1, also=("accept-spin",)
    )
    said = verdict(
        "fd-limit-process",
        finding("fd-limit-process", worker=1),
        finding("accept-spin", "contributing"),
        finding("host-cpu-saturated", "info"),
    )
    assert expect.complaints(said) == []


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (verdict("reached", finding("reached")), "the verdict is reached"),
        (verdict("fd-limit-process"), "fd-limit-process is not named"),
        (verdict("fd-limit-process", finding("fd-limit-process", side="client")), "is named of"),
        (verdict("fd-limit-process", finding("fd-limit-process", worker=3)), "is named of"),
        (
            verdict("fd-limit-process", finding("fd-limit-process"), finding("enobufs", "warning")),
            "enobufs is named without reason",
        ),
    ],
)
def test_what_is_not_met_is_said(said, complaint):
    expect = scenario.Expectation(cause="fd-limit-process", side="server", worker=0)
    assert any(complaint in line for line in expect.complaints(said))


def test_a_healthy_run_may_name_nothing():
    expect = scenario.Expectation(cause="reached")
    assert expect.complaints(verdict("reached", finding("reached"))) == []
    said = verdict("reached", finding("reached"), finding("worker-blocked", "warning"))
    assert expect.complaints(said) == ["worker-blocked is named without reason"]


@pytest.mark.parametrize(("of", "pct", "is_reason"), [
    ("processes beside the run", 60.0, True),
    ("processes beside the run", 10.0, False),
    ("servers", 60.0, False),
])  # fmt: skip
def test_a_host_that_others_fill_is_no_wrong_name(of, pct, is_reason):
    crowded = {**finding("host-cpu-saturated", "warning"), "side": "host"}
    crowded["evidence"] = [{"id": "host_share", "of": of, "value": pct}]
    said = scenario.Expectation(cause="reached").complaints(
        verdict("reached", finding("reached"), crowded)
    )
    assert said == ([] if is_reason else ["host-cpu-saturated is named without reason"])


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"name": "a", "shows": "b"}, "row"),
        ({"name": "a", "shows": "b", "row": []}, "unique"),
        ({"name": "a", "shows": "b", "row": [{"id": "x", "shows": "y"}]}, "options"),
        (
            {
                "name": "a",
                "shows": "b",
                "row": [{"id": "x", "shows": "y", "options": {}, "expect": {"cause": "ghost"}}],
            },
            "ghost",
        ),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_its_name(document, words):
    with pytest.raises(UsageError, match=words) as caught:
        scenario.parse(document, "mine.toml")
    assert "mine.toml" in caught.value.message


def test_an_unknown_file_names_the_known_ones():
    with pytest.raises(UsageError) as caught:
        scenario.load("no-such-thing")
    assert "every-cause" in caught.value.fix
