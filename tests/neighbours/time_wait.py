"""A proxy that closes first, in a network namespace with room for ten connections in TIME_WAIT.

In a network namespace of its own, or with ``--here`` in that of its parent, whose limit it sets.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from tests.neighbours.program import Life, counted, enter_namespace, namespace_parser

LIMIT = Path("/proc/sys/net/ipv4/tcp_max_tw_buckets")
ROOM_COUNT = 10


def main() -> int:
    options = namespace_parser(__doc__).parse_args()
    life = Life(options.seconds)
    with life.lived():
        enter_namespace(options)
        LIMIT.write_text(f"{ROOM_COUNT}\n")
        before = counted("TcpExt", "TCPTimeWaitOverflow")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            for _ in life.beats(0.02):
                with socket.create_connection(listener.getsockname()) as client:
                    served, _ = listener.accept()
                    client.shutdown(socket.SHUT_WR)
                    served.recv(1)
                    served.close()
                    client.recv(1)
                over_count = counted("TcpExt", "TCPTimeWaitOverflow") - before
                was_ready, life.count = life.count > 0, over_count
                if life.count and not was_ready:
                    life.ready()
    return 0


if __name__ == "__main__":
    sys.exit(main())
