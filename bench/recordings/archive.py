"""A recorded run as one small file that git carries well: ``tar`` in ``xz``, the same bytes always.

Only what the analysis reads is kept: the manifest, the tables of ``raw/``, and ``live.bin`` of a
run that did not end by itself. Times, owners and modes of the files are not, so that packing the
same run twice gives the same archive.

Paths of the machine that recorded are replaced by others of the same length: no offset in a stream
moves, not even in one that was cut, and so nothing needs to be written anew.
"""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from harness.results.archive import SUFFIX, packed, read_members
from probes.contract.errors import RunDirError
from probes.contract.rundir import LIVE, MANIFEST, RunDir

__all__ = ["SUFFIX", "control_groups", "pack", "stand_ins", "unpack"]

MOST_BYTES = 64 << 20
"""Unpacked; the largest of ours has 3 MB."""
_ADVICE = "git checkout the file, or record it anew: make recordings"

_MEMBER = re.compile(
    r"(manifest\.json|live\.bin|raw/[a-z0-9_]{1,64}/[A-Za-z0-9_.-]{1,128}\.arrows)"
)
_PATH_COLUMNS = (("cgroups", "path"), ("cgroup_cpu", "cgroup"))
_PUBLIC_GROUPS = frozenset(
    {"init.scope", "machine.slice", "system.slice", "user.slice", "sys", "fs", "cgroup"}
    | {"cpu", "cpuacct", "cpu,cpuacct", "memory", "pids", "unified", "kubepods", "docker"}
)
"""Parts of a path that every host has, and those that tell whose a group is."""


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
    content = packed(_hidden(run, names, hidden), preset=9 | lzma.PRESET_EXTREME)
    archive.parent.mkdir(parents=True, exist_ok=True)
    archive.write_bytes(content)
    return len(content)


def _hidden(
    run: Path, names: list[str], hidden: Mapping[bytes, bytes]
) -> Iterator[tuple[str, bytes]]:
    for name in names:
        content = (run / name).read_bytes()
        for secret, shown in hidden.items():
            content = content.replace(secret, shown)
        yield name, content


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
    members = read_members(
        archive, _MEMBER, most_bytes=MOST_BYTES, what="a recording", advice=_ADVICE
    )
    for name, content in members:
        path = run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return run


def control_groups(run: Path) -> dict[str, str]:
    """The control groups that a recording names, part by part, for ``stand_ins``.

    Each part of a path by itself, so that a group and those above it stay one below the other. The
    tables are read as far as they are whole.

    Args:
        run: The run directory.

    Returns:
        A part with its slash, and what is shown instead; parts that every host has are left out.
    """
    paths = {str(_host_of(run).get("cgroup", {}).get("path") or "")}
    for table, column in _PATH_COLUMNS:
        try:
            paths.update(RunDir(run).read_table(table).table.column(column).to_pylist())
        except RunDirError:
            continue  # of another version: only the manifest is known
    parts = {part for path in paths for part in path.split("/") if len(part) > 1}
    return {
        f"/{part}": f"/g{number:02d}"
        for number, part in enumerate(sorted(parts - _PUBLIC_GROUPS), start=1)
    }


def _host_of(run: Path) -> Mapping[str, Mapping[str, object]]:
    host = json.loads((run / MANIFEST).read_text(encoding="utf-8")).get("host")
    return host if isinstance(host, dict) else {}
