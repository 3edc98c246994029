"""ELF files as far as their function names go: segments, sections, symbol tables, build ids.

A file is read piece by piece and never mapped: it belongs to whoever runs the watched program, and
a mapped file that its owner cuts kills its reader with SIGBUS. All that a file says of itself is
bounded before it is believed, and it is read in a process without rights
(``probes.symbols.name_parser``).
Source: elf(5); the GNU notes and .gnu_debuglink: binutils' bfd/opncls.c.
"""

from __future__ import annotations

import os
import struct
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MAX_TABLE_BYTES = 256 << 20  # a debug build of a browser has 150 MB of symbols
MAX_NAME_BYTES = 4096
_MAX_HEADER_COUNT = 4096
_MAX_NOTE_BYTES = 4096
_MAX_SECTION_NAME_BYTES = 64
"""Of a name, which its table may not end: 4,096 sections could each have a copy of all of it."""
_PT_LOAD, _SHT_SYMTAB, _SHT_NOTE, _SHT_NOBITS, _SHT_DYNSYM = 1, 2, 7, 8, 11
_STT_FUNC, _STT_GNU_IFUNC = 2, 10
_NT_GNU_BUILD_ID = 3


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the fields are that differ between 32 and 64 bits."""

    header: struct.Struct  # from byte 24: entry, segments at, sections at
    counts_at: int  # e_phentsize
    segment: struct.Struct
    segment_fields: tuple[int, int, int]  # file offset, address, bytes in the file
    section: struct.Struct
    symbol: np.dtype[np.void]


_FIELDS = ("name", "info", "other", "section", "value", "size")
_LAYOUTS = {
    1: _Layout(
        *(struct.Struct("<III"), 42, struct.Struct("<IIIIIIII"), (1, 2, 4)),
        struct.Struct("<IIIIIIIIII"),
        np.dtype(
            {
                "names": _FIELDS,
                "formats": ["<u4", "u1", "u1", "<u2", "<u4", "<u4"],
                "offsets": [0, 12, 13, 14, 4, 8],
                "itemsize": 16,
            }
        ),
    ),
    2: _Layout(
        *(struct.Struct("<QQQ"), 54, struct.Struct("<IIQQQQQQ"), (2, 3, 5)),
        struct.Struct("<IIQQQQIIQQ"),
        np.dtype(
            {
                "names": _FIELDS,
                "formats": ["<u4", "u1", "u1", "<u2", "<u8", "<u8"],
                "offsets": [0, 4, 5, 6, 8, 16],
                "itemsize": 24,
            }
        ),
    ),
}
"""By EI_CLASS: ELFCLASS32 and ELFCLASS64."""

BAD_FILE = (OSError, ValueError, IndexError, OverflowError, MemoryError, struct.error)
"""What reading a file that lies about itself raises."""


@dataclass(frozen=True, slots=True)
class Section:
    """One section header: where it is in the file and in memory, both in bytes."""

    name: str
    kind: int
    address: int
    offset: int
    size_bytes: int
    link: int


class ElfFile:
    """Segments and sections of a little-endian ELF file, of 32 or 64 bits.

    Args:
        source: A descriptor of a regular file, which is closed with this object; or the file.

    Raises:
        OSError: It cannot be read.
        ValueError, struct.error: It is not such a file.
    """

    def __init__(self, source: int | bytes) -> None:
        self._source = source
        if isinstance(source, int):
            weakref.finalize(self, os.close, source)
            self.size_bytes = os.fstat(source).st_size
        else:
            self.size_bytes = len(source)
        header = self.read(0, 64)
        if header[:4] != b"\x7fELF" or header[4] not in _LAYOUTS or header[5] != 1:
            raise ValueError("it is not a little-endian ELF file")
        self._layout = layout = _LAYOUTS[header[4]]
        self.entry, segments_at, sections_at = layout.header.unpack_from(header, 24)
        each, count, section_each, section_count, names_index = struct.unpack_from(
            "<HHHHH", header, layout.counts_at
        )
        count, section_count = min(count, _MAX_HEADER_COUNT), min(section_count, _MAX_HEADER_COUNT)
        self.segments: list[tuple[int, int, int]] = []  # file offset, bytes, address
        raw = self.read(segments_at, each * count)
        for index in range(count):
            row = layout.segment.unpack_from(raw, index * each)
            if row[0] == _PT_LOAD:
                offset, address, size = (row[field] for field in layout.segment_fields)
                self.segments.append((offset, size, address))
        raw = self.read(sections_at, section_each * section_count)
        rows = [
            layout.section.unpack_from(raw, index * section_each) for index in range(section_count)
        ]
        names = b""
        if names_index < len(rows) and rows[names_index][5] <= _MAX_HEADER_COUNT * 64:
            names = self.read(rows[names_index][4], rows[names_index][5])
        self.sections = [
            Section(
                names[row[0] : row[0] + _MAX_SECTION_NAME_BYTES]
                .partition(b"\0")[0]
                .decode(errors="replace"),
                *(row[1], row[3], row[4], row[5], row[6]),
            )
            for row in rows
        ]

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Bytes at an offset of the file, fewer where it ends.

        Raises:
            ValueError: More is asked for than any table should have.
        """
        if size_bytes > MAX_TABLE_BYTES:
            raise ValueError(f"{size_bytes} bytes in one table")
        if isinstance(self._source, int):
            return os.pread(self._source, size_bytes, offset)
        return self._source[offset : offset + size_bytes] if offset >= 0 else b""

    def string(self, offset: int) -> bytes:
        """The bytes from an offset up to the next zero, MAX_NAME_BYTES at most."""
        return self.read(offset, MAX_NAME_BYTES).split(b"\0", 1)[0]

    @property
    def symbol_layout(self) -> np.dtype[np.void]:
        """One entry of its symbol tables: name, info, other, section, value, size."""
        return self._layout.symbol

    def section(self, *names: str) -> Section | None:
        """The first section with one of these names that has bytes in the file."""
        for section in self.sections:
            if section.name in names and section.kind != _SHT_NOBITS:
                return section
        return None

    def address_of(self, file_offset: int) -> int | None:
        """The address at which the program expects this byte; None when it is not loaded."""
        for offset, size, address in self.segments:
            if offset <= file_offset < offset + size:
                return file_offset - offset + address
        return None

    def build_id(self) -> str:
        """Build id in hex, '' without one."""
        for section in self.sections:
            if section.kind != _SHT_NOTE or section.size_bytes > _MAX_NOTE_BYTES:
                continue
            note = self.read(section.offset, section.size_bytes)
            if len(note) < 16:
                continue
            name_bytes, value_bytes, kind = struct.unpack_from("<III", note)
            if kind == _NT_GNU_BUILD_ID and note[12 : 12 + name_bytes] == b"GNU\0":
                return note[16 : 16 + value_bytes].hex()
        return ""

    def debug_link(self) -> tuple[str, int]:
        """File name and CRC-32 of the debug file that ``.gnu_debuglink`` names; ('', 0) for none.

        The name is never a path: one with a slash is refused.
        """
        section = self.section(".gnu_debuglink")
        if section is None or section.size_bytes > _MAX_NOTE_BYTES:
            return "", 0
        raw = self.read(section.offset, section.size_bytes)
        name, _, _ = raw.partition(b"\0")
        crc_at = len(name) + 4 & ~3  # the name and its zero, filled up to four bytes
        if not name or b"/" in name or name in (b".", b".."):
            return "", 0
        return name.decode(errors="surrogateescape"), struct.unpack_from("<I", raw, crc_at)[0]


class FunctionTable:
    """Functions sorted by address, their names read when they are asked for.

    Args:
        starts: Addresses, ascending.
        sizes_bytes: 0 where the size is not known: such a function holds no address.
        name_of: Index into both to the name.
    """

    def __init__(
        self,
        starts: npt.NDArray[np.uint64],
        sizes_bytes: npt.NDArray[np.uint64],
        name_of: Callable[[int], bytes],
    ) -> None:
        self._starts, self._sizes, self._name_of = starts, sizes_bytes, name_of

    def __len__(self) -> int:
        return len(self._starts)

    def find(self, address: int) -> str | None:
        """The function that holds an address, None when none does."""
        at = int(np.searchsorted(self._starts, np.uint64(address), side="right")) - 1
        # the last of several symbols at one address may have no size: look a few back
        for index in range(at, max(-1, at - 8), -1):
            size = int(self._sizes[index])
            if size and address < int(self._starts[index]) + size:
                return self._name_of(index).decode(errors="replace")
        return None


def symbol_table(elf: ElfFile, *, is_dynamic: bool = False) -> FunctionTable | None:
    """The functions of ``.symtab``, or of ``.dynsym``, which has only what others may call."""
    wanted = _SHT_DYNSYM if is_dynamic else _SHT_SYMTAB
    table = next((s for s in elf.sections if s.kind == wanted), None)
    if table is None or not table.size_bytes or table.link >= len(elf.sections):
        return None
    strings = elf.sections[table.link]
    raw = elf.read(table.offset, table.size_bytes)
    layout = elf.symbol_layout
    symbols = np.frombuffer(raw, dtype=layout, count=len(raw) // layout.itemsize)
    kinds = symbols["info"] & 0xF
    is_function = (kinds == _STT_FUNC) | (kinds == _STT_GNU_IFUNC)
    functions = symbols[is_function & (symbols["value"] != 0)]
    functions = functions[np.argsort(functions["value"], kind="stable")]
    offsets = functions["name"].astype(np.uint64) + np.uint64(strings.offset)
    return FunctionTable(
        functions["value"].astype(np.uint64),
        functions["size"].astype(np.uint64),
        lambda index: elf.string(int(offsets[index])),
    )
