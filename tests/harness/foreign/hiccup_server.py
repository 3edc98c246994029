"""hiccup_server.py COUNT SECONDS PORT: serves COUNT WebSockets, refuses all for SECONDS, serves on.

While it refuses nobody listens at the port, and those that it serves stay open.
"""

import select
import socket
import sys
import time

from upgrade import answer


def listen(port):
    """A listener at the port, whoever had it before."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(1024)
    return listener


def main():
    """Serves until it is killed."""
    left_count, pause_s, port = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    listener = listen(port)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    served, again_s = {}, 0.0
    while True:
        if again_s and time.monotonic() >= again_s:
            again_s, listener = 0.0, listen(port)
            poll.register(listener, select.EPOLLIN)
        for fd, _ in poll.poll(0.02 if again_s else -1):
            if fd != listener.fileno():
                data = served[fd].recv(4096)
                if data.startswith(b"GET "):
                    served[fd].sendall(answer(data))
                elif not data:
                    poll.unregister(fd)
                    served.pop(fd).close()
                continue
            connection, _ = listener.accept()
            served[connection.fileno()] = connection
            poll.register(connection, select.EPOLLIN)
            left_count -= 1
            if left_count == 0:
                poll.unregister(listener)
                listener.close()
                again_s = time.monotonic() + pause_s
                break


main()
