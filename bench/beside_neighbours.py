"""``python -m bench.beside_neighbours``: is ``make test`` green, also beside noisy neighbours?

Each round runs it in fresh clones, once on the quiet machine and once beside ``NOISY`` of
``tests/neighbours/``; the table on stdout has a line for each run, the logs stay. A run is green
when make ended with 0, no test failed, no process was left behind and it took no longer than
``--most-minutes``, set-up included. What is not committed is not in the clones.

Exit code: 0 when all runs were green, 1 when one was not, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

from bench.command import end_on_sigterm, say, wait_until_quiet
from bench.figures import QUIET_PCT
from harness.foreign.descendants import adopt_orphans
from probes.proc import process_tree
from tests.neighbours.program import Neighbour, beside_noisy

ROOT = Path(__file__).resolve().parents[1]
_LATER_S = 60.0
_INTERRUPT_S = 20.0
_ENDING_S = 5.0
_OF_OTHERS = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "VIRTUAL_ENV", "PYTHONPATH", "PYTEST_ADDOPTS")
"""What a ``make`` or an environment above this program must not pass on to the clone."""


@dataclass(frozen=True, slots=True)
class SuiteRun:
    """One ``make test``.

    Attributes:
        kind: ``quiet`` or ``neighbours``.
        exit_code: Of make; negative when a signal ended it.
        passed_count: Tests.
        skipped_count: Tests.
        failing: Names of the tests that failed.
        left_behind: Command lines of processes that did not end with it.
        took_s: Set-up included.
    """

    kind: str
    exit_code: int
    passed_count: int
    skipped_count: int
    failing: tuple[str, ...]
    left_behind: tuple[str, ...]
    took_s: float

    def complaints(self, most_s: float) -> list[str]:
        """Why it is not green; empty when it is."""
        found = list(self.failing)
        if self.exit_code and not self.failing:
            found.append(f"make ended with {self.exit_code}: see its log")
        if not self.exit_code and not self.passed_count:
            found.append("no test ran")
        found += [f"left behind: {words}" for words in self.left_behind]
        if self.took_s > most_s:
            found.append(f"took longer than {most_s:.0f} s")
        return found


def read_results(folder: Path) -> tuple[int, int, tuple[str, ...]]:
    """Passed, skipped and the names of the failed, of all JUnit files in a folder."""
    passed_count, skipped_count, failing = 0, 0, []
    for path in sorted(folder.glob("*.xml")):
        for case in ElementTree.parse(path).iter("testcase"):
            kinds = {child.tag for child in case}
            if kinds & {"failure", "error"}:
                failing.append(f"{case.get('classname', '')}::{case.get('name', '')}")
            elif "skipped" in kinds:
                skipped_count += 1
            else:
                passed_count += 1
    return passed_count, skipped_count, tuple(dict.fromkeys(failing))


def table(runs: Sequence[SuiteRun], most_s: float) -> str:
    """The runs as a table in Markdown."""
    lines = [
        "| run | beside | passed | skipped | failed | seconds | not green because of |",
        "|--:|---|--:|--:|--:|--:|---|",
    ]
    for number, run in enumerate(runs, start=1):
        why = "<br>".join(word.replace("|", "\\|") for word in run.complaints(most_s)) or "green"
        lines.append(
            f"| {number} | {run.kind} | {run.passed_count:,} | {run.skipped_count:,} "
            f"| {len(run.failing)} | {run.took_s:.0f} | {why} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.output and options.output.exists():
        parser.error(f"{options.output} is there already: name a new folder")
    end_on_sigterm()
    adopt_orphans()
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    output = (options.output or ROOT / "runs" / f"suite-{stamp}").resolve()
    output.mkdir(parents=True)
    kinds = ["quiet", "neighbours"] if options.only is None else [options.only]
    most_s, runs, code = 60 * options.most_minutes, [], 0
    try:
        for number in range(1, options.repeats + 1):
            for kind in kinds:
                say(f"make test, {kind}, {number} of {options.repeats}: {output}")
                runs.append(_one_run(options, output / f"{kind}-{number}", kind))
                say(", ".join(runs[-1].complaints(most_s)) or f"green, {runs[-1].took_s:.0f} s")
    except KeyboardInterrupt:
        code = 130
    finally:
        (output / "table.md").write_text(table(runs, most_s))
    print(table(runs, most_s), end="")
    return code or int(any(run.complaints(most_s) for run in runs))


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m bench.beside_neighbours", description=__doc__)
    made.add_argument("--repeats", type=int, default=3, help="runs of each kind (3)")
    made.add_argument("--only", choices=("quiet", "neighbours"), help="one kind of run")
    made.add_argument("--most-minutes", type=float, default=15, help="longer is not green (15)")
    made.add_argument("--deadline-minutes", type=float, default=40, help="then a run is ended (40)")
    made.add_argument(
        "--wait-s",
        type=float,
        default=60,
        help="so long a quiet run waits for a quiet machine (60)",
    )
    made.add_argument("--repository", type=Path, default=ROOT, help="what is cloned (this one)")
    made.add_argument("--output", type=Path, help="a new folder for logs and results (in runs/)")
    return made


def _one_run(options: argparse.Namespace, folder: Path, kind: str) -> SuiteRun:
    folder.mkdir()
    deadline_s = 60 * options.deadline_minutes
    with ExitStack() as stack:
        clone = stack.enter_context(_fresh_clone(options.repository))
        beside_it: list[Neighbour] = []
        if kind == "neighbours":
            beside_it = stack.enter_context(beside_noisy(deadline_s + _LATER_S))
        elif (busy_pct := wait_until_quiet(options.wait_s)) >= QUIET_PCT:
            say(f"the machine is not quiet: others take {busy_pct:.0f} % of a core")
        others = {os.getpid(), *(each.pid for each in beside_it)}
        begun_s = time.monotonic()
        code = _make_test(clone, folder, deadline_s, lambda: _descendants(others))
        took_s = time.monotonic() - begun_s
        left = _end_all(lambda: _descendants(others))
    for each in beside_it:
        say(f"neighbour {each.name} had its effect {each.count:,} times")
    return SuiteRun(kind, code, *read_results(folder), left, took_s)


@contextmanager
def _fresh_clone(repository: Path) -> Iterator[Path]:
    scratch = Path(tempfile.mkdtemp(prefix="connscope-suite-", dir="/var/tmp"))
    try:
        scratch.chmod(0o755)  # servers and clients give up root
        clone = scratch / "clone"
        subprocess.run(["git", "clone", "--quiet", str(repository), str(clone)], check=True)
        yield clone
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _make_test(
    clone: Path, folder: Path, deadline_s: float, descendants: Callable[[], list[int]]
) -> int:
    """The exit code of make; however this ends, make and all that it started are gone."""
    environment = {name: value for name, value in os.environ.items() if name not in _OF_OTHERS}
    with (folder / "make.log").open("wb") as log:
        child = subprocess.Popen(
            ["make", "test", f"RESULTS={folder}"],
            cwd=clone,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        return child.wait(deadline_s)
    except subprocess.TimeoutExpired:
        return -signal.SIGKILL
    finally:
        if child.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGINT)  # pytest ends its fixtures
            with suppress(subprocess.TimeoutExpired):
                child.wait(_INTERRUPT_S)
            _end_all(descendants, at_once=True)
            child.wait()


def _descendants(others: set[int]) -> list[int]:
    """Living processes below this one, without itself and the neighbours."""
    below = {pid for pid in process_tree.tree_of(os.getpid()) if pid not in others}
    for other in others - {os.getpid()}:
        below -= set(process_tree.tree_of(other))
    stats = ((pid, process_tree.read_stat(pid)) for pid in below)
    return [pid for pid, stat in stats if stat is not None and stat.is_alive]


def _end_all(descendants: Callable[[], list[int]], *, at_once: bool = False) -> tuple[str, ...]:
    """Ends what is left, and says what that was.

    Args:
        descendants: The processes that are left.
        at_once: They get no time to end by themselves.
    """
    end_s = time.monotonic() + (0 if at_once else _ENDING_S)
    while descendants() and time.monotonic() < end_s:
        time.sleep(0.1)
    left = []
    while pids := descendants():
        for pid in pids:
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                left.append(" ".join(word.decode(errors="replace") for word in words)[:120].strip())
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    return tuple(left)


if __name__ == "__main__":
    sys.exit(main())
