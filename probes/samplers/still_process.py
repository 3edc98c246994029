"""Tells when the event loop of a process that is not ours stands still, from outside.

Its main thread sleeps, and not in the call in which an event loop waits for events. That is so for
two looks in a row, with none of the poll between them. A process whose main thread was never seen
to poll may have its loop in another thread, or be the parent of the workers that have one, and only
sleep or pause: it is only believed when no thread of it and no child polls. In Go and in a JVM the
main thread is no event loop: whichever thread is free polls for all, and the main one rests on a
lock as a rule. Of these nothing is said. Nor is it of a process that takes connections while its
main thread does not run at all (Ruby's puma): another thread serves them.

A loop that waits with epoll and is found in poll or select asks something else meanwhile: so wait
a blocking client with a timeout and the resolver of the C library. One that is found in wait4 waits
for a child that it has started.

Source: ``/proc/PID/stat`` (state), ``/proc/PID/wchan`` (fs/proc/base.c, proc_pid_wchan),
``/proc/PID/schedstat`` (turns on a core); Go's src/runtime/proc.go (findRunnable).
"""

from __future__ import annotations

import os
from collections.abc import Collection

from probes.proc.process_tree import children_of
from probes.rights import stranger_file
from probes.symbols.name_parser_process import name_parser
from probes.symbols.symbols import MOST_MAPS_BYTES

OFF_CPU = ("S", "D", "T", "t")
"""Sleeping, uninterruptible, stopped, traced (proc(5))."""

POLL_CHANNELS = (
    "ep_poll",
    "do_epoll",
    "do_sys_poll",
    "do_poll",
    "do_select",
    "poll_schedule",
    "io_cqring_wait",
    "io_wq",
    "inet_csk_accept",
    "sigsuspend",
    "do_sigtimedwait",
    "do_wait",  # a parent that looks after its workers
)
"""Where an event loop, a blocking accept or a parent of workers waits for something to do."""
_EPOLL_CHANNELS = ("ep_poll", "do_epoll")
_OTHER_POLL_CHANNELS = ("do_sys_poll", "do_poll", "do_select", "poll_schedule", "do_wait")


class StillWatch:
    """Remembers since when processes stand still."""

    def __init__(self) -> None:
        self._since_ns: dict[int, int] = {}
        self._polled: set[int] = set()
        self._elsewhere: dict[int, bool] = {}
        self._shared: dict[int, bool] = {}
        self._epolls: set[int] = set()

    def since_ns(self, at_ns: int, pid: int, state: str, channel: str) -> int:
        """Takes one look.

        Args:
            at_ns: When.
            pid: Whose.
            state: State letter of its main thread.
            channel: Wait channel of it, '' when it runs or that is not to be known.

        Returns:
            When it was first seen to stand still, 0 when it does not, or was not before this look.
        """
        waits = channel.startswith(POLL_CHANNELS)
        if channel.startswith(_EPOLL_CHANNELS):
            self._epolls.add(pid)
        elif pid in self._epolls and channel.startswith(_OTHER_POLL_CHANNELS):
            waits = False
        if waits:
            self._polled.add(pid)
        if state not in OFF_CPU or not channel or waits:
            self._since_ns.pop(pid, None)
            return 0
        if pid not in self._shared:
            self._shared[pid] = threads_share_the_loop(pid)
        if self._shared[pid] or (pid not in self._polled and self._polls_elsewhere(pid)):
            return 0
        since_ns = self._since_ns.setdefault(pid, at_ns)
        return since_ns if since_ns < at_ns else 0

    def is_same(self, pid: int, since_ns: int) -> bool:
        """It still stands still, and has not moved meanwhile as far as was seen."""
        return self._since_ns.get(pid) == since_ns

    def remove(self, pids: Collection[int]) -> None:
        """Forgets processes that ended."""
        self._polled.difference_update(pids)
        self._epolls.difference_update(pids)
        for pid in pids:
            self._since_ns.pop(pid, None)
            self._elsewhere.pop(pid, None)
            self._shared.pop(pid, None)

    def leave_alone(self, pid: int) -> None:
        """Says nothing more of a process: its main thread is not what serves."""
        self._shared[pid] = True

    def _polls_elsewhere(self, pid: int) -> bool:
        if pid not in self._elsewhere:
            self._elsewhere[pid] = any(
                channel.startswith(POLL_CHANNELS)
                for each in (pid, *children_of(pid))
                for channel in _channels_of_threads(each)
            )
        return self._elsewhere[pid]


class SleepWatch:
    """Since when main threads sleep without having run, and whether connections came meanwhile."""

    def __init__(self) -> None:
        self._sleeps: dict[int, tuple[int, int, int]] = {}  # turns, since when, connections

    def look(
        self, at_ns: int, pid: int, turns_count: int, counted_ns: int, open_count: int
    ) -> tuple[int, bool]:
        """Takes one look at a main thread that stands still.

        Args:
            at_ns: When.
            pid: Whose.
            turns_count: Turns on a core so far, -1 when not known.
            counted_ns: When its connections were counted: on a busy host seconds ago.
            open_count: How many they were, or are by now.

        Returns:
            Since when it has not run, as far as was seen; and whether the process has taken
            connections in this very sleep.
        """
        turns, since_ns, settled_count = self._sleeps.get(pid, (-1, at_ns, -1))
        if turns_count != turns or turns_count < 0:
            since_ns, settled_count = at_ns, -1
        elif settled_count < 0 and counted_ns > since_ns:
            settled_count = open_count  # an earlier count lacks what was taken just before
        self._sleeps[pid] = turns_count, since_ns, settled_count
        return since_ns, 0 <= settled_count < open_count

    def remove(self, pids: Collection[int]) -> None:
        """Forgets processes that ended."""
        for pid in pids:
            self._sleeps.pop(pid, None)


def turns_of(schedstat: str) -> int:
    """Turns on a core of a thread, from its ``schedstat``; -1 when the kernel does not count."""
    fields = schedstat.split()
    return int(fields[2]) if len(fields) > 2 and fields[2].isdigit() and fields[2] != "0" else -1


def threads_share_the_loop(pid: int) -> bool:
    """Whether it is a Go program or a JVM; False where that cannot be read."""
    try:
        if name_parser().is_go(stranger_file.open_link(f"/proc/{pid}/exe")):
            return True
        with open(f"/proc/{pid}/maps", "rb") as stream:  # noqa: PTH123 - a bounded read
            return b"/libjvm.so" in stream.read(MOST_MAPS_BYTES)
    except (OSError, ValueError):
        return False


def _channels_of_threads(pid: int) -> list[str]:
    found: list[str] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 - names only
    except OSError:
        return found
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/wchan", encoding="ascii") as stream:  # noqa: PTH123 - once a process
                found.append(stream.read())
        except OSError:
            continue
    return found
