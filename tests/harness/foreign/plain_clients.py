"""plain_clients.py PORT [QUIET_S]: clients that do as standard input tells them, line by line.

``COUNT [PATH]`` opens so many connections at once, each with an upgrade, and answers ``OPEN
FAILED`` when each is answered or ended, or nothing has come for QUIET_S (1 s). All stay open until
standard input ends, also those that got no answer, unless the server ended them.
"""

import select
import socket
import sys

QUIET_S = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
UPGRADE = (
    "GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def connect(port, count, path, kept):
    poll = select.poll()
    waiting = {}
    for _ in range(count):
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(("127.0.0.1", port))
        waiting[client.fileno()] = client
        poll.register(client, select.POLLOUT)
    answered = 0
    while waiting and (ready := poll.poll(QUIET_S * 1000)):
        for fd, event in ready:
            client = waiting[fd]
            try:
                if event & select.POLLOUT and not event & select.POLLHUP:
                    client.sendall(UPGRADE.format(path=path).encode())
                    poll.modify(fd, select.POLLIN)
                    continue
                is_open = b" 101 " in client.recv(4096)
            except OSError:
                is_open = False
            poll.unregister(fd)
            del waiting[fd]
            answered += is_open
            kept.append(client) if is_open else client.close()
    for fd, client in waiting.items():
        poll.unregister(fd)
        kept.append(client)
    return answered, count - answered


def main():
    port, kept, total = int(sys.argv[1]), [], 0
    for line in sys.stdin:
        count, *path = line.split()
        answered, failed = connect(port, int(count), path[0] if path else "/", kept)
        total += answered
        print(total, failed, flush=True)


main()
