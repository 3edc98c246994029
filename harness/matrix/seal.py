"""Tells a matrix that this user began on this host from one that came from elsewhere.

Who unpacks a colleague's archive owns the files in it, so the owner says nothing. What a matrix
runs is sealed (HMAC, RFC 2104) with a key that only its user can read. A seal that fits means: its
rows are word by word what a matrix of this user has written here before. Without a key (no place
to keep it, another host, another user) nothing fits, and the rows must come from elsewhere.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import pwd
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from probes.contract.private_file import open_new
from probes.rights.calling_user import calling_user

ROOTS_FOLDER = Path("/var/lib/connscope")
KEY_FILE = "matrix.key"
_KEY_BYTES = 32
_SEALED = ("name", "seed", "repeats", "is_varied", "scale", "rows", "order")


def seal_of(plan: Mapping[str, Any]) -> str:
    """The seal of a plan with the key of this process's user, '' where none can be kept.

    Args:
        plan: ``Matrix.to_dict``.
    """
    key = _own_key()
    return _sealed(plan, key) if key else ""


def is_own(plan: Mapping[str, Any]) -> bool:
    """Whether this user, or the one who called sudo, has sealed exactly this plan on this host.

    Args:
        plan: As it was read.
    """
    seal = plan.get("seal")
    if not isinstance(seal, str) or not seal.isascii() or not seal:
        return False
    return any(hmac.compare_digest(_sealed(plan, key), seal) for key in _keys())


def _sealed(plan: Mapping[str, Any], key: bytes) -> str:
    told = {name: plan.get(name) for name in _SEALED}
    text = json.dumps(told, sort_keys=True, separators=(",", ":"))
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _folder_of(uid: int) -> Path | None:
    """Where a user's key is: the place is a matter of the user, not of the environment."""
    if uid == 0:
        return ROOTS_FOLDER
    try:
        return Path(pwd.getpwuid(uid).pw_dir) / ".local" / "state" / "connscope"
    except KeyError:
        return None


def _keys() -> Iterator[bytes]:
    behind = calling_user()
    for uid in [os.geteuid(), *([behind.uid] if behind is not None else [])]:
        folder = _folder_of(uid)
        if folder is not None and (key := _read(folder / KEY_FILE, uid)):
            yield key


def _own_key() -> bytes:
    """The key of this process's user, made when there is none; empty where that is not possible."""
    uid = os.geteuid()
    folder = _folder_of(uid)
    if folder is None:
        return b""
    path = folder / KEY_FILE
    if key := _read(path, uid):
        return key
    temporary = path.with_name(f".{KEY_FILE}.{secrets.token_hex(8)}")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open_new(temporary) as stream:
            stream.write(secrets.token_bytes(_KEY_BYTES))
            os.fsync(stream.fileno())
        with suppress(FileExistsError):  # somebody was quicker: his counts
            os.link(temporary, path)
    except OSError:
        return b""
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return _read(path, uid)


def _read(path: Path, uid: int) -> bytes:
    """The key, empty when it is missing or anybody else could have read or written it."""
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        found = os.fstat(fd)
        is_private = stat.S_ISREG(found.st_mode) and not found.st_mode & 0o077
        if not is_private or found.st_uid != uid or found.st_size != _KEY_BYTES:
            return b""
        return Path(f"/proc/self/fd/{fd}").read_bytes()  # looked at before it was opened
    except OSError:
        return b""
    finally:
        os.close(fd)
