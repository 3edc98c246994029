"""A container whose connection tracking table is full: the packets of new flows are dropped.

In a network namespace of its own, or with ``--here`` in that of its parent.
"""

from __future__ import annotations

import socket
import sys

from harness.faults import conntrack_fill
from tests.neighbours.program import Life, enter_namespace, namespace_parser


def main() -> int:
    options = namespace_parser(__doc__).parse_args()
    life = Life(options.seconds)
    with life.lived():
        enter_namespace(options)
        conntrack_fill.fill(free_count=0)
        for _ in life.beats(0.02):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                try:
                    sender.sendto(b"one more", ("127.0.0.1", 9))
                except PermissionError:  # what a dropped packet is for who sends it
                    life.count += 1
            if life.count == 1:
                life.ready()
    return 0


if __name__ == "__main__":
    sys.exit(main())
