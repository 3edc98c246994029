"""How many descriptors a process has open, without a walk over them.

Measures:
    Open descriptors of any process that may be looked at.
Hook:
    ``st_size`` of ``/proc/PID/fd``, which since Linux 6.2 is their number (fs/proc/fd.c,
    proc_fd_getattr). Before that ``FDSize`` of ``/proc/PID/status``, the size of the table of
    descriptors, says how many there may be: up to ``LIST_MOST_COUNT`` they are listed, of more the
    lowest and ``LOOKS_COUNT`` evenly spaced numbers are looked at. The kernel gives out the lowest
    free number (fs/file.c, alloc_fd), so they lie close: where one look finds a number taken and
    the next one free, the place between is found by halves.
Cost:
    2 us since Linux 6.2, whatever the process holds. Before it 30 us, and 0.3 us for each one that
    is listed or 0.5 ms for the looks; the kernel keeps 1-2 kB for each number that was looked at.
Misses:
    Before Linux 6.2, of a process with room for more than ``LIST_MOST_COUNT``: holes between two
    looks. While no connection has ended there are none and the number is exact; where half of all
    numbers are free again it is right to about a tenth.
Checked against:
    st_size, with known descriptors, holes and a table that is mostly free
    (tests/probes/proc/test_descriptor_count.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache

LIST_MOST_COUNT = 1_024
"""Size of a table of descriptors up to which it is listed."""

LOOKS_COUNT = 96
"""Numbers of a larger table that are looked at."""

LOWEST_COUNT = 32
"""Lowest numbers, all of which are looked at: there is what a process opened for itself."""

_HALVED_MOST_COUNT = 8
"""Changes from taken to free or back that are worth a search; more are holes everywhere."""


def descriptor_count(pid: int) -> int:
    """Open descriptors of a process, -1 when it is gone or may not be looked at."""
    folder = f"/proc/{pid}/fd"
    try:
        if kernel_counts():
            return os.stat(folder).st_size  # noqa: PTH116 - 2 us; Path costs more
        size = _table_size(pid)
        if size > LIST_MOST_COUNT:
            return _looked_at(folder, size)
        # The folder is open while this process lists its own.
        return len(os.listdir(folder)) - (pid == os.getpid())  # noqa: PTH208 - names only
    except OSError:
        return -1


@cache
def kernel_counts() -> bool:
    """Whether this kernel tells the number itself: this process has some, so 0 is no answer."""
    try:
        return os.stat("/proc/self/fd").st_size > 0  # noqa: PTH116 - as above
    except OSError:
        return False


def estimated_count(size: int, is_open: Callable[[int], bool]) -> int:
    """How many numbers are taken in a table of descriptors.

    Args:
        size: Of the table.
        is_open: Whether a number is taken.
    """
    step = max(1, (size - LOWEST_COUNT) // LOOKS_COUNT)
    places = [*range(LOWEST_COUNT), *range(LOWEST_COUNT, size, step)]
    taken = [is_open(place) for place in places]
    ends = [*places[1:], size]
    after = [*taken[1:], False]
    changes = sum(
        here != there
        for here, there in zip(taken[LOWEST_COUNT:], after[LOWEST_COUNT:], strict=True)
    )
    total = 0
    for place, end, here, there in zip(places, ends, taken, after, strict=True):
        if here == there or end - place == 1 or changes > _HALVED_MOST_COUNT:
            total += (end - place) * here
        else:
            boundary = _boundary(place, end, lambda number: is_open(number) == here)  # noqa: B023 - called at once
            total += boundary - place if here else end - boundary
    return total


def _boundary(low: int, high: int, is_like_low: Callable[[int], bool]) -> int:
    """The first number behind ``low`` that is not like it; ``high`` where all are."""
    while high - low > 1:
        middle = (low + high) // 2
        if is_like_low(middle):
            low = middle
        else:
            high = middle
    return high


def _table_size(pid: int) -> int:
    """``FDSize`` of a process: no number of its descriptors is as high."""
    with open(f"/proc/{pid}/status", "rb") as lines:  # noqa: PTH123 - as above
        for line in lines:
            if line.startswith(b"FDSize:"):
                return int(line.split()[1])
    return 0


def _looked_at(folder: str, size: int) -> int:
    folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return estimated_count(size, lambda number: _is_open(folder_fd, number))
    finally:
        os.close(folder_fd)


def _is_open(folder_fd: int, number: int) -> bool:
    try:
        os.stat(str(number), dir_fd=folder_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
