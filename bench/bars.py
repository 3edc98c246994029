"""What the main job must reach, and whether the runs did. Pure."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

from bench.figures import AUTO, NONE, Runs

BAR_CONNECTIONS = 120_000
"""The bars were set for this many connections."""

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "≤": operator.le,
    "<": operator.lt,
    "=": operator.eq,
}


@dataclass(frozen=True, slots=True)
class Judgement:
    """One bar beside what was measured.

    Attributes:
        what: The figure in words.
        measured: None when no run has it.
        comparison: ``≤``, ``<`` or ``=``.
        limit: In ``unit``, as ``measured``.
        unit: ``s``, ``%``, ``bytes`` or ``count``.
    """

    what: str
    measured: float | None
    comparison: str
    limit: float
    unit: str

    @property
    def verdict(self) -> str:
        """``met``, ``not met`` or ``not measured``."""
        if self.measured is None:
            return "not measured"
        return "met" if _COMPARISONS[self.comparison](self.measured, self.limit) else "not met"


def judge(runs: Runs) -> list[Judgement]:
    """Every bar; times and memory by their medians, failures and held connections by the worst."""
    ours = [run for run in runs.all if run.subject in (NONE, AUTO)]
    failed = [
        run.failed_count + (run.lost_count or 0) for run in ours if run.failed_count is not None
    ]
    held = [run.held_count or 0 for run in ours]
    medians = (runs.median(subject, "server_pss_bytes") for subject in (NONE, AUTO))
    server = [value for value in medians if value is not None]

    def added(figure: str) -> float | None:
        spread = runs.added_pct(figure)
        return spread.median if spread else None

    return [
        Judgement("failed or lost, worst run", max(failed, default=None), "=", 0, "count"),
        Judgement(
            "held to the end, worst run",
            min(held, default=None),
            "=",
            runs.target_connections,
            "count",
        ),
        Judgement("ramp, unprofiled", runs.median(NONE, "ramp_s"), "≤", 6, "s"),
        Judgement("default probes add to the ramp", added("ramp_s"), "≤", 5, "%"),
        Judgement(
            "default probes add to CPU per connection, server and clients",
            added("fleet_cpu_us"),
            "≤",
            5,
            "%",
        ),
        Judgement(
            "default probes add to CPU per connection, whole host",
            added("host_cpu_us"),
            "≤",
            5,
            "%",
        ),
        Judgement("whole command, default probes", runs.median(AUTO, "command_s"), "<", 45, "s"),
        Judgement("server processes together", max(server, default=None), "<", 100e6, "bytes"),
        Judgement(
            "probe processes together", runs.median(AUTO, "probe_pss_bytes"), "<", 300e6, "bytes"
        ),
        Judgement(
            "probe processes in the hold, of a core",
            runs.median(AUTO, "probe_cpu_pct"),
            "<",
            5,
            "%",
        ),
        Judgement("report after the end of the run", runs.median(AUTO, "report_s"), "≤", 10, "s"),
        Judgement("size of the report", runs.median(AUTO, "report_bytes"), "<", 5e6, "bytes"),
    ]
