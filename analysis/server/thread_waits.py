"""What the threads of a server wait for while its connections do not get through.

Frames in, small records out; ``own-limit``, ``waits-for-slot`` and ``upgrade-unanswered`` share it.
Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from analysis.frames.run_view import RunView
from analysis.server.fates import LEAST_COUNT, Stuck, before_stop

THREAD_KINDS = ("name_server", "remote", "unix", "own_connection", "lock", "sleep", "pipe", "call")
"""What a thread can wait for instead of serving; what tells most comes first.

A ``call`` is none of the table's kinds: one of ``_HELD_CALLS``, told by its name.
"""

_TOLD_BY_NAME = ("lock", "sleep", "pipe", "call")
"""Threads with another name wait for something else of that kind."""

_HELD_CALLS = frozenset(
    (
        *("wait4", "waitid", "flock", "fcntl", "fsync", "fdatasync", "sync_file_range", "msync"),
        *("openat", "read", "pread64", "write", "writev", "pwrite64", "sendto", "sendmsg"),
    )
)
"""Calls that last as long as somebody else, or a disk, needs."""


@dataclass(frozen=True, slots=True)
class ThreadWait:
    """What threads of a process waited for, in most looks.

    Attributes:
        kind: See the table ``thread_waits``.
        syscall: The call that they slept in.
        address: Of the other end, '' for none.
        thread_count: How many at a time (median of the looks that saw some).
        share: Part of the looks that saw some.
        is_main: The process's first thread is one of them.
        thread_name: What they are called, '' where that was not asked.
    """

    kind: str
    syscall: str
    address: str
    thread_count: int
    share: float
    is_main: bool
    thread_name: str = ""


def thread_waits(view: RunView, pid: int) -> list[ThreadWait]:
    """What the threads of a process waited for, other than work; what tells most comes first."""
    rows = before_stop(view, "thread_waits")
    rows = rows[rows["pid"] == pid]
    looks = rows["at_s"].nunique()
    is_held = (rows["waits_for"] == "other") & rows["syscall"].isin(_HELD_CALLS)
    rows = rows.assign(waits_for=rows["waits_for"].mask(is_held, "call"))
    # those of a runtime rest on locks of their own beside a pool that waits for one
    is_told = rows["waits_for"].isin(_TOLD_BY_NAME)
    rows = rows.assign(thread_name=rows["thread_name"].where(is_told, ""))
    found = []
    # a thread that accepts, and reads a request itself, is none of those that have one client each
    rows = rows.assign(accepts=rows["is_main"] & (rows["waits_for"] == "own_connection"))
    for key, mine in rows.groupby(["waits_for", "syscall", "address", "thread_name", "accepts"]):
        kind, syscall, address, name, _ = key
        if kind not in THREAD_KINDS:
            continue
        counts = mine.groupby("at_s")["thread_count"].sum()
        found.append(
            ThreadWait(
                kind=str(kind),
                syscall=str(syscall),
                address=str(address),
                thread_count=int(counts.median()),
                share=len(counts) / looks,
                is_main=bool(mine["is_main"].any()),
                thread_name=str(name),
            )
        )
    return sorted(found, key=lambda each: (THREAD_KINDS.index(each.kind), -each.thread_count))


def main_wait(view: RunView, pid: int) -> ThreadWait | None:
    """What the first thread of a process waited for in most looks, None for events or work."""
    waits = [wait for wait in thread_waits(view, pid) if wait.is_main and wait.share > _MOST_LOOKS]
    return waits[0] if waits else None


def is_held_up(view: RunView, pid: int) -> bool:
    """The first thread of a process waited for something else than events, and no other has them.

    In Go and in a JVM the first thread rests on a lock; that of httpd waits for its parent's word.
    """
    main = main_wait(view, pid)
    if main is None:
        return False
    return main.kind not in ("lock", "pipe") or not some_thread_polls(view, pid)


def some_thread_polls(view: RunView, pid: int) -> bool:
    """Some thread of a process waited for events in most looks, as Go's and the JVM's do."""
    rows = before_stop(view, "thread_waits")
    mine = rows[rows["pid"] == pid]
    looks = mine["at_s"].nunique()
    polling = mine["at_s"][mine["waits_for"] == "event_loop"].nunique()
    return looks > 0 and polling > looks / 2


def accepts_to_the_end(view: RunView, pid: int) -> bool:
    """A runtime that watches all with EPOLLET and accepts until EAGAIN: Go, tokio.

    Its first thread rests on a lock as several others of its name do, and one of them polls.
    """
    rows = before_stop(view, "thread_waits")
    mine = rows[rows["pid"] == pid]
    main = mine[mine["is_main"]]
    if main.empty or set(main["waits_for"]) - {"lock", "event_loop"}:
        return False
    alike = mine[mine["thread_name"].isin(main["thread_name"]) & ~mine["is_main"]]
    resting = alike[alike["waits_for"] == "lock"].groupby("at_s")["thread_count"].sum()
    looks = mine["at_s"].nunique()
    return some_thread_polls(view, pid) and int((resting >= _RESTING_COUNT).sum()) > looks / 2


_RESTING_COUNT = 2


def blocking_wait(view: RunView, each: Stuck) -> ThreadWait | None:
    """What keeps a process from serving the connections that it took, by what its threads wait for.

    A thread that waits for an answer of somebody else, or that one connection holds, explains it.
    Threads that wait for a lock are usually an idle pool: they do only when there is one for each
    connection that was not answered. An idle pool neither sleeps nor waits for a child, a
    pipe or a file: some threads that do are one that is all taken. None when no thread waits for
    anything but work.
    """
    waits = [wait for wait in thread_waits(view, each.pid) if wait.share >= _MOST_LOOKS]
    least = max(LEAST_COUNT, _HELD_SHARE * each.unanswered_count)
    locked_count = max(
        (wait.thread_count for wait in waits if wait.kind == "lock" and wait.thread_count >= least),
        default=0,
    )
    for wait in waits:
        if wait.kind in ("name_server", "remote") or (wait.kind == "unix" and wait.address):
            return wait
        if wait.kind == "own_connection":
            # Each thread has one that it answered, and there are others that it took and nobody
            # reads. Who takes no more has a limit of its own.
            is_pool = wait.thread_count >= _HELD_SHARE * each.answered_count > 0
            is_pool = is_pool and wait.thread_count >= locked_count  # each may have a second one
            if wait.is_main or (is_pool and each.unread_count > 0):
                return wait
        elif (each.unanswered_count or each.unread_count) and wait.kind in ("lock", "sleep"):
            # more threads than wait are those of a runtime, which rest
            is_each = least <= wait.thread_count <= max(least, _RESTING_FACTOR * each.count)
            if (is_each and each.unanswered_count >= LEAST_COUNT) or (
                each.unanswered_count and is_taken_pool(wait)
            ):
                return replace(wait, is_main=False)  # it may rest there too, and serves nobody
            if _is_one_for_each_unread(view, wait, each):
                return wait
        elif each.unanswered_count >= LEAST_COUNT and is_taken_pool(wait):
            return wait
    return None


def _is_one_for_each_unread(view: RunView, wait: ThreadWait, each: Stuck) -> bool:
    """A thread for each connection waits before it reads: no idle pool is as large by chance.

    Both may grow from look to look, and of very many threads not all are looked at.
    """
    if wait.is_main or each.unread_count < _EACH_LEAST_COUNT:
        return False
    rows = before_stop(view, "thread_waits")
    rows = rows[rows["pid"] == each.pid]
    mine = rows[(rows["syscall"] == wait.syscall) & ~rows["is_main"]]
    if wait.thread_name:  # a JVM has others, which rest
        mine = mine[mine["thread_name"] == wait.thread_name]
    fates = before_stop(view, "open_fates")
    fates = fates[(fates["pid"] == each.pid) & (fates["fate"] == "unread")]
    unread = fates.groupby("at_s")["socket_count"].sum()
    waiting = mine.groupby("at_s")["thread_count"].sum().reindex(unread.index).fillna(0)
    known = rows.groupby("at_s")["thread_count"].sum().reindex(unread.index).fillna(0)
    # of one pool some serve a connection: the others have one each, some of clients that left
    serving = rows[(rows["waits_for"] == "own_connection") & ~rows["is_main"]]
    alike = serving[serving["thread_name"] == wait.thread_name]["at_s"].nunique()
    more = _LEFT_SLACK if wait.thread_name and alike > _MOST_LOOKS * len(unread) else _EACH_SLACK
    is_close = (waiting - unread).between(-_EACH_SLACK * unread, more * unread)
    is_close |= (known >= _LOOKED_AT_COUNT) & (waiting <= unread) & (waiting >= _EACH_LEAST_COUNT)
    return bool(len(is_close)) and float(is_close.mean()) > _MOST_LOOKS


def is_taken_pool(wait: ThreadWait) -> bool:
    """Several threads that are held up by something that no idle one waits for."""
    is_held = wait.kind in ("sleep", "pipe", "call") and wait.syscall != "futex"
    return is_held and not wait.is_main and wait.thread_count >= _POOL_LEAST_COUNT


_MOST_LOOKS = 0.5
_HELD_SHARE = 0.8
_RESTING_FACTOR = 1.5
_EACH_SLACK, _EACH_LEAST_COUNT = 0.1, 20
_LEFT_SLACK = 0.4
_LOOKED_AT_COUNT = 250
"""Of a process with more threads than about so many the others are not looked at."""
_POOL_LEAST_COUNT = 3
"""One or two threads beside an event loop flush a log or keep a timer."""
