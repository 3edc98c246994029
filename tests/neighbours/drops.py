"""A program whose packets are dropped and whose connects are reset: nobody listens where it calls.

In a network namespace of its own, or with ``--here`` in that of its parent.
"""

from __future__ import annotations

import socket
import sys
from contextlib import suppress

from tests.neighbours.program import Life, counted, enter_namespace, namespace_parser

_PORT = 9  # discard; nobody has it
_AT_ONCE = 20


def main() -> int:
    options = namespace_parser(__doc__).parse_args()
    life = Life(options.seconds)
    with life.lived():
        enter_namespace(options)
        before = counted("Tcp", "OutRsts", "snmp")
        for _ in life.beats(0.05):
            for _ in range(_AT_ONCE):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                    sender.sendto(b"to nobody", ("127.0.0.1", _PORT))
                with socket.socket() as client, suppress(ConnectionRefusedError):
                    client.connect(("127.0.0.1", _PORT))
            was_ready, life.count = life.count > 0, counted("Tcp", "OutRsts", "snmp") - before
            if life.count and not was_ready:
                life.ready()
    return 0


if __name__ == "__main__":
    sys.exit(main())
