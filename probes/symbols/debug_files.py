"""Whether a file is a stripped program's debug file, and the one that a program carries itself.

A file counts only when its build id, or else its checksum, is the one that the program names
(GDB: "Debugging Information in Separate Files"; ``probes.symbols.debug_places`` finds it).

Fedora and its relatives leave the names of the functions in the program itself, as a small ELF file
compressed with xz in ``.gnu_debugdata`` (GDB: "MiniDebugInfo"). It is unpacked into memory, and no
further than MAX_EMBEDDED_BYTES.
"""

from __future__ import annotations

import lzma
import zlib

from probes.symbols.elf import ElfFile

MAX_EMBEDDED_BYTES = 64 << 20  # unpacked; the largest programs of Fedora have about 10 MB
_MAX_UNPACKING_BYTES = 96 << 20  # memory of the decompressor: a dictionary of xz -9 takes 65 MiB
_MAX_CHECKSUM_BYTES = 512 << 20  # half a second
_CHUNK_BYTES = 1 << 20


def is_debug_file_of(elf: ElfFile, candidate: ElfFile) -> bool:
    """Whether a candidate has the build id of the stripped file, or without one its checksum.

    Raises:
        ValueError, OSError: It cannot be told.
    """
    if build_id := elf.build_id():
        return candidate.build_id() == build_id
    name, checksum = elf.debug_link()
    return bool(name) and _checksum(candidate) == checksum


def embedded_debug_file(elf: ElfFile) -> ElfFile | None:
    """The ELF file in ``.gnu_debugdata``, None when there is none.

    Raises:
        ValueError: It is no xz stream, or larger than MAX_EMBEDDED_BYTES.
    """
    section = elf.section(".gnu_debugdata")
    if section is None or not section.size_bytes:
        return None
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_UNPACKING_BYTES)
    try:
        packed = elf.read(section.offset, min(section.size_bytes, MAX_EMBEDDED_BYTES))
        unpacked = bytearray()
        while not unpacker.eof:
            piece = unpacker.decompress(packed, max_length=_CHUNK_BYTES)
            packed = b""
            unpacked += piece
            if len(unpacked) > MAX_EMBEDDED_BYTES or (not piece and unpacker.needs_input):
                raise ValueError(".gnu_debugdata is cut or too large")
    except lzma.LZMAError as error:
        raise ValueError(f".gnu_debugdata: {error}") from error
    return ElfFile(bytes(unpacked))


def _checksum(elf: ElfFile) -> int:
    """CRC-32 of the whole file, as in bfd's ``bfd_calc_gnu_debuglink_crc32``."""
    if elf.size_bytes > _MAX_CHECKSUM_BYTES:
        raise ValueError("too large to check")
    value = 0
    for at in range(0, elf.size_bytes, _CHUNK_BYTES):
        value = zlib.crc32(elf.read(at, _CHUNK_BYTES), value)
    return value
