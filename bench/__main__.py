"""``python -m bench``: alternating runs, medians with spread, bars, Node ``ws`` as ratios."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import bars, document, environment, node_run, profiled_run
from bench.command import end_on_sigterm, say, wait_until_quiet, write
from bench.figures import AUTO, NODE_NONE, NODE_RR, NONE, RunFigures, Runs
from bench.processes import BenchError
from harness.commands.entry import run_command
from harness.options.values import count
from harness.planning.host import Host, read_host
from probes.contract.errors import ToolkitError

_DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
_NODE_ROUNDS = 3


def parser() -> argparse.ArgumentParser:
    """The parser of ``python -m bench``."""
    top = argparse.ArgumentParser(prog="python -m bench", description=__doc__, allow_abbrev=False)
    add = top.add_argument
    add("--connections", type=count, default=bars.BAR_CONNECTIONS, metavar="N")
    add("--pairs", type=count, default=5, metavar="N", help="runs of each kind, default 5")
    add("--hold", type=float, default=10.0, metavar="S", help="hold of our runs, default 10")
    add("--warm-up", type=count, default=10_000, metavar="N",
        help="connections of the first run, which is not counted; 0 for none")  # fmt: skip
    add("--settle", type=float, default=5.0, metavar="S",
        help="wait at most so long before each run for an idle host, default 5")  # fmt: skip
    add("--skip-node", action="store_true", help="only our own runs")
    add("--json", type=Path, metavar="FILE", help="every run's figures as JSON")
    add("--write", action="store_true", help="also write docs/benchmarks.md")
    return top


def schedule(pairs: int, *, with_node: bool) -> Iterator[tuple[str, int]]:
    """Subjects and rounds in the order of the runs."""
    for number in range(1, pairs + 1):
        yield NONE, number
        yield AUTO, number
        if with_node and number <= _NODE_ROUNDS:
            yield NODE_NONE, number
            yield NODE_RR, number


def bench(argv: Sequence[str]) -> int:
    """Measures and prints.

    Returns:
        0 when every run has its figures, 5 when one could not be measured; a bar that is not met
        is a result, not an error.

    Raises:
        ToolkitError: Nothing can be measured here.
    """
    options = parser().parse_args(argv)
    end_on_sigterm()
    host = read_host()
    plan = node_run.plan_of(options.connections, host)
    foreign: dict[str, str] = {}
    if not options.skip_node:
        try:
            foreign = node_run.versions()
        except BenchError as error:
            say(f"without Node: {error}")
    if options.warm_up:
        warm_up = RunFigures(AUTO, 0)
        fewer = min(options.warm_up, options.connections)
        _measure(warm_up, fewer, host, hold_s=1.0, settle_s=options.settle)
    runs = Runs(options.connections)
    for subject, number in schedule(options.pairs, with_node=bool(foreign)):
        run = RunFigures(subject, number)
        runs.all.append(run)
        _measure(run, options.connections, host, hold_s=options.hold, settle_s=options.settle)
    about = environment.describe(host, plan, foreign)
    text = document.render(runs, about)
    print(text)
    if options.json is not None:
        write(options.json, json.dumps(_as_json(runs, about), indent=2) + "\n")
    if options.write:
        write(_DOCUMENT, text)
    return 5 if any(run.error for run in runs.all) else 0


def _measure(
    run: RunFigures, connections: int, host: Host, *, hold_s: float, settle_s: float
) -> None:
    run.background_pct = wait_until_quiet(settle_s)
    began_s = time.monotonic()
    try:
        if run.subject in (NODE_NONE, NODE_RR):
            node_run.measure(run, connections, host)
        else:
            profiled_run.measure(run, connections, hold_s)
    except (BenchError, ToolkitError, OSError) as error:
        run.error = str(error)
    say(
        f"{run.subject:<9} round {run.number}: "
        f"ramp {document.value_text(run.ramp_s, 's')}, "
        f"server {document.value_text(run.server_cpu_us, 'us')}, "
        f"all {document.value_text(run.fleet_cpu_us, 'us')} a connection, "
        f"failed {document.value_text(run.failed_count, 'count')}, "
        f"took {time.monotonic() - began_s:.1f} s" + (f"; {run.error}" if run.error else "")
    )


def _as_json(runs: Runs, about: dict[str, str]) -> dict[str, Any]:
    return {
        "target_connections": runs.target_connections,
        "environment": about,
        "bars": [{**asdict(each), "verdict": each.verdict} for each in bars.judge(runs)],
        "runs": [asdict(run) for run in runs.all],
    }


if __name__ == "__main__":
    sys.exit(run_command(bench))
