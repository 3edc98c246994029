from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis.causes import CAUSE_IDS
from analysis.evidence import EVIDENCE_KEYS, Evidence, Finding, Fix, Subject
from analysis.evidence_kinds import EVIDENCE_KINDS, ID
from analysis.findings import CATALOGUE, MODULES, origins_of

ROOT = Path(__file__).parents[2]
EVIDENCE = Evidence("descriptors_open", 1009, "processes", 2.3)


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
        {"evidence": (EVIDENCE, EVIDENCE)},
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


@pytest.mark.parametrize(
    ("evidence_id", "of", "says"),
    [
        ("descriptor_open", "", "not in the catalogue"),
        ("descriptors open", "", "not in the catalogue"),
        ("file_max", "accept4", "takes no qualifier"),
        ("function_samples", "", "takes a qualifier"),
    ],
)
def test_evidence_with_a_wrong_identity_cannot_be_built(evidence_id, of, says):
    with pytest.raises(ValueError, match=says):
        Evidence(evidence_id, 1009, "processes", of=of)


def test_a_number_is_found_by_its_id_and_qualifier():
    calls = [Evidence("emfile_calls", n, "failing_syscalls", of=of)
             for n, of in ((23, "accept4"), (5, "socket"))]  # fmt: skip
    found = finding(evidence=(EVIDENCE, *calls))
    assert found.value_of("descriptors_open") == 1009
    assert found.value_of("emfile_calls") == 23
    assert found.value_of("emfile_calls", "socket") == 5
    assert found.value_of("emfile_calls", "connect") is None
    assert found.value_of("enobufs_calls") is None
    with pytest.raises(KeyError):
        found.value_of("EMFILE")


def test_the_words_are_made_of_id_and_qualifier():
    calls = Evidence("emfile_calls", 23, "failing_syscalls", of="{of} < accept4")
    assert calls.name == "{of} < accept4 calls that returned EMFILE"
    assert Evidence("process_connections", 5, "live_samples").name == "connections it held"
    assert tuple(calls.record()) == EVIDENCE_KEYS


def test_every_kind_has_a_well_formed_id_and_words():
    for evidence_id, kind in EVIDENCE_KINDS.items():
        assert ID.fullmatch(evidence_id), evidence_id
        assert kind.alone or kind.qualified, evidence_id
        assert not kind.qualified or kind.qualified.count("{of}") == 1, evidence_id
        assert "{" not in kind.alone, evidence_id
    words = [words for kind in EVIDENCE_KINDS.values() for words in (kind.alone, kind.qualified)]
    assert len(set(filter(None, words))) == len(list(filter(None, words)))


def sources(*folders: str, having: str = "") -> Iterator[tuple[str, ast.Module]]:
    """Every module there, or every one in whose text a word is."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "node_modules" in path.parts:
                continue
            text = path.read_text(encoding="utf-8")
            if having in text:
                yield str(path.relative_to(ROOT)), ast.parse(text)


def calls_of(tree: ast.AST, name: str) -> list[ast.Call]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [c for c in calls if name in (getattr(c.func, "id", ""), getattr(c.func, "attr", ""))]


def test_every_finder_builds_what_the_catalogue_knows_and_all_of_it():
    """Of the branches too that no test takes."""
    texts = set()
    for place, tree in sources("analysis"):
        if place == "analysis/evidence_kinds.py":
            continue
        texts |= {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
        for call in calls_of(tree, "Evidence"):
            if isinstance(call.args[0], ast.Constant):
                kind = EVIDENCE_KINDS[call.args[0].value]
                is_qualified = any(keyword.arg == "of" for keyword in call.keywords)
                words = kind.qualified if is_qualified else kind.alone
                assert words, f"{place}:{call.lineno}"
    assert set(EVIDENCE_KINDS) <= texts, "kinds that nothing builds"


def looked_up_by_name(tree: ast.AST) -> list[int]:
    """Lines that tell evidence apart by its words: of what is taken from evidence one by one."""
    lines = []
    for loop in ast.walk(tree):
        parts = getattr(loop, "generators", [loop] if isinstance(loop, ast.For) else [])
        ours = set()
        for part in parts:
            if isinstance(part.target, ast.Name) and "evidence" in ast.unparse(part.iter):
                ours.add(part.target.id)
        if not ours:
            continue
        names = {text for each in ours for text in (f"{each}.name", f"{each}['name']")}
        for node in ast.walk(loop):
            judged: list[ast.AST] = []
            if isinstance(node, ast.Compare):
                judged = [node.left, *node.comparators]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr in ("startswith", "endswith", "find", "partition", "split"):
                    judged = [node.func.value]
                elif node.func.attr in ("match", "fullmatch", "search"):
                    judged = list(node.args)
            elif isinstance(node, ast.DictComp):
                judged = [node.key]
            if any(ast.unparse(each) in names for each in judged):
                lines.append(node.lineno)
    return lines


@pytest.mark.parametrize(
    "code",
    [
        "x = [e.value for e in f.evidence if e.name == 'signal']",
        "x = [e['value'] for e in f['evidence'] if 'EMFILE' in e['name']]",
        "x = {e['name']: e['value'] for e in run.finding('x')['evidence']}",
        "x = any(e.name.startswith('pings due') for e in finding.evidence)",
        "for each in evidence:\n    if re.match('CPU', each.name): pass",
    ],
)
def test_a_look_up_by_name_would_be_seen(code):
    assert looked_up_by_name(ast.parse(code))


def test_no_code_looks_evidence_up_by_its_name():
    folders = ("analysis", "reports", "harness", "bench", "documentation", "tests")
    found = {place: lines for place, tree in sources(*folders, having="evidence")
             if (lines := looked_up_by_name(tree))}  # fmt: skip
    assert found == {}


def test_every_id_that_is_looked_up_is_in_the_catalogue():
    files = sources("analysis", "tests/analysis", having="value_of")
    wanted = {call.args[0].value for _, tree in files
              for call in calls_of(tree, "value_of")
              if call.args and isinstance(call.args[0], ast.Constant)}  # fmt: skip
    assert wanted - set(EVIDENCE_KINDS) == {"EMFILE"}, "that one is expected to fail, above"


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
    folder = ROOT / "analysis" / "findings"
    paths = list(folder.rglob("[a-z]*.py"))
    assert set(CATALOGUE) == CAUSE_IDS
    assert len(MODULES) == len(paths)
    for module in MODULES:
        assert module.__name__.rpartition(".")[2].replace("_", "-") == module.CAUSE.id
        assert CATALOGUE.keys() >= {*origins_of(module.CAUSE), *module.CAUSE.decide_between}
    for path in paths:
        head = path.read_text().split('"""')[1]
        assert re.match(rf"``{path.stem.replace('_', '-')}``: ", head), path
        assert "Proof:" in head, path
