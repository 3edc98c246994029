"""docs/containers.md: what works in which container, made of the facts that were kept.

A container and a check that were not tried again keep what came of them last.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.containers import judge
from tests.containers.surroundings import SURROUNDINGS, Surroundings

PROJECT = Path(__file__).resolve().parents[2]
FACTS = Path(__file__).with_name("facts.jsonl")
"""A line for each container and check: what came of it last."""

_HEAD = """\
# Containers

connscope is tried in containers of each kind, made with `unshare`, `setpriv` and control groups
over this project's own checkout, without a container engine. `make test-containers` makes them,
keeps what came of it in `tests/containers/facts.jsonl` and writes this page. What a container must
be given: [In a container](how-to/container.md).

*Every probe* means that all of them ran to the end of the run or watch; *but N* that N could not,
said with the reason and with what would let them. A run is 1,000 connections of our own server, and
a server that is watched from the host runs out of descriptors in its container.

"""
_COLUMNS = {
    "doctor": "`profile-doctor`",
    "run": "1,000 connections",
    "server-cmd": "`--server-cmd` (asyncio)",
    "attach": "`profile-attach` (node)",
    "fd-limit-process": "`fd-limit-process`",
    "watched": "watched from the host",
}

Rows = Mapping[tuple[str, str], judge.Facts]


def keep(
    where: Surroundings, tried: Iterable[Mapping[str, Any]], commit: str, path: Path = FACTS
) -> None:
    """Replaces what is kept of the checks that were tried.

    Args:
        where: In which container.
        tried: Their facts.
        commit: Of connscope.
        path: The file.
    """
    rows = kept(path)
    for facts in tried:
        who = {"container": where.key, "kernel": platform.release(), "commit": commit}
        rows[where.key, facts["check"]] = {**who, **_brief(facts)}
    order = {each.key: index for index, each in enumerate(SURROUNDINGS)}
    columns = list(_COLUMNS)
    chosen = sorted(rows, key=lambda key: (order[key[0]], columns.index(key[1])))
    text = "".join(json.dumps(rows[key]) + "\n" for key in chosen)
    path.write_text(text.replace(f"{PROJECT}/", ""))  # where it was tried is nobody's business


def _brief(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Of a probe that ran its name alone."""
    if "probes" not in facts:
        return dict(facts)
    probes = [
        {name: probe[name] for name in ("name", "state", "reason", "fix") if probe.get(name)}
        for probe in facts["probes"]
    ]
    return {**facts, "probes": [{"reason": "", **probe} for probe in probes]}


def kept(path: Path = FACTS) -> dict[tuple[str, str], judge.Facts]:
    """What came of each container and check last."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return {(row["container"], row["check"]): row for row in rows}


def page(rows: Rows) -> str:
    """The page."""
    table = [["", *_COLUMNS.values()]]
    table.append(["---"] * len(table[0]))
    for where in SURROUNDINGS:
        cells = [_cell(where, rows.get((where.key, check))) for check in _COLUMNS]
        table.append([f"{where.key}: {where.what}", *cells])
    kernels = sorted({row["kernel"] for row in rows.values()})
    commits = sorted({row["commit"] for row in rows.values()})
    lines = [
        *(f"| {' | '.join(cells)} |" for cells in table),
        "",
        f"Tried on Linux {', '.join(kernels)}; commits {', '.join(commits)}.",
        "",
        *_reasons(rows),
        *_unexplained(rows),
    ]
    return _HEAD + "\n".join(lines).rstrip() + "\n"


def _cell(where: Surroundings, facts: judge.Facts | None) -> str:
    if facts is None:
        return "not tried"
    if judge.problems(where, facts):
        return "**no**"
    if "probes" not in facts:
        return "refused"
    missing = _missing(facts)
    probes = f"all but {len(missing)} probes" if missing else "every probe"
    if len(missing) == 1:
        probes = f"all but `{missing[0]['name']}`"
    wanted = facts["check"] if facts["check"] == "fd-limit-process" else ""
    return f"named, {facts['confidence']} confidence; {probes}" if wanted else probes


def _missing(facts: judge.Facts) -> list[Mapping[str, str]]:
    return [
        probe for probe in facts.get("probes", ()) if probe["state"] not in ("ran", "available")
    ]


def _reasons(rows: Rows) -> list[str]:
    """What did not run where, and what would let it, as profile-doctor said, or else the run."""
    lines = ["## What cannot run, and what would let it", ""]
    for where in SURROUNDINGS:
        facts = rows.get((where.key, "doctor"), {})
        if "probes" not in facts and facts.get("stderr"):
            lines.append(f"- {where.key}: {' '.join(facts['stderr'].split())}")
        said: dict[tuple[str, str], list[str]] = {}
        known = {probe["name"] for probe in _missing(facts)}
        run = _missing(rows.get((where.key, "run"), {}))
        for probe in (*_missing(facts), *(each for each in run if each["name"] not in known)):
            said.setdefault((probe["reason"], probe.get("fix", "")), []).append(probe["name"])
        for (reason, fix), names in said.items():
            listed = ", ".join(f"`{name}`" for name in names)
            lines.append(f"- {where.key}: {listed}: {reason}" + (f"; {fix}" if fix else ""))
    return [*lines, ""]


def _unexplained(rows: Rows) -> list[str]:
    found: Sequence[str] = [
        f"{where.key}: {check}: {problem}"
        for where in SURROUNDINGS
        for check in _COLUMNS
        if (where.key, check) in rows
        for problem in judge.problems(where, rows[where.key, check])
    ]
    if not found:
        return []
    return ["## What went wrong", "", *(f"- {' '.join(problem.split())}" for problem in found), ""]
