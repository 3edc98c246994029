"""Names for addresses: the kernel's from ``/proc/kallsyms``, a program's from its ELF files.

Both are lazy and small. kallsyms is read once, at the first address, and kept as the text it is
with an array of addresses beside it (7 MB). A process's executable mappings are read when it is
added, since it may be gone when its stacks are read; forked workers have the same mappings and
share one entry. An ELF file is mapped, not read, and its names stay in the mapping.

Frames: a kernel frame ends in ``_[k]``; a user frame without a symbol is ``module+0x<offset>``,
one that is in no mapping ``[unknown]``.
Source: proc(5), elf(5).
"""

from __future__ import annotations

import bisect
import contextlib
import mmap
import os
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

KALLSYMS = Path("/proc/kallsyms")
KERNEL_SUFFIX = "_[k]"
UNKNOWN = "[unknown]"  # an address in no executable mapping
_REFRESH_S = 1.0

_HEX = np.zeros(256, dtype=np.uint64)
for _value, _digit in enumerate(b"0123456789abcdef"):
    _HEX[_digit] = _value
_ADDRESS_DIGITS = 16  # kallsyms of a 64-bit kernel

_PT_LOAD, _SHT_SYMTAB, _SHT_DYNSYM, _STT_FUNC, _STT_GNU_IFUNC = 1, 2, 11, 2, 10
_SYMBOL = np.dtype(
    [
        ("name", "<u4"),
        ("info", "u1"),
        ("other", "u1"),
        ("section", "<u2"),
        ("value", "<u8"),
        ("size", "<u8"),
    ]
)


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
    """Function names of one ELF file (64-bit, little endian; another file has none).

    Args:
        path: The file; a missing or unreadable one has no names.
    """

    def __init__(self, path: Path) -> None:
        self._map: mmap.mmap | None = None
        self._segments: list[tuple[int, int, int]] = []  # file offset, bytes, address
        self._values: npt.NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)
        self._sizes = self._values
        self._names: npt.NDArray[np.uint64] = self._values
        with contextlib.suppress(OSError, ValueError, IndexError, OverflowError, struct.error):
            with path.open("rb") as stream:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            self._read(self._map)

    def _read(self, data: mmap.mmap) -> None:
        if data[:6] != b"\x7fELF\x02\x01":
            return
        headers_at, sections_at = struct.unpack_from("<QQ", data, 32)
        header_bytes, header_count, section_bytes, section_count = struct.unpack_from(
            "<HHHH", data, 54
        )
        for index in range(header_count):
            kind, _, offset, address, _, size = struct.unpack_from(
                "<IIQQQQ", data, headers_at + index * header_bytes
            )
            if kind == _PT_LOAD:
                self._segments.append((offset, size, address))
        sections = [
            struct.unpack_from("<IIQQQQIIQQ", data, sections_at + index * section_bytes)
            for index in range(section_count)
        ]
        tables = [s for s in sections if s[1] in (_SHT_SYMTAB, _SHT_DYNSYM)]
        if not tables:
            return
        table = min(tables, key=lambda section: section[1])  # .symtab has all, .dynsym is a part
        strings_at = sections[table[6]][4]
        symbols = np.frombuffer(data, dtype=_SYMBOL, count=table[5] // 24, offset=table[4])
        kinds = symbols["info"] & 0xF
        functions = symbols[
            ((kinds == _STT_FUNC) | (kinds == _STT_GNU_IFUNC)) & (symbols["value"] != 0)
        ]
        functions = functions[np.argsort(functions["value"], kind="stable")]
        self._values = functions["value"].copy()
        self._sizes = functions["size"].copy()
        self._names = functions["name"].astype(np.uint64) + np.uint64(strings_at)

    def name(self, file_offset: int) -> str | None:
        """The function at an offset in the file, None when no symbol covers it."""
        for offset, size, address in self._segments:
            if offset <= file_offset < offset + size:
                return self._function(file_offset - offset + address)
        return None

    def _function(self, address: int) -> str | None:
        at = int(np.searchsorted(self._values, np.uint64(address), side="right")) - 1
        # the last of several symbols at one address may have no size: look a few back
        for index in range(at, max(-1, at - 8), -1):
            size = int(self._sizes[index])
            if size and address < int(self._values[index]) + size:
                assert self._map is not None
                start = int(self._names[index])
                end = self._map.find(b"\0", start)
                return self._map[start:end].decode(errors="replace")
        return None


@dataclass(slots=True)
class _Mappings:
    """The executable mappings of one process, sorted by start."""

    starts: list[int] = field(default_factory=list)
    rows: list[tuple[int, int, str]] = field(default_factory=list)  # end, file offset, path
    root: str = "/"


def parse_maps(text: str) -> _Mappings:
    """Executable mappings of ``/proc/PID/maps``."""
    mappings = _Mappings()
    for line in text.splitlines():
        parts = line.split(maxsplit=5)
        if len(parts) < 5 or "x" not in parts[1]:
            continue
        low, _, high = parts[0].partition("-")
        mappings.starts.append(int(low, 16))
        path = parts[5] if len(parts) > 5 else "[anon]"
        mappings.rows.append((int(high, 16), int(parts[2], 16), path))
    return mappings


class UserSymbols:
    """Function names of the processes that were added."""

    def __init__(self) -> None:
        self._by_pid: dict[int, _Mappings] = {}
        self._by_text: dict[str, _Mappings] = {}
        self._files: dict[str, ElfSymbols] = {}
        self._known: dict[tuple[int, int], str] = {}
        self._read_s: dict[int, float] = {}

    def add_process(self, pid: int) -> bool:
        """Reads the mappings of a process now; False when it is gone already."""
        try:
            text = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False
        executable = "\n".join(line for line in text.splitlines() if "x" in line[:80].split()[1])
        self._read_s[pid] = time.monotonic()
        if not executable:
            return False
        mappings = self._by_text.get(executable)
        if mappings is None:
            mappings = self._by_text[executable] = parse_maps(executable)
            with contextlib.suppress(OSError):
                mappings.root = str(Path(f"/proc/{pid}/root").readlink())
        self._by_pid[pid] = mappings
        return True

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
        if known is None:
            found = self._find(mappings, address)
            if found is None and self._refresh(pid):
                mappings = self._by_pid[pid]
                found = self._find(mappings, address)
            known = self._known[id(mappings), address] = found or UNKNOWN
        return known

    def _refresh(self, pid: int) -> bool:
        """Reads the mappings again for a library loaded since, at most once a second.

        Walking frame pointers in code that has none yields addresses that are in no mapping.
        """
        now_s = time.monotonic()
        if now_s - self._read_s.get(pid, 0.0) < _REFRESH_S:
            return False
        return self.add_process(pid)

    def stack(self, pid: int, addresses: Sequence[int]) -> str:
        """A user stack, leaf first, as one string."""
        frames = [
            self.name(pid, address - (1 if depth else 0)) for depth, address in enumerate(addresses)
        ]
        return join_stack(frames)

    def _find(self, mappings: _Mappings, address: int) -> str | None:
        at = bisect.bisect_right(mappings.starts, address) - 1
        if at < 0 or address >= mappings.rows[at][0]:
            return None
        _, file_offset, path = mappings.rows[at]
        offset = address - mappings.starts[at] + file_offset
        if path.startswith("/"):
            name = self._file(mappings.root, path).name(offset)
            if name is not None:
                return name
        return f"{os.path.basename(path)}+{offset:#x}"  # noqa: PTH119  # also of "[vdso]", no path

    def _file(self, root: str, path: str) -> ElfSymbols:
        inside = root.rstrip("/") + path
        known = self._files.get(inside)
        if known is None:
            known = self._files[inside] = ElfSymbols(Path(inside))
        return known


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
