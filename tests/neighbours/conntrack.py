"""A container whose connection tracking table is full: the packets of new flows are dropped."""

from __future__ import annotations

import os
import socket
import sys

from harness import conntrack_fill, netns
from tests.neighbours.program import Life, parser


def main() -> int:
    options = parser(__doc__).parse_args()
    life = Life(options.seconds)
    with life.lived():
        namespace_fd = netns.create({})
        netns.enter(namespace_fd)
        os.close(namespace_fd)
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
