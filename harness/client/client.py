"""One client process: opens its share of the connections, then answers and talks while they hold.

How it opens them is ``harness.client.opening``.
"""

from __future__ import annotations

import errno
import gc
import os
import random
import select
import time

from harness.client.load_shape import Pace
from harness.client.opening import READ_BYTES, Opening, close_kind_of
from harness.client.refusals import RefusalReport
from harness.fleet import child
from harness.fleet.config import FleetConfig
from harness.fleet.event_loop import (
    HOLD,
    IDLE_WAIT_S,
    MAX_EVENTS,
    PHASE_WORD,
    RAMP,
    STOP,
    STOP_REASON_WORD,
    Turns,
)
from harness.websocket import frames
from harness.websocket.protocol import (
    BinaryMessage,
    Close,
    Connection,
    Ping,
    TextMessage,
    Violation,
)
from harness.websocket.protocol import Role as End
from probes.contract.live import CloseKind, Counter, Live, Role, Stage
from probes.contract.message_times import STAMP_BYTES, MessageTimes
from probes.rights.parent_death import die_with_parent

_PING = int(frames.Opcode.PING)
_MESSAGES = (int(frames.Opcode.TEXT), int(frames.Opcode.BINARY))
_ENDED = select.EPOLLERR | select.EPOLLHUP
_OPEN, _CLOSED = int(Stage.OPEN), int(Stage.CLOSED)

_OPEN_COUNT = int(Counter.OPEN_COUNT)
_ATTEMPTED = int(Counter.ATTEMPTED_TOTAL)
_LOST = int(Counter.LOST_TOTAL)
_RX_MESSAGES = int(Counter.RX_MESSAGES_TOTAL)
_TX_MESSAGES = int(Counter.TX_MESSAGES_TOTAL)
_RX_PINGS = int(Counter.RX_PINGS_TOTAL)
_RESETS = int(Counter.RESET_TOTAL)
_EOFS = int(Counter.EOF_TOTAL)
_PROTOCOL_ERRORS = int(Counter.PROTOCOL_ERROR_TOTAL)


class Client(Opening):
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
        super().__init__(config, index, live, record_base, RefusalReport(report_fd))
        slot = self._slot
        self._live = live
        self._turns = Turns(live, config.first_client_slot() + index)
        self._partial: dict[int, Connection] = {}
        self._message_pace = Pace(config.message_rate_per_s / config.clients, config.clients, index)
        self._message = config.message
        is_stamped = not config.message and config.payload_bytes >= STAMP_BYTES
        self._payload = b"\xa5" * (config.payload_bytes - STAMP_BYTES * is_stamped)
        times = live.message_times(index)
        stamp_bytes = config.payload_bytes if is_stamped else 0
        self._times = None if times is None else MessageTimes(times, stamp_bytes)
        self._is_stamped = is_stamped
        self._message_opcode = (
            frames.Opcode.TEXT if config.message_is_text else frames.Opcode.BINARY
        )
        self._talk_cursor = 0
        self._pongs = [
            frames.encode_frame(frames.Opcode.PONG, b"", mask=os.urandom(4)) for _ in range(256)
        ]
        if not config.gc:
            gc.disable()
        child.give_up_root(config.own_uid, config.own_gid)
        die_with_parent(config.parent_pid)
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
        fault, retries = self._fault, self._retries
        reads_nothing = fault is not None and fault.reads_nothing
        while header[PHASE_WORD] < RAMP:
            time.sleep(0.001)
        self._last_success_ns = time.monotonic_ns()
        self._pace.begin(self._last_success_ns)
        is_ramping = True
        while (phase := header[PHASE_WORD]) < STOP:
            wait_s = IDLE_WAIT_S
            if is_ramping:
                wait_s = self._ramp_wait_s()
            elif talks and phase == HOLD:
                wait_s = self._message_pace.wait_s(time.monotonic_ns(), IDLE_WAIT_S)
            if retries and self._may_retry(now_ns := time.monotonic_ns()):
                wait_s = retries.wait_s(now_ns, wait_s)
            events = poll(wait_s if fault is None else min(wait_s, fault.wait_s), MAX_EVENTS)
            now_ns = turns.begin()
            for fd, mask in events:
                if fd in self._in_flight:
                    self._progress(fd, mask)
                elif reads_nothing and not mask & _ENDED:
                    self._epoll.modify(fd, 0)  # errors are told all the same
                else:
                    self._read(fd)
            if is_ramping:
                if phase == RAMP:
                    self._begin_some(now_ns)
                is_done = slot[_ATTEMPTED] >= self._share_count and not retries
                if is_done or phase >= HOLD or self._is_giving_up(now_ns):
                    is_ramping = bool(self._in_flight)
                    if not is_ramping:
                        if not is_done and phase < HOLD:
                            self._note_giving_up()
                        slot[Counter.ATTEMPTS_DONE_NS] = time.monotonic_ns()
                        self._message_pace.begin(now_ns)
                        if self._times is not None:
                            self._times.begin(now_ns)
            elif talks and phase == HOLD:
                self._talk(now_ns)
            if retries and header[STOP_REASON_WORD]:
                retries.forget()
            elif retries and self._may_retry(now_ns):
                self._begin_due(retries, now_ns)
            if now_ns >= next_check_ns:
                next_check_ns = now_ns + 100_000_000
                self._time_out(now_ns - timeout_ns)
            if fault is not None:
                fault.turn(now_ns)
            turns.end()
        slot[Counter.STOPPED_NS] = time.monotonic_ns()

    def _note_giving_up(self) -> None:
        self._slot[Counter.GAVE_UP_NS] = self._stalled_ns
        self._slot[Counter.GAVE_UP_FAILED_COUNT] = self._failures_since_success

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
            data = os.read(fd, READ_BYTES)
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
                    self._take(fd, payload)
                    data = data[consumed:]
                if not data:
                    return
        connection = self._partial.get(fd)
        if connection is None:
            connection = Connection(End.CLIENT)
        kind = CloseKind.EOF
        for event in connection.receive(data):
            if isinstance(event, TextMessage | BinaryMessage):
                self._take(fd, event.payload)
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

    def _take(self, fd: int, payload: bytes) -> None:
        self._slot[_RX_MESSAGES] += 1
        if self._times is not None:
            self._times.received(fd, payload, time.monotonic_ns())

    def _talk(self, now_ns: int) -> None:
        """Sends what the message rate asks for, one connection after the other.

        Also several to one: what was due while this client stood still is sent late, not left out.
        """
        pace, times = self._message_pace, self._times
        wanted_count = min(pace.allowed(now_ns, 1024), 1024)
        due_ns = pace.due_ns(wanted_count)
        looked_at_count = 0
        size = len(self._record_by_fd)
        while wanted_count and looked_at_count < size:
            self._talk_cursor = (self._talk_cursor + 1) % size
            looked_at_count += 1
            record = self._record_by_fd[self._talk_cursor]
            if record >= 0 and self._stage[record] == _OPEN:
                wanted_count -= 1
                looked_at_count = 0
                self._slot[_TX_MESSAGES] += 1
                self._send(
                    self._talk_cursor,
                    frames.encode_frame(
                        self._message_opcode,
                        self._next_message(record, due_ns),
                        mask=random.randbytes(4),
                    ),
                )
                if times is not None:
                    times.sent(self._talk_cursor, due_ns)
                due_ns += pace.interval_ns

    def _next_message(self, record: int, due_ns: int) -> bytes:
        """A payload with its stamp, or the template: {n} counts this client's messages from 1."""
        if self._is_stamped:
            return due_ns.to_bytes(STAMP_BYTES, "big") + self._payload
        if not self._message:
            return self._payload
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
        if self._times is not None:
            self._times.forget(fd)
        self._errno[record] = number
        self._close_kind[record] = kind
        self._stage[record] = _CLOSED
        self._closed_ns[record] = time.monotonic_ns()
        self._slot[_OPEN_COUNT] -= 1
        self._slot[_LOST] += 1
        self._count_end(kind)
        os.close(fd)
        if self._retries is not None:
            self._retries.plan(record, self._closed_ns[record])
