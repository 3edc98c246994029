"""``full-worker-on-shared-listener``: one worker is full while its sibling has room.

Proof: workers that accept from one listener, descriptors of each at the first EMFILE, and clients
that were reset or sent away while another worker still had room: the connections in all workers
were then fewer than the sum of their limits.
Told apart from ``fd-limit-process`` by that sum: this finding is there only as long as somebody
had room. From a full worker that leaves the listener or spins on it: there the sibling gets what
the full one does not take, and nobody is sent away.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.causes import Cause, Effect
from analysis.evidence import Evidence, Finding, Fix, capitalised
from analysis.server.nofile_setting import lasting_limit_command
from analysis.signs import watched_full_worker
from analysis.signs.signs import EMFILE, Signs

CAUSE = Cause(
    id="full-worker-on-shared-listener",
    line="one worker is full while its sibling has room",
    follows_from=(Effect.FILLS_DESCRIPTORS,),
)

_ROOM_PART = 0.01
"""Room that is certain although counts are interpolated: this part of a worker's capacity."""


class _Full(NamedTuple):
    """The worker that was full first.

    Attributes:
        pid: Its pid.
        full_s: Its first EMFILE.
        until_s: When the last sibling was full too; the stop when some never was.
        open_counts: Connections by pid at full_s.
        capacities: Connections that each can hold, by pid.
        refused: Connections that were sent away until then.
    """

    pid: int
    full_s: float
    until_s: float
    open_counts: dict[int, int]
    capacities: dict[int, int]
    refused: pd.DataFrame


def find(signs: Signs) -> list[Finding]:
    """One finding about the worker that was full first, or none."""
    if signs.view.is_attached:
        return watched_full_worker.find(signs)
    full = _full(signs)
    return [_finding(signs, full)] if full is not None else []


def _full(signs: Signs) -> _Full | None:
    view = signs.view
    if not str(view.settings.get("accept") or "").startswith("shared"):
        return None
    workers = signs.descriptors[signs.descriptors["role"] == "server"]
    emfile = signs.accept_errors(EMFILE, role="server")
    if len(workers) < 2 or emfile.empty:
        return None
    first = emfile.sort_values("first_s", kind="stable").iloc[0]
    pid, full_s = int(first["pid"]), float(first["first_s"])
    capacities = {int(p): int(c) for p, c in _pairs(workers, "capacity_count")}
    counts = _open_counts(signs, pid, full_s, capacities)
    roomy = [p for p, c in capacities.items() if p != pid and counts[p] < c - _margin_count(c)]
    if not roomy:
        return None
    moments = {int(row["pid"]): float(row["first_s"]) for row in emfile.to_dict("records")}
    until_s = max(min(moments.get(each, np.inf), view.stop_s) for each in roomy)
    connections = view.connections
    refused = connections[
        connections["is_failed"]
        & (connections["stage"] == "handshake")
        & connections["close_kind"].isin(["rst", "eof"])
        & connections["closed_s"].between(full_s - 0.01, until_s)
    ]
    if refused.empty:
        return None
    return _Full(pid, full_s, until_s, counts, capacities, refused)


def _pairs(frame: pd.DataFrame, column: str) -> list[tuple[int, int]]:
    return [(int(row["pid"]), int(row[column])) for row in frame.to_dict("records")]


def _margin_count(capacity_count: int) -> int:
    return max(2, int(_ROOM_PART * capacity_count))


def _open_counts(
    signs: Signs, full_pid: int, at_s: float, capacities: dict[int, int]
) -> dict[int, int]:
    """Connections of each worker at the moment when one was full.

    The full one holds its capacity, and all together what the clients' records say to the
    microsecond; what is left is divided over the others as the samples around that moment show
    them, since a fast ramp is over between two samples.
    """
    capacity = capacities.get(full_pid, 0)
    left = max(0, signs.view.open_count_at(at_s) - capacity)
    others = {pid: _sampled_at(signs, pid, at_s) for pid in capacities if pid != full_pid}
    whole = sum(others.values())
    counts = {full_pid: capacity}
    for pid, sampled in others.items():
        part = sampled / whole if whole else 1 / len(others)
        counts[pid] = min(capacities[pid], round(left * part))
    return counts


def _sampled_at(signs: Signs, pid: int, at_s: float) -> float:
    """Connections of a worker between the samples before and after."""
    live = signs.view.frames["live_samples"]
    mine = live[live["pid"] == pid]
    if mine.empty:
        return 0.0
    return float(np.interp(at_s, signs.view.seconds_of(mine["at_ns"]), mine["open_count"]))


def _finding(signs: Signs, full: _Full) -> Finding:
    view = signs.view
    subject = view.subject(full.pid)
    name = capitalised(str(subject))
    capacity = full.capacities[full.pid]
    total, sum_of_limits = sum(full.open_counts.values()), sum(full.capacities.values())
    siblings = sorted(
        (p for p in full.capacities if p != full.pid), key=lambda p: full.open_counts[p]
    )
    roomiest = siblings[0]
    sent_away = len(full.refused)
    resets = int((full.refused["close_kind"] == "rst").sum())
    evidence = (
        Evidence("process_connections", capacity, "live_samples", full.full_s),
        Evidence(
            "process_connections",
            full.open_counts[roomiest],
            "live_samples",
            full.full_s,
            of=str(view.subject(roomiest)),
        ),
        Evidence("all_workers_connections", total, "live_samples", full.full_s),
        Evidence("all_workers_capacity", sum_of_limits, "processes"),
        Evidence("sent_away", sent_away, "connections", float(full.refused["closed_s"].min())),
        Evidence("sent_away_by_rst", resets, "connections"),
    )
    confidence, missing = signs.trust("failing_syscalls", "live_samples")
    wanted = max(view.target_count, total)
    room = full.capacities[roomiest] - full.open_counts[roomiest]
    share = capacity / max(1, total)
    needed = int(np.ceil(1.05 * share * wanted)) + 64
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side="server",
        subject=subject,
        first_s=full.full_s,
        last_s=max(full.full_s, float(full.refused["closed_s"].max())),
        evidence=evidence,
        explanation=(
            f"All workers accept from one listener. {name} was full with {capacity:,} connections "
            f"while worker {view.subject(roomiest).worker} had room for {room:,} more: {total:,} "
            f"of the {sum_of_limits:,} that all can hold were open. A full worker that goes on "
            f"taking connections from the listener takes them from its sibling: {sent_away:,} "
            f"clients were sent away, {resets:,} of them with ECONNRESET."
        ),
        fix=(
            Fix(
                "profile-run --at-fd-limit pause  # leave the shared listener when full, come back "
                "when a descriptor is freed",
                f"the {sent_away:,} refused connections go to the worker with room; the ceiling "
                f"moves from {total:,} to {sum_of_limits:,} connections",
            ),
            Fix(
                lasting_limit_command(view, subject.pid, max(65_535, needed)),
                f"no worker is full at a share of {100 * share:.0f} % of {wanted:,} connections",
            ),
            Fix(
                "profile-run --accept handoff",
                f"connections are spread evenly: no worker is full before {sum_of_limits:,}",
            ),
        ),
        at_connections=view.open_count_at(full.full_s),
        confidence=confidence,
        missing=missing,
        sentence=f"{name} was full with {capacity:,} connections and sent {sent_away:,} more away "
        f"while worker {view.subject(roomiest).worker} of the same listener had room for {room:,}",
        explained_count=sent_away,
    )
