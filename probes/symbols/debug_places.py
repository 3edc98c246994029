"""Where the debug file of a stripped program may be: by build id, or by ``.gnu_debuglink``.

The places are those of GDB ("Debugging Information in Separate Files"), in the file system of the
process first and then in ours. What is opened there is an ELF file or nothing; whether it is the
one, who reads it decides (``probes.symbols.debug_files``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from probes.rights import stranger_file

DEBUG_FOLDER = "/usr/lib/debug"
_MAGIC = b"\x7fELF"


def open_candidates(build_id: str, name: str, path: str, roots: Sequence[str]) -> Iterator[int]:
    """Opens one after the other; who takes a descriptor closes it.

    Args:
        build_id: Of the stripped file, in hex; '' without one.
        name: What its ``.gnu_debuglink`` says, a name without a folder; '' without one.
        path: Its absolute path in the file system of its process.
        roots: Where those file systems begin here, such as ``/proc/PID/root``.
    """
    for root, place in _places(build_id, name, path, roots):
        fd = open_elf(root, place)
        if fd >= 0:
            yield fd


def open_elf(root: str, path: str) -> int:
    """A descriptor of a file that begins as an ELF file does, -1 when it is none or cannot be read.

    Args:
        root: Where its path begins, '' for a link of the kernel (``stranger_file``).
        path: Of the file.
    """
    try:
        fd = stranger_file.open_regular(root, path) if root else stranger_file.open_link(path)
    except (OSError, ValueError):
        return -1
    try:
        if os.pread(fd, len(_MAGIC), 0) == _MAGIC:
            return fd
    except OSError:
        pass
    os.close(fd)
    return -1


def _places(build_id: str, name: str, path: str, roots: Sequence[str]) -> Iterator[tuple[str, str]]:
    folder = os.path.dirname(path)  # noqa: PTH120  # a path in the file system of another process
    if "/" in name or name in (".", ".."):
        name = ""
    for root in roots:
        if len(build_id) > 2 and build_id.isalnum():
            yield root, f"{DEBUG_FOLDER}/.build-id/{build_id[:2]}/{build_id[2:]}.debug"
        if not name:
            continue
        if name != os.path.basename(path):  # noqa: PTH119
            yield root, f"{folder}/{name}"
        yield root, f"{folder}/.debug/{name}"
        yield root, f"{DEBUG_FOLDER}{folder}/{name}"
