"""Whether a folder can have been written by anybody but root and who calls.

What is in it may then still be a stranger's: who unpacks an archive owns what comes out.
"""

from __future__ import annotations

import os
import pwd
import shlex
import stat
from collections.abc import Iterable
from pathlib import Path

from probes.contract.errors import UsageError
from probes.contract.private_file import WRITABLE_BY_OTHERS
from probes.rights.calling_user import own_uids


def require_own(path: Path, folder_fd: int, files: Iterable[str], folders: Iterable[str]) -> None:
    """Refuses a folder, or something in it, that somebody else owns or may write.

    Args:
        path: For people.
        folder_fd: The folder, open.
        files: Names in it that must be regular files, where they are there.
        folders: Names in it that must be folders and no links, where they are there.

    Raises:
        UsageError: It is another user's, others may write it, or a name is something else.
    """
    own = own_uids()
    _require(path, os.fstat(folder_fd), own, stat.S_ISDIR, "a folder")
    kinds = [(name, stat.S_ISREG, "a file") for name in files]
    kinds += [(name, stat.S_ISDIR, "a folder") for name in folders]
    for name, is_kind, what in kinds:
        try:
            found = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
        except FileNotFoundError:
            continue
        _require(path / name, found, own, is_kind, what)


def _require(
    path: Path, found: os.stat_result, own: frozenset[int], is_kind: object, what: str
) -> None:
    shown = shlex.quote(str(path))
    assert callable(is_kind)
    if not is_kind(found.st_mode):
        raise UsageError(f"{path} is not {what}, and links are not followed", fix=f"ls -ld {shown}")
    if found.st_uid not in own:
        raise UsageError(
            f"{path} belongs to {_name(found.st_uid)}, and what is in it is not believed",
            fix="run it as that user, or begin a matrix of your own",
        )
    if found.st_mode & WRITABLE_BY_OTHERS:
        raise UsageError(
            f"{path} can be written by other users (mode {stat.S_IMODE(found.st_mode):04o}), and "
            "what is in it is not believed",
            fix=f"look at it, then chmod go-w {shown}",
        )


def _name(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"
