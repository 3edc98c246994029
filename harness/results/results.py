"""What is written of a run that was understood: verdict, page, derived and exported tables."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from probes.contract.errors import RunDirError
from probes.contract.private_file import give_folder, make_folder
from probes.contract.rundir import REPORT, VERDICT, RunDir, write_atomically
from probes.contract.whole_file import replace_file

DERIVED = "derived"
_TABLE_NAME = re.compile(r"[a-z_]{1,64}\.(?:csv|parquet)|README\.md")
_DERIVED_NAME = re.compile(r"derived/[a-z_]{1,64}\.parquet")

Result = tuple[str, bytes]
"""Name below the run directory, and content."""


def write_results(
    run: RunDir,
    results: Iterable[Result],
    report_path: Path | None = None,
    *,
    unwritten: list[RunDirError] | None = None,
) -> dict[str, Any]:
    """Writes them as they come; the recording itself is never changed.

    Args:
        run: The recording.
        results: The verdict first, the largest last, so that a full disk costs least.
        report_path: Where the page goes; report.html of the run directory when None.
        unwritten: Gets what could not be written, and the rest is tried all the same; None to
            raise the first of it.

    Returns:
        The content of verdict.json.

    Raises:
        RunDirError: Without ``unwritten``: no room or no permission.
    """
    verdict: dict[str, Any] = {}
    for name, content in results:
        if name == VERDICT:
            verdict = json.loads(content)
            run.release_room()  # of a run that was killed
        try:
            _writer(run, name, report_path)(content)
        except RunDirError as error:
            if unwritten is None:
                raise
            unwritten.append(error)
    return verdict


def write_page(results: Iterable[Result], report_path: Path) -> dict[str, Any]:
    """Writes the page of a run directory that may not be written, and nothing else.

    Returns:
        What verdict.json would hold.

    Raises:
        RunDirError: It cannot be written.
    """
    found = dict(results)
    write_atomically(report_path, found[REPORT].decode())
    verdict: dict[str, Any] = json.loads(found[VERDICT])
    return verdict


def write_tables(folder: Path, tables: Iterable[Result]) -> int:
    """Writes files of a folder, which is made when it is not there.

    Args:
        folder: Files of the same names are replaced, others stay.
        tables: Name and content of each.

    Returns:
        How many were written.

    Raises:
        RunDirError: They cannot be written.
    """
    count = 0
    for name, content in tables:
        if not _TABLE_NAME.fullmatch(name):
            raise _not_to_write(folder, name)
        try:
            if not folder.exists():
                folder.mkdir()
                give_folder(folder)
            replace_file(folder / name, content)
        except OSError as error:
            raise RunDirError(
                f"cannot write {folder / name}: {error.strerror or error}",
                fix=f"df -h {folder.parent}; make room or choose another place with --output DIR",
            ) from error
        count += 1
    return count


def _not_to_write(where: Path, name: str) -> RunDirError:
    return RunDirError(
        f"{where}: what has understood it wants to write {name[:80]!r}",
        fix="it is a defect, or the recording has an attack in it: please report it",
    )


def _writer(run: RunDir, name: str, report_path: Path | None) -> Callable[[bytes], None]:
    if name == VERDICT or (name == REPORT and report_path is None):
        return lambda content: write_atomically(run.path / name, content.decode(), is_private=True)
    if name == REPORT and report_path is not None:
        return lambda content: write_atomically(report_path, content.decode())
    if not _DERIVED_NAME.fullmatch(name):
        raise _not_to_write(run.path, name)
    return lambda content: _write_derived(run, run.path / name, content)


def _write_derived(run: RunDir, path: Path, content: bytes) -> None:
    folder = path.parent
    try:
        if not folder.exists():
            make_folder(folder)
            give_folder(folder)
        replace_file(path, content, inside=run.path, is_synced=False, is_private=True)
    except OSError as error:
        raise RunDirError(
            f"cannot write {path}: {error.strerror or error}",
            fix=f"df -h {folder}; make room, then profile-report {run.path}",
        ) from error
