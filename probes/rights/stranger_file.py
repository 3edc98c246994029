"""Opens a file that a watched process names: inside of its own root, and only a regular one.

A path that a stranger chose may lead anywhere: out of its root by a link, to a device that acts
when it is opened, to a pipe that never answers. So it is resolved below a descriptor of
``/proc/PID/root`` (openat2(2): RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS), looked at through O_PATH,
which opens nothing, and opened only when it is a regular file. Where openat2 is refused (before
Linux 5.6, or by the seccomp rules of an older container) the same is done component by component.
No other module opens what a watched process names.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct

_OPENAT2 = 437  # the same on every architecture (include/uapi/asm-generic/unistd.h)
_RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS, _RESOLVE_IN_ROOT = 0x02, 0x04, 0x10  # openat2.h
_HOW = struct.Struct("=QQQ")
_LOOK = os.O_PATH | os.O_CLOEXEC
_NO_OPENAT2 = (errno.ENOSYS, errno.EPERM)
_MOST_LINKS = 40  # MAXSYMLINKS (include/linux/namei.h)


class NotRegularError(OSError):
    """It is a device, a pipe, a socket or a folder, and was not opened."""


def root_of(pid: int) -> str:
    """Where the file system of a process begins."""
    return f"/proc/{pid}/root"


def open_regular(root: str, path: str, *, follow: bool = True) -> int:
    """Opens a regular file for reading, as a process with that root sees it.

    Args:
        root: A folder: ``root_of`` a process, or ``/``.
        path: Below it; ``..`` and links stay below it.
        follow: Links count; else they are refused.

    Returns:
        A descriptor, close-on-exec.

    Raises:
        NotRegularError: It is of another kind.
        OSError: There is none, or it may not be read.
    """
    root_fd = os.open(root, _LOOK | os.O_DIRECTORY)
    try:
        return _reopened(_looked_at(root_fd, os.fsencode(path), follow=follow), path)
    finally:
        os.close(root_fd)


def open_link(path: str) -> int:
    """Opens the regular file that a link of the kernel leads to, as ``/proc/PID/exe``.

    Args:
        path: Whose every component is the kernel's or ours.

    Raises:
        NotRegularError: It is of another kind.
        OSError: There is none, or it may not be read.
    """
    return _reopened(os.open(path, _LOOK), path)


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
        fd = open_regular(root_of(pid), path)
    except OSError:
        return b""
    try:
        return os.read(fd, most_bytes)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _reopened(path_fd: int, path: str) -> int:
    """The file behind an O_PATH descriptor, which is closed."""
    try:
        if not stat.S_ISREG(os.fstat(path_fd).st_mode):
            raise NotRegularError(errno.EINVAL, "it is not a regular file", path)
        return os.open(f"/proc/self/fd/{path_fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(path_fd)


def _looked_at(root_fd: int, path: bytes, *, follow: bool) -> int:
    resolve = _RESOLVE_NO_MAGICLINKS | _RESOLVE_IN_ROOT
    if not follow:
        resolve |= _RESOLVE_NO_SYMLINKS
    try:
        return _openat2(root_fd, path, resolve)
    except OSError as error:
        if error.errno not in _NO_OPENAT2:
            raise
    return walk(root_fd, path, follow=follow)


def _openat2(root_fd: int, path: bytes, resolve: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    how = _HOW.pack(_LOOK, 0, resolve)
    fd = int(
        libc.syscall(
            ctypes.c_long(_OPENAT2),
            ctypes.c_int(root_fd),
            ctypes.c_char_p(path or b"."),
            ctypes.c_char_p(how),
            ctypes.c_size_t(len(how)),
        )
    )
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fsdecode(path))
    return fd


def walk(root_fd: int, path: bytes, *, follow: bool) -> int:
    """What ``openat2`` does with RESOLVE_IN_ROOT, one component after the other.

    Args:
        root_fd: The folder that is not left.
        path: Below it.
        follow: Links count; else they are refused.

    Returns:
        An O_PATH descriptor.

    Raises:
        OSError: As openat2(2).
    """
    names = path.split(b"/")[::-1]
    folders = [os.dup(root_fd)]
    links = 0
    try:
        while names:
            name = names.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                if len(folders) > 1:
                    os.close(folders.pop())
                continue
            fd = os.open(name, _LOOK | os.O_NOFOLLOW, dir_fd=folders[-1])
            if not stat.S_ISLNK(os.fstat(fd).st_mode):
                folders.append(fd)
                continue
            target = _target(fd)
            links += 1
            if not follow or links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fsdecode(path))
            if target.startswith(b"/"):
                while len(folders) > 1:
                    os.close(folders.pop())
            names += target.split(b"/")[::-1]
        return os.dup(folders[-1])
    finally:
        for fd in folders:
            os.close(fd)


def _target(link_fd: int) -> bytes:
    """Where a link leads, which is closed."""
    try:
        return os.readlink(b"", dir_fd=link_fd)
    finally:
        os.close(link_fd)
