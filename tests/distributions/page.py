"""docs/distributions.md: what ``make run`` comes to from nothing, made of facts that are kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probes.collect.registry import PROBES
from tests.distributions.roots import DISTRIBUTIONS

FACTS = Path(__file__).with_name("facts.jsonl")
"""A line for each distribution: what came of it last."""

_HEAD = """\
# Distributions

`make test-distributions` takes the smallest root file system of each distribution (debootstrap),
installs `make` in it and runs `make run CONNECTIONS=1000` with every probe: set-up, the
distribution's own Python, bcc and LLVM, over the kernel of the machine that tries it. The compiler
decides how wide a load is and in which order loads come, and with that whether a kernel takes a
program. Other kernels: [Kernels](kernels.md).

"""
_TAIL = """
`make test` was not tried in these roots. Fedora, openSUSE, Arch and Alpine: the set-up and
`profile-doctor` say what is missing and the command that gets it, and install nothing; no run was
tried there. The words are tested with the os-release(5) of each.
"""

Facts = Mapping[str, Any]


def problems(facts: Facts) -> list[str]:
    """What is not as it should be."""
    if "error" in facts:
        return [" ".join(str(facts["error"]).split())]
    found = [
        f"{probe['name']}: {probe['state']}: {probe['reason']}"
        for probe in facts["probes"]
        if probe["state"] != "ran"
    ]
    found += [
        f"{name}: it is not told what it did"
        for name in sorted({*PROBES} - {probe["name"] for probe in facts["probes"]})
    ]
    if facts["cause"] != "reached" or facts["exit"]:
        found.append(f"exit {facts['exit']}, the verdict is {facts['cause']}: {facts['sentence']}")
    return found


def keep(key: str, facts: Facts, *, kernel: str, commit: str, path: Path = FACTS) -> None:
    """Replaces what is kept of a distribution.

    Args:
        key: Of the distribution.
        facts: What came of it.
        kernel: Release of the kernel that it ran on.
        commit: Of connscope.
        path: The file.
    """
    rows = dict(kept(path))
    rows[key] = {"distribution": key, "kernel": kernel, "commit": commit, **facts}
    order = [each.key for each in DISTRIBUTIONS]
    chosen = sorted(rows.values(), key=lambda row: order.index(row["distribution"]))
    path.write_text("".join(json.dumps(row) + "\n" for row in chosen))


def kept(path: Path = FACTS) -> dict[str, Facts]:
    """What came of each distribution last."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {row["distribution"]: row for row in map(json.loads, lines)}


def page(rows: Mapping[str, Facts]) -> str:
    """The page."""
    lines = [
        "| distribution | Python | bcc | LLVM | kernel | what came of it | commit |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(_row(each.key, rows.get(each.key)) for each in DISTRIBUTIONS),
    ]
    wrong = [
        f"- {key}: {problem}"
        for key, facts in rows.items()
        for problem in map(_on_one_line, problems(facts))
    ]
    if wrong:
        lines += ["", "## What went wrong", "", *wrong]
    return _HEAD + "\n".join(lines) + "\n" + _TAIL


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


def _row(key: str, facts: Facts | None) -> str:
    if facts is None:
        return f"| {key} | | | | | not tried | |"
    versions = facts.get("versions", {})
    llvm = next((name for name in versions if name.startswith("llvm")), "")
    cells = [
        key,
        versions.get("python", ""),
        versions.get("bpfcc", ""),
        versions.get(llvm, ""),
        facts["kernel"],
        "**no**" if problems(facts) else f"every probe ran, in {facts['seconds']} s from nothing",
        facts["commit"],
    ]
    return f"| {' | '.join(cells)} |"
