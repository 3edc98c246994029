"""From a recorded run to its verdict and page: the sequence that every command shares.

Imported only after the fleet is gone: pandas comes with it, and matplotlib when a page is wanted.
What root has to understand is understood by another process (``harness.results.conclusion``).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import fields

import pandas as pd

from analysis.document import document
from analysis.frames.run_frames import load
from analysis.summary import summarise
from harness.results.results import DERIVED, Result
from probes.contract.rundir import REPORT, VERDICT, RunDir


def results(run: RunDir, *, with_page: bool = True, with_derived: bool = True) -> Iterator[Result]:
    """Name and content of each file that follows from a recording; nothing is written.

    Args:
        run: A recorded run.
        with_page: report.html among them.
        with_derived: ``derived/<name>.parquet`` of every frame of the summary among them.

    Raises:
        RunDirError: The recording cannot be read.
    """
    summary = summarise(load(run))
    yield VERDICT, (json.dumps(document(summary), indent=2) + "\n").encode()
    if with_page:
        from reports.page.page import render  # matplotlib: only for a page

        yield REPORT, render(summary).encode()
    for field in fields(summary) if with_derived else ():
        frame = getattr(summary, field.name)
        if isinstance(frame, pd.DataFrame):
            content = io.BytesIO()
            frame.to_parquet(content, index=False, compression="zstd")
            yield f"{DERIVED}/{field.name}.parquet", content.getvalue()
