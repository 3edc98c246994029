"""``profile-compare``: what changed between runs, and which differences are more than noise."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli_report import find_run
from harness.command_line import run_command
from harness.command_parser import Example, Parser
from harness.damaged_run import told_as_damage
from harness.output_file import check_output_file
from probes.errors import ExitCode
from probes.rundir import MANIFEST, RunDir

if TYPE_CHECKING:
    from analysis.comparison import Comparison, RunDigest

_REMARKS = (
    "Runs with the same settings, plan and host are repeats of one variant. The first run named is "
    "of the base that the other variants are held against. Three repeats of each tell the noise."
)
_ADVICE = "leave it out, or copy the run directory again"
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
    digests, caution = digest_runs(
        arguments.runs,
        across_hosts=arguments.across_hosts,
        across_probes=arguments.across_probes,
    )
    from analysis.comparison import compare
    from analysis.comparison_document import document

    comparison = compare(digests, cautions=[caution] if caution else [])
    if arguments.json:
        print(json.dumps(document(comparison), indent=2))
    else:
        _print(comparison)
    if output is not None:
        from reports.comparison_page import write_comparison  # matplotlib: only for the page

        commands = {
            one.run_id: [str(word) for word in one.manifest.get("argv") or []] for one in digests
        }
        write_comparison(output, comparison, commands)
        print(f"page     {output}", file=sys.stderr if arguments.json else sys.stdout)
    return int(ExitCode.REACHED)


def _print(comparison: Comparison) -> None:
    from reports.comparison_text import comparison_text

    print(comparison_text(comparison, shutil.get_terminal_size((100, 24)).columns), end="")


def digest_runs(
    paths: Sequence[Path], *, across_hosts: bool = False, across_probes: bool = False
) -> tuple[list[RunDigest], str]:
    """Reads runs one at a time and keeps of each only what a comparison needs.

    What is not comparable is refused before the first recording is read, as far as manifests tell.

    Args:
        paths: Run directories.
        across_hosts: See ``analysis.comparable.check_comparable``.
        across_probes: See ``analysis.comparable.check_probes``.

    Returns:
        The digests in the order of ``paths``, and a caution to show, '' for none.

    Raises:
        UsageError: There is no run at a path, or the runs cannot be compared.
        HostError: The runs are of different hosts.
        RunDirError: A recording cannot be read.
    """
    from analysis.comparable import check_comparable, check_probes, probes_that_ran
    from analysis.comparison import digest
    from analysis.run_frames import load
    from analysis.summary import summarise

    manifests = [_manifest_of(path) for path in paths]
    with told_as_damage(Path(" and ".join(map(str, paths))), _ADVICE):
        check_comparable(manifests, across_hosts=across_hosts)
    digests = []
    for path in paths:
        with told_as_damage(path, _ADVICE):
            digests.append(digest(summarise(load(find_run(path)))))
    caution = check_probes(
        [one.manifest for one in digests],
        [probes_that_ran(one.verdict) for one in digests],
        across_probes=across_probes,
    )
    return digests, caution


def _manifest_of(path: Path) -> dict[str, object]:
    """The manifest, of any schema version: comparing says better than reading what is wrong."""
    if not (path / MANIFEST).is_file():
        find_run(path)  # says why this is no run
    return RunDir(path).read_manifest()


if __name__ == "__main__":
    sys.exit(main())
