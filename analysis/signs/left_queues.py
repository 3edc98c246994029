"""Accept queues in which connections stand while their owner takes some and sleeps. Pure.

A loop that is told of a waiting connection as long as one waits never sleeps while one does. One
that does is told only once (EPOLLET) and took one of several, or it paces itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from analysis.server import fates
from analysis.server.thread_waits import accepts_to_the_end, some_thread_polls
from analysis.signs.limit_met import is_free, is_harmed_by_waiting, met_limits
from analysis.signs.listen_queues import full_pids
from analysis.signs.signs import Signs
from analysis.stats.remembered import remembered


@dataclass(frozen=True, slots=True)
class LeftQueue:
    """A queue in which connections stood for a second and more while its owner slept.

    Attributes:
        pid: Who took most of it.
        port: Of the listener.
        count: Connections that stood in it, at most.
        quiet_count: Of them those that had been there for a second, at most.
        looks_count: Looks in a row at which it stood.
        taken_count: Connections that its owners took meanwhile.
        is_told_once: Its owner watches the listener with EPOLLET.
        first_s: First of these looks.
        last_s: Last one.
    """

    pid: int
    port: int
    count: int
    quiet_count: int
    looks_count: int
    taken_count: int
    is_told_once: bool
    first_s: float
    last_s: float


@remembered
def left_queues(signs: Signs) -> list[LeftQueue]:
    """All such queues of a server that is not ours, the longest first."""
    view = signs.view
    if not view.is_foreign or not is_harmed_by_waiting(signs):
        return []
    looks = fates.before_stop(view, "open_fates")
    waiting = looks[looks["fate"] == "unaccepted"]
    stands = waiting[waiting["quiet_count"] >= fates.LEAST_COUNT]
    found = []
    for port, mine in stands.groupby("local_port"):
        queue = _left_queue(signs, int(str(port)), _longest_row(looks, mine))
        if queue is not None:
            found.append(queue)
    return sorted(found, key=lambda each: -each.count)


def _longest_row(looks: pd.DataFrame, mine: pd.DataFrame) -> pd.DataFrame:
    """Of the looks at which a queue stood the longest series without another in between."""
    in_a_row = fates.looks_in_a_row(looks, set(mine["at_s"]))
    return mine[mine["at_s"].isin(in_a_row)].sort_values("at_s", kind="stable")


def _left_queue(signs: Signs, port: int, mine: pd.DataFrame) -> LeftQueue | None:
    view = signs.view
    if len(mine) < fates.STANDING_LOOKS:
        return None
    first_s, last_s = float(mine["at_s"].iloc[0]), float(mine["at_s"].iloc[-1])
    watches = view.frames["listener_watches"]
    watches = watches[watches["local_port"] == port]
    owners = [int(pid) for pid in watches["pid"].unique()] or fates.owners_of_port(view, port)
    if not owners or not all(_sleeps(signs, pid, first_s, last_s) for pid in owners):
        return None
    if not full_pids(signs).isdisjoint(owners):
        return None  # who has no descriptor left sleeps between two tries to accept
    since_s = first_s - fates.QUIET_S
    taken = sum(signs.established_between(pid, since_s, last_s) or 0 for pid in owners)
    if taken and all(fates.keeps_its_number(view, pid, since_s, last_s) for pid in owners):
        return None  # it takes one for each that leaves
    is_told_once = len(watches) > 0 and bool((watches["watch"] == "edge").all())
    is_told_once &= not any(accepts_to_the_end(view, pid) for pid in owners)
    counts = mine["socket_count"]
    has_grown = int(counts.iloc[-1]) > int(counts.iloc[0])
    before_s = float(mine["at_s"].iloc[-2])
    if not is_told_once and not any(
        signs.established_between(pid, before_s, last_s) for pid in owners
    ):
        return None  # it took some, slowly, and then nobody any more
    if not taken and (has_grown or _is_limited(signs, owners)):
        return None  # who takes nobody has a limit of its own, unless nobody came
    return LeftQueue(
        pid=max(owners, key=lambda pid: (fates.let_in_count(view, pid), -pid)),
        port=port,
        count=int(counts.max()),
        quiet_count=int(mine["quiet_count"].max()),
        looks_count=len(mine),
        taken_count=taken,
        is_told_once=is_told_once,
        first_s=first_s,
        last_s=last_s,
    )


def _sleeps(signs: Signs, pid: int, first_s: float, last_s: float) -> bool:
    """It waited for events at most looks, and could have served."""
    return some_thread_polls(signs.view, pid) and is_free(signs, pid, first_s, last_s)


def _is_limited(signs: Signs, pids: list[int]) -> bool:
    """One of them let nobody in although clients came: a limit of its own beyond doubt."""
    if signs.view.is_attached:
        return False
    return any(met.pid in pids and not met.doubt for met in met_limits(signs))
