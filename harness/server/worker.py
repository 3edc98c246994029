"""One server worker: raw epoll, descriptors instead of sockets, one byte of state a connection.

An idle connection costs user space its byte in ``_state`` and nothing else. What does not fit the
one-frame path gets a ``protocol.Connection`` for as long as it has something unfinished; what a
slow reader has not taken is kept in ``_unsent``, and nothing more is read from it meanwhile.
"""

from __future__ import annotations

import _socket
import array
import gc
import os
import select
import time
from collections.abc import Sequence

from harness.fleet import child, gc_clock
from harness.fleet.config import FleetConfig
from harness.fleet.event_loop import IDLE_WAIT_S, MAX_EVENTS, PHASE_WORD, STOP, Turns
from harness.server import faults as worker_faults
from harness.server.accept_weights import HELD_BACK_WAIT_S, AcceptWeights
from harness.server.listeners import Admission, Sweep, listen
from harness.websocket import frames, handshake
from harness.websocket.protocol import BinaryMessage, Connection, Ping, Pong, TextMessage, Violation
from harness.websocket.protocol import Role as End
from probes.contract.live import Counter, Live, Role
from probes.rights.parent_death import die_with_parent

_FREE, _ACCEPTED, _OPEN = 0, 1, 2
_ACCEPT_MOST = 64  # connections taken in one turn: keeps turns near a millisecond
_SWEEP_MOST = 512
_READ_BYTES = 65_536
_DRAIN_MOST = 16
_PING_FRAME = frames.encode_frame(frames.Opcode.PING, b"")
_PONG = int(frames.Opcode.PONG)
_MESSAGES = (int(frames.Opcode.TEXT), int(frames.Opcode.BINARY))

_OPEN_COUNT = int(Counter.OPEN_COUNT)
_ESTABLISHED = int(Counter.ESTABLISHED_TOTAL)
_ATTEMPTED = int(Counter.ATTEMPTED_TOTAL)
_FAILED = int(Counter.FAILED_TOTAL)
_LOST = int(Counter.LOST_TOTAL)
_RX_MESSAGES = int(Counter.RX_MESSAGES_TOTAL)
_TX_MESSAGES = int(Counter.TX_MESSAGES_TOTAL)
_RX_PINGS = int(Counter.RX_PINGS_TOTAL)
_TX_PINGS = int(Counter.TX_PINGS_TOTAL)
_RX_PONGS = int(Counter.RX_PONGS_TOTAL)
_BUFFERED = int(Counter.WRITE_BUFFERED_BYTES)
_RESETS = int(Counter.RESET_TOTAL)
_EOFS = int(Counter.EOF_TOTAL)
_PROTOCOL_ERRORS = int(Counter.PROTOCOL_ERROR_TOTAL)


class Worker:
    """The server's event loop for its share of the connections.

    Args:
        config: The fleet's configuration.
        index: Number of this worker; also its slot.
        live: Shared memory.
        shared_listeners: Inherited from the parent; None opens own ones with SO_REUSEPORT.
        handoff: Socket on which an acceptor passes descriptors, instead of listeners.
    """

    def __init__(
        self,
        config: FleetConfig,
        index: int,
        live: Live,
        *,
        shared_listeners: Sequence[_socket.socket] | None = None,
        handoff: _socket.socket | None = None,
    ) -> None:
        child.leave_terminal()
        child.limit_descriptors(config.worker_nofile_count)
        self._config = config
        self._live = live
        self._slot = slot = live.slot(index)
        self._turns = Turns(live, index)
        self._epoll = select.epoll()
        self._state = bytearray(config.worker_nofile_count)
        self._partial: dict[int, bytes | Connection] = {}
        self._unsent: dict[int, bytearray] = {}
        self._handshakes = handshake.HandshakeCache()
        self._sweep = Sweep(config.keepalive_s)
        self._echo = config.server_mode == "echo"
        self._handoff = handoff
        # A worker of a shared listener leaves it when it is full: its siblings may have room.
        self._leaves_when_full = config.at_fd_limit == "pause" and config.accept.startswith(
            "shared"
        )
        own_listeners: Sequence[_socket.socket] = shared_listeners or ()
        if shared_listeners is None and handoff is None:
            own_listeners = [
                listen(config.server_address, port, config.backlog_count, reuseport=True)
                for port in config.destination_ports
            ]
        self._admission = Admission(
            own_listeners,
            self._epoll,
            slot,
            config.at_fd_limit,
            exclusive=config.accept == "shared-exclusive",
        )
        self._weights: AcceptWeights | None = None
        if config.accept_weights:
            self._weights = AcceptWeights(
                config.accept_weights,
                index,
                [live.slot(each) for each in range(config.workers)],
                takes_when_full=config.at_fd_limit == "reset",
            )
        self._idle_wait_s = IDLE_WAIT_S
        if handoff is not None:
            handoff.setblocking(False)
            self._epoll.register(handoff.fileno(), select.EPOLLIN)
        self._fault = worker_faults.of_worker(config.inject, index, slot)
        self._write = os.write if self._fault is None else self._fault.write
        self._leaves_unread = self._fault is not None and self._fault.leaves_unread
        if self._fault is not None:
            self._fault.watch_over(self._admission)
        if config.gc:
            gc_clock.watch(slot)
        else:
            gc.disable()
        child.give_up_root(config.own_uid, config.own_gid)
        die_with_parent(config.parent_pid)
        own_fds_count = child.own_descriptors_count()
        self._capacity = config.worker_nofile_count - own_fds_count
        slot[Counter.ROLE] = Role.SERVER
        slot[Counter.WORKER] = index
        slot[Counter.STARTED_NS] = time.monotonic_ns()
        slot[Counter.NOFILE_SOFT_COUNT] = config.worker_nofile_count
        slot[Counter.OWN_FDS_COUNT] = own_fds_count
        slot[Counter.TARGET_COUNT] = self._capacity
        slot[Counter.PID] = os.getpid()
        slot[Counter.READY_NS] = time.monotonic_ns()

    def run(self) -> None:
        """Serves until the supervisor says STOP."""
        poll = self._epoll.poll
        header = self._live.header
        listeners = self._admission.by_fd
        handoff_fd = self._handoff.fileno() if self._handoff is not None else -1
        turns = self._turns
        fault = self._fault
        now_ns = time.monotonic_ns()
        while header[PHASE_WORD] < STOP:
            wait_s = self._sweep.wait_s(
                now_ns, self._idle_wait_s if fault is None else min(self._idle_wait_s, fault.wait_s)
            )
            events = poll(wait_s, MAX_EVENTS)
            now_ns = turns.begin()
            for fd, mask in events:
                if fd in listeners:
                    if self._admission.is_listening:
                        self._welcome(self._admission.accept(fd, self._room_count(now_ns)))
                elif fd == handoff_fd:
                    self._welcome(self._receive_handed())
                else:
                    if mask & select.EPOLLOUT:
                        self._send_rest(fd)
                    if mask & ~select.EPOLLOUT:
                        self._read(fd)
            for fd in self._sweep.slice(now_ns, len(self._state), _SWEEP_MOST):
                if self._state[fd] == _OPEN and fd not in self._unsent:
                    self._send(fd, _PING_FRAME)
                    self._slot[_TX_PINGS] += 1
            if self._weights is not None:
                self._keep_share(self._weights.room_count(now_ns))
            if fault is not None:
                fault.turn(now_ns)
            turns.end()
        self._slot[Counter.STOPPED_NS] = time.monotonic_ns()

    def _keep_share(self, room_count: int) -> None:
        """Leaves the listeners to the siblings while they have taken less than their share."""
        is_ahead = room_count <= 0
        self._admission.hold_back(is_ahead)
        self._idle_wait_s = HELD_BACK_WAIT_S if is_ahead else IDLE_WAIT_S

    def _room_count(self, now_ns: int) -> int:
        """How many connections to take in this turn."""
        room_count = _ACCEPT_MOST
        if self._leaves_when_full:
            room_count = min(_ACCEPT_MOST, self._capacity - self._slot[_OPEN_COUNT])
        if self._weights is not None:
            room_count = min(room_count, self._weights.room_count(now_ns))
        return room_count if self._fault is None else self._fault.room_count(room_count)

    def _receive_handed(self) -> list[int]:
        """Takes descriptors from the acceptor while there is room for them."""
        assert self._handoff is not None
        fds: list[int] = []
        # Room is asked for first: a descriptor that does not fit is lost in the kernel (unix(7)).
        while len(fds) < _ACCEPT_MOST and self._slot[_OPEN_COUNT] + len(fds) < self._capacity - 1:
            try:
                _, ancillary, _, _ = self._handoff.recvmsg(1, 64)
            except BlockingIOError:
                break
            for _, _, data in ancillary:
                fds.extend(array.array("i", data))
            if not ancillary:
                self._epoll.unregister(self._handoff.fileno())  # the acceptor is gone
                break
        return fds

    def _welcome(self, fds: list[int]) -> None:
        """Answers the requests of new connections; with TCP_DEFER_ACCEPT they are here already."""
        slot, state, register = self._slot, self._state, self._epoll.register
        slot[_ATTEMPTED] += len(fds)
        for fd in fds:
            os.set_blocking(fd, False)
            state[fd] = _ACCEPTED
            slot[_OPEN_COUNT] += 1
            register(fd, select.EPOLLIN)
            self._read(fd)
        if self._leaves_when_full and slot[_OPEN_COUNT] >= self._capacity:
            self._admission.pause()

    def _read(self, fd: int) -> None:
        if self._leaves_unread and self._state[fd] == _OPEN:
            self._epoll.modify(fd, 0)
            return
        try:
            data = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._close(fd, _RESETS)
            return
        if not data:
            self._close(fd, _EOFS)
        elif self._state[fd] == _ACCEPTED:
            self._greet(fd, data)
        elif self._state[fd] == _OPEN:
            self._receive(fd, data)

    def _greet(self, fd: int, data: bytes) -> None:
        """Answers the opening handshake (RFC 6455, 4.2)."""
        if fd in self._partial:
            data = self._partial.pop(fd) + data  # type: ignore[operator]  # bytes until it is open
        try:
            answer = self._handshakes.server_response(data)
        except handshake.HandshakeError as error:
            self._slot[_PROTOCOL_ERRORS] += 1
            self._send(fd, error.response)
            self._drain(fd)
            self._close(fd, _FAILED)
            return
        if answer is None:
            self._partial[fd] = data
            return
        response, head_bytes = answer
        self._state[fd] = _OPEN
        self._slot[_ESTABLISHED] += 1
        self._send(fd, response)
        if len(data) > head_bytes and self._state[fd] == _OPEN:
            self._receive(fd, data[head_bytes:])

    def _drain(self, fd: int) -> None:
        """Reads what has come, so that closing sends FIN and the peer can read why (tcp_close)."""
        try:
            for _ in range(_DRAIN_MOST):
                if not os.read(fd, _READ_BYTES):
                    return
        except OSError:
            return

    def _receive(self, fd: int, data: bytes) -> None:
        slot = self._slot
        if fd not in self._partial:
            frame = frames.parse_small_frame(data, masked=True)
            if frame is not None:
                opcode, payload, consumed = frame
                if opcode == _PONG:
                    slot[_RX_PONGS] += 1
                    data = data[consumed:]
                elif opcode in _MESSAGES:
                    slot[_RX_MESSAGES] += 1
                    if self._echo:
                        self._send(fd, frames.encode_frame(opcode, payload))
                        slot[_TX_MESSAGES] += 1
                    data = data[consumed:]
                if not data:
                    return
        self._receive_any(fd, data)

    def _receive_any(self, fd: int, data: bytes) -> None:
        """Everything that is not one whole short frame: pieces, text, closing, violations."""
        slot = self._slot
        connection = self._partial.get(fd)
        if not isinstance(connection, Connection):
            connection = Connection(End.SERVER)
        replies = bytearray()
        for event in connection.receive(data):
            if isinstance(event, TextMessage | BinaryMessage):
                slot[_RX_MESSAGES] += 1
                if self._echo:
                    is_text = isinstance(event, TextMessage)
                    opcode = frames.Opcode.TEXT if is_text else frames.Opcode.BINARY
                    replies += frames.encode_frame(opcode, event.payload)
                    slot[_TX_MESSAGES] += 1
            elif isinstance(event, Ping):
                slot[_RX_PINGS] += 1
            elif isinstance(event, Pong):
                slot[_RX_PONGS] += 1
            elif isinstance(event, Violation):
                slot[_PROTOCOL_ERRORS] += 1
        replies += connection.data_to_send()
        if replies:
            self._send(fd, bytes(replies))
        if connection.must_disconnect:
            self._drain(fd)
            self._close(fd, _EOFS)
        elif connection.is_idle:
            self._partial.pop(fd, None)
        else:
            self._partial[fd] = connection

    def _send(self, fd: int, data: bytes) -> None:
        if self._state[fd] == _FREE:
            return
        waiting = self._unsent.get(fd)
        if waiting is not None:
            waiting += data
            self._slot[_BUFFERED] += len(data)
            return
        try:
            sent = self._write(fd, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(fd, _RESETS)
            return
        if sent < len(data):
            # Until the rest is taken nothing more is read from this peer: the buffer holds the
            # replies to one read at most.
            self._unsent[fd] = bytearray(data[sent:])
            self._slot[_BUFFERED] += len(data) - sent
            self._epoll.modify(fd, select.EPOLLOUT)

    def _send_rest(self, fd: int) -> None:
        waiting = self._unsent.get(fd)
        if waiting is None:
            return
        try:
            sent = os.write(fd, waiting)
        except BlockingIOError:
            return
        except OSError:
            self._close(fd, _RESETS)
            return
        del waiting[:sent]
        self._slot[_BUFFERED] -= sent
        if not waiting:
            del self._unsent[fd]
            self._epoll.modify(fd, select.EPOLLIN)

    def _close(self, fd: int, reason: int) -> None:
        """Ends a connection; ``reason`` is the counter that says why."""
        slot = self._slot
        if self._state[fd] == _FREE:
            return
        if self._state[fd] == _OPEN:
            slot[_LOST] += 1
        self._state[fd] = _FREE
        self._partial.pop(fd, None)
        slot[_BUFFERED] -= len(self._unsent.pop(fd, b""))
        slot[reason] += 1
        slot[_OPEN_COUNT] -= 1
        os.close(fd)  # also leaves the epoll set (epoll(7), Q6)
        self._admission.resume()
