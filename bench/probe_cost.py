"""``python -m bench.probe_cost --without connection_fates``: what a probe costs the ramp.

Pairs of runs, one with the default probes and one without those that are named, the first of a pair
in turn. Clients of ours come to a server of ``bench/peers``, whose calls some probes trace from its
start, or to our own server. A pair gives one value, the difference of its ramps; the interval is
over the pairs. Runs that are in ``--kept`` already count, so that a series can be made in parts.
Wants the machine alone. Needs root, and ``make install-peers``.

Exit code: 0 when the cost is within ``--bar``, 1 when it is over or not decided, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from analysis.frames.run_frames import load
from analysis.frames.run_view import RunView
from bench.attach_figures import Block, change_of
from bench.command import end_on_sigterm, say, wait_until_quiet
from bench.peers import catalogue
from harness.commands.entry import run_command
from probes.collect.registry import PROBES, names_of_set
from probes.contract.errors import ExitCode, ToolkitError, UsageError
from probes.contract.rundir import open_run_dir

_OWN = "own"
_DEADLINE_S = 240.0
_QUIET_MOST_S = 20.0
_HELD = (ExitCode.REACHED, ExitCode.NOT_SEEN)
"""Without a probe that decides, a run that held all says that it did not see all."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One pair of runs.

    Attributes:
        without_s: Ramp of the run without the probes in question.
        with_s: Ramp of the one with them.
        is_without_first: Which was made first.
    """

    without_s: float
    with_s: float
    is_without_first: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command."""
    return run_command(_measure, argv)


def _measure(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.probe_cost", description="Probe cost.")
    add = parser.add_argument
    add("--without", required=True, metavar="PROBE,PROBE", help="probes whose cost is asked for")
    add("--server", choices=(_OWN, *catalogue.BY_NAME), default="go", metavar="NAME",
        help="own, or one of bench/peers/catalogue.py; default: go")  # fmt: skip
    add("--connections", type=int, default=120_000, metavar="N", help="default: 120000")
    add("--pairs", type=int, default=7, metavar="N", help="default: 7")
    add("--bar", type=float, default=5.0, metavar="PCT", help="of the ramp, default: 5")
    add("--kept", type=Path, default=Path("runs/probe_cost.jsonl"), metavar="FILE")
    options = parser.parse_args(argv)
    end_on_sigterm()
    asked = options.without.split(",")
    if unknown := [name for name in asked if name not in PROBES]:
        raise UsageError(
            f"--without {unknown[0]}: no such probe", fix=f"one of {', '.join(PROBES)}"
        )
    sets = [name for name in names_of_set("auto") if name not in asked], names_of_set("auto")
    options.kept.parent.mkdir(parents=True, exist_ok=True)
    pairs = read(options.kept)
    while len(pairs) < options.pairs:
        is_without_first = len(pairs) % 2 == 0
        order = (0, 1) if is_without_first else (1, 0)
        ramps_s = {each: _ramp_s(options.server, options.connections, sets[each]) for each in order}
        pairs.append(Pair(ramps_s[0], ramps_s[1], is_without_first))
        with options.kept.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(pairs[-1])) + "\n")
        say(f"{len(pairs)} of {options.pairs}: {ramps_s[0]:.2f} s without, {ramps_s[1]:.2f} s with")
    sentence, is_within = judged(pairs, options.bar)
    print(sentence)
    return int(not is_within)


def read(path: Path) -> list[Pair]:
    """The pairs of a series so far."""
    if not path.exists():
        return []
    return [Pair(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def judged(pairs: Sequence[Pair], bar_pct: float) -> tuple[str, bool]:
    """The cost in words, and whether its whole interval is within the bar.

    Args:
        pairs: At least one.
        bar_pct: Of the ramp without the probes.
    """
    blocks = [
        Block(off=[{"ramp_s": pair.without_s}], on=[{"ramp_s": pair.with_s}]) for pair in pairs
    ]
    change = change_of(blocks, "ramp_s", more_is_better=False, bar_pct=bar_pct)
    return (
        f"ramp {change.without:.2f} s without, {change.with_it:.2f} s with: "
        f"{change.change_pct:+.1f} % ({change.low_pct:+.1f} to {change.high_pct:+.1f}, "
        f"{len(pairs)} pairs), bar {bar_pct:g} %: {change.verdict}",
        change.verdict == "within",
    )


def _ramp_s(server: str, connections: int, probes: Sequence[str]) -> float:
    """From the begin of the ramp to the last connection, by the clients' records.

    Raises:
        ToolkitError: The run did not hold all of them.
    """
    wait_until_quiet(_QUIET_MOST_S)
    with tempfile.TemporaryDirectory(prefix="connscope-bench-") as name:
        command = [
            *(sys.executable, "-P", "-m", "harness.commands.run", "--quiet", "--no-report"),
            *("--connections", str(connections), "--hold", "1", "--probes", ",".join(probes)),
            *("--output", name),
        ]
        if server != _OWN:
            peer = catalogue.BY_NAME[server]
            workers = peer.workers_for(connections, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
            command += ["--server-cmd", peer.command(workers)]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_DEADLINE_S,
            check=False,
            env=catalogue.environment(),
        )
        folders = [each for each in Path(name).iterdir() if not each.is_symlink()]
        if done.returncode not in _HELD or len(folders) != 1:
            said = done.stderr.strip() or f"a run ended with exit code {done.returncode}"
            raise ToolkitError(said, fix=" ".join(command))
        return float(RunView(load(open_run_dir(folders[0]))).connections["established_s"].max())


if __name__ == "__main__":
    sys.exit(main())
