"""What the facts of ``tests/kernels/checks.py`` should be on a kernel, and where they are not.

Pure: facts in, sentences out. An empty list is a check that came out as it should.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from probes.collect.registry import PROBES
from tests.kernels.catalogue import Kernel

Facts = Mapping[str, Any]

NEEDS = {"skb_allocs": (6, 1)}
"""Probes that older kernels cannot carry, and the first that can."""

EXPECTED_CAUSE = {"run": "reached", "server-cmd": "reached", "attach": "no-limit-met"}


def version(kernel: Kernel) -> tuple[int, int]:
    """Major and minor."""
    major, minor = kernel.key.split(".")
    return int(major), int(minor)


def can_run(kernel: Kernel, probe: str) -> bool:
    """Whether a kernel has what a probe needs."""
    return version(kernel) >= NEEDS.get(probe, (0, 0))


def problems(kernel: Kernel, facts: Facts, probes: Collection[str] = tuple(PROBES)) -> list[str]:
    """What is not as it should be in the facts of one check.

    Args:
        kernel: Where it was made.
        facts: What it printed.
        probes: That were there when it was made.
    """
    if "error" in facts:
        return [str(facts["error"]).strip().splitlines()[-1]]
    if facts["check"] == "doctor":
        return _of_doctor(kernel, facts, probes)
    if "cause" not in facts:
        return [f"exit {facts['exit']}: {facts.get('stderr', '').strip()}"]
    return _of_verdict(kernel, facts, probes)


def _of_doctor(kernel: Kernel, facts: Facts, probes: Collection[str]) -> list[str]:
    found = []
    seen = {probe["name"]: probe for probe in facts["probes"]}
    for name in probes:
        probe = seen.get(name)
        if probe is None:
            found.append(f"{name}: not told")
        elif can_run(kernel, name) and probe["state"] != "available":
            found.append(f"{name}: {probe['state']}: {probe['reason']}")
        elif not can_run(kernel, name) and (probe["state"] != "unavailable" or not probe["fix"]):
            found.append(f"{name}: {probe['state']}, which this kernel cannot carry")
    return found


def _of_verdict(kernel: Kernel, facts: Facts, probes: Collection[str]) -> list[str]:
    check = facts["check"]
    found = [
        f"{probe['name']}: {probe['state']}: {probe['reason']}"
        for probe in facts["probes"]
        if probe["state"] != "ran" and can_run(kernel, probe["name"])
    ]
    silent = {name for name in probes if can_run(kernel, name)} if check == "run" else set()
    silent -= {probe["name"] for probe in facts["probes"]}
    found += [f"{name}: it is not told what it did" for name in sorted(silent)]
    wanted = EXPECTED_CAUSE.get(check)
    if wanted is not None and facts["cause"] != wanted:
        found.append(f"the verdict is {facts['cause']}: {facts['sentence']}")
    if wanted is None and check not in (facts["cause"], *facts["findings"]):
        found.append(f"not named; the verdict is {facts['cause']}: {facts['sentence']}")
    return found
