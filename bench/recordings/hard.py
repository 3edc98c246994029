"""Hard rows: which there are, and what is kept of their runs (``bench/hard.toml``, ``hard.jsonl``).

Two faults at once; a fault beside a louder innocent; a load that changes; probes that are missing;
1, 2 and 16 workers; other people's runtimes and proxies; and healthy runs of each. What is kept of
a run is its label, the harm that was done (``harm.py``) and what the verdict said: a line each, so
that the score needs no recording.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.recordings import label
from bench.recordings.catalogue import Recording, recording_of
from bench.recordings.harm import lacking
from bench.recordings.label import Label
from bench.recordings.scoring import Case
from harness.matrix import scenario
from harness.matrix.scenario import is_of_others
from probes.contract.errors import RunDirError

ROWS = Path(__file__).parents[1] / "hard.toml"
KEPT = Path(__file__).parents[1] / "hard.jsonl"
NEIGHBOURS = ("burner", "conntrack", "disk", "oom")
"""Of ``tests/neighbours``; each prints when its effect is there, and how often it had it."""

CROWDED = "host-cpu-saturated"
_VERDICT = ("cause", "side", "confidence")
_FINDING = ("cause", "severity", "side", "subject", "follows_from", "confidence")


@dataclass(frozen=True, slots=True)
class HardRow:
    """One row.

    Attributes:
        recording: How it is played, and its label.
        beside: Neighbours with their arguments.
        harm: The least harm that it is to do, by kind (``harm.KINDS``, ``errno.N``, ``end.KIND``).
    """

    recording: Recording
    beside: tuple[tuple[str, ...], ...]
    harm: Mapping[str, int]

    @property
    def id(self) -> str:
        """``group/name``."""
        return self.recording.id


@dataclass(frozen=True, slots=True)
class HardRun:
    """What is kept of a run.

    Attributes:
        label: What was provoked.
        wanted: The least harm of its row.
        harm: What was done.
        found: What the verdict said, as far as it is scored.
    """

    label: Label
    wanted: Mapping[str, int]
    harm: Mapping[str, int]
    found: Mapping[str, Any]

    @property
    def lacking(self) -> list[str]:
        """Harm that did not appear: such a run proves nothing."""
        return lacking(self.wanted, self.harm)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":"))


def rows(path: Path = ROWS) -> list[HardRow]:
    """All of them, in the order to show."""
    return [_row(each) for each in scenario.load(str(path)).rows]


def _row(row: scenario.Row) -> HardRow:
    group = label.HARD[str(row.extra["group"])]
    return HardRow(
        recording=recording_of("hard", row, group),
        beside=tuple(tuple(map(str, each)) for each in row.extra.get("beside", ())),
        harm={str(kind): int(least) for kind, least in row.extra.get("harm", {}).items()},
    )


def kept(document: Mapping[str, Any]) -> dict[str, Any]:
    """What of ``examine`` is scored, without the numbers of the evidence.

    That processes beside the run had a good part of the cores is true of the machine at that
    moment, and belongs to no row: it is kept as ``is_crowded``, and not among the findings.
    """
    findings = document["findings"]
    crowded = [each for each in findings if each["cause"] == CROWDED and is_of_others(each)]
    return {
        "exit_code": document["exit_code"],
        "verdict": {key: document["verdict"][key] for key in _VERDICT},
        "findings": [
            {key: each[key] for key in _FINDING} for each in findings if each not in crowded
        ],
        "is_crowded": bool(crowded),
        "grounding": document["grounding"],
    }


def read(path: Path = KEPT) -> list[HardRun]:
    """The runs that are kept.

    Raises:
        RunDirError: A line is none of ours.
    """
    if not path.exists():
        return []
    runs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            raw = json.loads(line)
            runs.append(
                HardRun(label.of_document(raw["label"]), raw["wanted"], raw["harm"], raw["found"])
            )
        except (ValueError, KeyError, TypeError) as error:
            raise RunDirError(
                f"{path}, line {number} is no run of a hard row: {error}",
                fix=f"git checkout {path}",
            ) from error
    return runs


def cases(runs: Iterable[HardRun]) -> list[Case]:
    """Those whose harm appeared, to be scored."""
    return [Case(run.label, run.found) for run in runs if not run.lacking]


def left_out(runs: Sequence[HardRun]) -> list[str]:
    """Those whose harm did not appear, for people."""
    return [f"{run.label.id}: {', '.join(run.lacking)}" for run in runs if run.lacking]
