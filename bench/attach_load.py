"""The echo server and its clients that ``bench.attach`` watches; lean, and no part of connscope.

``python -m bench.attach_load serve PORT`` echoes what it reads (asyncio, one process).
``python -m bench.attach_load load PORT IDLE BUSY`` opens IDLE connections that say nothing and BUSY
ones that send 64 bytes and wait for them. A line on standard input begins a window, ``SECONDS
RATE``: RATE messages a second over all of them, 0 for as fast as answers come. One line of JSON
answers: messages, and quantiles of the time from when a message was due until it was back.

Messages of a rate are due at the ticks of a timer, one a millisecond: what is due is then sent
together, and the wait for the timer is no part of what is measured.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import select
import socket
import sys
import time

PAYLOAD = b"x" * 64
TICK_NS = 1_000_000


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


def start_timer(first_ns: int) -> int:
    """A descriptor that can be read at every tick of CLOCK_MONOTONIC (timerfd_create(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    moments = (ctypes.c_int64 * 4)(0, TICK_NS, first_ns // 10**9, first_ns % 10**9)
    if fd < 0 or libc.timerfd_settime(fd, 1, ctypes.byref(moments), None) < 0:  # 1: absolute
        raise OSError(ctypes.get_errno(), "timerfd")
    return fd


class Window:
    """One window of load over the busy connections."""

    def __init__(self, busy: list[socket.socket], seconds: float, rate_per_s: float) -> None:
        self._by_fd = {client.fileno(): client for client in busy}
        self._free = list(self._by_fd)
        self._rate_per_s = rate_per_s
        self._due_ns: dict[int, int] = {}
        self._took_ns: list[int] = []
        self._sent_count = 0
        self._begin_ns = time.monotonic_ns() + 2 * TICK_NS
        self._end_ns = self._begin_ns + round(seconds * 1e9)
        self._poll = select.epoll()
        for fd in self._by_fd:
            self._poll.register(fd, select.EPOLLIN)

    def run(self) -> dict[str, float]:
        """Loads until the end and waits for what is under way."""
        timer_fd = start_timer(self._begin_ns) if self._rate_per_s else -1
        if timer_fd >= 0:
            self._poll.register(timer_fd, select.EPOLLIN)
        while (now_ns := time.monotonic_ns()) < self._end_ns or self._due_ns:
            if now_ns < self._end_ns:
                self._send(now_ns)
            for fd, _ in self._poll.poll(0.05):
                if fd == timer_fd:
                    os.read(timer_fd, 8)
                    continue
                self._by_fd[fd].recv(4096)
                self._took_ns.append(time.monotonic_ns() - self._due_ns.pop(fd))
                self._free.append(fd)
        if timer_fd >= 0:
            os.close(timer_fd)
        self._poll.close()
        return self._figures((time.monotonic_ns() - self._begin_ns) / 1e9)

    def _send(self, now_ns: int) -> None:
        ticks = (now_ns - self._begin_ns) // TICK_NS
        due_count = round((ticks + 1) * TICK_NS * self._rate_per_s / 1e9) if ticks >= 0 else 0
        while self._free and (not self._rate_per_s or self._sent_count < due_count):
            # Late sends count from when they were due: a stall is not hidden by waiting for it.
            due_ns = now_ns
            if self._rate_per_s:
                tick = int(self._sent_count * 1e9 / self._rate_per_s) // TICK_NS
                due_ns = self._begin_ns + tick * TICK_NS
            fd = self._free.pop()
            self._due_ns[fd] = due_ns
            self._by_fd[fd].send(PAYLOAD)
            self._sent_count += 1

    def _figures(self, length_s: float) -> dict[str, float]:
        took_ns = sorted(self._took_ns)
        return {
            "message_count": len(took_ns),
            "messages_per_s": len(took_ns) / length_s,
            "p50_us": took_ns[len(took_ns) // 2] / 1e3,
            "p99_us": took_ns[int(len(took_ns) * 0.99)] / 1e3,
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
        print(json.dumps(Window(busy, seconds, rate_per_s).run()), flush=True)


def main() -> None:
    what, port, *rest = sys.argv[1:]
    if what == "serve":
        asyncio.run(serve(int(port)))
    else:
        load(int(port), *map(int, rest))


if __name__ == "__main__":
    main()
