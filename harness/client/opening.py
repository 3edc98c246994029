"""How a client process opens its share of the connections: from socket(2) to the valid response.

A connection is begun with socket, setsockopt, bind, connect and write, one after the other: on
loopback connect(2) has finished its handshake when it returns EINPROGRESS, so the request goes out
at once, and only where that is refused (EAGAIN) does the loop wait for EPOLLOUT. Times and errnos
go straight into the connection's record in live.bin.

After ``WALL_FAILURES`` failures in a row a client is at a wall: it goes on at a bounded rate until
one gets through, and stops when none did for ``stall_s``. Why so: docs/design/0012-persistence.md.
"""

from __future__ import annotations

import _socket
import array
import errno
import os
import random
import select
import struct
import time

from harness.client import faults as client_faults
from harness.client.load_shape import Group, Pace, groups_of, interleave
from harness.client.refusals import RefusalReport
from harness.client.retries import Retries
from harness.fleet.config import FleetConfig
from harness.fleet.event_loop import IDLE_WAIT_S
from harness.websocket import handshake
from probes.contract.live import CloseKind, Counter, Live, Stage

_IP_BIND_ADDRESS_NO_PORT = 24  # include/uapi/linux/in.h, since Linux 4.2
_IP_LOCAL_PORT_RANGE = 51  # the same header, since Linux 6.3; narrows the range of one socket
_STREAM = _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
READ_BYTES = 65_536
_START_MOST = 64  # connects begun in one turn
_KEYS_COUNT = 256
WALL_FAILURES = 100
"""So many failures in a row are a wall."""
WALL_RATE_PER_S = 100
"""At a wall each client makes so many attempts a second, whatever ``--ramp`` allows."""
_WALL_INTERVAL_NS = 1_000_000_000 // WALL_RATE_PER_S

_SOCKET, _BIND, _CONNECT = int(Stage.SOCKET), int(Stage.BIND), int(Stage.CONNECT)
_HANDSHAKE, _OPEN = int(Stage.HANDSHAKE), int(Stage.OPEN)

_OPEN_COUNT = int(Counter.OPEN_COUNT)
_ESTABLISHED = int(Counter.ESTABLISHED_TOTAL)
_ATTEMPTED = int(Counter.ATTEMPTED_TOTAL)
_FAILED = int(Counter.FAILED_TOTAL)
_IN_FLIGHT = int(Counter.IN_FLIGHT_COUNT)
_PROTOCOL_ERRORS = int(Counter.PROTOCOL_ERROR_TOTAL)
_WALL_SINCE = int(Counter.WALL_SINCE_NS)
_RETRIED = int(Counter.RETRIED_TOTAL)
_RETRIED_OPEN = int(Counter.RETRIED_OPEN_TOTAL)
_RETRIED_AFTER = int(Counter.RETRIED_AFTER_BASE)


class Exchange:
    """A request with its key, and the response that answers it."""

    __slots__ = ("key", "request", "response")

    def __init__(self, config: FleetConfig, port: int) -> None:
        self.key = handshake.new_key()
        self.request = handshake.client_request(
            config.host or f"{config.server_address}:{port}",
            config.path,
            self.key,
            [(name, value) for name, value in config.headers],
        )
        self.response = handshake.switching_protocols(self.key)


class Opening:
    """The half of a client that opens connections; ``harness.client.client`` has what comes after.

    Args:
        config: The fleet's configuration.
        index: Number of this client.
        live: Shared memory.
        record_base: Its first connection record.
        refusals: Tells the supervisor what the server said instead of the upgrade.
    """

    def __init__(
        self,
        config: FleetConfig,
        index: int,
        live: Live,
        record_base: int,
        refusals: RefusalReport,
    ) -> None:
        self._config = config
        self._slot = slot = live.slot(config.first_client_slot() + index)
        self._epoll = select.epoll()
        self._fault = client_faults.of_client(config.inject, index, slot)
        groups = config.client_groups[index]
        if self._fault is not None:
            groups = self._fault.shares(groups)
        self._share_count = sum(group.connections for group in groups)
        self._record_base = record_base
        all_groups = groups_of(groups, config.server_address)
        self._order = interleave(all_groups)
        self._retries: Retries | None = None
        if config.retry_count:
            self._retries = Retries(
                config.retry_count, config.retry_first_s, config.retry_longest_s
            )
            self._group_of = {(g.address_number, g.destination_port): g for g in all_groups}
        self._exchanges = {
            port: [Exchange(config, port) for _ in range(_KEYS_COUNT)]
            for port in {group.destination_port for group in groups}
        }
        columns = ("start_ns", "connected_ns", "established_ns", "closed_ns", "errno", "stage")
        self._start_ns, self._connected_ns, self._established_ns = map(live.column, columns[:3])
        self._closed_ns, self._errno, self._stage = map(live.column, columns[3:])
        self._close_kind = live.column("close_kind")
        self._source_address = live.column("source_address")
        self._destination_port = live.column("destination_port")
        self._record_by_fd = array.array("q", [-1]) * config.client_nofile_count
        self._in_flight: dict[int, Exchange] = {}
        self._heads: dict[int, bytes] = {}
        range_ = config.socket_port_range
        # u32, high half the upper end (net/ipv4/ip_sockglue.c); as bytes, since an int is signed.
        self._binds_late = config.bind == "late"
        self._port_range = struct.pack("=HH", *range_) if range_ else b""
        self._failures_since_success = 0
        self._last_success_ns = 0
        self._wall_ns = 0
        self._next_at_wall_ns = 0
        self._stall_ns = int(config.stall_s * 1e9)
        if config.ramp_per_s:  # a slow ramp needs longer to show that nothing gets through
            self._stall_ns = max(self._stall_ns, int(2e9 * config.clients / config.ramp_per_s))
        self._pace = Pace(config.ramp_per_s / config.clients, config.clients, index)
        self._subprotocols = [name.encode() for name in config.subprotocols]
        self._refusals = refusals

    def _receive(self, fd: int, data: bytes) -> None:
        """Frames came behind the response."""
        raise NotImplementedError

    def _count_end(self, kind: CloseKind) -> None:
        raise NotImplementedError

    def _ramp_wait_s(self) -> float:
        if len(self._in_flight) >= self._config.in_flight_max_count:
            return IDLE_WAIT_S
        if self._slot[_ATTEMPTED] >= self._share_count:
            return IDLE_WAIT_S
        now_ns = time.monotonic_ns()
        if self._failures_since_success >= WALL_FAILURES:
            return min(IDLE_WAIT_S, max(0.0, (self._next_at_wall_ns - now_ns) / 1e9))
        return self._pace.wait_s(now_ns, IDLE_WAIT_S)

    @property
    def _stalled_ns(self) -> int:
        """When this client gives up, if nothing gets through before; meant at a wall only."""
        return max(self._last_success_ns, self._wall_ns) + self._stall_ns

    def _is_giving_up(self, now_ns: int) -> bool:
        return self._failures_since_success >= WALL_FAILURES and now_ns > self._stalled_ns

    def _begin_some(self, now_ns: int) -> None:
        if self._failures_since_success >= WALL_FAILURES:
            most_count = self._due_at_wall(now_ns)
        else:
            if self._wall_ns:  # the wall is gone
                self._wall_ns = self._slot[_WALL_SINCE] = 0
                self._pace.forgo(now_ns)
            most_count = self._pace.allowed(now_ns, _START_MOST)
        slot = self._slot
        most_count = min(
            most_count,
            self._config.in_flight_max_count - len(self._in_flight),
            self._share_count - slot[_ATTEMPTED],
        )
        for _ in range(most_count):
            record = self._record_base + slot[_ATTEMPTED]
            group = next(self._order)
            slot[_ATTEMPTED] += 1
            self._destination_port[record] = group.destination_port
            self._source_address[record] = group.address_number
            self._begin(record, group)

    def _due_at_wall(self, now_ns: int) -> int:
        """How many connections may be begun now, while every attempt fails: 1 or none."""
        if now_ns < self._next_at_wall_ns or self._is_giving_up(now_ns):
            return 0
        self._next_at_wall_ns = now_ns + _WALL_INTERVAL_NS
        return self._pace.allowed(now_ns, 1)

    def _begin(self, record: int, group: Group) -> None:
        """Begins a connection; see the module's docstring for the order of calls."""
        slot = self._slot
        self._start_ns[record] = time.monotonic_ns()
        stage = self._stage
        stage[record] = _SOCKET
        try:
            sock = _socket.socket(_socket.AF_INET, _STREAM)
        except OSError as error:
            self._fail(record, error.errno or 0)
            return
        try:
            stage[record] = _BIND
            if self._binds_late:
                sock.setsockopt(_socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            if self._port_range:
                sock.setsockopt(_socket.IPPROTO_IP, _IP_LOCAL_PORT_RANGE, self._port_range)
            sock.bind((group.source_address, 0))
            stage[record] = _CONNECT
            number = sock.connect_ex(group.destination)
        except OSError as error:
            number = error.errno or 0
        if number not in (0, errno.EINPROGRESS):
            sock.close()
            self._fail(record, number)
            return
        fd = sock.detach()
        self._record_by_fd[fd] = record
        exchange = random.choice(self._exchanges[group.destination_port])
        self._in_flight[fd] = exchange
        slot[_IN_FLIGHT] += 1
        self._request(fd, record, exchange, is_registered=False)

    def _request(self, fd: int, record: int, exchange: Exchange, *, is_registered: bool) -> None:
        """Sends the opening handshake, or waits for the connection."""
        if self._fault is not None and self._fault.is_mute:
            if is_registered:
                self._abandon(fd, 0)  # the server ended it
            else:
                self._epoll.register(fd, select.EPOLLIN)
            return
        self._send_first(fd, record, exchange.request, is_registered=is_registered)

    def _send_first(self, fd: int, record: int, data: bytes, *, is_registered: bool) -> bool:
        """Sends what comes first on a connection; False when it is not connected yet, or lost."""
        try:
            os.write(fd, data)  # fits any send buffer
        except BlockingIOError:
            if not is_registered:
                self._epoll.register(fd, select.EPOLLOUT)
            return False
        except OSError as error:
            self._abandon(fd, error.errno or 0)
            return False
        self._connected_ns[record] = time.monotonic_ns()
        self._stage[record] = _HANDSHAKE
        if is_registered:
            self._epoll.modify(fd, select.EPOLLIN)
        else:
            self._epoll.register(fd, select.EPOLLIN)
        return True

    def _progress(self, fd: int, mask: int) -> None:
        """Something happened on a connection that is not open yet."""
        record, exchange = self._record_by_fd[fd], self._in_flight[fd]
        if not self._connected_ns[record]:
            self._request(fd, record, exchange, is_registered=True)
            return
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._abandon(fd, error.errno or 0)
            return
        if not data:
            self._abandon(fd, 0)
        elif data == exchange.response:
            self._establish(fd, record)
        else:
            self._check(fd, record, exchange, data)

    def _check(self, fd: int, record: int, exchange: Exchange, data: bytes) -> None:
        """A response that is in pieces, has frames behind it, or is not ours (RFC 6455, 4.1)."""
        head = self._heads.pop(fd, b"") + data
        try:
            end = handshake.check_response(head, exchange.key, subprotocols=self._subprotocols)
        except handshake.HandshakeError as error:
            self._slot[_PROTOCOL_ERRORS] += 1
            self._refusals.tell(error, head, exchange.key, lambda: self._read_more(fd))
            self._abandon(fd, 0, CloseKind.PROTOCOL)
            return
        if end is None:
            self._heads[fd] = head
            return
        self._establish(fd, record)
        if head[end:]:
            self._receive(fd, head[end:])

    def _read_more(self, fd: int) -> bytes:
        return os.read(fd, READ_BYTES)

    def _establish(self, fd: int, record: int) -> None:
        slot = self._slot
        now_ns = time.monotonic_ns()
        self._established_ns[record] = now_ns
        self._stage[record] = _OPEN
        del self._in_flight[fd]
        slot[_IN_FLIGHT] -= 1
        slot[_ESTABLISHED] += 1
        slot[_OPEN_COUNT] += 1
        self._failures_since_success = 0
        self._last_success_ns = now_ns

    def _fail(self, record: int, number: int, kind: CloseKind = CloseKind.ERROR) -> None:
        now_ns = time.monotonic_ns()
        self._errno[record] = number
        self._close_kind[record] = kind
        self._closed_ns[record] = now_ns
        self._slot[_FAILED] += 1
        self._failures_since_success += 1
        if self._failures_since_success == WALL_FAILURES:
            # One that timed out has shown for as long as it waited that nothing gets through.
            since_ns = self._start_ns[record] if kind is CloseKind.TIMEOUT else now_ns
            self._wall_ns = self._slot[_WALL_SINCE] = since_ns
        if self._retries is not None:
            self._retries.plan(record, now_ns)

    def _may_retry(self, now_ns: int) -> bool:
        """Whether a connection whose wait is over could be begun now."""
        is_full = len(self._in_flight) >= self._config.in_flight_max_count
        return not is_full and not self._is_giving_up(now_ns)

    def _begin_due(self, retries: Retries, now_ns: int) -> None:
        """Begins the connections that are to be made again by now."""
        room_count = self._config.in_flight_max_count - len(self._in_flight)
        for record in retries.take(now_ns, min(_START_MOST, room_count)):
            slot = self._slot
            slot[_RETRIED] += 1
            slot[_RETRIED_OPEN] += self._established_ns[record] > 0
            slot[_RETRIED_AFTER + self._close_kind[record]] += 1
            for column in (self._connected_ns, self._established_ns, self._closed_ns, self._errno):
                column[record] = 0
            self._close_kind[record] = CloseKind.NONE
            place = self._source_address[record], self._destination_port[record]
            self._begin(record, self._group_of[place])

    def _abandon(self, fd: int, number: int, kind: CloseKind | None = None) -> None:
        """Ends a connection that never opened; its stage stays where it failed."""
        record = self._record_by_fd[fd]
        del self._in_flight[fd]
        self._slot[_IN_FLIGHT] -= 1
        self._heads.pop(fd, None)
        self._record_by_fd[fd] = -1
        os.close(fd)
        if kind is None:
            kind = close_kind_of(number)
        self._count_end(kind)
        self._fail(record, number, kind)

    def _time_out(self, before_ns: int) -> None:
        late = [fd for fd in self._in_flight if self._start_ns[self._record_by_fd[fd]] < before_ns]
        for fd in late:
            self._abandon(fd, errno.ETIMEDOUT, CloseKind.TIMEOUT)


def close_kind_of(number: int) -> CloseKind:
    """What an errno of read, write or connect says about the end of a connection."""
    if number == 0:
        return CloseKind.EOF
    if number in (errno.ECONNRESET, errno.EPIPE):
        return CloseKind.RST
    if number == errno.ECONNREFUSED:
        return CloseKind.REFUSED
    if number == errno.ETIMEDOUT:
        return CloseKind.TIMEOUT
    return CloseKind.ERROR
