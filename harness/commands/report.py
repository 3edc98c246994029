"""``profile-report``: verdict and page of a recorded run anew, or what other tools read of it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.commands.entry import run_command
from harness.commands.output_file import check_output_file, check_parent
from harness.options import values
from harness.options.parser import Example, Parser
from harness.results import conclusion
from harness.results.analysis_request import TABLES, TEXT, Request
from harness.results.archive import SUFFIX, is_bundle
from harness.results.damaged_run import told_as_damage
from harness.results.results import write_tables
from probes.contract.errors import ExitCode, RunDirError, UsageError
from probes.contract.private_file import hand_over
from probes.contract.rundir import MANIFEST, REPORT, RunDir, open_run_dir, write_atomically
from reports.terminal.terminal import print_end

LATEST = Path("runs/latest")
STDOUT = Path("-")

FILE_FORMATS = ("json", "md", "speedscope", "folded", "perfetto", "openmetrics")
FOLDER_FORMATS = ("csv", "parquet")
_STACK_FORMATS = ("speedscope", "folded")

_EXAMPLES = (
    Example("profile-report", "rebuild verdict and page of the newest run"),
    Example("profile-report runs/latest --format md", "for an issue or a pull request"),
    Example("profile-report --bundle run.tar.xz --bundle-redact", "the run, for a bug report"),
    Example(
        "profile-report --format speedscope --worker 1 --from 2 --until 8 -o w1.json",
        "a flame graph of one worker",
    ),
)
_COMMON = ("--format", "--output", "--json", "--bundle", "--bundle-redact", "--worker")
_EXIT_CODES = {0: "written", 2: "usage", 5: "cannot be read or written"}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_command(_report, argv)


def _report(argv: Sequence[str]) -> int:
    arguments = parser().parse_args(argv)
    _check_together(arguments)
    named: Path = arguments.run
    if not is_bundle(named) or not named.exists():
        advice = "copy the run directory again; if it is whole, it is a defect: please report it"
        with told_as_damage(named, advice):
            return _report_on(find_run(named), arguments)
    from harness.results.bundle import open_bundle

    run = open_bundle(named)
    sys.stderr.write(f"note: {named} is unpacked into {run.path}\n")
    advice = f"rm -r {run.path}; make it with profile-report RUN --bundle FILE{SUFFIX}"
    with told_as_damage(named, advice):
        return _report_on(run, arguments)


def _report_on(run: RunDir, arguments: argparse.Namespace) -> int:
    try:
        return _written(run, arguments)
    finally:
        hand_over(run.path)  # also what a run left to root that was killed


def _written(run: RunDir, arguments: argparse.Namespace) -> int:
    if arguments.bundle is not None:
        return _bundle(run, arguments)
    output: Path | None = arguments.output
    if arguments.format != "html" or output == STDOUT:
        return _export(run, arguments)
    if output is not None:
        _check_output(output)
    unwritten: list[RunDirError] = []
    if output is not None and not os.access(run.path, os.W_OK):
        sys.stderr.write(f"note: {run.path} is read-only; only {output} is written\n")
        verdict = conclusion.render_only(run, output)
    else:
        verdict = conclusion.conclude(run, output, unwritten=unwritten)
    if arguments.json:
        print(json.dumps(verdict, indent=2))
    page = output if output is not None else run.path / REPORT
    print_end(verdict, None if unwritten else page, sys.stderr if arguments.json else sys.stdout)
    if unwritten:
        raise unwritten[0]
    return int(ExitCode.REACHED)


def parser() -> Parser:
    """The parser of ``profile-report``."""
    top = Parser(
        prog="profile-report",
        usage="profile-report [RUN] [--format FORMAT] [-o PATH] [options]",
        description="Rebuilds verdict.json and report.html of a run, or exports it.",
        examples=_EXAMPLES,
        exit_codes=_EXIT_CODES,
        common=_COMMON,
    )
    add = top.add_argument
    add("run", nargs="?", type=Path, default=LATEST, metavar="RUN", help=f"default: {LATEST}")
    add("--format", choices=("html", *FILE_FORMATS, *FOLDER_FORMATS), default="html",
        metavar="FORMAT", help="html (default), json, md, speedscope, folded, perfetto, "
        "openmetrics, csv or parquet")  # fmt: skip
    add("-o", "--output", type=Path, metavar="PATH",
        help="a file, - for stdout; for csv and parquet a folder")  # fmt: skip
    add("--json", action="store_true", help="verdict.json on stdout as well")
    add("--bundle", type=Path, metavar="FILE.tar.xz",
        help="pack the run for a bug report; RUN may be such a file")  # fmt: skip
    add("--bundle-redact", action="store_true",
        help="replace names, addresses, command lines and cgroups")  # fmt: skip
    add(
        "--worker",
        type=values.number,
        metavar="N",
        help="speedscope, folded: of this server worker",
    )
    add("--pid", type=values.number, metavar="N", help="speedscope, folded: of this process")
    add("--from", dest="from_s", type=values.moment, metavar="S",
        help="speedscope, folded: S after the ramp began")  # fmt: skip
    add("--until", dest="until_s", type=values.moment, metavar="S", help="and until then")
    return top


def _check_together(arguments: argparse.Namespace) -> None:
    form = arguments.format
    if arguments.bundle_redact and arguments.bundle is None:
        raise UsageError("--bundle-redact is of a bundle", fix="--bundle FILE.tar.xz")
    if arguments.bundle is not None and (form != "html" or arguments.output is not None):
        raise UsageError("--bundle writes one file and nothing else", fix="--bundle FILE.tar.xz")
    if arguments.bundle is not None and not is_bundle(arguments.bundle):
        raise UsageError(
            f"--bundle {arguments.bundle} is not named FILE{SUFFIX}",
            fix=f"--bundle {arguments.bundle}{SUFFIX}",
        )
    given = [
        f"--{name.removesuffix('_s')}"
        for name in ("worker", "pid", "from_s", "until_s")
        if getattr(arguments, name) is not None
    ]
    if given and form not in _STACK_FORMATS:
        raise UsageError(
            f"{given[0]} chooses stacks, which --format {form} has none of",
            fix=f"--format speedscope {given[0]} ..., or --format folded",
        )
    if arguments.worker is not None and arguments.pid is not None:
        raise UsageError(
            "--worker and --pid both choose a process", fix=f"--worker {arguments.worker}"
        )
    if None not in (arguments.from_s, arguments.until_s) and arguments.from_s >= arguments.until_s:
        raise UsageError(
            f"--from {arguments.from_s:g} is not before --until {arguments.until_s:g}",
            fix=f"--from {arguments.until_s:g} --until {arguments.from_s:g}",
        )
    if arguments.json and (form != "html" or arguments.output == STDOUT):
        raise UsageError(
            "--json adds the verdict to the page; an export goes alone", fix="--format json"
        )
    if form in FOLDER_FORMATS and arguments.output == STDOUT:
        raise UsageError(f"--format {form} writes many files", fix="--output FOLDER")


def _bundle(run: RunDir, arguments: argparse.Namespace) -> int:
    """Packs the run; what it is packed from stays as it is."""
    file: Path = arguments.bundle
    check_output_file(file, option="--bundle", usual="run.tar.xz")
    from harness.results.bundle import make_bundle, summary_line, verdict_note

    bundled = make_bundle(run, file, redact=arguments.bundle_redact)
    if note := verdict_note(bundled):
        sys.stderr.write(f"note: {note}\n")
    sys.stderr.write(f"{summary_line(file, bundled)}\n")
    return int(ExitCode.REACHED)


def _export(run: RunDir, arguments: argparse.Namespace) -> int:
    """Writes one export; the run's own verdict and page stay as they are."""
    output: Path | None = arguments.output
    if output is not None and output != STDOUT:
        _check_output(output, is_folder=arguments.format in FOLDER_FORMATS)
    form = arguments.format
    again = f"profile-report {run.path} --format {form}"
    if form in FOLDER_FORMATS:
        folder = output or run.path / f"tables-{form}"
        asked = Request(TABLES, str(run.path), again, options={"form": form})
        file_count = write_tables(folder, conclusion.answers(asked, [run]))
        sys.stderr.write(f"{folder}: {file_count} files\n")
        return int(ExitCode.REACHED)
    choice = {name: getattr(arguments, name) for name in ("worker", "pid", "from_s", "until_s")}
    asked = Request(
        TEXT,
        str(run.path),
        again,
        with_page=form == "html",
        options={"form": form, "choice": choice},
    )
    content = dict(conclusion.answers(asked, [run]))[TEXT]
    if output is None or output == STDOUT:
        sys.stdout.buffer.write(content)
    else:
        write_atomically(output, content.decode())
        sys.stderr.write(f"{output}: {len(content):,} bytes\n")
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


def _check_output(output: Path, *, is_folder: bool = False) -> None:
    if not is_folder:
        check_output_file(output, option="--output", usual="report.html")
        return
    if output.exists() and not output.is_dir():
        raise UsageError(f"--output {output} is not a folder", fix=f"--output {output}.d")
    check_parent(output, option="--output")


if __name__ == "__main__":
    sys.exit(main())
