"""The debug file of a stripped program: by build id, else by the name in ``.gnu_debuglink``.

The places are those of GDB ("Debugging Information in Separate Files"), in the file system of the
process first and then in ours. A file counts only when its build id, or else its checksum, is the
one that the program names.

Fedora and its relatives leave the names of the functions in the program itself, as a small ELF file
compressed with xz in ``.gnu_debugdata`` (GDB: "MiniDebugInfo"). It is unpacked into anonymous
memory, and no further than MAX_EMBEDDED_BYTES.
"""

from __future__ import annotations

import lzma
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from probes.elf import BAD_FILE, ElfFile

DEBUG_FOLDER = "/usr/lib/debug"
MAX_EMBEDDED_BYTES = 64 << 20  # unpacked; the largest programs of Fedora have about 10 MB
_MAX_UNPACKING_BYTES = 96 << 20  # memory of the decompressor: a dictionary of xz -9 takes 65 MiB
_MAX_CHECKSUM_BYTES = 512 << 20  # half a second
_CHUNK_BYTES = 1 << 20


def find_debug_file(elf: ElfFile, path: str, roots: Sequence[str]) -> ElfFile | None:
    """The debug file of a program or library.

    Args:
        elf: The stripped file.
        path: Its absolute path in the file system of its process.
        roots: Where those file systems begin here, such as ``/proc/PID/root``.
    """
    build_id = elf.build_id()
    name, checksum = elf.debug_link()
    for root, candidate, is_named in _candidates(build_id, name, path, roots):
        try:
            found = ElfFile(Path(candidate), root)
            if build_id and found.build_id() == build_id:
                return found
            if is_named and not build_id and _checksum(found) == checksum:
                return found
        except BAD_FILE:
            continue
    return None


def embedded_debug_file(elf: ElfFile) -> ElfFile | None:
    """The ELF file in ``.gnu_debugdata``, None when there is none.

    Raises:
        ValueError: It is no xz stream, or larger than MAX_EMBEDDED_BYTES.
    """
    section = elf.section(".gnu_debugdata")
    if section is None or not section.size_bytes:
        return None
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_UNPACKING_BYTES)
    fd = os.memfd_create("gnu_debugdata", os.MFD_CLOEXEC)
    try:
        packed = elf.read(section.offset, min(section.size_bytes, MAX_EMBEDDED_BYTES))
        left_bytes = MAX_EMBEDDED_BYTES
        while not unpacker.eof:
            piece = unpacker.decompress(packed, max_length=_CHUNK_BYTES)
            packed = b""
            left_bytes -= len(piece)
            if left_bytes < 0 or (not piece and unpacker.needs_input):
                raise ValueError(".gnu_debugdata is cut or too large")
            os.write(fd, piece)
        return ElfFile(Path(f"/proc/self/fd/{fd}"))
    except lzma.LZMAError as error:
        raise ValueError(f".gnu_debugdata: {error}") from error
    finally:
        os.close(fd)


def _candidates(
    build_id: str, name: str, path: str, roots: Sequence[str]
) -> Iterator[tuple[str, str, bool]]:
    """Root, path below it, and whether its name is all that speaks for it."""
    folder = os.path.dirname(path)  # noqa: PTH120  # a path in the file system of another process
    for root in roots:
        if len(build_id) > 2:
            yield root, f"{DEBUG_FOLDER}/.build-id/{build_id[:2]}/{build_id[2:]}.debug", False
        if name and name != os.path.basename(path):  # noqa: PTH119
            yield root, f"{folder}/{name}", True
        if name:
            yield root, f"{folder}/.debug/{name}", True
            yield root, f"{DEBUG_FOLDER}{folder}/{name}", True


def _checksum(elf: ElfFile) -> int:
    """CRC-32 of the whole file, as in bfd's ``bfd_calc_gnu_debuglink_crc32``."""
    if elf.size_bytes > _MAX_CHECKSUM_BYTES:
        raise ValueError("too large to check")
    value = 0
    for at in range(0, elf.size_bytes, _CHUNK_BYTES):
        value = zlib.crc32(elf.read(at, _CHUNK_BYTES), value)
    return value
