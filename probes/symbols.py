"""Names for addresses: the kernel's from ``/proc/kallsyms``, a program's from its files and maps.

Both are lazy and small. kallsyms is read once, at the first address, and kept as the text it is
with an array of addresses beside it (7 MB). A process's executable mappings are read when it is
added, since it may be gone when its stacks are read; forked workers have the same mappings and
share one entry. Of an ELF file the table of addresses is kept, and names are read as they are
needed. Code that a runtime made is in no file: its perf map names it (``probes.perf_map``).

Frames: a kernel frame ends in ``_[k]``, one from a perf map in ``_[j]``; a user frame without a
symbol is ``module+0x<offset>``, one that is in no mapping ``[unknown]``.
Source: proc(5), elf(5).
"""

from __future__ import annotations

import bisect
import contextlib
import os
import re
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from probes import stranger_file
from probes.debug_files import embedded_debug_file, find_debug_file
from probes.demangle import demangle
from probes.elf import BAD_FILE, ElfFile, FunctionTable, symbol_table
from probes.go_symbols import go_table
from probes.perf_map import MapBudget, PerfMap, clean_name

KALLSYMS = Path("/proc/kallsyms")
KERNEL_SUFFIX = "_[k]"
UNKNOWN = "[unknown]"  # an address in no executable mapping
MOST_FILES = 256
"""Programs and libraries whose tables are kept; a server that is deployed anew has others."""
_EXECUTABLE = re.compile(r"[0-9a-f]+-[0-9a-f]+ ..x")
_REFRESH_S = 1.0
_NO_FILES = ("/memfd:", "/dev/zero", "/anon_hugepage", "/SYSV", "/dev/shm/")  # noqa: S108

_HEX = np.zeros(256, dtype=np.uint64)
for _value, _digit in enumerate(b"0123456789abcdef"):
    _HEX[_digit] = _value
_ADDRESS_DIGITS = 16  # kallsyms of a 64-bit kernel


def join_stack(frames: Sequence[str]) -> str:
    """One string, root first, from frames that come leaf first; ``;`` in a name becomes ``,``."""
    return ";".join(frame.replace(";", ",") for frame in reversed(frames))


class KernelSymbols:
    """Function names of the running kernel and its modules.

    Args:
        path: A file in the format of ``/proc/kallsyms``.
    """

    def __init__(self, path: Path = KALLSYMS) -> None:
        self._path = path
        self._text: bytes | None = None
        self._addresses: npt.NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)
        self._starts: npt.NDArray[np.uint32] = np.zeros(0, dtype=np.uint32)
        self._known: dict[int, str] = {}

    def load(self) -> None:
        """Reads the symbols now (50 ms) instead of at the first address."""
        if self._text is not None:
            return
        try:
            self._text = self._path.read_bytes()
        except OSError:
            self._text = b""
        raw = np.frombuffer(self._text, dtype=np.uint8)
        ends = np.flatnonzero(raw == ord("\n")).astype(np.uint32)
        starts = np.concatenate([np.zeros(1, dtype=np.uint32), ends + 1])[: len(ends)]
        kinds = raw[starts + _ADDRESS_DIGITS + 1] if len(starts) else starts
        starts = starts[np.isin(kinds, np.frombuffer(b"tTwW", dtype=np.uint8))]
        addresses = np.zeros(len(starts), dtype=np.uint64)
        for digit in range(_ADDRESS_DIGITS):
            addresses = (addresses << np.uint64(4)) | _HEX[raw[starts + digit]]
        order = np.argsort(addresses, kind="stable")
        self._addresses, self._starts = addresses[order], starts[order]
        if len(addresses) and not addresses.any():  # kptr_restrict hides them even from us
            self._addresses = self._addresses[:0]

    def name(self, address: int) -> str:
        """The function that holds an address, its number in hex when there is none."""
        known = self._known.get(address)
        if known is None:
            known = self._known[address] = self._find(address)
        return known

    def stack(self, addresses: Sequence[int]) -> str:
        """A kernel stack, leaf first, as one string.

        Behind a call the return address may be the first of the next function, so callers are
        looked up one byte before it.
        """
        frames = [
            self.name(address - (1 if depth else 0)) + KERNEL_SUFFIX
            for depth, address in enumerate(addresses)
        ]
        return join_stack(frames)

    def _find(self, address: int) -> str:
        self.load()
        assert self._text is not None
        at = int(np.searchsorted(self._addresses, np.uint64(address), side="right")) - 1
        if at < 0:
            return hex(address)
        start = int(self._starts[at]) + _ADDRESS_DIGITS + 3
        line = self._text[start : self._text.index(b"\n", start)]
        return line.split(b"\t")[0].decode(errors="replace")


class ElfSymbols:
    """Function names of one program or library; another file has none.

    From the fullest source that there is: its ``.symtab``, that of its debug file, that in its
    ``.gnu_debugdata``, Go's ``.gopclntab``, and last ``.dynsym``, which lacks what is not exported.

    Args:
        path: Where to read it; a missing or unreadable one has no names.
        mapped_as: Its path in the file system of its process, to find its debug file by.
        roots: Where that file system and ours begin (``probes.debug_files``).
        root: Where ``path`` begins, when a stranger named it (``probes.elf.ElfFile``).
    """

    def __init__(
        self, path: Path, mapped_as: str = "", roots: Sequence[str] = (), root: str = ""
    ) -> None:
        self._elf: ElfFile | None = None
        self._tables: list[FunctionTable] = []
        try:
            self._elf = ElfFile(path, root)
        except BAD_FILE:
            return
        separate = partial(_debug_table, mapped_as, roots)
        for read in (symbol_table, separate, _embedded_table, go_table, _dynamic):
            if any(len(table) for table in self._tables) and read is not _dynamic:
                continue
            try:
                table = read(self._elf)
            except BAD_FILE:
                continue
            if table is not None:
                self._tables.append(table)

    def name(self, file_offset: int) -> str | None:
        """The function at an offset in the file, None when no symbol covers it."""
        address = self._elf.address_of(file_offset) if self._elf is not None else None
        if address is None:
            return None
        for table in self._tables:
            try:
                found = table.find(address)
            except BAD_FILE:  # the file was cut since
                continue
            if found:
                return clean_name(demangle(found))
        return None


def _dynamic(elf: ElfFile) -> FunctionTable | None:
    return symbol_table(elf, is_dynamic=True)


def _debug_table(mapped_as: str, roots: Sequence[str], elf: ElfFile) -> FunctionTable | None:
    debug = find_debug_file(elf, mapped_as, roots)
    return symbol_table(debug) if debug is not None else None


def _embedded_table(elf: ElfFile) -> FunctionTable | None:
    embedded = embedded_debug_file(elf)
    return symbol_table(embedded) if embedded is not None else None


@dataclass(frozen=True, slots=True)
class _Mapping:
    """One executable mapping: its place in memory, in its file, and that file."""

    start: int
    end: int
    file_offset: int
    path: str
    file: tuple[str, str]  # device and inode: what the path meant to that process

    @property
    def is_file(self) -> bool:
        return self.path.startswith("/") and not self.path.startswith(_NO_FILES)


@dataclass(slots=True)
class _Mappings:
    """The executable mappings of one process, sorted by start."""

    starts: list[int] = field(default_factory=list)
    rows: list[_Mapping] = field(default_factory=list)
    is_ours: bool = False  # its paths mean the same to us
    key: tuple[str, bool] = ("", False)  # by which processes with the same ones share them

    def at(self, address: int) -> _Mapping | None:
        """The mapping that holds an address."""
        index = bisect.bisect_right(self.starts, address) - 1
        return self.rows[index] if index >= 0 and address < self.rows[index].end else None


def parse_maps(text: str) -> _Mappings:
    r"""Executable mappings of ``/proc/PID/maps``.

    The kernel escapes \n alone in a path: whatever else splitlines() splits at is part of a name.
    """
    mappings = _Mappings()
    for line in text.split("\n"):
        parts = line.split(" ", 5)
        if len(parts) < 5 or "x" not in parts[1]:
            continue
        parts[5:] = [each.lstrip(" ") for each in parts[5:]]
        low, _, high = parts[0].partition("-")
        start = int(low, 16)
        path = (parts[5].removesuffix(" (deleted)") if len(parts) > 5 else "") or "[anon]"
        mappings.starts.append(start)
        mappings.rows.append(
            _Mapping(start, int(high, 16), int(parts[2], 16), path, (parts[3], parts[4]))
        )
    return mappings


class UserSymbols:
    """Function names of the processes that were added."""

    def __init__(self) -> None:
        self._by_pid: dict[int, _Mappings] = {}
        self._by_text: dict[tuple[str, bool], _Mappings] = {}
        self._files: dict[tuple[str, tuple[str, str]], ElfSymbols] = {}
        self._known: dict[tuple[int, int], str] = {}
        self._read_s: dict[int, float] = {}
        self._maps: dict[int, PerfMap] = {}
        self._map_budget = MapBudget()
        self._wanting: set[int] = set()  # processes with frames outside of every file
        self._map_read_s: dict[int, float] = {}

    def add_process(self, pid: int) -> bool:
        """Reads the mappings of a process now; False when it is gone already."""
        try:
            text = Path(f"/proc/{pid}/maps").read_bytes().decode("utf-8", "replace")
        except OSError:
            return False
        executable = "\n".join(filter(_EXECUTABLE.match, text.split("\n")))
        self._read_s[pid] = time.monotonic()
        if not executable:
            return False
        is_ours = False
        with contextlib.suppress(OSError):
            is_ours = Path(f"/proc/{pid}/root").samefile("/")
        mappings = self._by_text.get((executable, is_ours))
        if mappings is None:
            mappings = self._by_text[executable, is_ours] = parse_maps(executable)
            mappings.is_ours, mappings.key = is_ours, (executable, is_ours)
        before = self._by_pid.get(pid)
        self._by_pid[pid] = mappings
        if before is not None and before is not mappings:
            self._drop_unused({id(before): before})
        if pid not in self._maps:
            self._maps[pid] = PerfMap(pid, self._map_budget)
            self._read_map(pid)
        return True

    def remove(self, pids: Collection[int]) -> None:
        """Forgets processes that ended; what their number means later is another process."""
        left: dict[int, _Mappings] = {}
        for pid in pids:
            mappings = self._by_pid.pop(pid, None)
            if mappings is not None:
                left[id(mappings)] = mappings
            if pid in self._maps:
                self._maps.pop(pid).forget()
            self._read_s.pop(pid, None)
            self._map_read_s.pop(pid, None)
            self._wanting.discard(pid)
        self._drop_unused(left)

    def _drop_unused(self, left: dict[int, _Mappings]) -> None:
        """Drops mappings that no process has any more, with the names that were found by them."""
        for mappings in self._by_pid.values():
            left.pop(id(mappings), None)
        for mappings in left.values():
            del self._by_text[mappings.key]
        if left:
            self._known = {key: name for key, name in self._known.items() if key[0] not in left}

    def version(self, pid: int) -> int:
        """Grows when the process's runtime named more code: names before may be out of date.

        Reads on in its perf map, at most once a second, where frames were met that need it.
        """
        perf_map = self._maps.get(pid)
        if perf_map is None:
            return 0
        if pid in self._wanting:
            self._read_map(pid)
        return perf_map.version

    def map_refusals(self) -> list[str]:
        """Perf maps that are there and do not count, each with the reason."""
        return [
            f"the perf map of pid {pid} is not read: {perf_map.refused}"
            for pid, perf_map in self._maps.items()
            if perf_map.refused
        ]

    def _read_map(self, pid: int) -> bool:
        now_s = time.monotonic()
        if now_s - self._map_read_s.get(pid, -_REFRESH_S) < _REFRESH_S:
            return False
        self._map_read_s[pid] = now_s
        return self._maps[pid].refresh()

    def name(self, pid: int, address: int) -> str:
        """The function of a process at an address.

        Returns:
            ``module+0x<offset>`` without a symbol, UNKNOWN outside of every mapping.
        """
        mappings = self._by_pid.get(pid)
        if mappings is None:
            if not self.add_process(pid):
                return UNKNOWN
            mappings = self._by_pid[pid]
        known = self._known.get((id(mappings), address))
        if known is not None:
            return known
        mapping = mappings.at(address)
        if mapping is not None and mapping.is_file:
            name = self._file(pid, mappings, mapping).name(
                address - mapping.start + mapping.file_offset
            )
            if name is not None:
                self._known[id(mappings), address] = name
                return name
        return self._made_at_run_time(pid, mapping, address)

    def _made_at_run_time(self, pid: int, mapping: _Mapping | None, address: int) -> str:
        """A frame that no file names: by the runtime's map, else by module and offset."""
        self._wanting.add(pid)
        perf_map = self._maps[pid]
        name = perf_map.find(address)
        if name is None and self._read_map(pid):
            name = perf_map.find(address)
        if name is not None:
            return name
        if mapping is None and self._refresh(pid):
            mapping = self._by_pid[pid].at(address)
            if mapping is not None and mapping.is_file:
                return self.name(pid, address)
        if mapping is None:
            return UNKNOWN
        module = os.path.basename(mapping.path)  # noqa: PTH119  # also of "[vdso]", no path
        return f"{clean_name(module)}+{address - mapping.start + mapping.file_offset:#x}"

    def _refresh(self, pid: int) -> bool:
        """Reads the mappings again for a library loaded since, at most once a second.

        Walking frame pointers in code that has none yields addresses that are in no mapping.
        """
        now_s = time.monotonic()
        if now_s - self._read_s.get(pid, 0.0) < _REFRESH_S:
            return False
        return self.add_process(pid)

    def stack(self, pid: int, addresses: Sequence[int]) -> str:
        """A user stack, leaf first, as one string; UNKNOWN frames in a row are one.

        Walking frame pointers in code that has none can yield a hundred of them.
        """
        frames: list[str] = []
        for depth, address in enumerate(addresses):
            name = self.name(pid, address - (1 if depth else 0))
            if name != UNKNOWN or frames[-1:] != [UNKNOWN]:
                frames.append(name)
        return join_stack(frames)

    def _file(self, pid: int, mappings: _Mappings, mapping: _Mapping) -> ElfSymbols:
        known = self._files.get((mapping.path, mapping.file))
        if known is None:
            root = stranger_file.root_of(pid)
            # The kernel's own link leads to the very file, wherever its path leads by now.
            link = f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}"
            places = [(link, ""), (mapping.path, root)]
            if mappings.is_ours:
                places.append((mapping.path, "/"))  # of a process that ended meanwhile
            path, place = next((each for each in places if _can_read(*each)), places[-1])
            known = ElfSymbols(Path(path), mapping.path, (root, "/"), place)
            if len(self._files) >= MOST_FILES:
                del self._files[next(iter(self._files))]
            self._files[mapping.path, mapping.file] = known
        return known


def _can_read(path: str, root: str) -> bool:
    try:
        os.close(stranger_file.open_regular(root, path) if root else stranger_file.open_link(path))
    except (OSError, ValueError):
        return False
    return True


def frames_of(stack: Any) -> list[int]:
    """Addresses of one value of a stack map, which ends at the first zero."""
    addresses = [int(address) for address in stack]
    return addresses[: addresses.index(0)] if 0 in addresses else addresses


@cache
def kernel_symbols() -> KernelSymbols:
    """The running kernel's symbols, one copy for all probes of this process."""
    return KernelSymbols()


@cache
def user_symbols() -> UserSymbols:
    """Symbols of watched processes, one copy for all probes of this process."""
    return UserSymbols()
