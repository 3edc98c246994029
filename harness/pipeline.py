"""From a recorded run to its verdict and page: the sequence that every command shares.

Imported only after the fleet is gone: pandas comes with it, and matplotlib when a page is wanted.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.run_frames import load
from analysis.summary import Summary, summarise
from analysis.verdict import document
from probes.errors import RunDirError
from probes.private_file import give_folder, make_folder
from probes.rundir import VERDICT, RunDir, write_atomically
from probes.whole_file import replace_file

DERIVED = "derived"


def conclude(
    run: RunDir,
    report_path: Path | None = None,
    *,
    with_page: bool = True,
    unwritten: list[RunDirError] | None = None,
) -> dict[str, Any]:
    """Understands a run and writes what follows: verdict.json, report.html, derived/*.parquet.

    The verdict is written first, the largest part last, so that a full disk costs least. The
    recording itself is never changed.

    Args:
        run: A recorded run, also one that was interrupted or killed.
        report_path: Where the page goes; report.html of the run directory when None.
        with_page: Write it at all.
        unwritten: Gets what could not be written, and the rest is tried all the same; None to
            raise the first of it.

    Returns:
        The content of verdict.json.

    Raises:
        RunDirError: The recording cannot be read, or, without ``unwritten``, the results cannot be
            written.
    """
    summary = summarise(load(run))
    verdict = document(summary)
    run.release_room()  # of a run that was killed
    text = json.dumps(verdict, indent=2) + "\n"
    steps: list[Callable[[], None]] = [
        lambda: write_atomically(run.path / VERDICT, text, is_private=True),
        lambda: write_derived(run, summary),
    ]
    if with_page:
        steps.insert(1, lambda: _write_page(run, report_path, summary))
    for write in steps:
        try:
            write()
        except RunDirError as error:
            if unwritten is None:
                raise
            unwritten.append(error)
    return verdict


def _write_page(run: RunDir, report_path: Path | None, summary: Summary) -> None:
    from reports.page import render, write_report  # matplotlib: only for a page

    if report_path is None:
        write_report(run, summary)
    else:
        write_atomically(report_path, render(summary))


def render_only(run: RunDir, report_path: Path) -> dict[str, Any]:
    """Writes the page of a run directory that may not be written, and nothing else.

    Returns:
        What verdict.json would hold.

    Raises:
        RunDirError: The recording cannot be read, or the page cannot be written.
    """
    summary = summarise(load(run))
    _write_page(run, report_path, summary)
    return document(summary)


def write_derived(run: RunDir, summary: Summary) -> None:
    """Writes every frame of the summary as ``derived/<name>.parquet``.

    Raises:
        RunDirError: No room or no permission.
    """
    folder = run.path / DERIVED
    for field in fields(summary):
        frame = getattr(summary, field.name)
        if not isinstance(frame, pd.DataFrame):
            continue
        path = folder / f"{field.name}.parquet"
        content = io.BytesIO()
        frame.to_parquet(content, index=False, compression="zstd")
        try:
            if not folder.exists():
                make_folder(folder)
                give_folder(folder)
            replace_file(
                path, content.getbuffer(), inside=run.path, is_synced=False, is_private=True
            )
        except OSError as error:
            raise RunDirError(
                f"cannot write {path}: {error.strerror or error}",
                fix=f"df -h {folder}; make room, then profile-report {run.path}",
            ) from error
