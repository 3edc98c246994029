"""The acceptor of ``--accept handoff``: accepts for all workers and passes descriptors on.

One message a descriptor (SCM_RIGHTS, unix(7)), round robin, so the workers' shares are equal to
within one. A worker that is full is passed over; when all are, the acceptor leaves its listeners.
"""

from __future__ import annotations

import _socket
import array
import errno
import os
import select
import time
from collections.abc import Sequence

from harness.faults import kinds as faults
from harness.fleet import child
from harness.fleet.config import FleetConfig
from harness.fleet.event_loop import IDLE_WAIT_S, MAX_EVENTS, PHASE_WORD, STOP, Turns
from harness.server.listeners import Admission
from probes.contract.live import Counter, Live, Role
from probes.rights.parent_death import die_with_parent

_ACCEPT_MOST = 64
_RETRY_WAIT_S = 0.001  # a worker's queue is full: it will have moved on by then
_TX_MESSAGES = int(Counter.TX_MESSAGES_TOTAL)


class Acceptor:
    """Accepts and hands off.

    Args:
        config: The fleet's configuration.
        slot_index: Its slot, the one after the workers'.
        live: Shared memory; the workers' counters say who is full.
        listeners: Its listeners.
        workers: One end of a Unix socket pair for each worker, in order.
    """

    def __init__(
        self,
        config: FleetConfig,
        slot_index: int,
        live: Live,
        listeners: Sequence[_socket.socket],
        workers: Sequence[_socket.socket],
    ) -> None:
        child.leave_terminal()
        child.limit_descriptors(config.worker_nofile_count)
        self._live = live
        self._slot = slot = live.slot(slot_index)
        self._turns = Turns(live, slot_index)
        self._epoll = select.epoll()
        self._admission = Admission(
            listeners, self._epoll, slot, config.at_fd_limit, exclusive=False
        )
        self._workers = workers
        for worker in workers:
            worker.setblocking(False)
        self._worker_slots = [live.slot(index) for index in range(len(workers))]
        self._passed = [0] * len(workers)
        self._next = 0
        self._waiting: list[int] = []
        slow = faults.faults_of(config.inject, "acceptor", 0)
        self._own_code_ns = int(sum(fault.value for fault in slow) * 1000)
        child.give_up_root(config.own_uid, config.own_gid)
        die_with_parent(config.parent_pid)
        slot[Counter.ROLE] = Role.ACCEPTOR
        slot[Counter.STARTED_NS] = time.monotonic_ns()
        slot[Counter.NOFILE_SOFT_COUNT] = config.worker_nofile_count
        slot[Counter.OWN_FDS_COUNT] = child.own_descriptors_count()
        slot[Counter.PID] = os.getpid()
        slot[Counter.READY_NS] = time.monotonic_ns()

    def run(self) -> None:
        """Accepts until the supervisor says STOP."""
        header = self._live.header
        slot, admission = self._slot, self._admission
        while header[PHASE_WORD] < STOP:
            events = self._epoll.poll(_RETRY_WAIT_S if self._waiting else IDLE_WAIT_S, MAX_EVENTS)
            self._turns.begin()
            if self._waiting:
                self._pass_on()
            for fd, _ in events:
                if not self._waiting and not admission.paused:
                    self._waiting = admission.accept(fd, _ACCEPT_MOST)
                    slot[Counter.ATTEMPTED_TOTAL] += len(self._waiting)
                    self._pass_on()
            slot[Counter.OPEN_COUNT] = slot[Counter.IN_FLIGHT_COUNT] = len(self._waiting)
            if self._waiting:
                admission.pause()
            else:
                admission.resume()
            self._turns.end()
        slot[Counter.STOPPED_NS] = time.monotonic_ns()

    def _pass_on(self) -> None:
        """Sends what was accepted, keeping what no worker can take now."""
        kept: list[int] = []
        for position, fd in enumerate(self._waiting):
            if self._own_code_ns:
                slow_handoff_code(self._own_code_ns)
            if not self._send(fd):
                kept = self._waiting[position:]
                break
            os.close(fd)
            self._slot[_TX_MESSAGES] += 1
        self._waiting = kept

    def _send(self, fd: int) -> bool:
        for _ in range(len(self._workers)):
            index = self._next
            self._next = (index + 1) % len(self._workers)
            worker = self._worker_slots[index]
            # The worker has not taken all of them yet, so what was sent counts, less what left.
            left = worker[Counter.ATTEMPTED_TOTAL] - worker[Counter.OPEN_COUNT]
            if self._passed[index] - left >= worker[Counter.TARGET_COUNT] - 1:
                continue
            try:
                self._workers[index].sendmsg(
                    [b"f"],
                    [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", [fd]))],
                )
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.ETOOMANYREFS):
                    self._next = index  # its turn stays its turn: exactly even
                    return False
                if error.errno in (errno.EPIPE, errno.ECONNRESET):
                    self._passed[index] = 1 << 62  # that worker is gone
                    continue
                raise
            self._passed[index] += 1
            return True
        return False


def slow_handoff_code(cpu_ns: int) -> None:
    """What ``--inject slow-handoff:0`` does for each connection: choosing a worker by hand, say.

    It is code that needs so much CPU time, however many others want the core meanwhile.
    """
    until_ns = time.thread_time_ns() + cpu_ns
    while time.thread_time_ns() < until_ns:
        pass
