"""Processes that hold a hundred thousand open files: they count in file-nr of the host."""

from __future__ import annotations

import os
import resource
import sys
import time

from tests.neighbours.program import Life, parser

_ROOM_SHARE = 0.5
"""Of what is free in the host's file table: nobody else may be refused for this."""
_OWN_COUNT = 100
_READY_S = 20.0


def main() -> int:
    wanted = parser(__doc__)
    wanted.add_argument("--files", type=int, default=100_000)
    options = wanted.parse_args()
    used, most = _files()
    count = min(options.files, int(_ROOM_SHARE * (most - used)))
    of_process = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - _OWN_COUNT
    life = Life(options.seconds)
    children: list[tuple[int, int]] = []
    with life.lived():
        try:
            children += [
                _holder(min(of_process, count - first)) for first in range(0, count, of_process)
            ]
            end_s = time.monotonic() + _READY_S
            while _files()[0] - used < count // 2 and time.monotonic() < end_s:
                time.sleep(0.01)
            life.count = _files()[0] - used
            life.ready()
            for _ in life.beats(0.2):
                pass
        finally:
            for write_fd, _ in children:  # all: a child has those of its elder siblings
                os.close(write_fd)
            for _, pid in children:
                os.waitpid(pid, 0)
    return 0


def _files() -> tuple[int, int]:
    """Open files of the host, and how many there may be."""
    with open("/proc/sys/fs/file-nr") as stream:
        used, _, most = map(int, stream.read().split())
    return used, most


def _holder(count: int) -> tuple[int, int]:
    """A child that holds so many files until its pipe ends, which it does with the parent."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(write_fd)
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            for _ in range(count):
                os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            os.read(read_fd, 1)
        finally:
            os._exit(0)
    os.close(read_fd)
    return write_fd, pid


if __name__ == "__main__":
    sys.exit(main())
