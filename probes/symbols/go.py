"""Function names of Go programs from ``.gopclntab``, which even a stripped one keeps.

The runtime needs that table for its own tracebacks. Its layout has a version: a magic number that
changed with Go 1.2, 1.16, 1.18 and 1.20. Since 1.26 the header has no text address any more; it is
then taken from the module data, and believed only when the program's entry point gets the name that
every Go program's has (a program linked with C begins in C: its table is left alone).
Source: Go's src/runtime/symtab.go, src/debug/gosym/pclntab.go.
"""

from __future__ import annotations

import struct

import numpy as np

from probes.symbols.elf import MAX_TABLE_BYTES, ElfFile, FunctionTable, Section

GO_SECTIONS = (".gopclntab", ".data.rel.ro.gopclntab")
"""Where the table is; the second in position-independent programs."""
_GO_1_2, _GO_1_16, _GO_1_18, _GO_1_20 = 0xFFFFFFFB, 0xFFFFFFFA, 0xFFFFFFF0, 0xFFFFFFF1
_TEXT_WORD = 22  # of runtime.moduledata: text, after six slices, a pointer before and three after
_ENTRY_PREFIX = "_rt0_"


def go_table(elf: ElfFile) -> FunctionTable | None:
    """The functions of a Go program, None when it is none or of a layout not known here."""
    section = elf.section(*GO_SECTIONS)
    if section is None:
        return None
    header = elf.read(section.offset, 8 + 8 * 8)
    if len(header) < 72:
        return None
    magic, _, quantum, pointer_bytes = struct.unpack_from("<IHBB", header)
    if pointer_bytes != 8 or quantum not in (1, 2, 4):
        return None
    words = struct.unpack_from("<8Q", header, 8)
    if magic == _GO_1_2:
        return _absolute(elf, section, count=words[0], functions_at=16, base=0, names_at=0)
    if magic == _GO_1_16:
        base = words[6]
        return _absolute(
            elf, section, count=words[0], functions_at=base, base=base, names_at=words[2]
        )
    if magic in (_GO_1_18, _GO_1_20):
        return _relative(elf, section, words)
    return None


def _absolute(
    elf: ElfFile, section: Section, *, count: int, functions_at: int, base: int, names_at: int
) -> FunctionTable | None:
    """Entries of two words: address, and offset of the function's record from ``base``."""
    raw = _read(elf, section, functions_at, count * 16 + 8)
    starts = np.frombuffer(raw, dtype="<u8")[::2]
    records = np.frombuffer(raw, dtype="<u8")[1::2]
    if not starts[:-1].all():  # to be filled in when the program is loaded
        return None
    return _table(elf, section, starts, records + np.uint64(base), record_at=8, names_at=names_at)


def _relative(elf: ElfFile, section: Section, words: tuple[int, ...]) -> FunctionTable | None:
    """Entries of two halves: address from the text's begin, offset of the record."""
    count, text, names_at, base = words[0], words[2], words[3], words[7]
    is_certain = text != 0
    text = text or _text_address(elf)
    raw = _read(elf, section, base, count * 8 + 4)
    starts = np.frombuffer(raw, dtype="<u4")[::2].astype(np.uint64) + np.uint64(text)
    records = np.frombuffer(raw, dtype="<u4")[1::2].astype(np.uint64) + np.uint64(base)
    table = _table(elf, section, starts, records, record_at=4, names_at=names_at)
    if not is_certain and not (table.find(elf.entry) or "").startswith(_ENTRY_PREFIX):
        return None
    return table


def _text_address(elf: ElfFile) -> int:
    module = elf.section(".go.module")
    if module is not None and module.size_bytes >= 8 * (_TEXT_WORD + 1):
        (text,) = struct.unpack("<Q", elf.read(module.offset + 8 * _TEXT_WORD, 8))
        if text:
            return int(text)
    code = elf.section(".text")
    return code.address if code is not None else 0


def _read(elf: ElfFile, section: Section, at: int, size_bytes: int) -> bytes:
    if at + size_bytes > min(section.size_bytes, MAX_TABLE_BYTES):
        raise ValueError("the function table is larger than its section")
    raw = elf.read(section.offset + at, size_bytes)
    if len(raw) != size_bytes:
        raise ValueError("the function table is cut")
    return raw


def _table(
    elf: ElfFile,
    section: Section,
    starts: np.ndarray[tuple[int], np.dtype[np.uint64]],
    records: np.ndarray[tuple[int], np.dtype[np.uint64]],
    *,
    record_at: int,
    names_at: int,
) -> FunctionTable:
    """The last of ``starts`` ends the last function."""
    if (starts[1:] < starts[:-1]).any():
        raise ValueError("the function table is not sorted")

    def name_of(index: int) -> bytes:
        record = section.offset + int(records[index]) + record_at
        (name,) = struct.unpack("<i", elf.read(record, 4))
        return elf.string(section.offset + names_at + max(0, name))

    return FunctionTable(starts[:-1], np.diff(starts), name_of)
