"""A container that the kernel kills for memory a few times a second, and that comes back."""

from __future__ import annotations

import mmap
import os
import signal
import sys
from pathlib import Path

from tests.neighbours.groups import join, memory_group
from tests.neighbours.program import Life, parser

_LIMIT_BYTES = 16 << 20
_WANTED_BYTES = 64 << 20


def main() -> int:
    wanted = parser(__doc__)
    wanted.add_argument("--per-second", type=float, default=4.0)
    options = wanted.parse_args()
    life = Life(options.seconds)
    with life.lived(), memory_group(_LIMIT_BYTES) as folder:
        for _ in life.beats(1 / options.per_second):
            life.count += _is_killed(folder)
            if life.count == 1:
                life.ready()
    return 0


def _is_killed(folder: Path) -> bool:
    """Whether a process that takes more than the group may have was killed for it.

    Signals that end this program wait until the process is reaped: it lives for milliseconds.
    """
    ending = (signal.SIGTERM, signal.SIGINT)
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    try:
        status = _status_of_a_greedy_process(folder)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ending)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def _status_of_a_greedy_process(folder: Path) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            join(folder)
            with mmap.mmap(-1, _WANTED_BYTES) as memory:
                for at in range(0, _WANTED_BYTES, mmap.PAGESIZE):
                    memory[at] = 1
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1]


if __name__ == "__main__":
    sys.exit(main())
