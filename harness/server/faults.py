"""What a faulty worker does in each turn of its event loop (``harness.faults.kinds``)."""

from __future__ import annotations

import _socket
import gc
import mmap
import os
import signal
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from harness.faults.kinds import Fault, faults_of
from harness.fleet.event_loop import IDLE_WAIT_S
from probes.contract.live import Counter

if TYPE_CHECKING:
    import threading

    from harness.server.listeners import Admission

_HOT_TURN_NS = 20_000_000
_DISK_FOLDERS = ("/var/tmp", "/tmp", ".")  # noqa: S108  # the file has no name to guess
_DISK_BLOCK_BYTES = 256 << 10
"""A fast disk takes 4 kB in 70 us, of which a worker seems to run as often as to wait."""
_CYCLES_PER_TURN = 2_000


class WorkerFault:
    """A fault of one worker.

    Attributes:
        wait_s: The longest that the event loop may wait for events.
        leaves_unread: The worker reads nothing more from connections that are open.
    """

    wait_s: float = IDLE_WAIT_S
    leaves_unread: bool = False

    def __init__(self, fault: Fault, slot: memoryview) -> None:
        self.fault = fault
        self.slot = slot

    def turn(self, now_ns: int) -> None:
        """Called once in each turn, after the events were served."""

    def watch_over(self, admission: Admission) -> None:
        """Gets the worker's listeners, before the first turn."""

    def write(self, fd: int, data: bytes) -> int:
        """Sends like os.write; says how many bytes were taken."""
        return os.write(fd, data)

    def room_count(self, most_count: int) -> int:
        """How many connections it takes now; at most ``most_count``, what a healthy one takes."""
        return most_count


class HotCode(WorkerFault):
    """Turns without end and calculates."""

    wait_s = 0.0

    def turn(self, now_ns: int) -> None:
        """Keeps the core for most of the time."""
        hot_application_code(now_ns + _HOT_TURN_NS)


class Sleep(WorkerFault):
    """Sleeps in the event loop, as a client library without a timeout or a retry does."""

    wait_s = 0.0

    def turn(self, now_ns: int) -> None:
        """Sleeps for the fault's value, in ms."""
        sleeping_application_code(self.fault.value / 1000)


class Lock(WorkerFault):
    """Waits in the event loop for a lock that another thread of the worker holds."""

    wait_s = 0.0

    def __init__(self, fault: Fault, slot: memoryview) -> None:
        super().__init__(fault, slot)
        import threading  # no healthy worker needs it

        self._lock = threading.Lock()
        holder = threading.Thread(target=self._hold, name="lock holder", daemon=True)
        holder.start()

    def _hold(self) -> None:
        while True:
            with self._lock:
                time.sleep(self.fault.value / 1000)
            time.sleep(0.001)  # lets the loop have it

    def turn(self, now_ns: int) -> None:
        """Takes the lock and gives it back."""
        waiting_for_lock(self._lock)


class Disk(WorkerFault):
    """Writes one block over and over and waits for the disk each time, as a naive log does.

    The file has no name and 4 KiB: nothing stays, whatever ends the worker.

    Raises:
        OSError: No folder on a disk takes such a file.
    """

    wait_s = 0.0

    def __init__(self, fault: Fault, slot: memoryview) -> None:
        super().__init__(fault, slot)
        self._fd = _open_on_disk()
        self._block = mmap.mmap(-1, _DISK_BLOCK_BYTES)  # O_DIRECT wants it aligned (open(2))

    def turn(self, now_ns: int) -> None:
        """Waits for the disk for the fault's value, in ms."""
        waiting_for_disk(self._fd, self._block, now_ns + int(self.fault.value * 1e6))


class Garbage(WorkerFault):
    """Makes cycles that live for a while beside many objects that live for ever.

    Python's collector looks at every object of the oldest generation once a quarter of them is new
    (Modules/gcmodule.c, gc_collect_generations), so most of the time goes there.
    """

    wait_s = 0.0

    def __init__(self, fault: Fault, slot: memoryview) -> None:
        super().__init__(fault, slot)
        self._heap: list[list[object]] = [[] for _ in range(int(fault.value))]
        self._cycles: list[list[object]] = []

    def turn(self, now_ns: int) -> None:
        """Makes some cycles, and lets go of all once they are a quarter of the heap."""
        if not gc.isenabled():  # --gc off: nobody would take it away
            return
        making_garbage(self._cycles, _CYCLES_PER_TURN)
        if len(self._cycles) > len(self._heap) // 3:
            self._cycles.clear()


class Crash(WorkerFault):
    """Dies of SIGKILL once it holds so many connections, as by the OOM killer."""

    def turn(self, now_ns: int) -> None:
        """Looks at its counter of open connections."""
        if self.slot[Counter.OPEN_COUNT] >= self.fault.value:
            os.kill(os.getpid(), signal.SIGKILL)


class SlowAccept(WorkerFault):
    """Takes so many connections a second and leaves the listeners meanwhile, idle.

    As a server does that limits its own rate of new connections (HAProxy's ``maxconnrate``).
    """

    def __init__(self, fault: Fault, slot: memoryview) -> None:
        super().__init__(fault, slot)
        self._interval_ns = int(1e9 / max(fault.value, 0.01))
        self.wait_s = min(IDLE_WAIT_S, self._interval_ns / 1e9)
        self._due_ns = 0
        self._accepted_count = 0
        self._admission: Admission | None = None

    def watch_over(self, admission: Admission) -> None:
        """Leaves and rejoins these."""
        self._admission = admission

    def room_count(self, most_count: int) -> int:
        """One at a time, when it is due."""
        is_due = time.monotonic_ns() >= self._due_ns
        return min(most_count, 1) if is_due and self._accepted_count == self._count() else 0

    def turn(self, now_ns: int) -> None:
        """Leaves the listeners once it has accepted, and comes back when the next is due."""
        assert self._admission is not None
        count = self._count()
        if count != self._accepted_count:
            self._accepted_count = count
            # What was not used in time is lost: a limiter that saved it up would let a burst in.
            self._due_ns = max(self._due_ns + self._interval_ns, now_ns)
        if now_ns < self._due_ns:
            self._admission.pause()
        else:
            self._admission.resume()

    def _count(self) -> int:
        count: int = self.slot[Counter.ATTEMPTED_TOTAL]
        return count


class NoRead(WorkerFault):
    """Leaves what its open connections send in their receive buffers."""

    leaves_unread = True


class SendmsgEnobufs(WorkerFault):
    """Sends with more control data than net.core.optmem_max allows, after so many good writes.

    sock_kmalloc refuses them and sendmsg(2) says ENOBUFS (net/socket.c, ____sys_sendmsg).
    """

    def __init__(self, fault: Fault, slot: memoryview) -> None:
        super().__init__(fault, slot)
        self._left_count = int(fault.value)
        with open("/proc/sys/net/core/optmem_max", encoding="ascii") as stream:  # noqa: PTH123 - no pathlib in the measured processes
            self._control = bytes(int(stream.read()) + 1)

    def write(self, fd: int, data: bytes) -> int:
        """A write; or a sendmsg that fails."""
        if self._left_count > 0:
            self._left_count -= 1
            return os.write(fd, data)
        return sending_control_data(fd, data, self._control)


class Several(WorkerFault):
    """More than one fault in one worker."""

    def __init__(self, faults: list[WorkerFault]) -> None:
        self.wait_s = min(fault.wait_s for fault in faults)
        self.leaves_unread = any(fault.leaves_unread for fault in faults)
        self._faults = faults

    def turn(self, now_ns: int) -> None:
        """One after the other."""
        for fault in self._faults:
            fault.turn(now_ns)

    def watch_over(self, admission: Admission) -> None:
        """All get them."""
        for fault in self._faults:
            fault.watch_over(admission)

    def write(self, fd: int, data: bytes) -> int:
        """As the first one does that changes it."""
        changed = [f for f in self._faults if type(f).write is not WorkerFault.write]
        return (changed or self._faults)[0].write(fd, data)

    def room_count(self, most_count: int) -> int:
        """What the slowest takes."""
        return min(fault.room_count(most_count) for fault in self._faults)


_CLASSES: dict[str, type[WorkerFault]] = {
    "hot-code": HotCode,
    "sleep": Sleep,
    "slow-accept": SlowAccept,
    "lock": Lock,
    "disk": Disk,
    "garbage": Garbage,
    "crash": Crash,
    "no-read": NoRead,
    "sendmsg-enobufs": SendmsgEnobufs,
}


def of_worker(inject: Iterable[str], index: int, slot: memoryview) -> WorkerFault | None:
    """What is wrong with a worker; None, the usual case, when nothing is.

    Args:
        inject: As given on the command line.
        index: Number of the worker.
        slot: Its counters.
    """
    found = faults_of(inject, "worker", index)
    faults = [_CLASSES[fault.name](fault, slot) for fault in found if fault.name in _CLASSES]
    if len(faults) > 1:
        return Several(faults)
    return faults[0] if faults else None


def hot_application_code(until_ns: int) -> None:
    """Application code that never yields: what ``--inject hot-code:WORKER`` puts into a worker."""
    while time.monotonic_ns() < until_ns:
        pass


def sending_control_data(fd: int, data: bytes, control: bytes) -> int:
    """Application code: what ``--inject sendmsg-enobufs:WORKER`` puts in the place of write."""
    sock = _socket.socket(fileno=fd)
    try:
        return sock.sendmsg([data], [(_socket.SOL_SOCKET, 0, control)])
    finally:
        sock.detach()


def sleeping_application_code(length_s: float) -> None:
    """Application code that sleeps: what ``--inject sleep:WORKER`` puts into the event loop."""
    time.sleep(length_s)


def waiting_for_lock(lock: threading.Lock) -> None:
    """Application code that needs a lock: what ``--inject lock:WORKER`` puts into the loop."""
    with lock:
        pass


def waiting_for_disk(fd: int, block: mmap.mmap, until_ns: int) -> None:
    """Application code that syncs a file: what ``--inject disk:WORKER`` puts into the loop."""
    while time.monotonic_ns() < until_ns:
        os.pwrite(fd, block, 0)
        os.fsync(fd)


def making_garbage(cycles: list[list[object]], count: int) -> None:
    """Application code that makes reference cycles: what ``--inject garbage:WORKER`` runs."""
    for _ in range(count):
        cycle: list[object] = []
        cycle.append(cycle)
        cycles.append(cycle)


def _open_on_disk() -> int:
    """A nameless file that bypasses the page cache, on a disk where there is one."""
    error: OSError | None = None
    # tmpfs never blocks: its device has major number 0 (devices.txt), but overlayfs's has it too
    for folder in sorted(_DISK_FOLDERS, key=_is_without_device):
        try:
            return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC, 0o600)
        except OSError as refused:
            error = refused
    assert error is not None
    raise error


def _is_without_device(folder: str) -> bool:
    return os.major(os.stat(folder).st_dev) == 0  # noqa: PTH116  # pathlib is a megabyte
