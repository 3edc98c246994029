"""The debug file of a stripped program: by build id, else by the name in ``.gnu_debuglink``.

The places are those of GDB ("Debugging Information in Separate Files"), in the file system of the
process first and then in ours. A file counts only when its build id, or else its checksum, is the
one that the program names.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from probes.elf import BAD_FILE, ElfFile

DEBUG_FOLDER = "/usr/lib/debug"
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
    for candidate, is_named in _candidates(build_id, name, path, roots):
        try:
            found = ElfFile(Path(candidate))
            if build_id and found.build_id() == build_id:
                return found
            if is_named and not build_id and _checksum(found) == checksum:
                return found
        except BAD_FILE:
            continue
    return None


def _candidates(
    build_id: str, name: str, path: str, roots: Sequence[str]
) -> Iterator[tuple[str, bool]]:
    folder = os.path.dirname(path)  # noqa: PTH120  # a path in the file system of another process
    for root in roots:
        base = root.rstrip("/")
        if len(build_id) > 2:
            yield f"{base}{DEBUG_FOLDER}/.build-id/{build_id[:2]}/{build_id[2:]}.debug", False
        if name and name != os.path.basename(path):  # noqa: PTH119
            yield f"{base}{folder}/{name}", True
        if name:
            yield f"{base}{folder}/.debug/{name}", True
            yield f"{base}{DEBUG_FOLDER}{folder}/{name}", True


def _checksum(elf: ElfFile) -> int:
    """CRC-32 of the whole file, as in bfd's ``bfd_calc_gnu_debuglink_crc32``."""
    if elf.size_bytes > _MAX_CHECKSUM_BYTES:
        raise ValueError("too large to check")
    value = 0
    for at in range(0, elf.size_bytes, _CHUNK_BYTES):
        value = zlib.crc32(elf.read(at, _CHUNK_BYTES), value)
    return value
