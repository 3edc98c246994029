"""docs/kernels.md: what works on which kernel, made of the facts that the guests printed.

A boot takes minutes, so facts are kept (``FACTS``): a kernel and a check that were not tried again
keep what came of them last, and the page says which commit that was.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from probes.collect.registry import PROBES
from tests.kernels import judge
from tests.kernels.catalogue import KERNELS, Kernel
from tests.kernels.checks import PROVOKED

PROJECT = Path(__file__).resolve().parents[2]
FACTS = Path(__file__).with_name("facts.jsonl")
"""A line for each kernel and check: what came of it last."""

_HEAD = """\
# Kernels

connscope is tried on the stock kernels of distributions, booted under emulation (QEMU without KVM)
over this project's own checkout. `make test-kernels` boots them, keeps what came of it in
`tests/kernels/facts.jsonl` and writes this page.

A probe is marked *ran* when it saw a run or a watch to its end, *starts* when `profile-doctor`
loaded, attached and read it once and nothing more was tried; a cause is marked *named* when the run
that provokes it named it. *Not tried* is just that. No cell says how fast anything is: under
emulation everything takes twenty times as long. So causes that are known by samples are provoked
for longer there, up to fifteen times.

"""
_LISTED = "by sock_diag"
_BY_HELPER = "by helper"


@dataclass(slots=True)
class Tried:
    """What came of one kernel.

    Attributes:
        kernel: Which.
        release: What it calls itself; '' when it did not boot.
        facts: By check.
        failure: Why there are none.
    """

    kernel: Kernel
    release: str = ""
    facts: dict[str, judge.Facts] = field(default_factory=dict)
    failure: str = ""

    def problems(self) -> list[str]:
        """Everything that is not as it should be, a line each."""
        if self.failure and not self.facts:
            return [f"{self.kernel.key}: {self.failure}"]
        return [
            f"{self.kernel.key}: {check}: {problem}"
            for check, facts in self.facts.items()
            for problem in judge.problems(self.kernel, facts, self._probes_of(facts))
        ]

    def is_right(self, check: str) -> bool:
        """Whether a check came out as it should; it was tried."""
        facts = self.facts[check]
        return not judge.problems(self.kernel, facts, self._probes_of(facts))

    def _probes_of(self, facts: judge.Facts) -> Collection[str]:
        """The probes that were there when the facts were made: what is kept may be older."""
        if "commit" not in facts:
            return tuple(PROBES)
        same = [each for each in self.facts.values() if each["commit"] == facts["commit"]]
        told = {probe["name"] for each in same for probe in each.get("probes", ())}
        return [name for name in PROBES if name in told]


def parse(kernel: Kernel, output: str) -> Tried:
    """The lines that a guest printed."""
    tried = Tried(kernel)
    for line in output.splitlines():
        if line.startswith("guest "):
            tried.release = line.split()[1]
        if line.startswith("{"):
            facts = json.loads(line)
            tried.facts[facts["check"]] = facts
    return tried


def keep(tries: Iterable[Tried], commit: str, path: Path = FACTS) -> None:
    """Replaces what is kept of the checks that were tried.

    Args:
        tries: What came of them.
        commit: Of connscope.
        path: The file.
    """
    kept = {(each["kernel"], each["check"]): each for each in _lines(path)}
    for tried in tries:
        for check, facts in tried.facts.items():
            who = {"kernel": tried.kernel.key, "release": tried.release, "commit": commit}
            kept[tried.kernel.key, check] = {**who, **facts}
    order = [kernel.key for kernel in KERNELS]
    rows = sorted(kept.values(), key=lambda row: (order.index(row["kernel"]), row["check"]))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text.replace(f"{PROJECT}/", ""))  # where it was tried is nobody's business


def kept(path: Path = FACTS) -> list[Tried]:
    """What came of each kernel last, oldest kernel first; those that were never tried as well."""
    found = {kernel.key: Tried(kernel, failure="it was not tried") for kernel in KERNELS}
    for row in _lines(path):
        tried = found[row["kernel"]]
        tried.release = row["release"]
        tried.facts[row["check"]] = row
    return list(found.values())


def _lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def page(tries: Sequence[Tried]) -> str:
    """The page."""
    probes = _probes_told(tries)
    head = ["", *(f"{each.kernel.key}" for each in tries)]
    rows = [
        ["*where*", *(each.kernel.runs_in for each in tries)],
        ["*release*", *(f"`{each.release}`" if each.release else each.failure for each in tries)],
        ["`profile-doctor`", *(_doctor_cell(each) for each in tries)],
        *([f"`{name}`", *(_probe_cell(each, name) for each in tries)] for name in probes),
        ["1,000 connections", *(_verdict_cell(each, "run") for each in tries)],
        [
            "`--server-cmd` (asyncio)",
            *(_verdict_cell(each, "server-cmd") for each in tries),
        ],
        ["`profile-attach` (node)", *(_verdict_cell(each, "attach") for each in tries)],
        *([f"`{cause}`", *(_verdict_cell(each, cause) for each in tries)] for cause in PROVOKED),
        ["*commits*", *(_commits(each) for each in tries)],
    ]
    lines = [_row(head), _row(["---"] * len(head)), *map(_row, rows)]
    return _HEAD + "\n".join([*lines, "", *_lacking(tries), *_unexplained(tries)]).rstrip() + "\n"


def _probes_told(tries: Sequence[Tried]) -> list[str]:
    """Those that some fact speaks of; one that is newer than all facts has no row yet."""
    told = {
        probe["name"]
        for tried in tries
        for facts in tried.facts.values()
        for probe in facts.get("probes", ())
    }
    return [name for name in PROBES if name in told]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _commits(tried: Tried) -> str:
    return ", ".join(sorted({f"`{facts['commit']}`" for facts in tried.facts.values()}))


def _doctor_cell(tried: Tried) -> str:
    if "doctor" not in tried.facts:
        return "not tried"
    return "true" if tried.is_right("doctor") else "**wrong**"


def _probe_cell(tried: Tried, name: str) -> str:
    if not judge.can_run(tried.kernel, name):
        return f"needs {'.'.join(map(str, judge.NEEDS[name]))}"
    found = {
        check: probe
        for check, facts in tried.facts.items()
        for probe in facts.get("probes", ())
        if probe["name"] == name
    }
    told = found.pop("doctor", None)
    ran = [probe for probe in found.values() if probe["state"] == "ran"]
    if ran:
        return _way(ran[-1])
    if found or (told is not None and told["state"] != "available"):
        return "**no**"
    return "starts" if told is not None else "not tried"


def _way(probe: Mapping[str, str]) -> str:
    if probe["name"] == "tcp_snapshot" and "sock_diag" in probe["reason"]:
        return _LISTED
    return _BY_HELPER if "by helper" in probe["reason"] else "ran"


def _verdict_cell(tried: Tried, check: str) -> str:
    facts = tried.facts.get(check)
    if facts is None:
        return "not tried"
    if not tried.is_right(check):
        return "**no**"
    return "yes" if check in judge.EXPECTED_CAUSE else f"named, {facts['confidence']} confidence"


def _lacking(tries: Sequence[Tried]) -> list[str]:
    lines = ["## What an older kernel does not tell", ""]
    since: dict[tuple[str, str], list[str]] = {}
    for tried in tries:
        for lack in tried.facts.get("doctor", {}).get("kernel_lacks", ()):
            since.setdefault((lack["what"], lack["since"]), []).append(tried.kernel.key)
    for (what, version), keys in since.items():
        lines.append(f"- {what}: since Linux {version}; missing on {', '.join(keys)}")
    return [*lines, ""]


def _unexplained(tries: Sequence[Tried]) -> list[str]:
    found = [problem for tried in tries if tried.facts for problem in tried.problems()]
    if not found:
        return []
    return ["## What went wrong", "", *(f"- {' '.join(problem.split())}" for problem in found), ""]
