"""The cost of a probe: pairs of runs, judged by the whole interval."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from bench.probe_cost import Pair, judged, main, read


@pytest.mark.parametrize(("added", "is_within"), [(0.01, True), (0.20, False)], ids=["1 %", "20 %"])
def test_pairs_are_judged_against_the_bar(added, is_within):
    pairs = [Pair(10 + n / 10, (10 + n / 10) * (1 + added), n % 2 == 0) for n in range(7)]
    sentence, found = judged(pairs, 5.0)
    assert found is is_within
    assert f"{100 * added:+.1f} %" in sentence


def test_pairs_that_scatter_decide_nothing():
    pairs = [Pair(10, 10 * factor, True) for factor in (0.7, 0.8, 0.9, 1.1, 1.2, 1.4, 1.5)]
    sentence, is_within = judged(pairs, 5.0)
    assert not is_within
    assert sentence.endswith("not decided")


def test_a_series_goes_on_and_one_that_is_there_is_only_judged(tmp_path, capsys):
    kept = tmp_path / "pairs.jsonl"
    pairs = [Pair(10.0, 10.1, True), Pair(10.0, 10.05, False)]
    kept.write_text("".join(json.dumps(asdict(pair)) + "\n" for pair in pairs))
    assert read(kept) == pairs
    words = ("--without", "connection_fates", "--pairs", "2", "--kept", str(kept))
    assert main(words) == 0
    assert "2 pairs" in capsys.readouterr().out


def test_a_probe_that_there_is_not_is_told(capsys):
    assert (
        main(
            (
                "--without",
                "mind_reading",
            )
        )
        == 2
    )
    assert "mind_reading" in capsys.readouterr().err


@pytest.mark.privileged
def test_each_pair_is_two_runs_of_which_one_is_without_the_probe(tmp_path, capsys):
    kept = tmp_path / "pairs.jsonl"
    words = ("--without", "open_fates", "--server", "own", "--connections", "230", "--pairs", "1")
    main((*words, "--kept", str(kept)))
    (pair,) = read(kept)
    assert min(pair.without_s, pair.with_s) > 0
    assert "1 pairs" in capsys.readouterr().out
