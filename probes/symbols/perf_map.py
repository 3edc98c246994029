"""Names of code that a runtime made itself, from the map file that it keeps for perf.

Node writes one with ``--perf-basic-prof``, Python 3.12 and newer with ``-X perf``, Java with
``jcmd PID Compiler.perfmap`` (JDK 17) or perf-map-agent. Its name is ``/tmp/perf-PID.map``, in the
process's own file system and with its pid there. Each line is begin, size (both hex) and name.

The file is whatever the program wrote, or whoever can write there (``probes.symbols.perf_map_file``
says whose counts), so it is read in a process without rights (``probes.symbols.name_parser``). What
cannot be read is skipped, a name is cut and loses what a terminal would obey, and the amount read
is bounded.

A name is written as FlameGraph's scripts do, with ``_[j]`` at its end, and in the form of our
Python frames, so that a function has one name whatever tier of the compiler made it::

    JS:*turn file:///srv/server.js:10:20   turn (/srv/server.js:10)_[j]
    py::turn:/srv/server.py                turn (/srv/server.py)_[j]
    py::run:/usr/lib/python3.13/asyncio/runners.py   run (asyncio/runners.py)_[j]
    Lorg/example/Server;::turn             org.example.Server::turn_[j]
    void org.example.Server.turn(int)      org.example.Server::turn_[j]

Source: tools/perf/Documentation/jit-interface.txt; V8's src/logging/log.cc (PerfBasicLogger);
CPython's Python/perf_trampoline.c.
"""

from __future__ import annotations

import heapq
import os
import re

import numpy as np
import numpy.typing as npt

from probes.symbols.clean_name import clean_name

Addresses = npt.NDArray[np.uint64]

MAX_MAP_BYTES = 64 << 20  # of one process; 600,000 functions of Node
MAX_READ_BYTES = 1 << 20  # at once: 15,000 lines, 0.1 s; 0.5 s of the shortest in the worst order
MAX_LINE_BYTES = 4096
_MATCHED_CHARACTERS = 1000

_V8 = re.compile(r"(?:JS|LazyCompile|Function|Script|Eval|Module):[~^+*']*(.*)")
_V8_PLACE = re.compile(r"(.*?) ?(?:file://(.*?)|(\S*?)):(\d+):\d+$")
_PYTHON = re.compile(r"py::(.*?):(.*)")
_PYTHON_LIBRARY = re.compile(r".*/(?:site-packages|dist-packages|lib/python3\.\d+t?)/")
_JAVA = re.compile(r"L([\w/$]+);::(.*)")
_JDK = re.compile(r"[\w.$]+(?:\[\])* ([\w.$]+?)(?:[/+]0x[0-9a-f]+)?\.([\w$]+|<\w+>)\([^()]*\)")


def frame_name(written: str) -> str:
    """The name of a frame, without its suffix, from the name that the runtime wrote."""
    name = written.strip()[:_MATCHED_CHARACTERS]  # the patterns take the square of it
    if match := _V8.fullmatch(name):
        name = match[1].strip()
        if place := _V8_PLACE.fullmatch(name):
            file = place[2] or place[3]
            name = f"{place[1].strip() or '<anonymous>'} ({file}:{place[4]})"
        name = name or "<anonymous>"
    elif match := _PYTHON.fullmatch(name):
        name = f"{match[1]} ({_PYTHON_LIBRARY.sub('', match[2])})"  # as py-spy writes it
    elif match := _JAVA.fullmatch(name):
        name = f"{match[1].replace('/', '.')}::{match[2]}"
    elif match := _JDK.fullmatch(name):
        name = f"{match[1]}::{match[2]}"
    return clean_name(name)


def parse_line(line: bytes) -> tuple[int, int, str] | None:
    """Begin, end and name of one line; None when it is not one."""
    parts = line.split(maxsplit=2)
    if len(parts) < 3 or len(line) > MAX_LINE_BYTES:
        return None
    try:
        start, size_bytes = int(parts[0], 16), int(parts[1], 16)
    except ValueError:
        return None
    if start < 0 or size_bytes <= 0 or start + size_bytes >= 1 << 64:
        return None
    return start, start + size_bytes, parts[2].decode(errors="replace")


class CodeMap:
    """Code by address. The file is in order of time: what comes later replaces what it overlaps.

    A piece of the file is taken as a whole, so that its cost does not hang on the order of its
    addresses, which a stranger chooses.

    Attributes:
        bad_line_count: Lines that were none.
    """

    def __init__(self) -> None:
        self.bad_line_count = 0
        self._starts: Addresses = np.empty(0, np.uint64)
        self._ends: Addresses = np.empty(0, np.uint64)
        self._names: list[str] = []  # as written
        self._rest = b""

    def __len__(self) -> int:
        return len(self._names)

    def add(self, text: bytes) -> None:
        """Takes the next piece of the file; its last line may go on in the piece after it."""
        lines = (self._rest + text).split(b"\n")
        self._rest = lines.pop()[: MAX_LINE_BYTES + 1]  # one too long stays too long
        rows = []
        for line in lines:
            parsed = parse_line(line)
            if parsed is None:
                self.bad_line_count += bool(line.strip())
            else:
                rows.append(parsed)
        if rows:
            self._take(rows)

    def _take(self, rows: list[tuple[int, int, str]]) -> None:
        starts = np.array([row[0] for row in rows], np.uint64)
        ends = np.array([row[1] for row in rows], np.uint64)
        names = [row[2] for row in rows]
        if (starts[1:] < ends[:-1]).any():
            kept = np.flatnonzero(_last_said(starts, ends))
            new_starts, new_ends, names = starts[kept], ends[kept], [names[i] for i in kept]
        else:
            new_starts, new_ends = starts, ends
        if len(self._ends) and starts.min() < self._ends[-1]:
            kept = np.flatnonzero(~_overlapped(self._starts, self._ends, starts, ends))
            self._starts, self._ends = self._starts[kept], self._ends[kept]
            self._names = [self._names[i] for i in kept]
        self._starts = np.concatenate([self._starts, new_starts])
        self._ends = np.concatenate([self._ends, new_ends])
        self._names += names
        if (self._starts[1:] < self._starts[:-1]).any():
            order = np.argsort(self._starts, kind="stable")
            self._starts, self._ends = self._starts[order], self._ends[order]
            self._names = [self._names[i] for i in order]

    @property
    def rows(self) -> list[tuple[int, int, str]]:
        """Begin, end and name of each, by begin."""
        return list(zip(self._starts.tolist(), self._ends.tolist(), self._names, strict=True))

    def find(self, address: int) -> str | None:
        """The name that the runtime wrote for an address, None where it wrote none."""
        at = int(np.searchsorted(self._starts, np.uint64(address), side="right")) - 1
        return self._names[at] if at >= 0 and address < int(self._ends[at]) else None


def _last_said(starts: Addresses, ends: Addresses) -> npt.NDArray[np.bool_]:
    """Of spans in order of time those that none after them overlaps."""
    order = np.argsort(starts, kind="stable")
    begins, stops = starts[order], ends[order]
    latest = _latest_of_ranges(
        order, np.searchsorted(begins, begins, "left"), np.searchsorted(begins, stops, "left")
    )
    is_last = np.empty(len(starts), np.bool_)
    reaching: list[tuple[int, int]] = []  # (-time, end) of those that began before
    for time, begin, stop, inside in zip(
        order.tolist(), begins.tolist(), stops.tolist(), latest.tolist(), strict=True
    ):
        while reaching and reaching[0][1] <= begin:
            heapq.heappop(reaching)
        is_last[time] = inside == time and not (reaching and -reaching[0][0] > time)
        heapq.heappush(reaching, (-time, stop))
    return is_last


def _latest_of_ranges(
    values: npt.NDArray[np.int64], lows: npt.NDArray[np.int64], highs: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The maximum of ``values[low:high]`` for each pair; no range is empty."""
    found = np.empty(len(lows), np.int64)
    level, width = values.astype(np.int64), 1
    while True:
        mine = (highs - lows >= width) & (highs - lows < 2 * width)
        found[mine] = np.maximum(level[lows[mine]], level[highs[mine] - width])
        if 2 * width > len(values):
            return found
        level, width = np.maximum(level[:-width], level[width:]), 2 * width


def _overlapped(
    starts: Addresses, ends: Addresses, by_starts: Addresses, by_ends: Addresses
) -> npt.NDArray[np.bool_]:
    """Which of some spans are overlapped by one of others."""
    order = np.argsort(by_starts, kind="stable")
    begins, reach = by_starts[order], np.maximum.accumulate(by_ends[order])
    before = np.searchsorted(begins, ends, "left")  # so many of the others begin before its end
    is_hit: npt.NDArray[np.bool_] = (before > 0) & (reach[np.maximum(before, 1) - 1] > starts)
    return is_hit


class MapBudget:
    """Bytes of maps that a process of probes reads, over all processes that it watches.

    Attributes:
        left_bytes: So many more may be read.
    """

    def __init__(self, bytes_most: int = 256 << 20) -> None:
        self.left_bytes = bytes_most


class PerfMap:
    """The map of one process, read on as it grows."""

    def __init__(self, budget: MapBudget | None = None) -> None:
        self._budget = budget or MapBudget()
        self._code = CodeMap()
        self._file = (0, 0)
        self._read_bytes = 0
        self._frames: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._code)

    def read_on(self, fd: int) -> bool:
        """Reads what was written since.

        Args:
            fd: Of the map, which stays open; another file than before is begun anew.

        Returns:
            Whether there are new names.

        Raises:
            OSError: It cannot be read.
        """
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != self._file or status.st_size < self._read_bytes:
            self.forget()
            self._file = (status.st_dev, status.st_ino)
        left_bytes = min(MAX_MAP_BYTES - self._read_bytes, self._budget.left_bytes)
        wanted = min(MAX_READ_BYTES, left_bytes)
        text = os.pread(fd, wanted, self._read_bytes) if wanted > 0 else b""
        if not text:
            return False
        self._read_bytes += len(text)
        self._budget.left_bytes -= len(text)
        self._code.add(text)
        return True

    def forget(self) -> None:
        """Drops what was read, which others may read instead."""
        self._budget.left_bytes += self._read_bytes
        self._read_bytes, self._code = 0, CodeMap()
        self._frames.clear()

    def find(self, address: int) -> str | None:
        """The frame at an address, None where the map has none."""
        written = self._code.find(address)
        if written is None:
            return None
        known = self._frames.get(written)
        if known is None:
            known = self._frames[written] = frame_name(written)
        return known
