"""A server of two workers that left their session, ignores SIGTERM, and may go to the background.

``daemons.py PORT daemon|foreground``. Beside it a process that holds nothing sleeps, a grandchild
whose parent is gone.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time

from upgrade import answer  # the folder of this script


def serve(listener: socket.socket) -> None:
    """Upgrades whoever comes, and keeps them."""
    kept = []
    while True:
        connection, _ = listener.accept()
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(4096)
        connection.sendall(answer(head))
        kept.append(connection)


def main() -> None:
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=64)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if sys.argv[2] == "daemon":
        if os.fork():
            os._exit(0)
        os.setsid()
    for _ in range(2):
        if os.fork() == 0:
            os.setsid()
            serve(listener)
    middle = os.fork()
    if middle == 0:
        if os.fork():
            os._exit(0)
        os.setsid()
        os.execvp("sleep", ["sleep", "97.25"])
    os.waitpid(middle, 0)
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main()
