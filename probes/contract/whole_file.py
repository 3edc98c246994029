"""Writes a file as a whole: who reads it meanwhile sees the old or the new one.

The folder may be a stranger's, as a run directory out of an archive that root looks at. So the new
file gets a name that nobody can guess, is created and never opened (O_EXCL), and takes the place of
the old one, link or not, in a folder that is held open. A device is no file to take the place of:
root who names /dev/null would leave the host without it.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from probes.contract.private_file import FILE_MODE, give_file

if TYPE_CHECKING:
    Buffer = bytes | memoryview

_MODE = 0o666
_DEVICES = Path("/dev")
_NULL_DEVICE = os.makedev(1, 3)  # Documentation/admin-guide/devices.txt


class DeviceKeptError(OSError):
    """A device, or a link in /dev, is no file to take the place of."""


def replace_file(
    path: Path,
    content: Buffer,
    *,
    inside: Path | None = None,
    is_synced: bool = True,
    is_private: bool = False,
) -> None:
    """Writes a file, with the permissions that ``open`` would give it. It belongs to who called.

    Args:
        path: Where; its folder exists.
        content: All of it.
        inside: A folder above: from there on no component may be a link.
        is_synced: It is on the disk when this returns.
        is_private: Nobody else may read it.

    Raises:
        DeviceKeptError: A device is there.
        OSError: No room, no permission, or a link where there may be none.
    """
    folder_fd = _folder(path.parent, inside)
    name = f".{path.name}.{secrets.token_hex(8)}"
    try:
        if _is_null_device(folder_fd, path):
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, FILE_MODE if is_private else _MODE, dir_fd=folder_fd)
        try:
            with os.fdopen(fd, "wb") as stream:
                give_file(fd)
                stream.write(content)
                stream.flush()
                if is_synced:
                    os.fsync(stream.fileno())
            os.rename(name, path.name, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
        except BaseException:
            with suppress(OSError):
                os.unlink(name, dir_fd=folder_fd)
            raise
    finally:
        os.close(folder_fd)


def is_kept(path: Path) -> bool:
    """Whether what is there is no file to take the place of, as ``replace_file`` would say.

    Args:
        path: Its folder exists.
    """
    try:
        _is_null_device(None, path)
    except DeviceKeptError:
        return True
    return False


def _is_null_device(folder_fd: int | None, path: Path) -> bool:
    """Whether what is written there is gone, as who names it wants.

    Raises:
        DeviceKeptError: It is another device, or something else in /dev, as /dev/stdout.
    """
    name = path if folder_fd is None else Path(path.name)
    try:
        found = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    is_device = stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)
    if stat.S_ISCHR(found.st_mode) and found.st_rdev == _NULL_DEVICE:
        return True
    if is_device or path.absolute().parent == _DEVICES:
        raise DeviceKeptError(errno.EINVAL, "A device is not replaced by a file", str(path))
    return False


def _folder(path: Path, inside: Path | None) -> int:
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    fd = os.open(path if inside is None else inside, flags)
    for name in () if inside is None else path.relative_to(inside).parts:
        try:
            below = os.open(name, flags | os.O_NOFOLLOW, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd
