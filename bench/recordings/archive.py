"""A recorded run as one small file that git carries well: ``tar`` in ``xz``, the same bytes always.

Only what the analysis reads is kept: the manifest, the tables of ``raw/``, and ``live.bin`` of a
run that did not end by itself. Times, owners and modes of the files are not, so that packing the
same run twice gives the same archive.

Paths of the machine that recorded are replaced by others of the same length: no offset in a stream
moves, not even in one that was cut, and so nothing needs to be written anew.
"""

from __future__ import annotations

import io
import json
import lzma
import re
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from probes.errors import RunDirError
from probes.rundir import LIVE, MANIFEST

SUFFIX = ".tar.xz"
MOST_BYTES = 64 << 20
"""Unpacked; the largest of ours has 3 MB."""

_MEMBER = re.compile(
    r"(manifest\.json|live\.bin|raw/[a-z0-9_]{1,64}/[A-Za-z0-9_.-]{1,128}\.arrows)"
)


def stand_ins(paths: Mapping[str, str]) -> dict[bytes, bytes]:
    """What each path is replaced by: a name of the same length.

    Args:
        paths: What to hide, and the beginning of what to show instead.
    """
    made = {}
    for hidden, shown in paths.items():
        size = len(hidden.encode())
        made[hidden.encode()] = (shown.encode() + b"-" * size)[:size]
    # /a/b before /a: the longer one holds the shorter
    return dict(sorted(made.items(), key=lambda each: -len(each[0])))


def pack(run: Path, archive: Path, hidden: Mapping[bytes, bytes], *, with_live: bool) -> int:
    """Packs a run directory.

    Args:
        run: The directory.
        archive: Where to; replaced when it is there.
        hidden: From ``stand_ins``.
        with_live: Keep ``live.bin``.

    Returns:
        Size of the archive in bytes.
    """
    names = [MANIFEST, *([LIVE] if with_live else [])]
    names += [str(path.relative_to(run)) for path in sorted(run.glob("raw/*/*.arrows"))]
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in names:
            content = (run / name).read_bytes()
            for secret, shown in hidden.items():
                content = content.replace(secret, shown)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    packed = lzma.compress(plain.getvalue(), preset=9 | lzma.PRESET_EXTREME)
    archive.parent.mkdir(parents=True, exist_ok=True)
    archive.write_bytes(packed)
    return len(packed)


def unpack(archive: Path, folder: Path) -> Path:
    """Makes a run directory of an archive.

    Args:
        archive: From ``pack``.
        folder: Where to make it; its name is the archive's.

    Returns:
        The run directory.

    Raises:
        RunDirError: It is no such archive, or holds something else than a run.
    """
    run = folder / archive.name.removesuffix(SUFFIX)
    for name, content in _members(archive):
        path = run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return run


def _members(archive: Path) -> Iterable[tuple[str, bytes]]:
    advice = "git checkout the file, or record it anew: make recordings"
    try:
        with lzma.open(archive) as stream:
            plain = stream.read(MOST_BYTES + 1)
        if len(plain) > MOST_BYTES:
            raise RunDirError(f"{archive} holds more than {MOST_BYTES >> 20} MiB", fix=advice)
        with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as tar:
            for member in tar:
                if not member.isreg() or not _MEMBER.fullmatch(member.name):
                    raise RunDirError(
                        f"{archive} holds {member.name!r}, no part of a run", fix=advice
                    )
                content = tar.extractfile(member)
                yield member.name, content.read() if content else b""
    except (OSError, EOFError, lzma.LZMAError, tarfile.TarError) as error:
        raise RunDirError(f"{archive} is not a recording: {error}", fix=advice) from error


def control_group(run: Path) -> str:
    """The path of the control group that the run was started in, '' for the root or none."""
    manifest = json.loads((run / MANIFEST).read_text(encoding="utf-8"))
    path = str(manifest.get("host", {}).get("cgroup", {}).get("path") or "")
    return path if len(path) > 1 else ""
