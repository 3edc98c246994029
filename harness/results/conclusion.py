"""Who understands recordings: this process, or for root another one, which has no rights.

pandas, pyarrow and matplotlib read what strangers wrote. Root starts
``harness.results.analysis_main`` for it, hands over descriptors of the recording, and writes itself
what comes back.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.results import analysis_request
from harness.results.analysis_process import AnalysisProcess, NotStartedError
from harness.results.analysis_request import RESULTS, Request
from harness.results.results import Result, write_page, write_results
from probes.contract.errors import RunDirError
from probes.contract.rundir import RunDir

_ahead: list[AnalysisProcess] = []


def is_apart() -> bool:
    """Whether another process is to understand recordings: this one is root."""
    return os.geteuid() == 0


def begin(*, with_page: bool, after_s: float = 0.0) -> None:
    """Has that process imported what it needs, while there is time; it is used once.

    Args:
        with_page: A page will be wanted.
        after_s: How long it waits before.
    """
    if not _ahead:
        _ahead.append(AnalysisProcess(with_page=with_page, after_s=after_s))


def pids() -> list[int]:
    """Of the process that ``begin`` has started."""
    return [process.pid for process in _ahead]


def conclude(
    run: RunDir,
    report_path: Path | None = None,
    *,
    with_page: bool = True,
    unwritten: list[RunDirError] | None = None,
) -> dict[str, Any]:
    """Understands a run and writes what follows: verdict, page, derived tables.

    Args:
        run: A recorded run, also one that was interrupted or killed.
        report_path: Where the page goes; report.html of the run directory when None.
        with_page: With the page and derived tables; without it the verdict alone.
        unwritten: See ``harness.results.results.write_results``.

    Returns:
        The content of verdict.json.

    Raises:
        RunDirError: The recording cannot be read, or, without ``unwritten``, the results cannot be
            written.
    """
    found = _results(run, with_page=with_page, with_derived=with_page)
    return write_results(run, found, report_path, unwritten=unwritten)


def render_only(run: RunDir, report_path: Path) -> dict[str, Any]:
    """Writes the page of a run directory that may not be written, and nothing else.

    Returns:
        What verdict.json would hold.

    Raises:
        RunDirError: The recording cannot be read, or the page cannot be written.
    """
    return write_page(_results(run, with_page=True, with_derived=False), report_path)


def answers(request: Request, runs: Sequence[RunDir]) -> Iterator[Result]:
    """What is asked of recordings, made by whoever may understand them.

    Args:
        request: What is asked.
        runs: Of what.

    Raises:
        ToolkitError: A recording cannot be read, or has not what is asked for.
    """
    if is_apart():
        process = _ahead.pop() if _ahead else AnalysisProcess(with_page=request.with_page)
        try:
            yield from process.answers(request, runs)
            return
        except NotStartedError:  # it has seen nothing of the recording yet
            pass
        finally:
            process.close()
    yield from analysis_request.answers(
        request.what, runs, request.options, with_page=request.with_page
    )


def _results(run: RunDir, *, with_page: bool, with_derived: bool) -> Iterator[Result]:
    options = {"with_derived": with_derived}
    again = f"profile-report {run.path}"
    request = Request(RESULTS, str(run.path), again, with_page=with_page, options=options)
    yield from answers(request, [run])
