"""The run's shared memory: counters of every fleet process, one record per connection.

One file, ``live.bin`` of the run directory, mapped by the supervisor, every worker, every client
and the probe process. Each process writes only its own slot and the records of its own
connections, so there are no locks, and everything outlives its writer, also one that was killed.
Standard library only: the measured processes import this module.

Layout (little endian, all 8-byte aligned)::

    0      HEADER_WORDS x int64     see Header
    4096   slot_count x SLOT_BYTES  see Counter, then LAG_BUCKETS x int64
    ...    columns of `capacity` records: 4 x int64, then u32, u16, u16, u8, u8
    ...    TIMED_CLIENTS x CLIENT_BYTES  see probes/contract/message_times.py

Every scalar is written by one aligned store, so a reader sees old or new, never half.
"""

from __future__ import annotations

import mmap
import os
from enum import IntEnum
from typing import TYPE_CHECKING

from probes.contract.errors import RunDirError
from probes.contract.message_times import CLIENT_BYTES

if TYPE_CHECKING:  # pathlib and what it imports would be a megabyte in every measured process
    from collections.abc import Iterator
    from pathlib import Path

MAGIC = 0x31_45_56_49_4C_4E_4E_43  # "CNNLIVE1" in memory
LAYOUT_VERSION = 1
HEADER_BYTES = 4096
SLOT_BYTES = 1024
LAG_BUCKETS = 48


class Header(IntEnum):
    """int64 words at the start of the file."""

    MAGIC = 0
    VERSION = 1
    SLOT_COUNT = 2
    CAPACITY = 3
    PHASE = 4
    PHASE_RAMP_NS = 5
    PHASE_HOLD_NS = 6
    PHASE_STOP_NS = 7
    PROBES_READY_NS = 8
    STOP_REASON = 9
    # of processes of a server that is not ours, whose slots went to others since
    ENDED_COUNT = 10
    ENDED_ESTABLISHED_TOTAL = 11
    ENDED_EMFILE_TOTAL = 12
    TIMED_CLIENTS = 13  # clients that time their messages; 0: none does


class Phase(IntEnum):
    """What the supervisor wants of the fleet; only ever grows."""

    START = 0
    RAMP = 1
    HOLD = 2
    STOP = 3


_MOST_SLOTS, _MOST_CAPACITY = 1 << 16, 1 << 24
"""Processes and connections that one host can hold: a file with holes may claim any number."""


class Role(IntEnum):
    """What the owner of a slot is."""

    FREE = 0
    SERVER = 1
    ACCEPTOR = 2
    CLIENT = 3
    BACKEND = 4  # of a server that is not ours: what works behind it


class Counter(IntEnum):
    """int64 words of a slot. Totals only grow; counts are values of now."""

    ROLE = 0
    WORKER = 1
    PID = 2
    STARTED_NS = 3
    READY_NS = 4
    NOFILE_SOFT_COUNT = 5
    OWN_FDS_COUNT = 6
    TARGET_COUNT = 7
    OPEN_COUNT = 8
    ESTABLISHED_TOTAL = 9
    ATTEMPTED_TOTAL = 10
    FAILED_TOTAL = 11
    LOST_TOTAL = 12
    IN_FLIGHT_COUNT = 13
    RX_MESSAGES_TOTAL = 14
    TX_MESSAGES_TOTAL = 15
    RX_PINGS_TOTAL = 16
    TX_PINGS_TOTAL = 17
    RX_PONGS_TOTAL = 18
    ACCEPT_EMFILE_TOTAL = 19
    LOOP_ITERATIONS_TOTAL = 20
    LOOP_BUSY_NS_TOTAL = 21
    LOOP_ENTERED_NS = 22  # when epoll_wait returned; 0 while waiting
    LOOP_MAX_LAG_NS = 23  # longest turn of the run
    WRITE_BUFFERED_BYTES = 24
    ATTEMPTS_DONE_NS = 25  # client: nothing left to try; 0 before
    RESET_TOTAL = 26  # connections that ended by RST
    EOF_TOTAL = 27
    PROTOCOL_ERROR_TOTAL = 28
    ACCEPT_RESET_TOTAL = 29  # accepted on the reserve descriptor and closed at once
    LISTENER_PAUSES_TOTAL = 30
    STOPPED_NS = 31
    RECORD_BASE = 32  # client: first record of this client
    RECORD_COUNT = 33
    GC_NS_TOTAL = 34  # time in the runtime's collector
    GC_COLLECTIONS_TOTAL = 35
    GC_MAX_PAUSE_NS = 36  # longest collection of the run
    WALL_SINCE_NS = 37  # client: since when every attempt fails; 0: not so now
    GAVE_UP_NS = 38  # client: when it stopped with attempts left; 0: it did not
    GAVE_UP_FAILED_COUNT = 39  # client: attempts in a row that had failed by then
    RETRIED_TOTAL = 40  # client: attempts after a connection's first
    RETRIED_OPEN_TOTAL = 41  # of them, of connections that had been open
    RETRIED_AFTER_BASE = 42  # first of nine words: attempts after one that ended so (CloseKind)
    COUNTED_NS = 51  # server that is not ours: when OPEN_COUNT was read, written after it


COUNTER_WORDS = 64
assert COUNTER_WORDS * 8 + LAG_BUCKETS * 8 <= SLOT_BYTES


class Stage(IntEnum):
    """Where a connection is, or where it ended (column ``stage``)."""

    PENDING = 0
    SOCKET = 1
    BIND = 2
    CONNECT = 3
    HANDSHAKE = 4
    OPEN = 5
    CLOSED = 6


class CloseKind(IntEnum):
    """How a connection ended (column ``close_kind``)."""

    NONE = 0
    EOF = 1
    RST = 2
    LOCAL = 3
    TIMEOUT = 4
    PROTOCOL = 5
    REFUSED = 6
    ERROR = 7
    CLOSE = 8  # the server said so with a close frame


# name, struct/memoryview type code, bytes; in file order, widest first so that all stay aligned
RECORD_COLUMNS: tuple[tuple[str, str, int], ...] = (
    ("start_ns", "q", 8),
    ("connected_ns", "q", 8),
    ("established_ns", "q", 8),
    ("closed_ns", "q", 8),
    ("source_address", "I", 4),
    ("errno", "H", 2),
    ("destination_port", "H", 2),
    ("stage", "B", 1),
    ("close_kind", "B", 1),
)


def _padded(size_bytes: int) -> int:
    return (size_bytes + 63) & ~63


def file_bytes(slot_count: int, capacity: int, timed_clients: int = 0) -> int:
    """Size of the file for so many processes, connections and clients that time their messages."""
    columns_bytes = sum(_padded(size * capacity) for _, _, size in RECORD_COLUMNS)
    return HEADER_BYTES + slot_count * SLOT_BYTES + columns_bytes + timed_clients * CLIENT_BYTES


def lay_out(fd: int, slot_count: int, capacity: int, timed_clients: int = 0) -> None:
    """Reserves all of an empty file, or of shared memory, and writes its header.

    Raises:
        OSError: There is no room for it.
    """
    os.posix_fallocate(fd, 0, file_bytes(slot_count, capacity, timed_clients))
    live = Live(fd, slot_count=slot_count, capacity=capacity)
    live.header[Header.TIMED_CLIENTS] = timed_clients
    live.close()


def create(path: Path, slot_count: int, capacity: int, timed_clients: int = 0) -> int:
    """Makes the file with all its blocks reserved, so that a full disk shows now, not as SIGBUS.

    Returns:
        An open read-write descriptor.

    Raises:
        RunDirError: The file cannot be made or the disk has no room for it.
    """
    size_bytes = file_bytes(slot_count, capacity, timed_clients)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            lay_out(fd, slot_count, capacity, timed_clients)
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise RunDirError(
            f"cannot reserve {size_bytes:,} bytes at {path}: {error.strerror}",
            fix=f"df -h {path.parent}; choose another place with --output DIR",
        ) from error
    return fd


class Live:
    """A mapping of the file. Words of a slot: ``slot(i)[Counter.X]``; records: ``column(name)[j]``.

    Args:
        fd: Open descriptor of the file; not closed by this class.
        slot_count: Only when the header is to be written (by ``create``).
        capacity: Likewise.
        writable: False maps it read-only.

    Raises:
        RunDirError: Not such a file, or of another layout version, or cut short.
    """

    def __init__(
        self,
        fd: int,
        *,
        slot_count: int | None = None,
        capacity: int | None = None,
        writable: bool = True,
    ) -> None:
        size_bytes = os.fstat(fd).st_size
        if size_bytes < HEADER_BYTES:
            raise RunDirError(
                f"live.bin has {size_bytes} bytes, less than its header",
                fix="the run was cut before it started; run profile-run again",
            )
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._map = mmap.mmap(fd, size_bytes, mmap.MAP_SHARED, access)
        self._bytes = memoryview(self._map)
        self.header = self._bytes[:HEADER_BYTES].cast("q")
        if slot_count is not None and capacity is not None:
            self.header[Header.VERSION] = LAYOUT_VERSION
            self.header[Header.SLOT_COUNT] = slot_count
            self.header[Header.CAPACITY] = capacity
            self.header[Header.MAGIC] = MAGIC
        found = (self.header[Header.MAGIC], self.header[Header.VERSION])
        if found != (MAGIC, LAYOUT_VERSION):
            self.close()
            raise RunDirError(
                f"live.bin has layout {found[1]}, this version reads {LAYOUT_VERSION}",
                fix="read the run with the connscope version in its manifest.json",
            )
        self.slot_count: int = self.header[Header.SLOT_COUNT]
        self.capacity: int = self.header[Header.CAPACITY]
        timed_clients = self.header[Header.TIMED_CLIENTS]
        counts = self.slot_count, self.capacity, timed_clients
        wanted_bytes = file_bytes(*(max(0, count) for count in counts))
        is_possible = 0 <= self.slot_count <= _MOST_SLOTS and 0 <= self.capacity <= _MOST_CAPACITY
        is_possible = is_possible and 0 <= timed_clients <= self.slot_count
        if size_bytes < wanted_bytes or not is_possible:
            self.close()
            raise RunDirError(
                f"live.bin has {size_bytes} bytes of {wanted_bytes}",
                fix="the copy was cut short; copy the run directory again",
            )

    def slot(self, index: int) -> memoryview[int]:
        """The counters of one process as a writable view of COUNTER_WORDS int64."""
        start = HEADER_BYTES + index * SLOT_BYTES
        return self._bytes[start : start + COUNTER_WORDS * 8].cast("q")

    def followed_slots(self) -> Iterator[memoryview[int]]:
        """The slots of processes of a server that is not ours.

        Those of processes that ended are among them, until another process takes the slot. Who
        follows such a server takes the slots in order and never leaves one without a pid, so the
        first one without is the end.
        """
        for index in range(self.slot_count):
            slot = self.slot(index)
            if not slot[Counter.PID]:
                return
            yield slot

    def lag_histogram(self, index: int) -> memoryview[int]:
        """LAG_BUCKETS int64: turns of the event loop whose busy ns have that bit length."""
        start = HEADER_BYTES + index * SLOT_BYTES + COUNTER_WORDS * 8
        return self._bytes[start : start + LAG_BUCKETS * 8].cast("q")

    def message_times(self, client: int) -> memoryview[int] | None:
        """The words of one client's message times; None where it times none (``MessageTimes``)."""
        timed_clients = self.header[Header.TIMED_CLIENTS]
        if client >= timed_clients:
            return None
        start = file_bytes(self.slot_count, self.capacity) + client * CLIENT_BYTES
        return self._bytes[start : start + CLIENT_BYTES].cast("q")

    def column(self, name: str) -> memoryview[int]:
        """One column of the connection records, ``capacity`` items; types in RECORD_COLUMNS."""
        start = HEADER_BYTES + self.slot_count * SLOT_BYTES
        for column_name, code, size in RECORD_COLUMNS:
            if column_name == name:
                view = self._bytes[start : start + size * self.capacity]
                return view if code == "B" else view.cast(code)  # type: ignore[call-overload]  # the codes above are all integers
            start += _padded(size * self.capacity)
        raise KeyError(name)

    @property
    def phase(self) -> int:
        """The current Phase."""
        return self.header[Header.PHASE]

    def close(self) -> None:
        """Drops the mapping; views that are still held keep it alive until they go."""
        try:
            self.header.release()
            self._bytes.release()
            self._map.close()
        except BufferError:
            pass
