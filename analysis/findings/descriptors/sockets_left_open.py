"""``sockets-left-open``: the server keeps sockets whose clients have left.

Proof: sockets of a watched process in CLOSE_WAIT (its peer has closed, it has not; RFC 9293 section
3.3.2) that were more at each of three looks in a row, and a tenth of all that it has. Who closes
when its client does has some for milliseconds.
Told apart from ``fd-limit-process``: its descriptors are not used up yet; once they are, that is
the cause, and says that they leaked. From ``worker-blocked`` and others that keep a server from
serving: there the clients left since nobody answered, and this follows.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from analysis.causes import Cause, Effect
from analysis.evidence import Evidence, Finding, Fix, capitalised
from analysis.frames.run_view import RunView
from analysis.server import fates
from analysis.signs.full_processes import full_processes
from analysis.signs.signs import Signs
from probes.contract.schema import SERVER_ROLES

CAUSE = Cause(
    id="sockets-left-open",
    line="the server keeps sockets whose clients have left",
    follows_from=(Effect.STOPS_SERVING, Effect.SLOWS_ACCEPT),
)

_LEAST_COUNT, _LEAST_LOOKS = 20, 3
_LEAST_SHARE_PCT = 10.0

CLOSE_THEM = Fix(
    "close each socket when its client has: when recv returns nothing, and in the handlers of end, "
    "close and error",
    "descriptors come back; a higher limit is only met later",
)


@dataclass(frozen=True, slots=True)
class _Leak:
    pid: int
    count: int
    share_pct: float
    rate_per_s: float
    looks_count: int
    first_s: float
    last_s: float


def find(signs: Signs) -> list[Finding]:
    """One finding for each process of a watched server that forgets its sockets."""
    view = signs.view
    if not view.is_attached:
        return []
    full = full_processes(signs, SERVER_ROLES)
    full_pids = set(full["pid"]) if len(full) else set()
    return [_finding(signs, leak) for leak in _leaks(view) if leak.pid not in full_pids]


def _leaks(view: RunView) -> list[_Leak]:
    looks = fates.before_stop(view, "open_fates")
    looks = looks[(looks["fate"] != "unaccepted") & (looks["left_count"] >= 0)]
    whose = looks["pid"].map(lambda pid: _who_forks(view, int(pid)))
    found = []
    for pid, mine in looks.groupby(whose):
        by_look = mine.groupby("at_s")[["left_count", "socket_count"]].sum()
        leak = _growing(int(str(pid)), by_look)
        if leak is not None:
            found.append(leak)
    return found


def _who_forks(view: RunView, pid: int) -> int:
    """Who started a process that has one connection, else that process."""
    acceptors = view.pids_of("acceptor")
    is_one = fates.is_process_per_connection(view, pid)
    return acceptors[0] if is_one and len(acceptors) == 1 else pid


def _growing(pid: int, by_look: pd.DataFrame) -> _Leak | None:
    """The last looks, at each of which there were more than at the one before."""
    counts = [int(each) for each in by_look["left_count"]]
    begin = len(counts) - 1
    while begin > 0 and counts[begin - 1] < counts[begin]:
        begin -= 1
    row = by_look.iloc[begin:]
    if len(row) < _LEAST_LOOKS or counts[-1] - counts[begin] < _LEAST_COUNT:
        return None
    share_pct = 100 * counts[-1] / max(1, int(row["socket_count"].iloc[-1]))
    if share_pct < _LEAST_SHARE_PCT:
        return None
    first_s, last_s = float(row.index[0]), float(row.index[-1])
    rate = (counts[-1] - counts[begin]) / max(0.1, last_s - first_s)
    return _Leak(pid, counts[-1], share_pct, rate, len(row), first_s, last_s)


def _finding(signs: Signs, leak: _Leak) -> Finding:
    view = signs.view
    subject = view.subject(leak.pid)
    name = capitalised(str(subject)) if leak.pid else "The server"
    evidence = [
        Evidence("left_sockets", leak.count, "open_fates", leak.last_s),
        Evidence("left_share", leak.share_pct, "open_fates", leak.last_s),
        Evidence("left_growth", leak.rate_per_s, "open_fates", leak.first_s),
        Evidence("left_looks", leak.looks_count, "open_fates", leak.first_s),
    ]
    wall = ""
    own = signs.descriptors[signs.descriptors["pid"] == leak.pid]
    if len(own):
        soft, capacity = int(own["soft_count"].iloc[0]), int(own["capacity_count"].iloc[0])
        left_s = max(0.0, capacity - float(own["peak_count"].iloc[0])) / leak.rate_per_s
        evidence += [
            Evidence("descriptor_limit", soft, "processes"),
            Evidence("time_to_wall", left_s, "open_fates", leak.last_s),
        ]
        wall = f"; its {soft:,} descriptors are used up {_span(left_s)} later at that rate"
    confidence, missing = signs.trust("open_fates")
    sentence = (
        f"{name} kept {leak.count:,} sockets whose clients had left (CLOSE_WAIT), "
        f"{leak.share_pct:.0f} % of those that it had, {leak.rate_per_s:.1f} more a second{wall}"
    )
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side="server",
        subject=subject,
        first_s=leak.first_s,
        last_s=leak.last_s,
        evidence=tuple(evidence),
        explanation=(
            f"{sentence}. They were more at each of {leak.looks_count} looks in a row: it does not "
            "close them, and any limit is met in the end."
        ),
        fix=(CLOSE_THEM,),
        at_connections=view.open_count_at(leak.last_s),
        confidence=confidence,
        missing=missing,
        sentence=sentence,
    )


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7_200 else f"{seconds / 3_600:.0f} h"
