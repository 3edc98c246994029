"""Files and folders that are their maker's alone, and the user's who called sudo in the end.

A recording has addresses of clients, names of functions and what a server wrote to its log. So a
run directory is made 0700 and what is in it 0600; who wants others to read it says so (chmod).
While root writes it, root has it: in a folder of somebody else's a name can become a link between
two looks at it. It is handed over once nothing is written any more; files that are written as a
whole belong to who called sudo from the moment on at which they are made.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from probes.rights.calling_user import CallingUser, calling_user

FOLDER_MODE = 0o700
FILE_MODE = 0o600
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_OURS = {"manifest.json", "matrix.json"}
_MOST_DEPTH = 16
"""A matrix has its runs' tables five folders down."""


@contextmanager
def _opened(name: str | Path, flags: int, folder_fd: int | None = None) -> Iterator[int]:
    fd = os.open(name, flags | os.O_CLOEXEC, dir_fd=folder_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def make_folder(path: Path) -> None:
    """Makes a folder that is private, and folders above it that are not.

    Raises:
        OSError: It is there, or cannot be made.
    """
    missing = [each for each in path.parents if not each.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    for each in missing:
        give_folder(each)  # "runs", say: of the user who wanted it there
    path.mkdir(mode=FOLDER_MODE)


def open_new(path: Path) -> BinaryIO:
    """Creates a private file for writing; what is there, link or not, is not opened.

    Raises:
        OSError: It is there, or cannot be made.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, FILE_MODE), "wb", buffering=0)


def give_file(fd: int) -> None:
    """Gives a file that this process has just created to who called sudo, where somebody did."""
    user = calling_user()
    if user is not None:
        with suppress(OSError):  # a disk without owners
            os.fchown(fd, user.uid, user.gid)


def give_folder(path: Path) -> None:
    """Gives a folder or link that this process has just made, and nothing in it."""
    user = calling_user()
    if user is None:
        return
    with suppress(OSError), _opened(path, os.O_PATH | os.O_NOFOLLOW) as fd:
        found = os.fstat(fd)
        if found.st_uid == 0 and (stat.S_ISDIR(found.st_mode) or stat.S_ISLNK(found.st_mode)):
            os.chown(f"/proc/self/fd/{fd}", user.uid, user.gid)  # the very one, link or not


def hand_over(path: Path) -> None:
    """Gives a run or a matrix with all that is in it to who called sudo, where somebody did.

    Only one that is root's and private, as ``make_folder`` makes them: whoever exchanges a name on
    the way to it cannot have us give away ``/etc``, and in what root alone could write nobody has
    put a name that is a file of somebody else.

    Args:
        path: Its folder; what cannot be given away stays root's.
    """
    user = calling_user()
    if user is None:
        return
    with suppress(OSError), _opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        is_private = not os.fstat(fd).st_mode & (stat.S_IRWXG | stat.S_IRWXO)
        if is_private and _OURS & _names(fd):
            _give_tree(fd, user, _MOST_DEPTH)


def _names(folder_fd: int) -> set[str]:
    with os.scandir(folder_fd) as entries:
        return {entry.name for entry in entries}


def _give_tree(folder_fd: int, user: CallingUser, depth: int) -> None:
    found = os.fstat(folder_fd)
    if found.st_uid != 0 or found.st_mode & WRITABLE_BY_OTHERS or not depth:
        return
    for name in _names(folder_fd):
        with suppress(OSError), _opened(name, os.O_PATH | os.O_NOFOLLOW, folder_fd) as fd:
            _give(fd, name, folder_fd, user, depth)
    os.fchown(folder_fd, user.uid, user.gid)  # last: from now on that user may change it


def _give(fd: int, name: str, folder_fd: int, user: CallingUser, depth: int) -> None:
    found = os.fstat(fd)
    if stat.S_ISDIR(found.st_mode):
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        with _opened(name, flags, folder_fd) as below_fd:
            _give_tree(below_fd, user, depth - 1)
    elif found.st_uid == 0 and (found.st_nlink == 1 or stat.S_ISLNK(found.st_mode)):
        os.chown(f"/proc/self/fd/{fd}", user.uid, user.gid)
