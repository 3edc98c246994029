"""``python -m bench.healthy``: what is named without reason, of healthy runs beside neighbours.

Our own server, Node, and Node watched by ``profile-attach`` while its clients come, each with
5,000, 20,000 and 120,000 connections, in turn, beside ``NOISY`` of ``tests/neighbours/``. All of
them have enough of everything: whatever is named but that is a false finding. Needs root.

Runs that are in ``--output`` already count, so that a series can be made in parts.

Exit code: 0 when nothing was named, 1 otherwise, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import processes
from bench.command import end_on_sigterm, say
from bench.peers import catalogue
from tests.neighbours.program import beside_noisy

ROOT = Path(__file__).resolve().parents[1]
GOOD = ("reached", "no-limit-met")
SIZES = (5_000, 20_000, 120_000)
WAYS = ("own", "node", "attach")
KINDS = tuple((way, size) for size in SIZES for way in WAYS)
_HOLD_S, _ATTACH_HOLD_S = 4.0, 12.0
"""A watch looks less often, to keep its cost within its budget."""
_RUN_S = 150.0
_ATTACH_BEGINS_S = 60.0
_PINGS_PER_S, _KEEPALIVE_LEAST_S = 5_000, 5
"""Of all connections: 24,000 a second, 120,000 each 5 s, take most of two cores on some hosts."""
_RAMP_PER_S = "4000"
"""Clients of a watch, which are its neighbours, as well: at full speed they leave no core free."""
_MESSAGES_PER_S = "500"
_NODE = catalogue.BY_NAME["node-rr"]
"""Its primary gives each worker its turn, so that none is full before the others."""
_LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class HealthyRun:
    """One run.

    Attributes:
        way: Of ``WAYS``.
        connections: That were wanted.
        peak: That were open at once.
        named: Causes of its findings but for the good ones.
        sentence: Its verdict in words.
        took_s: From start to verdict.
        folder: Of the recording, '' where nothing was wrong.
    """

    way: str
    connections: int
    peak: int
    named: tuple[str, ...]
    sentence: str
    took_s: float
    folder: str = ""


_NO_VERDICT = {
    "findings": [{"cause": "no verdict"}],
    "verdict": {"sentence": "It came to no verdict: error.log has what it said."},
    "run": {"peak_connections": 0},
}


class HealthyRunError(Exception):
    """A run that came to no verdict."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.healthy", description=__doc__)
    parser.add_argument("--runs", type=int, default=30, help="of all kinds together (30)")
    parser.add_argument("--most-s", type=float, default=0, help="begin none after so long (0: all)")
    parser.add_argument("--quiet", action="store_true", help="without the neighbours")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "healthy")
    options = parser.parse_args(argv)
    end_on_sigterm()
    options.output.mkdir(parents=True, exist_ok=True)
    kept = options.output / "runs.jsonl"
    runs = read(kept)
    end_s = time.monotonic() + (options.most_s or float("inf"))
    code = 0
    try:
        with nullcontext() if options.quiet else beside_noisy():
            while len(runs) < options.runs and time.monotonic() < end_s:
                way, size = KINDS[len(runs) % len(KINDS)]
                runs.append(_one_run(way, size, options.output / f"{way}-{size}-{len(runs)}"))
                with kept.open("a") as stream:
                    stream.write(json.dumps(asdict(runs[-1])) + "\n")
                say(f"{len(runs)} of {options.runs}: {way} {size:,}: {runs[-1].sentence}")
    except KeyboardInterrupt:
        code = 130
    print(table(runs), end="")
    return code or int(any(run.named for run in runs))


def read(path: Path) -> list[HealthyRun]:
    """The runs of a series so far."""
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [HealthyRun(**{**line, "named": tuple(line["named"])}) for line in lines]


def table(runs: Sequence[HealthyRun]) -> str:
    """By kind: how many, and what was named."""
    lines = [
        "| run | connections | runs | false findings | seconds, longest |",
        "|---|--:|--:|---|--:|",
    ]
    for way, size in KINDS:
        mine = [run for run in runs if (run.way, run.connections) == (way, size)]
        if not mine:
            continue
        named = Counter(cause for run in mine for cause in run.named)
        words = ", ".join(f"{cause} {count}" for cause, count in sorted(named.items())) or "0"
        longest_s = max(run.took_s for run in mine)
        lines.append(f"| {way} | {size:,} | {len(mine)} | {words} | {longest_s:.0f} |")
    wrong = sum(bool(run.named) for run in runs)
    lines.append(f"| all | | {len(runs)} | {wrong} runs with any | |")
    return "\n".join(lines) + "\n"


def _one_run(way: str, size: int, folder: Path) -> HealthyRun:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    begun_s = time.monotonic()
    try:
        verdict = _verdict_of(way, size, folder)
    except HealthyRunError as error:
        (folder / "error.log").write_text(str(error))
        verdict = _NO_VERDICT
    named = tuple(
        finding["cause"] for finding in verdict["findings"] if finding["cause"] not in GOOD
    )
    if not named:
        shutil.rmtree(folder)
    return HealthyRun(
        way=way,
        connections=size,
        peak=verdict["run"]["peak_connections"],
        named=named,
        sentence=verdict["verdict"]["sentence"],
        took_s=time.monotonic() - begun_s,
        folder=str(folder) if named else "",
    )


def _verdict_of(way: str, size: int, folder: Path) -> dict:
    with ExitStack() as stack:
        if way == "own":
            interval_s = max(_KEEPALIVE_LEAST_S, size // _PINGS_PER_S)
            return _profile_run(folder, size, "--keepalive", str(interval_s))
        if way == "node":
            return _profile_run(folder, size, "--server-cmd", _NODE.command(_workers(size)))
        return _attach(stack, folder, size)


def _workers(size: int) -> int:
    """Of Node, which raises its soft limit to the hard one."""
    return _NODE.workers_for(size, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def _words(folder: Path, size: int, *more: str, hold_s: float = _HOLD_S) -> list[str]:
    return [
        *(sys.executable, "-P", "-m", "harness.commands.run", "--json", "--quiet", "--no-report"),
        *("--connections", str(size), "--hold", str(hold_s), "--message-rate", _MESSAGES_PER_S),
        *("--output", str(folder), *more),
    ]


def _profile_run(folder: Path, size: int, *more: str) -> dict:
    done = subprocess.run(
        _words(folder, size, *more),
        capture_output=True,
        text=True,
        timeout=_RUN_S,
        check=False,
        env=catalogue.environment(),
    )
    return _verdict(done.stdout, done.stderr)


def _verdict(stdout: str, stderr: str) -> dict:
    try:
        found = json.loads(stdout)
    except ValueError:
        raise HealthyRunError(stderr) from None
    assert isinstance(found, dict)
    return found


def _attach(stack: ExitStack, folder: Path, size: int) -> dict:
    """profile-attach on Node, whose clients are those of profile-run without probes."""
    pid, port = stack.enter_context(_node(folder, size))
    log = folder / "attach.log"
    with log.open("w") as stream:
        watch = subprocess.Popen(
            [
                *(
                    sys.executable,
                    "-P",
                    "-m",
                    "harness.commands.attach",
                    "--pid",
                    str(pid),
                    "--json",
                ),
                *("--no-report", "--output", str(folder)),
            ],
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
        )
    stack.callback(watch.wait)
    stack.callback(watch.kill)
    end_s = time.monotonic() + _ATTACH_BEGINS_S
    while "| watch " not in log.read_text():
        if watch.poll() is not None or time.monotonic() > end_s:
            raise HealthyRunError(log.read_text())
        time.sleep(_LOOK_S)
    clients = folder / "clients"
    load = ("--target", f"ws://127.0.0.1:{port}/", "--server-pid", str(pid), "--probes", "none")
    load += ("--ramp", _RAMP_PER_S)
    done = subprocess.run(
        _words(clients, size, *load, hold_s=_ATTACH_HOLD_S),
        capture_output=True,
        text=True,
        timeout=_RUN_S,
        check=False,
    )
    if done.returncode != 0:
        raise HealthyRunError(done.stdout + done.stderr)
    watch.send_signal(signal.SIGINT)
    said, _ = watch.communicate(timeout=_RUN_S)
    return _verdict(said, log.read_text())


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def _node(folder: Path, size: int) -> Iterator[tuple[int, int]]:
    """Pid and port of a Node server with room for all."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    words = [word.replace("{port}", str(port)) for word in _NODE.words(_workers(size))]
    server = processes.start(words, folder / "server.log", environment=catalogue.environment())
    try:
        end_s = time.monotonic() + _ATTACH_BEGINS_S
        while not _listens(port):
            if server.poll() is not None or time.monotonic() > end_s:
                raise HealthyRunError((folder / "server.log").read_text())
            time.sleep(_LOOK_S)
        yield server.pid, port
    finally:
        processes.stop(server, terminate=False)


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
