"""``python -m bench.server_bench``: what other people's servers cost under the same clients.

Runs are kept in a file and added to, so that the table can be measured in pieces: what is there
already, of the same versions, is not measured again.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import environment, server_document, server_figures, server_page, server_run
from bench.command import end_on_sigterm, say, wait_until_quiet, write
from bench.peers.catalogue import BY_NAME, PEERS, Peer
from bench.processes import BenchError
from bench.server_figures import ServerRun, ServerRuns
from harness.commands.entry import run_command
from harness.options.values import count
from harness.planning.host import Host, read_host
from probes.contract.errors import ToolkitError, UsageError

_ROOT = Path(__file__).resolve().parent.parent
_STORE = _ROOT / "runs" / "bench-servers.json"
_DOCUMENT = _ROOT / "docs" / "benchmarks-servers.md"
_PAGE = _ROOT / "docs" / "benchmarks-servers.html"
SMALL, LARGE = 15_000, 120_000
NONE, AUTO = "none", "auto"
_UNKNOWN_S = {SMALL: 7.0, LARGE: 30.0}
"""What a run takes where none of its kind was made, for the estimate."""


def parser() -> argparse.ArgumentParser:
    """The parser of ``python -m bench.server_bench``."""
    top = argparse.ArgumentParser(
        prog="python -m bench.server_bench", description=__doc__, allow_abbrev=False
    )
    add = top.add_argument
    add("--servers", type=_names, default=[peer.name for peer in PEERS], metavar="A,B",
        help=f"of {', '.join(BY_NAME)}; default all")  # fmt: skip
    add("--connections", type=count, action="append", metavar="N",
        help=f"may be repeated; default {SMALL:,} and {LARGE:,}")  # fmt: skip
    add("--repeats", type=count, default=5, metavar="N",
        help="runs at each size without probes, default 5")  # fmt: skip
    add("--repeats-at-most", type=count, default=3, metavar="N",
        help=f"the same at {LARGE:,} and more, default 3")  # fmt: skip
    add("--quiet-wait", type=float, default=10.0, metavar="S",
        help="wait at most so long before each run for a quiet host, default 10; what ran on "
        "another is marked, and measured again by the next call")  # fmt: skip
    add("--seconds", type=float, default=0.0, metavar="S",
        help="begin no run that would not be done by then; the same command goes on with what is "
        "left; default no limit")  # fmt: skip
    add("--plan", action="store_true", help="print what is left to measure and its time, and stop")
    add("--anew", action="store_true", help="forget the runs of these servers first")
    add("--no-write", action="store_true", help="leave docs/benchmarks-servers.* alone")
    add("--store", type=Path, default=_STORE, metavar="FILE", help="where the runs are kept")
    return top


def _names(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    unknown = [name for name in names if name not in BY_NAME]
    if unknown or not names:
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown) or text!r} is none of {', '.join(BY_NAME)}"
        )
    return names


def missing_runs(
    runs: ServerRuns, servers: Sequence[str], sizes: Sequence[int], repeats: int, at_most: int
) -> Iterator[ServerRun]:
    """What is still to be measured, in rounds over all servers, the smallest size first.

    Of each size ``repeats`` runs without probes, for the figures (``at_most`` from ``LARGE``
    connections on), on a quiet host; of the largest one more with the default probes, for the
    verdict. Every second round goes backwards, so that what drifts meets all servers alike.
    """
    for size in sorted(sizes):
        wanted = at_most if size >= LARGE else repeats
        for number in range(1, wanted + 1):
            for server in servers if number % 2 else reversed(servers):
                if sum(run.was_quiet for run in runs.of(server, size, NONE)) < number:
                    yield ServerRun(server, size, NONE)
    for server in servers:
        if not runs.of(server, max(sizes), AUTO):
            yield ServerRun(server, max(sizes), AUTO)


def expected_s(runs: ServerRuns, wanted: Sequence[ServerRun]) -> float:
    """How long these runs will take, by those that were made."""
    return sum(
        runs.expected_s(run) or _UNKNOWN_S[LARGE if run.target_connections > SMALL else SMALL]
        for run in wanted
    )


def bench(argv: Sequence[str]) -> int:
    """Measures what is missing, prints the table and writes it.

    Returns:
        0 when every run has its figures, 5 when one could not be measured.

    Raises:
        ToolkitError: Nothing can be measured here.
    """
    options = parser().parse_args(argv)
    end_on_sigterm()
    sizes = options.connections or [SMALL, LARGE]
    host = read_host()
    for name in options.servers:
        if missing := BY_NAME[name].missing:
            raise UsageError(f"{name} needs {', '.join(missing)}", fix="bash .ci/setup peers")
    runs = _load(options.store, options.servers if options.anew else (), host)
    wanted = list(
        missing_runs(runs, options.servers, sizes, options.repeats, options.repeats_at_most)
    )
    say(f"{len(wanted)} runs to make, about {_minutes(expected_s(runs, wanted))}")
    if options.plan:
        for run in wanted:
            say(f"{run.server} {run.target_connections:,} --probes {run.probes}")
        return 0
    failed = _measure_all(runs, wanted, host, options)
    text = server_document.render(runs)
    print(text)
    if not options.no_write and runs.all:
        write(_DOCUMENT, text)
        write(_PAGE, server_page.page(runs))
    return 5 if failed else 0


def _load(store: Path, forgotten: Sequence[str], host: Host) -> ServerRuns:
    """The runs of earlier pieces that count: of these versions, started in the same way."""
    stored = server_figures.load(store).without(forgotten)
    versions = {peer.name: peer.versions() for peer in PEERS if not peer.missing}

    def is_current(run: ServerRun) -> bool:
        if run.server not in BY_NAME:
            return False
        peer = BY_NAME[run.server]
        workers = peer.workers_for(run.target_connections, host.nofile_hard_count)
        known = versions.get(run.server, run.versions)
        return run.versions == known and run.command == peer.started_by(workers)

    runs = stored.current(is_current)
    if left_out := len(stored.all) - len(runs.all):
        say(f"{left_out} runs in {store} are of other versions or another command, and left out")
    return runs


def _measure_all(
    runs: ServerRuns, wanted: Sequence[ServerRun], host: Host, options: argparse.Namespace
) -> int:
    """Makes the runs, keeps each as soon as it is done; returns how many have no figures."""
    began_s = time.monotonic()
    end_s = began_s + options.seconds if options.seconds else float("inf")
    failed = 0
    for index, run in enumerate(wanted):
        left = wanted[index:]
        if time.monotonic() + expected_s(runs, [run]) > end_s:
            say(
                f"{len(left)} runs are left, about {_minutes(expected_s(runs, left))}; the same "
                "command goes on with them"
            )
            break
        run.background_pct = wait_until_quiet(options.quiet_wait)
        _measure(run, BY_NAME[run.server], host)
        failed += bool(run.error)
        runs.all.append(run)
        runs.about = environment.describe_host(host)
        server_figures.save(runs, options.store)
    say(f"measured for {_minutes(time.monotonic() - began_s)}")
    return failed


def _measure(run: ServerRun, peer: Peer, host: Host) -> None:
    run.versions = peer.versions()
    run.measured = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    began_s = time.monotonic()
    try:
        server_run.measure(run, peer, host)
    except (BenchError, ToolkitError, OSError) as error:
        run.error = str(error)
    run.took_s = time.monotonic() - began_s
    say(
        f"{run.server:<10} {run.target_connections:>7,} {run.probes:<4}: "
        f"held {run.held_count if run.held_count is not None else '-':>7}, "
        f"ramp {run.ramp_s or 0:.2f} s at {run.ramp_busy_pct or 0:.0f} % of the cores, CPU server "
        f"{run.server_cpu_us or 0:.0f} clients {run.client_cpu_us or 0:.0f} us, "
        f"{(run.server_pss_bytes or 0) / 1e3:.1f} kB and kernel "
        f"{(run.slab_bytes or 0) / 1e3:.1f} kB a connection, {run.cause}, "
        f"took {run.took_s:.1f} s"
        + ("" if run.was_quiet else f"; host not quiet, {run.background_pct:.0f} % before it")
        + (f"; {run.error}" if run.error else "")
    )


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"


if __name__ == "__main__":
    sys.exit(run_command(bench))
