"""One client process: opens its share of the connections, then answers and talks while they hold.

A connection is begun with socket, setsockopt, bind, connect and write, one after the other: on
loopback connect(2) has finished its handshake when it returns EINPROGRESS, so the request goes out
at once, and only where that is refused (EAGAIN) does the loop wait for EPOLLOUT. Times and errnos
go straight into the connection's record in live.bin.
"""

from __future__ import annotations

import _socket
import array
import errno
import gc
import os
import random
import select
import struct
import time

from harness import child, client_faults, frames, handshake
from harness.event_loop import HOLD, IDLE_WAIT_S, MAX_EVENTS, PHASE_WORD, RAMP, STOP, Turns
from harness.fleet_config import FleetConfig
from harness.load_shape import Pace, interleave
from harness.protocol import BinaryMessage, Close, Connection, Ping, TextMessage, Violation
from harness.protocol import Role as End
from harness.refusals import RefusalReport
from probes.live import CloseKind, Counter, Live, Role, Stage

_IP_BIND_ADDRESS_NO_PORT = 24  # include/uapi/linux/in.h, since Linux 4.2
_IP_LOCAL_PORT_RANGE = 51  # the same header, since Linux 6.3; narrows the range of one socket
_STREAM = _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
_READ_BYTES = 65_536
_START_MOST = 64  # connects begun in one turn
_KEYS_COUNT = 256
_GIVE_UP_FAILURES = 100
_GIVE_UP_NS = 500_000_000
_PACE_MESSAGES_S = 0.01

_PING = int(frames.Opcode.PING)
_MESSAGES = (int(frames.Opcode.TEXT), int(frames.Opcode.BINARY))
_SOCKET, _BIND, _CONNECT = int(Stage.SOCKET), int(Stage.BIND), int(Stage.CONNECT)
_HANDSHAKE, _OPEN, _CLOSED = int(Stage.HANDSHAKE), int(Stage.OPEN), int(Stage.CLOSED)

_OPEN_COUNT = int(Counter.OPEN_COUNT)
_ESTABLISHED = int(Counter.ESTABLISHED_TOTAL)
_ATTEMPTED = int(Counter.ATTEMPTED_TOTAL)
_FAILED = int(Counter.FAILED_TOTAL)
_IN_FLIGHT = int(Counter.IN_FLIGHT_COUNT)
_LOST = int(Counter.LOST_TOTAL)
_RX_MESSAGES = int(Counter.RX_MESSAGES_TOTAL)
_TX_MESSAGES = int(Counter.TX_MESSAGES_TOTAL)
_RX_PINGS = int(Counter.RX_PINGS_TOTAL)
_RESETS = int(Counter.RESET_TOTAL)
_EOFS = int(Counter.EOF_TOTAL)
_PROTOCOL_ERRORS = int(Counter.PROTOCOL_ERROR_TOTAL)


class _Exchange:
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


class Client:
    """The event loop of one client process.

    Args:
        config: The fleet's configuration.
        index: Number of this client.
        live: Shared memory.
        record_base: Its first connection record.
        report_fd: Pipe to the supervisor for what the server said instead of the upgrade; -1: none.
    """

    def __init__(
        self, config: FleetConfig, index: int, live: Live, record_base: int, report_fd: int = -1
    ) -> None:
        child.leave_terminal()
        child.limit_descriptors(config.client_nofile_count)
        self._config = config
        self._live = live
        slot_index = config.first_client_slot() + index
        self._slot = slot = live.slot(slot_index)
        self._turns = Turns(live, slot_index)
        self._epoll = select.epoll()
        self._fault = client_faults.of_client(config.inject, index, slot)
        groups = config.client_groups[index]
        if self._fault is not None:
            groups = self._fault.shares(groups)
        self._share_count = sum(group.connections for group in groups)
        self._record_base = record_base
        self._order = interleave(groups, config.server_address)
        self._exchanges = {
            port: [_Exchange(config, port) for _ in range(_KEYS_COUNT)]
            for port in {group.destination_port for group in groups}
        }
        columns = ("start_ns", "connected_ns", "established_ns", "closed_ns", "errno", "stage")
        self._start_ns, self._connected_ns, self._established_ns = map(live.column, columns[:3])
        self._closed_ns, self._errno, self._stage = map(live.column, columns[3:])
        self._close_kind = live.column("close_kind")
        self._source_address = live.column("source_address")
        self._destination_port = live.column("destination_port")
        self._record_by_fd = array.array("q", [-1]) * config.client_nofile_count
        self._in_flight: dict[int, _Exchange] = {}
        self._heads: dict[int, bytes] = {}
        self._partial: dict[int, Connection] = {}
        range_ = config.socket_port_range
        # u32, high half the upper end (net/ipv4/ip_sockglue.c); as bytes, since an int is signed.
        self._binds_late = config.bind == "late"
        self._port_range = struct.pack("=HH", *range_) if range_ else b""
        self._failures_since_success = 0
        self._last_success_ns = 0
        self._pace = Pace(config.ramp_per_s / config.clients, config.clients, index)
        self._message_pace = Pace(config.message_rate_per_s / config.clients, config.clients, index)
        self._payload = b"\xa5" * config.payload_bytes
        self._message = config.message
        self._message_opcode = (
            frames.Opcode.TEXT if config.message_is_text else frames.Opcode.BINARY
        )
        self._subprotocols = [name.encode() for name in config.subprotocols]
        self._refusals = RefusalReport(report_fd)
        self._talk_cursor = 0
        self._pongs = [
            frames.encode_frame(frames.Opcode.PONG, b"", mask=os.urandom(4)) for _ in range(256)
        ]
        if not config.gc:
            gc.disable()
        if config.give_up_root:
            child.give_up_root()
        child.die_with_parent(os.getppid())
        slot[Counter.ROLE] = Role.CLIENT
        slot[Counter.WORKER] = index
        slot[Counter.STARTED_NS] = time.monotonic_ns()
        slot[Counter.NOFILE_SOFT_COUNT] = config.client_nofile_count
        slot[Counter.OWN_FDS_COUNT] = child.own_descriptors_count()
        slot[Counter.TARGET_COUNT] = self._share_count
        slot[Counter.RECORD_BASE] = record_base
        slot[Counter.RECORD_COUNT] = self._share_count
        slot[Counter.PID] = os.getpid()
        slot[Counter.READY_NS] = time.monotonic_ns()

    def run(self) -> None:
        """Waits for RAMP, opens the share, then serves it until STOP."""
        header, slot, turns = self._live.header, self._slot, self._turns
        poll = self._epoll.poll
        timeout_ns = int(self._config.connect_timeout_s * 1e9)
        next_check_ns = 0
        talks = self._config.message_rate_per_s > 0
        fault = self._fault
        while header[PHASE_WORD] < RAMP:
            time.sleep(0.001)
        self._last_success_ns = time.monotonic_ns()
        self._pace.begin(self._last_success_ns)
        is_ramping = True
        while (phase := header[PHASE_WORD]) < STOP:
            wait_s = IDLE_WAIT_S
            if is_ramping:
                wait_s = self._ramp_wait_s()
            elif talks:
                wait_s = _PACE_MESSAGES_S
            events = poll(wait_s if fault is None else min(wait_s, fault.wait_s), MAX_EVENTS)
            now_ns = turns.begin()
            for fd, mask in events:
                if fd in self._in_flight:
                    self._progress(fd, mask)
                else:
                    self._read(fd)
            if is_ramping:
                if phase == RAMP:
                    self._begin_some(now_ns)
                is_done = slot[_ATTEMPTED] >= self._share_count or phase >= HOLD
                if is_done or self._is_giving_up(now_ns):
                    is_ramping = bool(self._in_flight)
                    if not is_ramping:
                        slot[Counter.ATTEMPTS_DONE_NS] = time.monotonic_ns()
                        self._message_pace.begin(now_ns)
            elif talks and phase == HOLD:
                self._talk(now_ns)
            if now_ns >= next_check_ns:
                next_check_ns = now_ns + 100_000_000
                self._time_out(now_ns - timeout_ns)
            if fault is not None:
                fault.turn(now_ns)
            turns.end()
        slot[Counter.STOPPED_NS] = time.monotonic_ns()

    # -- opening ---------------------------------------------------------------------------------

    def _ramp_wait_s(self) -> float:
        if len(self._in_flight) >= self._config.in_flight_max_count:
            return IDLE_WAIT_S
        if self._slot[_ATTEMPTED] >= self._share_count:
            return IDLE_WAIT_S
        if self._failures_since_success >= _GIVE_UP_FAILURES:
            return 0.01  # the wall is met: go on slowly until it is sure
        return self._pace.wait_s(time.monotonic_ns(), IDLE_WAIT_S)

    def _is_giving_up(self, now_ns: int) -> bool:
        return (
            self._failures_since_success >= _GIVE_UP_FAILURES
            and now_ns - self._last_success_ns > _GIVE_UP_NS
        )

    def _begin_some(self, now_ns: int) -> None:
        if self._is_giving_up(now_ns):
            return
        most_count = min(
            _START_MOST if self._failures_since_success < _GIVE_UP_FAILURES else 4,
            self._config.in_flight_max_count - len(self._in_flight),
            self._share_count - self._slot[_ATTEMPTED],
            self._pace.allowed(now_ns, _START_MOST),
        )
        for _ in range(most_count):
            self._begin_one()

    def _begin_one(self) -> None:
        """Begins one connection; see the module's docstring for the order of calls."""
        slot = self._slot
        record = self._record_base + slot[_ATTEMPTED]
        group = next(self._order)
        slot[_ATTEMPTED] += 1
        self._destination_port[record] = group.destination_port
        self._source_address[record] = group.address_number
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

    def _request(self, fd: int, record: int, exchange: _Exchange, *, is_registered: bool) -> None:
        """Sends the opening handshake, or waits for the connection."""
        if self._fault is not None and self._fault.is_mute:
            if is_registered:
                self._abandon(fd, 0)  # the server ended it
            else:
                self._epoll.register(fd, select.EPOLLIN)
            return
        try:
            os.write(fd, exchange.request)  # fits any send buffer
        except BlockingIOError:
            if not is_registered:
                self._epoll.register(fd, select.EPOLLOUT)
            return
        except OSError as error:
            self._abandon(fd, error.errno or 0)
            return
        self._connected_ns[record] = time.monotonic_ns()
        self._stage[record] = _HANDSHAKE
        if is_registered:
            self._epoll.modify(fd, select.EPOLLIN)
        else:
            self._epoll.register(fd, select.EPOLLIN)

    def _progress(self, fd: int, mask: int) -> None:
        """Something happened on a connection that is not open yet."""
        record, exchange = self._record_by_fd[fd], self._in_flight[fd]
        if not self._connected_ns[record]:
            self._request(fd, record, exchange, is_registered=True)
            return
        try:
            data = os.read(fd, _READ_BYTES)
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

    def _check(self, fd: int, record: int, exchange: _Exchange, data: bytes) -> None:
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
        return os.read(fd, _READ_BYTES)

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
        self._errno[record] = number
        self._close_kind[record] = kind
        self._closed_ns[record] = time.monotonic_ns()
        self._slot[_FAILED] += 1
        self._failures_since_success += 1

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

    def _count_end(self, kind: CloseKind) -> None:
        if kind is CloseKind.RST:
            self._slot[_RESETS] += 1
        elif kind in (CloseKind.EOF, CloseKind.CLOSE):
            self._slot[_EOFS] += 1

    # -- open connections ------------------------------------------------------------------------

    def _read(self, fd: int) -> None:
        if self._record_by_fd[fd] < 0:
            return
        try:
            data = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(fd, error.errno or 0, CloseKind.RST)
            return
        if data:
            self._receive(fd, data)
        else:
            self._lose(fd, 0, CloseKind.EOF)

    def _receive(self, fd: int, data: bytes) -> None:
        slot = self._slot
        if fd not in self._partial:
            frame = frames.parse_small_frame(data, masked=False)
            if frame is not None:
                opcode, payload, consumed = frame
                if opcode == _PING:
                    slot[_RX_PINGS] += 1
                    self._send(
                        fd,
                        frames.encode_frame(frames.Opcode.PONG, payload, mask=os.urandom(4))
                        if payload
                        else self._pongs[random.getrandbits(8)],
                    )
                    data = data[consumed:]
                elif opcode in _MESSAGES:
                    slot[_RX_MESSAGES] += 1
                    data = data[consumed:]
                if not data:
                    return
        connection = self._partial.get(fd)
        if connection is None:
            connection = Connection(End.CLIENT)
        kind = CloseKind.EOF
        for event in connection.receive(data):
            if isinstance(event, TextMessage | BinaryMessage):
                slot[_RX_MESSAGES] += 1
            elif isinstance(event, Ping):
                slot[_RX_PINGS] += 1
            elif isinstance(event, Violation | Close):
                kind = self._refusals.tell_end(event)
                slot[_PROTOCOL_ERRORS] += kind is CloseKind.PROTOCOL
        replies = connection.data_to_send()
        if replies:
            self._send(fd, replies)
        if connection.must_disconnect:
            self._lose(fd, 0, kind)
        elif connection.is_idle:
            self._partial.pop(fd, None)
        else:
            self._partial[fd] = connection

    def _talk(self, now_ns: int) -> None:
        """Sends what the message rate asks for, one connection after the other."""
        wanted_count = min(self._message_pace.allowed(now_ns, 1024), 1024)
        looked_at_count = 0
        size = len(self._record_by_fd)
        while wanted_count and looked_at_count < size:
            self._talk_cursor = (self._talk_cursor + 1) % size
            looked_at_count += 1
            record = self._record_by_fd[self._talk_cursor]
            if record >= 0 and self._stage[record] == _OPEN:
                wanted_count -= 1
                self._slot[_TX_MESSAGES] += 1
                self._send(
                    self._talk_cursor,
                    frames.encode_frame(
                        self._message_opcode,
                        self._payload if not self._message else self._next_message(record),
                        mask=random.randbytes(4),
                    ),
                )

    def _next_message(self, record: int) -> bytes:
        """The template filled in: {n} counts the messages of this client from 1."""
        text = self._message.format(
            n=self._slot[_TX_MESSAGES], connection=record, client=self._slot[Counter.WORKER]
        )
        return text.encode()

    def _send(self, fd: int, data: bytes) -> None:
        if self._record_by_fd[fd] < 0:
            return
        try:
            sent = os.write(fd, data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._lose(fd, error.errno or 0, close_kind_of(error.errno or 0))
            return
        if sent < len(data):
            # A frame cut in the middle cannot be taken back: a server that reads so slowly that
            # its client's buffer is full has lost this client.
            self._lose(fd, errno.EAGAIN, CloseKind.LOCAL)

    def _lose(self, fd: int, number: int, kind: CloseKind) -> None:
        """An open connection ended before the run wanted it to."""
        record = self._record_by_fd[fd]
        if record < 0:
            return
        self._record_by_fd[fd] = -1
        self._partial.pop(fd, None)
        self._errno[record] = number
        self._close_kind[record] = kind
        self._stage[record] = _CLOSED
        self._closed_ns[record] = time.monotonic_ns()
        self._slot[_OPEN_COUNT] -= 1
        self._slot[_LOST] += 1
        self._count_end(kind)
        os.close(fd)


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
