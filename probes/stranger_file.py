"""Opens a file that a watched process names: inside of its own root, and only a regular one.

A path that a stranger chose may lead anywhere: out of its root by a link, to a device that acts
when it is opened, to a pipe that never answers. So it is resolved below a descriptor of
``/proc/PID/root`` (openat2(2): RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS), looked at through O_PATH,
which opens nothing, and opened only when it is a regular file. Needs Linux 5.6.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct

_OPENAT2 = 437  # the same on every architecture (include/uapi/asm-generic/unistd.h)
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10  # include/uapi/linux/openat2.h
_HOW = struct.Struct("=QQQ")


def read_start(pid: int, path: str, most_bytes: int) -> bytes:
    """The start of a regular file as that process sees it.

    Args:
        pid: Whose root directory the path begins at.
        path: Absolute.
        most_bytes: Bytes to read at most.

    Returns:
        b"" when there is no such file, it is none of that kind, or it may not be read.
    """
    try:
        root_fd = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        path_fd = _openat2(root_fd, path.lstrip("/").encode("utf-8", "surrogateescape"))
        if path_fd < 0:
            return b""
        try:
            if not stat.S_ISREG(os.fstat(path_fd).st_mode):
                return b""
            fd = os.open(f"/proc/self/fd/{path_fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        finally:
            os.close(path_fd)
        try:
            return os.read(fd, most_bytes)
        finally:
            os.close(fd)
    except OSError:
        return b""
    finally:
        os.close(root_fd)


def _openat2(root_fd: int, path: bytes) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    how = _HOW.pack(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_NO_MAGICLINKS | _RESOLVE_IN_ROOT)
    return int(
        libc.syscall(
            ctypes.c_long(_OPENAT2),
            ctypes.c_int(root_fd),
            ctypes.c_char_p(path),
            ctypes.c_char_p(how),
            ctypes.c_size_t(len(how)),
        )
    )
