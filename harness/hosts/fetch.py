"""Takes a host's run directory, piece by piece, into the run directory of all hosts.

Nothing of what a host says is believed: names are of a few forms, sizes are bounded, and what came
has the digest that was told.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from pathlib import Path

from harness.hosts import agent
from harness.hosts.cluster import Cluster, NoAnswerError
from probes.contract.errors import RunDirError
from probes.contract.private_file import FOLDER_MODE, open_new
from probes.contract.rundir import HOSTS

_NAME = re.compile(
    r"manifest\.json|logs/[a-z-]{1,32}\.log|raw/[a-z_]{1,64}/[A-Za-z0-9_-]{1,64}(?:\.\d{5})?\.arrows"
)
_MOST_FILES, _MOST_BYTES = 4_096, 1 << 40
_TRIES_COUNT = 3


async def fetch(cluster: Cluster, host: str, run_id: str, run_path: Path) -> int:
    """Takes all of it.

    Args:
        cluster: The agents.
        host: Whose.
        run_id: Of the run.
        run_path: The run directory of all hosts.

    Returns:
        Bytes that were taken.

    Raises:
        NoAnswerError: The host is gone.
        RunDirError: What came is not what was told, or cannot be written.
    """
    files = await cluster.call(host, agent.files_of, run_id, within_s=60.0)
    if len(files) > _MOST_FILES:
        raise RunDirError(f"host {host} has {len(files):,} files", fix="look at its agent")
    total = 0
    for name, size_bytes, digest in files:
        if not _NAME.fullmatch(name) or not 0 <= size_bytes <= _MOST_BYTES:
            raise RunDirError(
                f"host {host} has a file {name[:80]!r}, which connscope does not write",
                fix="look at its agent",
            )
        await _take(cluster, host, run_id, run_path / HOSTS / host / name, name, size_bytes, digest)
        total += size_bytes
    return total


async def _take(
    cluster: Cluster, host: str, run_id: str, path: Path, name: str, size_bytes: int, digest: str
) -> None:
    path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    seen = hashlib.sha256()
    offset, tries = 0, 0
    with open_new(path) as stream:
        while offset < size_bytes:
            try:
                packed = await cluster.call(host, agent.read, run_id, name, offset, within_s=10.0)
            except NoAnswerError:
                tries += 1
                if tries >= _TRIES_COUNT:
                    raise
                continue  # what is here stays
            piece = _unpacked(packed, host, name)
            if not piece:
                break
            stream.write(piece)
            seen.update(piece)
            offset += len(piece)
    if offset != size_bytes or seen.hexdigest() != digest:
        raise RunDirError(
            f"{name} of host {host} came with another digest than was told",
            fix="run it again; a disk or a network that changes data shows in dmesg",
        )


def _unpacked(packed: bytes, host: str, name: str) -> bytes:
    unpacking = zlib.decompressobj()
    try:
        piece = unpacking.decompress(packed, agent.CHUNK_BYTES)
    except zlib.error as error:
        raise RunDirError(
            f"{name} of host {host} cannot be unpacked: {error}", fix="run it again"
        ) from None
    if unpacking.unconsumed_tail:
        raise RunDirError(f"{name} of host {host} is larger than was told", fix="run it again")
    return piece
