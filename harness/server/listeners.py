"""Listening sockets, and what a server does when it has no descriptor left for a connection.

``--at-fd-limit``: ``pause`` leaves the listener until there is room; ``spin`` keeps it, as a naive
level-triggered server does; ``reset`` gives up a reserve descriptor, accepts and closes, as libuv
does (src/unix/stream.c, uv__emfile_trick); ``crash`` lets the error end the process.
"""

from __future__ import annotations

import _socket
import os
import select
import time
from collections.abc import Iterable

from probes.contract.live import Counter

_EMFILE, _ENFILE = 24, 23
_PASSING = frozenset((1, 12, 64, 71, 92, 95, 100, 101, 105, 112, 113))
"""EPERM, ENOMEM, ENONET, EPROTO, ENOPROTOOPT, EOPNOTSUPP, ENETDOWN, ENETUNREACH, ENOBUFS,
EHOSTDOWN, EHOSTUNREACH: of this connection alone, or over in a moment; as EAGAIN (accept(2))."""
_TCP_DEFER_ACCEPT_S = 5  # tcp(7): the kernel hands over a connection with its first bytes
_ACCEPT_EMFILE = int(Counter.ACCEPT_EMFILE_TOTAL)
_ACCEPT_RESET = int(Counter.ACCEPT_RESET_TOTAL)
_PAUSES = int(Counter.LISTENER_PAUSES_TOTAL)


def listen(address: str, port: int, backlog_count: int, *, reuseport: bool) -> _socket.socket:
    """Opens a non-blocking listener with TCP_DEFER_ACCEPT.

    Raises:
        OSError: The port is taken (EADDRINUSE) or the address is not local (EADDRNOTAVAIL).
    """
    listener = _socket.socket(
        _socket.AF_INET, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
    )
    listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
    if reuseport:
        listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEPORT, 1)
    listener.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_DEFER_ACCEPT, _TCP_DEFER_ACCEPT_S)
    listener.bind((address, port))
    listener.listen(backlog_count)
    return listener


class Admission:
    """Accepts from the listeners of one process and applies its policy at the descriptor limit.

    Args:
        listeners: They are registered with ``epoll`` at once.
        epoll: The event loop's.
        slot: The process's counters.
        policy: pause, spin, reset or crash.
        exclusive: Register with EPOLLEXCLUSIVE (epoll_ctl(2)), for listeners that are shared.
    """

    def __init__(
        self,
        listeners: Iterable[_socket.socket],
        epoll: select.epoll,
        slot: memoryview,
        policy: str,
        *,
        exclusive: bool,
    ) -> None:
        self.by_fd = {listener.fileno(): listener for listener in listeners}
        self.paused = False
        self._is_held_back = False
        self._epoll = epoll
        self._slot = slot
        self._policy = policy
        self._events = select.EPOLLIN | (select.EPOLLEXCLUSIVE if exclusive else 0)
        self._reserve_fd = os.open(os.devnull, os.O_RDONLY) if policy == "reset" else -1
        for fd in self.by_fd:
            epoll.register(fd, self._events)

    def accept(self, listener_fd: int, most_count: int) -> list[int]:
        """Accepts what waits on one listener, at most ``most_count``.

        Returns:
            Descriptors of new connections; empty when there are none or no descriptor is left.

        Raises:
            OSError: At the descriptor limit with the policy ``crash``.
        """
        accept = self.by_fd[listener_fd]._accept  # type: ignore[attr-defined]
        fds: list[int] = []
        try:
            while len(fds) < most_count:
                fds.append(accept()[0])
        except BlockingIOError:
            pass
        except ConnectionAbortedError:
            pass  # the client left while it waited (accept(2)); the next turn takes the others
        except OSError as error:
            if error.errno in _PASSING:
                return fds
            if error.errno not in (_EMFILE, _ENFILE):
                raise
            self._at_limit(listener_fd, fds)
        return fds

    def _at_limit(self, listener_fd: int, fds: list[int]) -> None:
        self._slot[_ACCEPT_EMFILE] += 1
        if self._policy == "pause":
            self.pause()
        elif self._policy == "reset":
            self._reset_one(listener_fd)
        elif self._policy == "crash":
            for fd in fds:
                os.close(fd)
            raise OSError(_EMFILE, "accept4: too many open files, not handled")

    def _reset_one(self, listener_fd: int) -> None:
        accept = self.by_fd[listener_fd]._accept  # type: ignore[attr-defined]
        os.close(self._reserve_fd)
        try:
            # The request is still unread, so closing sends RST (RFC 2525 2.17, tcp_close).
            os.close(accept()[0])
            self._slot[_ACCEPT_RESET] += 1
        except OSError:
            pass  # somebody else took it; the reserve is taken back all the same
        self._reserve_fd = os.open(os.devnull, os.O_RDONLY)

    @property
    def is_listening(self) -> bool:
        """Whether the event loop waits for connections now."""
        return not (self.paused or self._is_held_back)

    def pause(self) -> None:
        """Leaves the listeners: the kernel queues, or gives the connections to siblings."""
        if self.paused:
            return
        self._slot[_PAUSES] += 1
        was_listening = self.is_listening
        self.paused = True
        self._follow(was_listening=was_listening)

    def resume(self) -> None:
        """Comes back to the listeners; call when a descriptor was freed."""
        was_listening = self.is_listening
        self.paused = False
        self._follow(was_listening=was_listening)

    def hold_back(self, is_held_back: bool) -> None:
        """Leaves the listeners while siblings are to take what comes, whatever room there is."""
        was_listening = self.is_listening
        self._is_held_back = is_held_back
        self._follow(was_listening=was_listening)

    def _follow(self, *, was_listening: bool) -> None:
        """Tells the event loop what changed."""
        is_listening = self.is_listening
        if is_listening == was_listening:
            return
        for fd in self.by_fd:
            if is_listening:
                self._epoll.register(fd, self._events)
            else:
                self._epoll.unregister(fd)


class Sweep:
    """When to send the next keep-alives: everything once each interval, in slices.

    The slices keep the loop's turns short; a sweep that is not done when the next is due is what a
    keep-alive storm is, and then the next begins at once.
    """

    __slots__ = ("_cursor", "_due_ns", "_end", "_interval_ns")

    def __init__(self, interval_s: float) -> None:
        self._interval_ns = int(interval_s * 1e9)
        self._due_ns = time.monotonic_ns() + self._interval_ns if self._interval_ns else 0
        self._cursor = 0
        self._end = 0

    @property
    def is_under_way(self) -> bool:
        """Whether the current sweep has descriptors left."""
        return self._cursor < self._end

    def slice(self, now_ns: int, end_fd: int, most_count: int) -> range:
        """The descriptors to look at now; empty when nothing is due."""
        if not self._interval_ns:
            return range(0)
        if self._cursor >= self._end:
            if now_ns < self._due_ns:
                return range(0)
            self._cursor, self._end = 0, end_fd
            self._due_ns = max(self._due_ns + self._interval_ns, now_ns)
        start = self._cursor
        self._cursor = min(start + most_count, self._end)
        return range(start, self._cursor)

    def wait_s(self, now_ns: int, idle_wait_s: float) -> float:
        """How long the loop may wait for events."""
        if not self._interval_ns:
            return idle_wait_s
        if self.is_under_way:
            return 0.0
        return min(idle_wait_s, max(0.0, (self._due_ns - now_ns) / 1e9))
