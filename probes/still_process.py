"""Tells when the event loop of a process that is not ours stands still, from outside.

Its main thread sleeps, and not in the call in which an event loop waits for events. That is so for
two looks in a row, with none of the poll between them. A process whose main thread was never seen
to poll may have its loop in another thread, or be the parent of the workers that have one, and only
sleep or pause: it is only believed when no thread of it and no child polls. In Go and in a JVM the
main thread is no event loop: whichever thread is free polls for all, and the main one rests on a
lock as a rule. Of these nothing is said.

Source: ``/proc/PID/stat`` (state), ``/proc/PID/wchan`` (fs/proc/base.c, proc_pid_wchan); Go's
src/runtime/proc.go (findRunnable).
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from probes.elf import BAD_FILE, ElfFile
from probes.go_symbols import GO_SECTIONS
from probes.process_tree import children_of

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


class StillWatch:
    """Remembers since when processes stand still."""

    def __init__(self) -> None:
        self._since_ns: dict[int, int] = {}
        self._polled: set[int] = set()
        self._elsewhere: dict[int, bool] = {}
        self._shared: dict[int, bool] = {}

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
        if channel.startswith(POLL_CHANNELS):
            self._polled.add(pid)
        if state not in OFF_CPU or not channel or channel.startswith(POLL_CHANNELS):
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
        for pid in pids:
            self._since_ns.pop(pid, None)
            self._elsewhere.pop(pid, None)
            self._shared.pop(pid, None)

    def _polls_elsewhere(self, pid: int) -> bool:
        if pid not in self._elsewhere:
            self._elsewhere[pid] = any(
                channel.startswith(POLL_CHANNELS)
                for each in (pid, *children_of(pid))
                for channel in _channels_of_threads(each)
            )
        return self._elsewhere[pid]


def threads_share_the_loop(pid: int) -> bool:
    """Whether it is a Go program or a JVM; False where that cannot be read."""
    try:
        if ElfFile(Path(f"/proc/{pid}/exe")).section(*GO_SECTIONS) is not None:
            return True
        maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
    except BAD_FILE:
        return False
    return "/libjvm.so" in maps


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
