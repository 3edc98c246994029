"""``python -m bench.server_bench``: what other people's servers cost under the same clients.

Runs are kept in a file and added to, so that the table can be measured in pieces: what is there
already is not measured again.
"""

from __future__ import annotations

import argparse
import datetime
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from bench import environment, proc_figures, server_document, server_figures, server_run
from bench.peers.catalogue import BY_NAME, PEERS, Peer
from bench.processes import BenchError
from bench.server_figures import ServerRun, ServerRuns
from harness.command_line import run_command
from harness.host import Host, read_host
from harness.run_options import count
from probes.errors import ToolkitError, UsageError

_ROOT = Path(__file__).resolve().parent.parent
_STORE = _ROOT / "runs" / "bench-servers.json"
_DOCUMENT = _ROOT / "docs" / "benchmarks-servers.md"
_PAGE = _ROOT / "docs" / "benchmarks-servers.html"
SMALL, LARGE = 15_000, 120_000
_SETTLE_S, _SETTLED_PCT, _SETTLE_LOOK_S = 5.0, 10.0, 0.5


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
    add("--repeats", type=count, default=3, metavar="N",
        help="runs at each size without probes, default 3")  # fmt: skip
    add("--repeats-at-most", type=count, default=1, metavar="N",
        help=f"the same at {LARGE:,} and more, default 1")  # fmt: skip
    add("--seconds", type=float, default=0.0, metavar="S",
        help="begin no run after so long; the next call goes on; default no limit")  # fmt: skip
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
    connections on); of the largest one more with probes, for the verdict: first of those that are
    not known to have held all.
    """
    for size in sorted(sizes):
        wanted = at_most if size >= LARGE else repeats
        for number in range(1, wanted + 1):
            for server in servers:
                if len(runs.of(server, size, "none")) < number:
                    yield ServerRun(server, size, "none")

        def is_held(server: str, size: int = size) -> bool:
            return any(run.is_reached for run in runs.of(server, size))

        for server in sorted(servers, key=is_held):
            if size == max(sizes) and not runs.of(server, size, "auto"):
                yield ServerRun(server, size, "auto")


def bench(argv: Sequence[str]) -> int:
    """Measures what is missing, prints the table and writes it.

    Returns:
        0 when every run has its figures, 5 when one could not be measured.

    Raises:
        ToolkitError: Nothing can be measured here.
    """
    options = parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _as_interrupt)
    sizes = options.connections or [SMALL, LARGE]
    peers = [BY_NAME[name] for name in options.servers]
    for peer in peers:
        if peer.missing:
            raise UsageError(
                f"{peer.name} needs {', '.join(peer.missing)}", fix="bash .ci/setup peers"
            )
    runs = server_figures.load(options.store)
    if options.anew:
        runs = runs.without(options.servers)
    host = read_host()
    end_s = time.monotonic() + options.seconds if options.seconds else float("inf")
    failed = 0
    wanted = list(
        missing_runs(runs, options.servers, sizes, options.repeats, options.repeats_at_most)
    )
    for number, run in enumerate(wanted, start=1):
        if time.monotonic() > end_s:
            _say(f"{len(wanted) - number + 1} runs are left; the same command goes on with them")
            break
        _measure(run, BY_NAME[run.server], host)
        failed += bool(run.error)
        runs.all.append(run)
        runs.about = environment.describe_host(host)
        server_figures.save(runs, options.store)
    text = server_document.render(runs)
    print(text)
    if not options.no_write and runs.all:
        _write(_DOCUMENT, text)
        _write(_PAGE, server_document.page(runs))
    return 5 if failed else 0


def _as_interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # so that every run is stopped on its way out


def _measure(run: ServerRun, peer: Peer, host: Host) -> None:
    end_s = time.monotonic() + _SETTLE_S
    while True:
        run.background_pct = proc_figures.busy_pct(_SETTLE_LOOK_S)
        if run.background_pct < _SETTLED_PCT or time.monotonic() > end_s:
            break
    run.versions = peer.versions()
    run.measured = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    began_s = time.monotonic()
    try:
        server_run.measure(run, peer, host)
    except (BenchError, ToolkitError, OSError) as error:
        run.error = str(error)
    _say(
        f"{run.server:<10} {run.target_connections:>7,} {run.probes:<4}: "
        f"held {run.held_count if run.held_count is not None else '-':>7}, "
        f"ramp {run.ramp_s or 0:.2f} s, server {run.server_cpu_us or 0:.0f} us, "
        f"{(run.server_pss_bytes or 0) / 1e3:.1f} kB and kernel "
        f"{(run.slab_bytes or 0) / 1e3:.1f} kB a connection, {run.cause}, "
        f"took {time.monotonic() - began_s:.1f} s" + (f"; {run.error}" if run.error else "")
    )


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    _say(f"wrote {path}")


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(run_command(bench))
