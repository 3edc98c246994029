"""The echo server and its clients that ``bench.attach`` watches; lean, and no part of connscope.

``python -m bench.attach_load serve PORT`` echoes what it reads (asyncio, one process).
``python -m bench.attach_load load PORT IDLE BUSY`` opens IDLE connections that say nothing and BUSY
ones that send 64 bytes and wait for them. A line on standard input begins a window, ``SECONDS
RATE``: RATE messages a second over all of them, 0 for as fast as answers come. One line of JSON
answers: messages, and quantiles of the time from when a message was due until it was back.
"""

from __future__ import annotations

import asyncio
import json
import select
import socket
import sys
import time

PAYLOAD = b"x" * 64


class Echo(asyncio.Protocol):
    """Sends back what comes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps where to send."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Sends it back."""
        self.transport.write(data)  # type: ignore[attr-defined]  # of a stream socket


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


def window(busy: list[socket.socket], seconds: float, rate_per_s: float) -> dict[str, float]:
    """One window of load."""
    poll = select.epoll()
    for client in busy:
        poll.register(client, select.EPOLLIN)
    by_fd = {client.fileno(): client for client in busy}
    took_s: list[float] = []
    due_s: dict[int, float] = {}
    free = list(by_fd)
    begin_s = time.perf_counter()
    end_s, next_s = begin_s + seconds, begin_s
    while (now_s := time.perf_counter()) < end_s or due_s:
        while free and now_s < end_s and (not rate_per_s or next_s <= now_s):
            fd = free.pop()
            # Late sends count from when they were due: a stall is not hidden by waiting for it.
            due_s[fd] = next_s if rate_per_s else now_s
            next_s += 1 / rate_per_s if rate_per_s else 0
            by_fd[fd].send(PAYLOAD)
        wait_s = max(0.0, min(end_s, next_s) - now_s) if rate_per_s and free else 0.05
        for fd, _ in poll.poll(wait_s):
            by_fd[fd].recv(4096)
            took_s.append(time.perf_counter() - due_s.pop(fd))
            free.append(fd)
    poll.close()
    took_s.sort()
    length_s = time.perf_counter() - begin_s
    return {
        "messages_per_s": len(took_s) / length_s,
        "p50_us": 1e6 * took_s[len(took_s) // 2],
        "p99_us": 1e6 * took_s[int(len(took_s) * 0.99)],
    }


def load(port: int, idle_count: int, busy_count: int) -> None:
    address = ("127.0.0.1", port)
    idle = [socket.create_connection(address) for _ in range(idle_count)]
    busy = [socket.create_connection(address) for _ in range(busy_count)]
    for client in busy:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    print(json.dumps({"open": len(idle) + len(busy)}), flush=True)
    for line in sys.stdin:
        seconds, rate_per_s = map(float, line.split())
        print(json.dumps(window(busy, seconds, rate_per_s)), flush=True)


def main() -> None:
    what, port, *rest = sys.argv[1:]
    if what == "serve":
        asyncio.run(serve(int(port)))
    else:
        load(int(port), *map(int, rest))


if __name__ == "__main__":
    main()
