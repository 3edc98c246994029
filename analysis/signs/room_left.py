"""Whether a process that lets nobody in any more had room: nothing of the kernel's was short.

Frames in, small records out. Pure.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from analysis.evidence import Evidence
from analysis.frames.run_view import RunView
from analysis.server import fates
from analysis.server.own_limits import FD_SETSIZE
from analysis.signs.signs import EMFILE, ENFILE, Signs
from analysis.signs.used_up_calls import is_of_another_limit
from analysis.stats.thresholds import FULL_SHARE, LATE_LIVE_S

_LET_IN_SHARE = 0.1
"""Of the attempts begun after the limit was met, so many may still get in: some were on their way,
or took the place of one that left."""
_BEHIND_S = 1.0
"""What is behind may be seen to fail so long after who asks it."""
_WANTS = (EMFILE, ENFILE, errno.ENOMEM, errno.EAGAIN)  # the last of clone
ON_ITS_WAY_S = 0.1


@dataclass(frozen=True, slots=True)
class Met:
    """A process that let nobody in any more.

    Attributes:
        pid: Who.
        how: What it did with the rest, for people.
        first_s: When it began.
        last_s: When it was last seen.
        let_in: Connections that it had let in.
        evidence: What proves it.
        explained: Attempts that ended or wait so.
        sharing_count: Processes that share the listener and have stopped together, 0 for one alone.
        shared_count: Connections that they had let in together.
        is_rate: It says that its clients come too fast, not that they are too many.
        descriptors: That it had open then, where no sample says it, 0 otherwise.
        is_told: The server said so itself.
        is_sure_rate: Its answer says that it is the rate.
        tried_after: Connections that came to this process later, where that is counted, else 0.
        let_in_after: Of them those that it kept.
        after_table: Where that was counted.
        doubt: What speaks against a number of its own, for people; '' for nothing.
    """

    pid: int
    how: str
    first_s: float
    last_s: float
    let_in: int
    evidence: tuple[Evidence, ...]
    explained: int
    sharing_count: int = 0
    shared_count: int = 0
    is_rate: bool = False
    descriptors: int = 0
    is_told: bool = False
    is_sure_rate: bool = False
    tried_after: int = 0
    let_in_after: int = 0
    after_table: str = "connection_fates"
    doubt: str = ""


def unserved_count(signs: Signs) -> int:
    """Attempts that failed or waited to the end."""
    return signs.view.failed_count + signs.view.waiting_count


def _is_broken_behind(signs: Signs, each: Met) -> bool:
    """Who works behind it was short of something, or ended, by then: it has nobody to ask."""
    view = signs.view
    behind = fates.backend_pids(view)
    if view.subject(each.pid).role == "backend" or not behind:
        return False
    late_s = each.first_s + _BEHIND_S
    errors = signs.errors
    errors = errors[errors["pid"].isin(behind) & errors["errno"].isin([EMFILE, ENFILE])]
    ended = any(end.pid in behind and end.ended_s <= late_s for end in signs.process_ends)
    return ended or bool((errors["first_s"] <= late_s).any())


def held_count(view: RunView, pid: int, at_s: float) -> int:
    """Connections of clients that a watched process had at a moment, it or its children."""
    if (served := fates.served_by_children(view, pid, at_s)) > 0:
        return served
    live = view.watched_samples
    mine = live["open_count"][
        (live["pid"] == pid) & (view.seconds_of(live["at_ns"]) <= at_s + LATE_LIVE_S)
    ]
    sides = 2 if fates.backend_pids(view) and view.subject(pid).role != "backend" else 1
    return int(mine.iloc[-1]) // sides if len(mine) else 0


def is_at_select(descriptors: int) -> bool:
    """So many descriptors are all that select(2) can name."""
    return FD_SETSIZE - 3 <= descriptors <= FD_SETSIZE + 3


def descriptors_of(signs: Signs, pid: int) -> int:
    """Most descriptors that a process had open, 0 when not known."""
    samples = signs.view.frames["process_samples"]
    mine = samples["fd_count"][(samples["pid"] == pid) & (samples["fd_count"] > 0)]
    return int(mine.max()) if len(mine) else 0


def could_have(signs: Signs, each: Met) -> bool:
    """Nothing was missing that the kernel gives, and the number did not grow."""
    view = signs.view
    if _is_broken_behind(signs, each):
        return False
    errors = signs.errors
    mine = errors[(errors["pid"] == each.pid) & errors["errno"].isin(_WANTS)]
    wanted = [
        call != "connect" and not is_of_another_limit(str(call), int(code))
        for call, code in zip(mine["syscall"], mine["errno"], strict=True)
    ]
    if any(wanted):
        return False
    own = signs.descriptors[signs.descriptors["pid"] == each.pid]
    if len(own) and float(own["use"].fillna(0).max()) >= FULL_SHARE:
        return False
    if view.is_attached:
        return True
    return _is_none(*came_after(signs, each)[:2])


def came_after(signs: Signs, met: Met) -> tuple[int, int, str]:
    """Attempts begun after a limit was met, how many of them got in, and the table that says so.

    Of all clients; where siblings let in who comes to them, those that came to this process.
    """
    tried, let_in = attempts_after(signs, met.first_s)
    if _is_none(tried, let_in) or met.tried_after < fates.LEAST_COUNT:
        return tried, let_in, "connections"
    return met.tried_after, met.let_in_after, met.after_table


def _is_none(tried: int, let_in: int) -> bool:
    return let_in <= _LET_IN_SHARE * max(fates.LEAST_COUNT, tried)


def attempts_after(signs: Signs, since_s: float) -> tuple[int, int]:
    """Attempts begun after a moment, and how many of them got in."""
    connections = signs.view.connections
    later = connections[connections["start_s"] > since_s + ON_ITS_WAY_S]
    return len(later), int(later["established_s"].notna().sum())
