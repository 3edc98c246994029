"""``profile-report``: rebuilds verdict, page and derived tables of a recorded run."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from harness.command_line import run_command
from probes.errors import ExitCode, UsageError
from probes.rundir import MANIFEST, REPORT, RunDir, open_run_dir
from reports.terminal import print_end

LATEST = Path("runs/latest")

_EPILOG = """\
examples:
  profile-report                                   the newest run
  profile-report runs/20261123T214659Z-main-0a1b   an older one
  profile-report runs/latest --output /tmp/run.html
  profile-report runs/latest --json | jq .verdict

exit codes: 0 the page was written, 2 usage, 5 the recording cannot be read or the page not written
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, fix=f"{self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_command(_report, argv)


def _report(argv: Sequence[str]) -> int:
    parser = _Parser(
        prog="profile-report",
        description="Rebuilds derived/, verdict.json and report.html of a run from its recording.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "run", nargs="?", type=Path, default=LATEST, metavar="RUN", help=f"default: {LATEST}"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the page there")
    parser.add_argument("--json", action="store_true", help="verdict.json on stdout as well")
    arguments = parser.parse_args(argv)
    run = find_run(arguments.run)
    output: Path | None = arguments.output
    if output is not None:
        _check_output(output)
    from harness.pipeline import conclude, render_only  # pandas and matplotlib: a second to import

    if output is not None and not os.access(run.path, os.W_OK):
        sys.stderr.write(f"note: {run.path} is read-only; only {output} is written\n")
        verdict = render_only(run, output)
    else:
        verdict = conclude(run, output)
    if arguments.json:
        print(json.dumps(verdict, indent=2))
    print_end(
        verdict,
        output if output is not None else run.path / REPORT,
        sys.stderr if arguments.json else sys.stdout,
    )
    return int(ExitCode.REACHED)


def find_run(path: Path) -> RunDir:
    """Opens a run directory that a person named.

    Raises:
        UsageError: There is no run at that place.
        RunDirError: There is one, but it cannot be read by this version.
    """
    if not path.exists():
        if path == LATEST:
            raise UsageError(
                f"there is no run yet: {LATEST} does not exist here",
                fix="profile-run --connections 1000, or name a run directory",
            )
        raise UsageError(f"there is no {path}", fix="ls runs/ and name one of those")
    if not (path / MANIFEST).is_file():
        raise UsageError(
            f"{path} is not a run directory: it has no {MANIFEST}",
            fix="name a directory below runs/, for example runs/latest",
        )
    return open_run_dir(path)


def _check_output(output: Path) -> None:
    if output.is_dir():
        raise UsageError(
            f"--output {output} is a directory", fix=f"--output {output / 'report.html'}"
        )
    if not output.parent.is_dir():
        raise UsageError(
            f"--output {output}: there is no directory {output.parent}",
            fix=f"mkdir -p {output.parent}",
        )


if __name__ == "__main__":
    sys.exit(main())
