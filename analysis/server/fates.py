"""What a server that is not ours did with the connections that it took, and what it waited for.

Frames in, small records out; the finders of ``own-limit``, ``waits-for-slot``, ``unix-queue-full``
and ``backend-unavailable`` share what is computed here. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from analysis.frames.run_view import RunView
from analysis.stats.remembered import remembered
from analysis.stats.thresholds import LATE_CPU_S
from probes.contract.schema import SERVER_ROLES

LEAST_COUNT = 5
"""Connections with one fate that are no accident."""

QUIET_S = 1.0
"""Who is counted as quiet at a look has waited since then (``open_fates.quiet_count``)."""
STANDING_LOOKS = 2
"""Looks in a row (half a second apart) in which a queue must stand."""


@dataclass(frozen=True, slots=True)
class StandingQueue:
    """A queue that stood while its owner accepted nobody, or that was full all the time.

    Attributes:
        pid: Who listens, 0 when several do or nobody knows.
        place: Port or path, for people.
        is_unix: It is a Unix socket's.
        count: Connections that waited, at most.
        backlog_count: Most that may wait, 0 when not known.
        first_s: When it was first seen to stand.
        last_s: Likewise last.
        sharing_pids: All who took connections from it, where several share the listener.
        table: Where it was seen.
        is_moving: Its owner took some meanwhile, and it filled again.
    """

    pid: int
    place: str
    is_unix: bool
    count: int
    backlog_count: int
    first_s: float
    last_s: float
    sharing_pids: tuple[int, ...] = ()
    table: str = "open_fates"
    is_moving: bool = False

    @property
    def is_full(self) -> bool:
        """It had no room: the kernel lets in one more than its backlog (sk_acceptq_is_full)."""
        return 0 < self.backlog_count <= self.count


@dataclass(frozen=True, slots=True)
class Stuck:
    """Connections that wait for a process, most of which it accepted and did not serve.

    Attributes:
        pid: The process.
        unread_count: Those whose request nobody read, at most.
        unanswered_count: Those whose request was read and not answered, at most.
        answered_count: Those that it served at that moment.
        first_s: First look that saw them.
        last_s: Last one.
        unaccepted_count: Those that stood in its queue meanwhile, at most.
    """

    pid: int
    unread_count: int
    unanswered_count: int
    answered_count: int
    first_s: float
    last_s: float
    unaccepted_count: int = 0

    @property
    def count(self) -> int:
        """All of them."""
        return self.unread_count + self.unanswered_count + self.unaccepted_count


@remembered
def peak_counts(view: RunView, *roles: str) -> pd.Series[int]:
    """The most connections that each process of these roles held at once, by pid."""
    live = view.frames["live_samples"]
    return live[live["role"].isin(roles)].groupby("pid")["open_count"].max()


def is_process_per_connection(view: RunView, pid: int) -> bool:
    """One of many that have one connection at most, which another process accepts for them."""
    return pid in _processes_of_one(view)


@remembered
def _processes_of_one(view: RunView) -> frozenset[int]:
    peaks = peak_counts(view, "server")
    ones = {int(pid) for pid in peaks[peaks <= 1].index}
    ones -= {pid for pid in ones if accepted_count(view, pid) > 0}
    accepts = any(accepted_count(view, pid) > 0 for pid in servers(view) if pid not in ones)
    if len(ones) < LEAST_COUNT or not (accepts or view.pids_of("acceptor")):
        return frozenset()
    return frozenset(ones)


@remembered
def served_by_children(view: RunView, pid: int, at_s: float) -> int:
    """Connections that children serve, one each, for the process that accepts; 0 where it has none.

    Args:
        view: The run.
        pid: Who accepts.
        at_s: The moment.
    """
    children = _processes_of_one(view)
    others = [each for each in servers(view) if each not in children]
    others = [each for each in others if view.subject(each).role != "backend"]
    if pid not in others or len(others) > 1 or not children:
        return 0
    live = view.frames["live_samples"]
    live = live[live["pid"].isin(children) & (view.seconds_of(live["at_ns"]) <= at_s)]
    latest = live.drop_duplicates("pid", keep="last")
    processes = view.frames["processes"]
    is_gone = (processes["exited_ns"] > 0) & (view.seconds_of(processes["exited_ns"]) <= at_s)
    return int(latest["open_count"][~latest["pid"].isin(processes["pid"][is_gone])].sum())


def children_begun_count(view: RunView, since_s: float, until_s: float) -> int:
    """Processes of one connection that began in a span."""
    processes = view.frames["processes"]
    mine = processes[processes["pid"].isin(_processes_of_one(view))]
    return int(pd.Series(view.seconds_of(mine["start_ns"])).between(since_s, until_s).sum())


@remembered
def accepted_count(view: RunView, pid: int) -> int:
    """Connections that a process was seen to accept, -1 when it was not watched."""
    rows = view.frames["connection_fates"]
    rows = rows[(rows["pid"] == pid) & (rows["fate"] == "accepted")]
    return int(rows["connection_total"].max()) if len(rows) else -1


def closed_count(view: RunView, pid: int, until_s: float) -> int:
    """Connections that a process was seen to accept and, up to a moment, to close, whyever."""
    rows = view.frames["connection_fates"]
    rows = rows[(rows["pid"] == pid) & (rows["fate"] != "accepted")]
    rows = rows[view.seconds_of(rows["at_ns"]) <= until_s]
    return int(rows.groupby("fate")["connection_total"].max().sum())


@remembered
def let_in_count(view: RunView, pid: int) -> int:
    """Connections that a process accepted; where nobody was watched, the most that it held."""
    if len(view.frames["connection_fates"]):
        return accepted_count(view, pid)
    live = view.frames["live_samples"]
    held = live["open_count"][live["pid"] == pid]
    return int(held.max()) if len(held) else -1


def grew_between(view: RunView, pid: int, first_s: float, last_s: float) -> bool:
    """A process had more connections at the end of a span than at its beginning."""
    live = view.frames["live_samples"]
    live = live[live["pid"] == pid]
    at_s = view.seconds_of(live["at_ns"])
    held = live["open_count"][(at_s >= first_s) & (at_s <= last_s)]
    return len(held) > 1 and int(held.iloc[-1]) > int(held.iloc[0])


@remembered
def last_accept_s(view: RunView, pid: int) -> float | None:
    """When a process last accepted a connection, None when it was not seen to."""
    rows = view.frames["connection_fates"]
    rows = rows[(rows["pid"] == pid) & (rows["fate"] == "accepted")]
    return view.seconds(int(rows["last_ns"].max())) if len(rows) else None


@remembered
def latest(view: RunView) -> pd.DataFrame:
    """Of each process the last count of each fate."""
    rows = view.frames["connection_fates"]
    rows = rows[rows["at_ns"].notna()]
    return rows.sort_values("at_ns", kind="stable").drop_duplicates(["pid", "fate"], keep="last")


@remembered
def standing_queues(view: RunView) -> list[StandingQueue]:
    """Queues of the server's listeners that stood, the longest first."""
    found = [*_standing_tcp(view), *_standing_unix(view)]
    return sorted(found, key=lambda each: -each.count)


@remembered
def _standing_tcp(view: RunView) -> list[StandingQueue]:
    looks = before_stop(view, "open_fates")
    waiting = looks[looks["fate"] == "unaccepted"]
    listeners = view.frames["listeners"].groupby("local_port")
    backlogs, inodes = listeners["backlog_count"].max(), listeners["socket_inode"].nunique()
    found = []
    for port, mine in waiting.groupby("local_port"):
        span = _standing(looks, mine, "socket_count")
        pids = owners_of_port(view, int(str(port)))
        if span is not None and (since_s := _last_taken_s(view, pids, span[1])) > span[0]:
            # it took some, slowly, before it took nobody any more
            later = mine[mine["at_s"] > since_s]
            span = _standing(looks[looks["at_s"] > since_s], later, "socket_count") or span
        if span is None:
            continue
        first_s, last_s, count = span
        # of several that share one listener all have stopped, else the queue would not stand
        serving = [each for each in pids if accepted_count(view, each) > 0]
        if len(pids) > 1 and int(inodes.get(port, 0)) != 1:
            found += _standing_of_each(view, int(str(port)))
            continue
        pid = pids[0] if len(pids) == 1 else 0
        owners = [each for each in serving or [pid] if each]
        takes = any(_accepted_between(view, each, first_s, last_s) for each in owners)
        if takes and not _is_held_at_a_number(view, owners, mine, first_s, last_s):
            continue
        if not pid and serving:
            pid = max(serving, key=lambda each: (accepted_count(view, each), -each))
        backlog = int(backlogs.get(port, 0))
        shared = tuple(serving) if len(serving) > 1 else ()
        place = f"port {port}"
        found.append(StandingQueue(pid, place, False, count, backlog, first_s, last_s, shared))
    return found


def _standing_of_each(view: RunView, port: int) -> list[StandingQueue]:
    """The same of processes that have a listener each at one port (SO_REUSEPORT)."""
    looks = before_stop(view, "listeners")
    looks = looks[looks["local_port"] == port]
    owners = view.frames["listener_owners"].groupby("socket_inode")["pid"].unique()
    found = []
    for inode, mine in looks[looks["accept_queue_count"] > 0].groupby("socket_inode"):
        pids = list(owners.get(inode, ()))
        span = _standing(looks, mine, "accept_queue_count")
        if len(pids) != 1 or span is None or _accepted_between(view, int(pids[0]), *span[:2]):
            continue
        first_s, last_s, count = span
        backlog = int(mine["backlog_count"].max())
        queue = int(pids[0]), f"port {port}", False, count, backlog, first_s, last_s
        found.append(StandingQueue(*queue, table="listeners"))
    return found


def _standing_unix(view: RunView) -> list[StandingQueue]:
    looks = before_stop(view, "unix_listeners")
    found = []
    for (pid, path), mine in looks[looks["accept_queue_count"] > 0].groupby(["pid", "path"]):
        span = _standing(looks, mine, "accept_queue_count")
        owner = int(str(pid))
        if span is None:
            continue
        first_s, last_s, count = span
        backlog = int(mine["backlog_count"].max())
        moves = _accepted_between(view, owner, first_s, last_s)
        queue = StandingQueue(
            *(owner, str(path), True, count, backlog, first_s, last_s),
            table="unix_listeners",
            is_moving=moves,
        )
        if not moves or queue.is_full:
            found.append(queue)
    return found


def looks_in_a_row(looks: pd.DataFrame, seen_s: Collection[float]) -> list[float]:
    """The longest series of looks at which something was seen, without another look in between.

    Args:
        looks: All of them (``at_s``).
        seen_s: When it was seen.
    """
    best: list[float] = []
    row: list[float] = []
    for at_s in sorted(set(looks["at_s"])):
        row = [*row, at_s] if at_s in seen_s else []
        best = row if len(row) > len(best) else best
    return best


def _standing(
    looks: pd.DataFrame, waiting: pd.DataFrame, column: str
) -> tuple[float, float, int] | None:
    """First and last look at which the queue stood, and its most; None when it only passed."""
    seen = waiting.groupby("at_s")[column].sum()
    best = looks_in_a_row(looks, seen.index)
    if len(best) < STANDING_LOOKS:
        return _stood_before(waiting, column)
    return best[0], best[-1], int(max(seen.loc[at_s] for at_s in best))


def _stood_before(waiting: pd.DataFrame, column: str) -> tuple[float, float, int] | None:
    """The last look alone, where the kernel says that those in it had waited for a second by then.

    On a host that is busy there may be no second one.
    """
    if "quiet_count" not in waiting or waiting.empty:
        return None
    last = waiting[waiting["at_s"] == waiting["at_s"].max()]
    if int(last["quiet_count"].sum()) < LEAST_COUNT:
        return None
    at_s = float(last["at_s"].iloc[0])
    return at_s - QUIET_S, at_s, int(last[column].sum())


def _last_taken_s(view: RunView, pids: Sequence[int], before_s: float) -> float:
    taken_s = [at_s for pid in pids for at_s in _accepts_s(view, pid) if at_s < before_s]
    return max(taken_s, default=float("-inf"))


def _accepted_between(view: RunView, pid: int, first_s: float, last_s: float) -> bool:
    return any(first_s < at_s < last_s - _LATE_LOOK_S for at_s in _accepts_s(view, pid))


@remembered
def _accepts_s(view: RunView, pid: int) -> list[float]:
    """When a process accepted: of each reading of the counts the last accept."""
    rows = view.frames["connection_fates"]
    rows = rows[(rows["pid"] == pid) & (rows["fate"] == "accepted")]
    return sorted(float(at_s) for at_s in view.seconds_of(rows["last_ns"]))


_LATE_LOOK_S = 0.3
"""What is accepted so short before a look may still be counted as waiting by it."""


def _is_held_at_a_number(
    view: RunView, pids: Sequence[int], waiting: pd.DataFrame, first_s: float, last_s: float
) -> bool:
    """Who accepts takes one for each that leaves: others stand in the queue for a second."""
    stood = waiting["quiet_count"][waiting["at_s"].between(first_s, last_s)]
    is_steady = len(pids) > 0 and all(
        keeps_its_number(view, each, first_s, last_s) for each in pids
    )
    return is_steady and int(stood.min()) >= LEAST_COUNT


def keeps_its_number(view: RunView, pid: int, first_s: float, last_s: float) -> bool:
    """A process had as many connections all through a span, but for one or two on their way."""
    live = view.frames["live_samples"]
    at_s = view.seconds_of(live["at_ns"])
    held = live["open_count"][(live["pid"] == pid) & (at_s >= first_s) & (at_s <= last_s)]
    least, most = (int(held.min()), int(held.max())) if len(held) > 1 else (0, 0)
    return least >= LEAST_COUNT and most - least <= _ON_THEIR_WAY_COUNT


_ON_THEIR_WAY_COUNT = 2


@remembered
def owners_of_port(view: RunView, port: int) -> list[int]:
    """Processes that own a listener of a port."""
    listeners = view.frames["listeners"]
    inodes = listeners["socket_inode"][listeners["local_port"] == port].unique()
    owners = view.frames["listener_owners"]
    pids = [int(pid) for pid in owners["pid"][owners["socket_inode"].isin(inodes)].unique()]
    if pids:
        accepting = [pid for pid in pids if accepted_count(view, pid) > 0]
        # a child inherits the listener, and serves the one connection that it was forked for
        children = _processes_of_one(view)
        return accepting or [pid for pid in pids if pid not in children] or pids
    return view.pids_of("server", "acceptor")


@remembered
def stuck(view: RunView) -> list[Stuck]:
    """Processes with connections that they accepted and did not serve, the most first."""
    looks = before_stop(view, "open_fates")
    found = []
    for pid, mine in looks[looks["pid"] > 0].groupby("pid"):
        waiting = mine[mine["fate"].isin(["unread", "unanswered"])]
        totals = waiting.groupby("at_s")["socket_count"].sum()
        if totals.empty:
            continue
        first_s, last_s = float(totals.index.min()), float(totals.index.max())
        if len(totals) < STANDING_LOOKS:
            stood = _stood_before(waiting, "socket_count")
            if stood is None:
                continue
            first_s, last_s, _ = stood
        then = _fullest_look(mine, totals)
        found.append(
            Stuck(
                pid=int(str(pid)),
                unread_count=int(then.get("unread", 0)),
                unanswered_count=int(then.get("unanswered", 0)),
                answered_count=int(then.get("answered", 0)),
                first_s=first_s,
                last_s=last_s,
            )
        )
    queues = {queue.pid: queue for queue in _standing_tcp(view) if queue.pid}
    found = [_with_queue(each, queues.pop(each.pid, None)) for each in found]
    for queue in queues.values():  # it takes none of them, so only its threads say why
        served = max(0, accepted_count(view, queue.pid))
        found.append(Stuck(queue.pid, 0, 0, served, queue.first_s, queue.last_s, queue.count))
    return sorted(found, key=lambda each: -each.count)


def _fullest_look(mine: pd.DataFrame, totals: pd.Series[int]) -> pd.Series[int]:
    """By fate, the look with the most that waited; of several that with the most answered.

    A server that answers slowly has answered nobody when as many wait as clients may try at once.
    """
    fullest = totals[totals >= totals.max()].index
    counts = mine[mine["at_s"].isin(fullest)].pivot_table(
        index="at_s", columns="fate", values="socket_count", aggfunc="sum", fill_value=0
    )
    answered = counts.get("answered")
    best = 0 if answered is None else int(answered.to_numpy().argmax())
    return counts.iloc[best]


def _with_queue(each: Stuck, queue: StandingQueue | None) -> Stuck:
    return each if queue is None else replace(each, unaccepted_count=queue.count)


@remembered
def before_stop(view: RunView, table: str) -> pd.DataFrame:
    """Rows of a table until clients were told to stop, with their moment as ``at_s``."""
    rows = view.frames[table]
    rows = rows.assign(at_s=view.seconds_of(rows["at_ns"]))
    return rows[rows["at_s"] <= view.stop_s + LATE_CPU_S]


def backend_pids(view: RunView) -> list[int]:
    """Processes that work behind those that hold the clients."""
    return view.pids_of("backend")


@remembered
def servers(view: RunView) -> list[int]:
    """All processes of the server's side."""
    return view.pids_of(*SERVER_ROLES)


def busiest_front(view: RunView) -> int:
    """Of the processes that clients come to the one that accepted most, the first when not known.

    A child that a server forks for a connection has its listener for a moment, until it executes
    another program.
    """
    return max(view.pids_of("server"), key=lambda pid: accepted_count(view, pid), default=0)


@remembered
def refused(view: RunView) -> pd.DataFrame:
    """Connections whose clients got another answer than the upgrade, or a broken one."""
    connections = view.connections
    return connections[connections["is_failed"] & (connections["close_kind"] == "protocol")]


def refusals_told(view: RunView) -> list[str]:
    """What clients told of answers instead of the upgrade: ``HTTP 503: ...``; a few of each."""
    events = view.frames["events"]
    return [str(detail) for detail in events[events["event"] == "upgrade_refused"]["detail"]]


def closers(view: RunView) -> dict[int, int]:
    """Processes that closed connections which they had answered and whose clients were there."""
    rows = latest(view)
    rows = rows[rows["fate"] == "closed_answered"]
    return {int(pid): int(n) for pid, n in zip(rows["pid"], rows["connection_total"], strict=True)}


def closer_of(view: RunView, count: int) -> int:
    """Who closed so many open connections first, 0 when that is not known.

    Of a proxy and what is behind it the deepest.
    """
    most = closers(view)
    pids = [pid for pid, closed in most.items() if 2 * closed >= count]
    if not pids and sum(most.values()) >= count // 2 and most:  # workers that share the load
        pids = [max(most, key=lambda pid: most[pid])]
    found = deepest(view, pids)
    if found:
        return max(found, key=lambda pid: most[pid])
    fronts = view.pids_of("server")
    return fronts[0] if len(fronts) == 1 else 0


def deepest(view: RunView, pids: Iterable[int]) -> list[int]:
    """Of several processes those that work behind the others, where there are any.

    A proxy waits because what is behind it does.
    """
    some = list(pids)
    behind = [pid for pid in backend_pids(view) if pid in some]
    return behind or some
