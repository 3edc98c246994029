"""stands_still.py KIND SECONDS COUNT PORT: serves WebSockets, and stands still once.

It does so for SECONDS when it has answered COUNT connections, as KIND says: ``sleep`` in a call,
``calculate`` on a core, ``flush`` on the disk, ``asks`` until somebody who never answers is given
up, ``stop`` until somebody else has it go on. With a COUNT of 0 it never does.
"""

import os
import select
import signal
import socket
import sys
import tempfile
import time

from upgrade import answer


def sleep(seconds):
    time.sleep(seconds)


def calculate(seconds):
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        pass


def flush(seconds):
    until_s = time.monotonic() + seconds
    with tempfile.TemporaryFile() as stream:
        while time.monotonic() < until_s:
            os.write(stream.fileno(), b"x" * 4096)
            os.fsync(stream.fileno())


def asks(seconds):
    silent = socket.create_server(("127.0.0.1", 0))
    with socket.create_connection(silent.getsockname(), timeout=seconds) as asking:
        try:
            asking.recv(1)
        except TimeoutError:
            silent.close()


def stop(seconds):
    """One that nobody sees as part of this server has it go on."""
    command = f"sleep {seconds}; kill -CONT {os.getpid()}"
    words = ["setsid", "--fork", "sh", "-c", command]
    os.spawnvp(os.P_WAIT, words[0], words)
    os.kill(os.getpid(), signal.SIGSTOP)


def main():
    """Serves until it is killed."""
    still, seconds = globals()[sys.argv[1]], float(sys.argv[2])
    left_count, port = int(sys.argv[3]), int(sys.argv[4])
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    served = {}
    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                connection, _ = listener.accept()
                served[connection.fileno()] = connection
                poll.register(connection, select.EPOLLIN)
                continue
            data = served[fd].recv(4096)
            if data.startswith(b"GET "):
                served[fd].sendall(answer(data))
                left_count -= 1
                if left_count == 0:
                    still(seconds)
            elif not data:
                poll.unregister(fd)
                served.pop(fd).close()


main()
