"""A program that sends and reads nothing: memory of TCP, windows that close.

With ``--limit`` it is in a control group whose TCP may have so many bytes (version 1): then its
sockets are refused memory, too. In a network namespace of its own, or with ``--here`` in that of
its parent.
"""

from __future__ import annotations

import socket
import sys
from contextlib import nullcontext, suppress
from pathlib import Path

from tests.neighbours.groups import join, memory_group
from tests.neighbours.program import Life, counted, enter_namespace, namespace_parser

_PAIRS = 60
_CHUNK = bytes(1 << 16)
_LOOPBACK = "127.0.0.1"


def main() -> int:
    wanted = namespace_parser(__doc__)
    wanted.add_argument("--limit", type=int, default=0, help="bytes of TCP of its control group")
    options = wanted.parse_args()
    life = Life(options.seconds)
    with life.lived():
        enter_namespace(options)
        limited = memory_group(tcp_max_bytes=options.limit) if options.limit else nullcontext()
        with limited as folder:
            home = _own_group()
            if folder is not None:
                join(folder)
            try:
                _fill(life, folder)
            finally:
                if folder is not None:
                    join(home)
    return 0


def _own_group() -> Path:
    """Where it was: the new group can be removed when nobody is in it."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    path = next((line.split(":", 2)[2] for line in lines if line.split(":")[1] == "memory"), "/")
    return Path("/sys/fs/cgroup/memory", path.lstrip("/"))


def _fill(life: Life, folder: Path | None) -> None:
    before = _harmed(folder)
    with socket.create_server((_LOOPBACK, 0), backlog=_PAIRS) as listener:
        senders = [socket.create_connection(listener.getsockname()) for _ in range(_PAIRS)]
        unread = [listener.accept()[0] for _ in senders]
        try:
            for sender in senders:
                sender.setblocking(False)
            for _ in life.beats(0.05):
                for sender in senders:
                    with suppress(BlockingIOError):
                        sender.send(_CHUNK)
                was_ready, life.count = life.count > 0, _harmed(folder) - before
                if life.count and not was_ready:
                    life.ready()
        finally:
            for sock in (*senders, *unread):
                sock.close()


def _harmed(folder: Path | None) -> int:
    """Windows that closed in this namespace, or segments dropped for want of memory."""
    return counted("TcpExt", "TCPRcvQDrop" if folder else "TCPToZeroWindowAdv")


if __name__ == "__main__":
    sys.exit(main())
