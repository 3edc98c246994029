"""The end of each command that records a run: notes, verdict, page, what the terminal shows."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from harness.commands import standard_streams
from harness.results import conclusion
from probes.contract.errors import RunDirError, ToolkitError
from probes.contract.rundir import REPORT, RunDir
from reports.terminal.terminal import print_end, printable


def end(
    run: RunDir, notes: Sequence[str], *, as_json: bool, quiet: bool, with_page: bool = True
) -> dict[str, Any]:
    """Concludes a recorded run and shows the result.

    Args:
        run: The recording.
        notes: What a person should know of it, one line each on stderr.
        as_json: verdict.json goes to stdout, what people read to stderr.
        quiet: No notes.
        with_page: Write report.html.

    Returns:
        The content of verdict.json.

    Raises:
        ToolkitError: The recording cannot be read; it is kept. What cannot be written is told, and
            the result is shown all the same.
    """
    if not quiet:
        for note in notes:
            sys.stderr.write(f"note: {printable(note)}\n")
    unwritten: list[RunDirError] = []
    try:
        verdict = conclusion.conclude(run, with_page=with_page, unwritten=unwritten)
    except ToolkitError as error:
        raise type(error)(
            f"{error.message} (the recording is kept in {run.path})", fix=error.fix
        ) from error
    try:
        if as_json:
            print(json.dumps(verdict, indent=2))
        report = run.path / REPORT if with_page else f"profile-report {run.path}"
        if unwritten:
            report = f"none: {unwritten[0].message}; make room, then profile-report {run.path}"
        print_end(verdict, report, sys.stderr if as_json else sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:  # the exit code still says how the run went
        standard_streams.discard(sys.stdout)
    return verdict
