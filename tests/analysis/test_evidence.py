from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from analysis.causes import CAUSES
from analysis.evidence import Evidence, Finding, Fix, Subject
from analysis.findings import FINDERS

EVIDENCE = Evidence("descriptors open", 1009, "count", "processes", 2.3)


def finding(**changes) -> Finding:
    plain = {
        "cause": "fd-limit-process",
        "severity": "warning",
        "side": "server",
        "subject": Subject("server", 812, 3),
        "first_s": 1.0,
        "last_s": 2.0,
        "evidence": (EVIDENCE,),
        "explanation": "full",
        "fix": (Fix("ulimit -n 65535", "more"),),
    }
    return Finding(**{**plain, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"evidence": ()},
        {"cause": "bad-luck"},
        {"side": "network"},
        {"severity": "fatal"},
        {"first_s": 3.0},
        {"first_s": float("nan")},
        {"last_s": float("inf")},
        {"fix": ()},
    ],
)
def test_a_finding_that_proves_nothing_cannot_be_built(changes):
    with pytest.raises(ValueError, match=r"fd-limit-process|bad-luck"):
        finding(**changes)


def test_evidence_is_a_number():
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="proves nothing"):
            dataclasses.replace(EVIDENCE, value=value)


def test_ranking_does_not_change_the_original():
    first = finding()
    second = first.with_severity("contributing", follows_from="enobufs")
    assert (first.severity, first.follows_from) == ("warning", "")
    assert (second.severity, second.follows_from) == ("contributing", "enobufs")


@pytest.mark.parametrize(
    ("subject", "text"),
    [
        (Subject("server", 812, 3), "worker 3 (pid 812, server)"),
        (Subject("client", 9, 0), "client 0 (pid 9, client)"),
        (Subject("acceptor", 7, -1), "acceptor (pid 7)"),
        (Subject("server"), "the server"),
        (Subject(), "the host"),
    ],
)
def test_a_subject_in_words(subject, text):
    assert str(subject) == text


def test_one_module_for_each_cause_that_can_be_named():
    folder = Path(__file__).parents[2] / "analysis" / "findings"
    modules = {p.stem.replace("_", "-") for p in folder.glob("[a-z]*.py")}
    assert modules <= set(CAUSES)
    assert {f.__module__.rpartition(".")[2].replace("_", "-") for f in FINDERS} == modules
    for path in folder.glob("[a-z]*.py"):
        head = path.read_text().split('"""')[1]
        assert re.match(rf"``{path.stem.replace('_', '-')}``: ", head), path
        assert "Proof:" in head, path
