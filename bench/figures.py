"""Figures of one run, and medians with spread over several. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

NONE, AUTO = "none", "auto"
NODE_NONE, NODE_RR = "node-none", "node-rr"
QUIET_PCT = 10.0
"""A host that uses less, of one core, is quiet."""


@dataclass(slots=True)
class RunFigures:
    """What was measured of one run; None where it could not be.

    Attributes:
        subject: ``none`` and ``auto`` are ours with that probe set; ``node-none`` and ``node-rr``
            are Node ``ws`` by its cluster's scheduling policy.
        number: Round, from 1.
        error: Why the run has no or not all figures, '' for none.
        exit_code: Of profile-run.
        ramp_s: From the start of the ramp to the last connection established.
        established_count: Connections that opened.
        failed_count: Attempts that failed.
        held_count: Open at the end of the hold.
        lost_count: Opened and lost before the end of the hold.
        server_cpu_us: User and system time of the server's processes in the ramp, per connection.
        client_cpu_us: The same of the clients' processes.
        fleet_cpu_us: The sum of both.
        host_cpu_us: Time that all cores were busy in the ramp, per connection.
        primary_cpu_us: Node: the part of ``server_cpu_us`` that is its primary's.
        server_pss_bytes: Server processes and their parent, in the hold.
        server_rss_bytes: The same, shared pages counted in each.
        primary_pss_bytes: Node: the part that is its primary's.
        probe_pss_bytes: Probe process and its children, most of the hold's samples.
        probe_rss_bytes: The same, shared pages counted in each.
        probe_process_count: How many there were.
        probe_cpu_pct: Their CPU in the hold, 100 is one core.
        hold_host_cpu_pct: The whole host's CPU in the hold, 100 is one core.
        report_s: From the end of the run (manifest) to the report's last write.
        report_bytes: Size of report.html.
        command_s: The whole command, from its start to its exit.
        background_pct: What the host used just before the run, 100 is one core.
    """

    subject: str
    number: int
    error: str = ""
    exit_code: int | None = None
    ramp_s: float | None = None
    established_count: int | None = None
    failed_count: int | None = None
    held_count: int | None = None
    lost_count: int | None = None
    server_cpu_us: float | None = None
    client_cpu_us: float | None = None
    fleet_cpu_us: float | None = None
    host_cpu_us: float | None = None
    primary_cpu_us: float | None = None
    server_pss_bytes: int | None = None
    server_rss_bytes: int | None = None
    primary_pss_bytes: int | None = None
    probe_pss_bytes: int | None = None
    probe_rss_bytes: int | None = None
    probe_process_count: int | None = None
    probe_cpu_pct: float | None = None
    hold_host_cpu_pct: float | None = None
    report_s: float | None = None
    report_bytes: int | None = None
    command_s: float | None = None
    background_pct: float | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """Median with the lowest and highest of ``count`` values."""

    median: float
    low: float
    high: float
    count: int


def summarise(values: Iterable[float | None]) -> Spread | None:
    """Median and extremes of the values that are there; None when there are none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(statistics.median(known), min(known), max(known), len(known))


class Runs:
    """All runs of a bench, read by subject and figure."""

    def __init__(self, target_connections: int, runs: Sequence[RunFigures] = ()) -> None:
        self.target_connections = target_connections
        self.all = list(runs)

    def values(self, subject: str, figure: str) -> list[float | None]:
        """One figure of every run of a subject, in the order of the rounds."""
        return [getattr(run, figure) for run in self.all if run.subject == subject]

    def spread(self, subject: str, figure: str) -> Spread | None:
        """Median and extremes of one figure."""
        return summarise(self.values(subject, figure))

    def median(self, subject: str, figure: str) -> float | None:
        """Median of one figure."""
        spread = self.spread(subject, figure)
        return spread.median if spread else None

    def added_pct(self, figure: str) -> Spread | None:
        """What the default probe set adds to a figure, in percent of the unprofiled run.

        Taken within each pair, so that what drifts over the bench cancels.
        """
        pairs: dict[int, dict[str, float]] = {}
        for run in self.all:
            value = getattr(run, figure)
            if value is not None and run.subject in (NONE, AUTO):
                pairs.setdefault(run.number, {})[run.subject] = value
        return summarise(
            100 * (pair[AUTO] / pair[NONE] - 1)
            for pair in pairs.values()
            if len(pair) == 2 and pair[NONE] > 0
        )

    def ratio(self, subject: str, figure: str) -> float | None:
        """Median of a subject over the median of ours without probes."""
        ours, other = self.median(NONE, figure), self.median(subject, figure)
        return other / ours if ours and other is not None else None
