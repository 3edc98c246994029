"""docs/kernels.md: what works on which kernel, made of the facts that the guests printed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from probes.registry import PROBES
from tests.kernels import judge
from tests.kernels.catalogue import Kernel
from tests.kernels.checks import PROVOKED

_HEAD = """\
# Kernels

connscope is tried on stock kernels of Debian, booted under emulation over this project's own
checkout: `make test-kernels`. This page is what that command wrote; `make test` boots the oldest
and the newest each time.

A probe is marked *yes* when `profile-doctor` called it available and it ran in a run of 1,000
connections; a cause when the run or watch that provokes it named it.

"""
_LISTED = "by sock_diag"


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
        if self.failure:
            return [f"{self.kernel.key}: {self.failure}"]
        return [
            f"{self.kernel.key}: {check}: {problem}"
            for check, facts in self.facts.items()
            for problem in judge.problems(self.kernel, facts)
        ]


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


def page(tries: Sequence[Tried]) -> str:
    """The page."""
    head = ["", *(f"{each.kernel.key}" for each in tries)]
    rows = [
        ["*where*", *(each.kernel.runs_in for each in tries)],
        ["*release*", *(f"`{each.release}`" if each.release else each.failure for each in tries)],
        *([f"`{name}`", *(_probe_cell(each, name) for each in tries)] for name in PROBES),
        ["1,000 connections", *(_verdict_cell(each, "run") for each in tries)],
        ["`--server-cmd` (asyncio)", *(_verdict_cell(each, "server-cmd") for each in tries)],
        ["`profile-attach` (node)", *(_verdict_cell(each, "attach") for each in tries)],
        *([f"`{cause}`", *(_verdict_cell(each, cause) for each in tries)] for cause in PROVOKED),
    ]
    lines = [_row(head), _row(["---"] * len(head)), *map(_row, rows)]
    return _HEAD + "\n".join([*lines, "", *_lacking(tries), *_unexplained(tries)]) + "\n"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _probe_cell(tried: Tried, name: str) -> str:
    told = {probe["name"]: probe for probe in tried.facts.get("doctor", {}).get("probes", ())}
    ran = {probe["name"]: probe for probe in tried.facts.get("run", {}).get("probes", ())}
    if name not in told or name not in ran:
        return "not tried"
    if told[name]["state"] == "unavailable" and not judge.can_run(tried.kernel, name):
        return f"needs {'.'.join(map(str, judge.NEEDS[name]))}"
    if told[name]["state"] != "available" or ran[name]["state"] != "ran":
        return "**no**"
    return _LISTED if _is_listed(ran[name]) else "yes"


def _is_listed(probe: Mapping[str, str]) -> bool:
    return probe["name"] == "tcp_snapshot" and "sock_diag" in probe["reason"]


def _verdict_cell(tried: Tried, check: str) -> str:
    facts = tried.facts.get(check)
    if facts is None:
        return "not tried"
    if judge.problems(tried.kernel, facts):
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
    found = [problem for tried in tries for problem in tried.problems()]
    if not found:
        return []
    return ["## What went wrong", "", *(f"- {' '.join(problem.split())}" for problem in found), ""]
