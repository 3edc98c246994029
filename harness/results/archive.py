"""Parts of run directories as one file: ``tar`` in ``xz``, the same bytes always, read with care.

Times, owners and modes of the files are not kept, so that packing the same parts twice gives the
same archive. An archive may come from a stranger: what is read is bounded (bytes, members, memory
of the decompressor), only regular files with a name that the reader asked for are taken, and what
is sparse, a link, a device or there twice refuses the whole.
"""

from __future__ import annotations

import io
import lzma
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from probes.contract.errors import RunDirError

SUFFIX = ".tar.xz"
MOST_MEMBERS = 4_096
_CHUNK_BYTES = 1 << 20
_DECODER_BYTES = 128 << 20
"""Preset 9 needs 65 MiB (xz(1)); a header may ask for 4 GiB."""


def is_bundle(path: Path) -> bool:
    """Whether a person means an archive and no run directory."""
    return path.name.endswith(SUFFIX) and not path.is_dir()


def packed(members: Iterable[tuple[str, bytes]], *, preset: int = 6) -> bytes:
    """An archive of files.

    Args:
        members: Name and content of each, in order.
        preset: Of xz: 6 is quick, 9 | PRESET_EXTREME small.
    """
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return lzma.compress(plain.getvalue(), preset=preset)


def read_members(
    archive: Path, allowed: re.Pattern[str], *, most_bytes: int, what: str, advice: str
) -> Iterator[tuple[str, bytes]]:
    """The files of an archive, one after the other.

    Args:
        archive: May be a stranger's.
        allowed: What the whole name of each member must match.
        most_bytes: Unpacked.
        what: What it should be, for people.
        advice: What to do when it is not.

    Raises:
        RunDirError: It is no archive, too large, or holds anything else.
    """
    seen: set[str] = set()
    try:
        plain = _decompressed(archive, most_bytes, advice)
        with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as tar:
            for member in tar:
                is_plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
                is_known = allowed.fullmatch(member.name) is not None and member.name not in seen
                if not is_plain or member.issparse() or not is_known or len(seen) >= MOST_MEMBERS:
                    raise RunDirError(
                        f"{archive} holds {member.name[:80]!r}, no part of a run", fix=advice
                    )
                seen.add(member.name)
                content = tar.extractfile(member)
                yield member.name, content.read() if content else b""
    except (OSError, EOFError, lzma.LZMAError, tarfile.TarError, ValueError) as error:
        raise RunDirError(f"{archive} is not {what}: {error}", fix=advice) from error


def _decompressed(archive: Path, most_bytes: int, advice: str) -> bytes:
    decoder = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_DECODER_BYTES)
    plain = bytearray()
    with archive.open("rb") as stream:
        while not decoder.eof:
            chunk = stream.read(_CHUNK_BYTES) if decoder.needs_input else b""
            if decoder.needs_input and not chunk:
                raise EOFError("it was cut short")
            plain += decoder.decompress(chunk, most_bytes + 1 - len(plain))
            if len(plain) > most_bytes:
                raise RunDirError(f"{archive} holds more than {most_bytes >> 20} MiB", fix=advice)
    return bytes(plain)
