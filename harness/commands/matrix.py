"""``profile-matrix``: many runs side by side, from a scenario file or from varied options."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from analysis.matrix.confusion import confusion
from harness.commands.entry import run_command
from harness.commands.output_file import check_output_file
from harness.foreign.secret_words import without_secrets
from harness.matrix import loop as matrix_loop
from harness.matrix import resume as matrix_resume
from harness.matrix import scenario
from harness.matrix import store as matrix_store
from harness.matrix.rows import MatrixRow, Scale, rows_of_file, rows_of_vary, scale_of
from harness.matrix.store import Matrix
from harness.options.parser import Example, Parser
from harness.options.values import count
from harness.planning.host import Host, read_host
from harness.results.damaged_run import told_as_damage
from harness.supervision.supervisor import Interrupt
from harness.version import tool_commit, tool_version
from probes.contract.errors import ExitCode, UsageError
from probes.contract.private_file import hand_over
from probes.contract.rundir import write_atomically
from reports.matrix.terminal import MatrixView, confusion_lines, result_lines
from reports.terminal.terminal import printable

MOST_REPEATS = 100
_EXAMPLES = (
    Example("profile-matrix the-2016-log", "the log of 2016, scaled"),
    Example("profile-matrix the-2016-log --only 'r14*'", "some of its rows"),
    Example(
        "profile-matrix --vary accept=reuseport,handoff -- --connections 5000 --hold 2",
        "your own: options of profile-run after --",
    ),
    Example("profile-matrix every-cause --repeats 3", "provoke every cause three times"),
    Example(
        "profile-matrix --resume runs/20261124T101500Z-matrix-the-2016-log-1a2b",
        "continue after Ctrl-C",
    ),
)
_EXIT_CODES = {
    0: "every row was as expected",
    2: "usage",
    3: "some were not or did not run",
    5: "failed",
    130: "interrupted (--resume goes on)",
}
_COMMON = ("scenario", "--vary", "--resume", "--repeats", "--only", "--list")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command."""
    return run_command(profile_matrix, argv)


def parser() -> Parser:
    """The parser of ``profile-matrix``."""
    top = Parser(
        prog="profile-matrix",
        usage="profile-matrix SCENARIO | --vary NAME=V,V ... | --resume DIR [options]\n"
        "       [-- options of profile-run]",
        description="Run many rows, one after the other, and compare them on one page.",
        examples=_EXAMPLES,
        exit_codes=_EXIT_CODES,
        common=_COMMON,
    )
    known = ", ".join(sorted(path.stem for path in scenario.FOLDER.glob("*.toml")))
    add = top.add_argument
    add("scenario", nargs="?", metavar="SCENARIO", help=f"{known}, or a path that ends in .toml")
    add("--vary", action="append", default=[], metavar="NAME=V,V",
        help="an option of profile-run and its values; repeatable")  # fmt: skip
    add("--resume", type=Path, metavar="DIR",
        help="continue what is not done in DIR; --list shows its commands")  # fmt: skip
    add("--repeats", type=_repeats, metavar="N", help="runs of each row, default 1")
    add("--seed", type=count, metavar="N", help="shuffles the order, default 2016")
    add("--scale", type=count, metavar="N", help="descriptors that stand for the scenario's own")
    add("--only", metavar="ROW,ROW", help="these rows; * and ? match")
    add("--deadline", type=_deadline, metavar="S", help="kill a run that takes longer")
    add("--list", action="store_true", help="print the rows and stop")
    add("--markdown", type=Path, metavar="FILE", help="the confusion table for the documentation")
    add("--output", type=Path, default=Path("runs"), metavar="DIR", help="default: runs")
    add("--name", help="part of the directory's name, default: the scenario's")
    add("--json", action="store_true", help="matrix.json on stdout as well")
    add("--no-report", action="store_true",
        help="no page of each run; profile-report makes one later")  # fmt: skip
    add("--quiet", action="store_true", help="no progress")
    return top


def _repeats(text: str) -> int:
    value = count(text)
    if not 1 <= value <= MOST_REPEATS:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 1 and {MOST_REPEATS}")
    return value


def _deadline(text: str) -> float:
    value = float(count(text))
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is less than 1 s")
    return value


def profile_matrix(argv: Sequence[str]) -> int:
    """Plans or resumes, runs, compares.

    Returns:
        0 all as expected, 3 some not, 130 interrupted; errors as exceptions.

    Raises:
        ToolkitError: Usage, or a directory that cannot be written.
    """
    words = list(argv)
    at = words.index("--") if "--" in words else len(words)
    options, run_words = parser().parse_args(words[:at]), words[at + 1 :]
    _check(options, run_words)
    if options.resume is not None:
        with matrix_store.held(options.resume):
            try:
                return _resume(options, run_words)
            finally:
                hand_over(options.resume)
    host = read_host()
    matrix = _planned(options, run_words, argv, host)
    if options.list:
        _print_rows(matrix)
        return ExitCode.REACHED
    matrix.path = matrix_store.create_folder(options.output, options.name or matrix.name)
    with matrix_store.held(matrix.path):
        try:
            return _run(options, matrix)
        finally:
            hand_over(matrix.path)


def _check(options: argparse.Namespace, run_words: list[str]) -> None:
    has_plan = bool(options.scenario) + bool(options.vary)
    if has_plan > 1 or (not has_plan and options.resume is None):
        raise UsageError(
            "one of SCENARIO, --vary and --resume is needed, and not two plans",
            fix="profile-matrix the-2016-log, or profile-matrix --help",
        )
    planning = {
        "--repeats": options.repeats, "--seed": options.seed, "--scale": options.scale,
        "--only": options.only, "--name": options.name,
        "--": (run_words or None) if not has_plan else None,
        "--no-report": options.no_report or None,
    }  # fmt: skip
    given = [name for name, value in planning.items() if value is not None]
    if options.resume is not None and given:
        raise UsageError(
            f"{given[0]} cannot be changed by --resume: the plan is the one of {options.resume}",
            fix=f"profile-matrix --resume {options.resume}",
        )
    if options.vary and not run_words:
        raise UsageError(
            "--vary needs the options that all its rows share",
            fix=f"profile-matrix --vary {options.vary[0]} -- --connections 5000 --hold 2",
        )
    path: Path | None = options.markdown
    if path is not None:
        check_output_file(path, option="--markdown", usual="diagnosis.md")


def _planned(
    options: argparse.Namespace, run_words: list[str], argv: Sequence[str], host: Host
) -> Matrix:
    scale = Scale()
    if options.vary:
        name, shows = "vary", ", ".join(options.vary)
        rows = rows_of_vary(options.vary, run_words)
        if options.scale is not None:
            raise UsageError("--scale is for a scenario that has one", fix="leave --scale away")
    else:
        file, left_out = scenario.load(options.scenario).without_missing_servers()
        if left_out:
            sys.stderr.write(
                f"left out  {len(left_out)} rows, whose servers are in the source tree alone: "
                f"{', '.join(row.id for row in left_out)}\n"
            )
        scale = scale_of(file, options.scale, host.nofile_ceiling_count)
        name, shows = file.name, file.shows
        rows = rows_of_file(file, scale, run_words)
    rows = _chosen(rows, options.only)
    if options.no_report:
        rows = [replace(row, words=(*row.words, matrix_resume.NO_REPORT)) for row in rows]
    seed = 2016 if options.seed is None else options.seed
    repeats = options.repeats or 1
    return Matrix(
        path=Path(),
        name=name,
        shows=shows,
        argv=["profile-matrix", *without_secrets(argv)],
        seed=seed,
        repeats=repeats,
        scale=scale,
        rows=rows,
        order=matrix_store.shuffled(rows, repeats, seed),
        host=_host(host),
        is_varied=bool(options.vary),
        started=datetime.now(tz=UTC).isoformat(timespec="seconds"),
    )


def _host(host: Host) -> dict[str, Any]:
    """What a reader of the page must know of the machine."""
    facts = host.to_dict("own" if host.may_own_namespace else "host")
    names = ("kernel", "machine", "cpu_count", "cpu_model", "memory_total_bytes", "python")
    return {
        **{name: facts[name] for name in names},
        "tool_version": tool_version(),
        "tool_commit": tool_commit(),
    }


def _chosen(rows: list[MatrixRow], only: str | None) -> list[MatrixRow]:
    """The rows that ``--only`` names, and those that they are compared with."""
    if only is None:
        return rows
    patterns = [pattern.strip() for pattern in only.split(",")]
    for pattern in patterns:
        if not any(fnmatch(row.spec.id, pattern) for row in rows):
            raise UsageError(
                f"--only {pattern}: there is no such row",
                fix=f"one of: {', '.join(row.spec.id for row in rows)}",
            )
    wanted = {r.spec.id for r in rows if any(fnmatch(r.spec.id, p) for p in patterns)}
    others = {row.spec.against for row in rows if row.spec.id in wanted and row.spec.move} - wanted
    # Those others are only there to be compared with: nobody asked what they moved.
    alone = [replace(r, spec=replace(r.spec, against="", move="")) for r in rows]
    return [
        row if row.spec.id in wanted else bare
        for row, bare in zip(rows, alone, strict=True)
        if row.spec.id in wanted | others
    ]


def _resume(options: argparse.Namespace, run_words: list[str]) -> int:
    """Goes on with a matrix, once it is sure whose commands those are."""
    matrix = matrix_store.load(options.resume)
    if not matrix.is_own:
        _require_sound(matrix)
    if options.list:
        _print_rows(matrix)
        return ExitCode.REACHED
    matrix = _vouched_for(options, run_words, matrix)
    if not options.quiet:
        ids = dict.fromkeys(row_id for row_id, _ in matrix.to_do())
        for row in map(matrix.row, ids):
            sys.stderr.write(f"runs  {printable(_command(row))}\n")
    return _run(options, matrix)


def _require_sound(matrix: Matrix) -> None:
    """Makes of what a stranger's runs came to what is made of it at the end, before hours of runs.

    Raises:
        RunDirError: It cannot be understood.
    """
    with told_as_damage(matrix.path / matrix_store.FILE, "begin a matrix of your own"):
        matrix.to_dict()
        results = matrix.results()
        result_lines(results)
        confusion_lines(confusion(results))
        matrix_loop.left_s(matrix, matrix.order, [])
        matrix_loop.made_page(matrix)


def _vouched_for(options: argparse.Namespace, run_words: list[str], matrix: Matrix) -> Matrix:
    """The matrix with rows that the caller, this program or this user's own key vouches for.

    Raises:
        UsageError: None of them does, or they are not the stored rows.
    """
    most_here = read_host().nofile_ceiling_count
    if options.vary:
        made = rows_of_vary(options.vary, run_words)
        return matrix_resume.rebuilt(matrix, made, "--vary")
    if options.scenario:
        file = scenario.load(options.scenario)
        scale = matrix_resume.stored_scale(matrix, file, most_here)
        made = rows_of_file(file, scale, run_words)
        return matrix_resume.rebuilt(matrix, made, options.scenario)
    if matrix.is_own:
        matrix_resume.require_complete(matrix)
        return matrix
    shipped = matrix_resume.shipped_rows(matrix, most_here)
    if shipped is None:
        raise matrix_resume.refused(options.resume)
    return matrix_resume.rebuilt(matrix, shipped, f"the scenario {matrix.name}")


def _command(row: MatrixRow) -> str:
    return shlex.join(["profile-run", *row.shown_words])


def _print_rows(matrix: Matrix) -> None:
    for row in matrix.rows:
        for first, text in ((row.spec.id, row.spec.shows), ("", _command(row))):
            print(f"{printable(first):<28} {printable(text)}")
    total_s = matrix_loop.left_s(matrix, matrix.order, [])
    print(f"{len(matrix.order)} runs, about {total_s / 60:.0f} min")


def _run(options: argparse.Namespace, matrix: Matrix) -> int:
    if options.deadline is not None:
        matrix.set_deadline(options.deadline)
    interrupt = Interrupt()
    total, done = len(matrix.order), len(matrix.order) - len(matrix.to_do())
    with interrupt.caught(), MatrixView(total, done, enabled=not options.quiet) as view:
        has_ended = matrix_loop.run_matrix(matrix, interrupt, view)
    page = matrix_loop.write_page(matrix)
    _report(options, matrix, page)
    if not has_ended:
        sys.stderr.write(
            f"interrupted: {len(matrix.to_do())} of {total} runs are left\n"
            f"resume   profile-matrix --resume {shlex.quote(str(matrix.path))}\n"
        )
        return ExitCode.INTERRUPTED
    results = matrix.results()
    return ExitCode.LIMIT_MET if any(r.held is False for r in results) else ExitCode.REACHED


def _report(options: argparse.Namespace, matrix: Matrix, page: Path) -> None:
    out = sys.stderr if options.json else sys.stdout
    results = matrix.results()
    table = confusion(results)
    is_diagnosis = matrix.scale.log <= 1 and bool(table.rows)
    lines = result_lines(results)
    if is_diagnosis:
        lines += ["", *confusion_lines(table)]
    judged = [result for result in results if result.held is not None]
    held = sum(bool(result.held) for result in judged)
    if judged:
        lines.append(f"expected  {held} of {len(judged)} rows were as expected")
    lines.append(f"page      {page}")
    out.write("\n".join(lines) + "\n")
    if options.markdown is not None and matrix.status == "finished":
        from reports.matrix.markdown import diagnosis

        text = diagnosis(table, results, matrix.host, matrix.repeats)
        write_atomically(options.markdown, text)
    if options.json:
        print(json.dumps(matrix.to_dict(), indent=2))


if __name__ == "__main__":
    sys.exit(main())
