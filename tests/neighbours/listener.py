"""A server of somebody else whose queue overflows: the one for accept, or the half-open one.

In a network namespace of its own, or with ``--here`` in that of its parent, where the counters of
the network stack are then common. For ``half-open`` syncookies must be off there.
"""

from __future__ import annotations

import argparse
import socket
import sys
from contextlib import suppress

from tests.neighbours.program import Life, counted, enter_namespace, namespace_parser

_COUNTERS = {"accept": "ListenOverflows", "half-open": "TCPReqQFullDrop"}
_BACKLOG = 4
_AT_ONCE = 24
_ROUNDS_KEPT = 4


def main() -> int:
    wanted = namespace_parser(__doc__)
    wanted.add_argument("--queue", choices=sorted(_COUNTERS), default="accept")
    options = wanted.parse_args()
    life = Life(options.seconds)
    with life.lived():
        enter_namespace(options, {"net/ipv4/tcp_syncookies": "0"})
        _overflow(life, options)
    return 0


def _overflow(life: Life, options: argparse.Namespace) -> None:
    before = counted("TcpExt", _COUNTERS[options.queue])
    is_ready = False
    rounds: list[list[socket.socket]] = []
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if (
            options.queue == "half-open"
        ):  # the handshake ends with the first byte, which never comes
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
        listener.listen(_BACKLOG)
        try:
            for _ in life.beats(0.05):
                rounds.append([_begun(listener.getsockname()) for _ in range(_AT_ONCE)])
                if len(rounds) > _ROUNDS_KEPT:
                    for client in rounds.pop(0):
                        client.close()
                life.count = counted("TcpExt", _COUNTERS[options.queue]) - before
                if life.count and not is_ready:
                    is_ready = True
                    life.ready()
        finally:
            for client in (client for clients in rounds for client in clients):
                client.close()


def _begun(address: tuple[str, int]) -> socket.socket:
    client = socket.socket()
    client.setblocking(False)
    with suppress(BlockingIOError):
        client.connect(address)
    return client


if __name__ == "__main__":
    sys.exit(main())
