"""``profile-compare``: what changed between runs, and which differences are more than noise."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.commands.entry import run_command
from harness.commands.output_file import check_output_file
from harness.commands.report import find_run
from harness.options.parser import Example, Parser
from harness.results import conclusion
from harness.results.analysis_request import COMPARISON, JSON, PAGE, TEXT, Request
from harness.results.damaged_run import told_as_damage
from probes.contract.errors import ExitCode
from probes.contract.rundir import MANIFEST, RunDir, write_atomically

_REMARKS = (
    "Runs with the same settings, plan and host are repeats of one variant. The first run named is "
    "of the base that the other variants are held against. Three repeats of each tell the noise."
)
_EXAMPLES = (
    Example("profile-compare runs/*-before-* runs/*-after-*", "what changed and moved"),
    Example("profile-compare runs/A runs/B --output comparison.html", "one page"),
    Example(
        "profile-compare runs/A runs/B --json | jq '.figures[] | {name, against_base}'",
        "for a script",
    ),
    Example("profile-compare runs/A runs/C --across-hosts", "another kernel or machine"),
)
_EXIT_CODES = {
    0: "compared",
    2: "these runs cannot be compared, or usage",
    4: "they are of different hosts",
    5: "a recording cannot be read or the page not written",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_command(_compare, argv)


def parser() -> Parser:
    """The parser of ``profile-compare``."""
    top = Parser(
        prog="profile-compare",
        usage="profile-compare RUN [RUN ...] [options]",
        description="What changed between runs, what moved, and what of it is more than noise.",
        examples=_EXAMPLES,
        exit_codes=_EXIT_CODES,
        remarks=_REMARKS,
    )
    add = top.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    add("--output", type=Path, metavar="FILE", help="write a page (HTML) there")
    add("--json", action="store_true", help="the comparison as JSON on stdout")
    add("--across-hosts", action="store_true",
        help="compare runs of other kernels, machines or numbers of CPUs")  # fmt: skip
    add("--across-probes", action="store_true",
        help="compare runs that were watched by other probes")  # fmt: skip
    return top


def _compare(argv: Sequence[str]) -> int:
    arguments = parser().parse_args(argv)
    output: Path | None = arguments.output
    if output is not None:
        check_output_file(output, option="--output", usual="comparison.html")
    runs = [_opened(path) for path in arguments.runs]
    about = " and ".join(str(path) for path in arguments.runs)
    asked = Request(
        COMPARISON,
        about,
        f"profile-compare {shlex.join(map(str, arguments.runs))}",
        with_page=output is not None,
        options={
            "across_hosts": arguments.across_hosts,
            "across_probes": arguments.across_probes,
            "columns": shutil.get_terminal_size((100, 24)).columns,
        },
    )
    with told_as_damage(Path(about), "leave out what is damaged, or copy it again"):
        texts = dict(conclusion.answers(asked, runs))
    sys.stdout.write(texts[JSON if arguments.json else TEXT].decode())
    if output is not None:
        write_atomically(output, texts[PAGE].decode())
        print(f"page     {output}", file=sys.stderr if arguments.json else sys.stdout)
    return int(ExitCode.REACHED)


def _opened(path: Path) -> RunDir:
    """A run, of any schema version: comparing says better than reading what is wrong."""
    if not (path / MANIFEST).is_file():
        find_run(path)  # says why this is no run
    return RunDir(path)


if __name__ == "__main__":
    sys.exit(main())
