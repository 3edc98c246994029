"""What is tried in a guest, or in a container: a JSON line for each check that is named.

Nothing is judged here: the lines are facts, and ``judge.py`` of either says what they should be.
All checks share this process, since importing pandas takes ten seconds under emulation.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))
FOREIGN = PROJECT / "tests" / "harness" / "foreign"
RUNS = Path("/tmp/runs")
EVERY_PROBE = "full"

# Emulation makes all of it twenty times slower: what is waited for must be further away.
PATIENCE = ("--connect-timeout", "60", "--ramp", "200")
WAIT_S = 300

RUN = (
    *("--connections", "1000", "--workers", "1", "--clients", "1", "--hold", "3"),
    *("--probes", EVERY_PROBE, *PATIENCE),
)
PROVOKED: dict[str, tuple[str, ...]] = {
    "fd-limit-process": ("--connections", "300", "--workers", "1", "--nofile", "150"),
    "ephemeral-ports-exhausted": (
        *("--connections", "400", "--source-addresses", "1"),
        *("--port-range", "40000-40199", *PATIENCE),
    ),
    "accept-spin": (
        *("--connections", "300", "--workers", "1", "--nofile", "150", "--at-fd-limit", "spin"),
    ),
    "worker-crash": (
        *("--connections", "300", "--workers", "2", "--inject", "crash:1:80"),
        *PATIENCE,
    ),
    "worker-blocked": (
        *("--connections", "300", "--workers", "2", "--inject", "sleep:1:4000"),
        *("--connect-timeout", "8"),
    ),
}
"""Causes by what provokes them."""
HOLD_S = 2
SAMPLED_HOLD_S = {"accept-spin": 4, "worker-blocked": 6}
"""Of what is known by samples of the hold: so long where there are ten of them in a second."""
MOST_SLOWNESS = 15.0
_TOLD_OF_PROBES = ("name", "state", "reason", "fix", "lost", "rows")


def slowness() -> float:
    """How many times longer the same takes here than on an ordinary core: 1 to 15.

    Under emulation samples are seconds apart, and what is known by them needs a longer look.
    """
    began_s = time.perf_counter()
    for _ in range(1_000_000):  # 40 ms on an ordinary core
        pass
    return min(MOST_SLOWNESS, max(1.0, (time.perf_counter() - began_s) / 0.04))


def doctor() -> dict[str, Any]:
    """What profile-doctor says of every probe."""
    from harness.commands import doctor as cli_doctor

    code, out, err = called(cli_doctor.main, "--json")
    if not out.strip():
        return {"exit": code, "stderr": err[-1500:]}
    found = json.loads(out)
    return {"exit": code, "probes": found["probes"], "kernel_lacks": found["kernel_lacks"]}


def run() -> dict[str, Any]:
    """A thousand connections with every probe."""
    return profile_run(*RUN)


def provoke(cause: str) -> dict[str, Any]:
    """A run that meets a cause."""
    hold_s = HOLD_S
    if cause in SAMPLED_HOLD_S:
        hold_s = round(SAMPLED_HOLD_S[cause] * slowness())
    return {"hold_s": hold_s, **profile_run("--hold", str(hold_s), *PROVOKED[cause])}


def server_cmd() -> dict[str, Any]:
    """A server that is not ours, started by the run: asyncio."""
    command = f"{sys.executable} {FOREIGN / 'plain_server.py'} {{port}} 2"
    return profile_run(
        "--connections",
        "100",
        "--hold",
        "2",
        "--server-cmd",
        command,
        *PATIENCE,
        "--server-timeout",
        str(WAIT_S),
    )


def attach() -> dict[str, Any]:
    """A server in service that is not ours, with clients of its own: node."""
    with node_server(9100) as pid, clients(9100):
        return profile_attach("--pid", str(pid), "--duration", "8")


CHECKS: dict[str, Callable[[], dict[str, Any]]] = {
    "doctor": doctor,
    "run": run,
    "server-cmd": server_cmd,
    "attach": attach,
    **{cause: (lambda cause=cause: provoke(cause)) for cause in PROVOKED},
}


def profile_run(*words: str) -> dict[str, Any]:
    """A run and its verdict."""
    from harness.commands import run as cli_run

    return verdict_of(cli_run.main, *words)


def profile_attach(*words: str, runs: Path = RUNS) -> dict[str, Any]:
    """A watch and its verdict."""
    from harness.commands import attach as cli_attach

    return verdict_of(cli_attach.main, *words, runs=runs)


def verdict_of(
    main: Callable[[Sequence[str]], int], *words: str, runs: Path = RUNS
) -> dict[str, Any]:
    """What a command found, without what it is not judged by."""
    code, out, err = called(main, "--output", str(runs), "--json", "--no-report", *words)
    if not out.strip():
        return {"exit": code, "stderr": err[-1500:]}
    found = json.loads(out)
    verdict = found["verdict"]
    probes = [
        {name: probe[name] for name in _TOLD_OF_PROBES if name in probe}
        for probe in found["probes"]
    ]
    return {
        "exit": code,
        "cause": verdict["cause"],
        "side": verdict["side"],
        "confidence": verdict["confidence"],
        "sentence": verdict["sentence"],
        "findings": [finding["cause"] for finding in found["findings"]],
        "fixes": [fix["command"] for each in found["findings"] for fix in each["fix"]],
        **told_by_manifest(runs / found["run"]["id"]),
        "probes": [probe for probe in probes if probe["state"] != "not_asked"],
    }


def told_by_manifest(run: Path) -> dict[str, Any]:
    """What did not go as usual, and how long each stage took."""
    manifest = json.loads((run / "manifest.json").read_text())
    stages = {
        stage["stage"]: round((stage["end_ns"] - stage["start_ns"]) / 1e9, 1)
        for stage in manifest["stages"]
        if stage["end_ns"]
    }
    return {"notes": manifest["notes"], "stages_s": stages}


def called(main: Callable[[Sequence[str]], int], *words: str) -> tuple[int, str, str]:
    """A command in this process: its exit code, stdout and stderr."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        code = main(words)
    return code, out.getvalue(), err.getvalue()


@contextlib.contextmanager
def node_server(port: int) -> Iterator[int]:
    """Node with ws, by its pid once it listens."""
    environment = {**os.environ, "NODE_PATH": str(PROJECT / "tests" / "node_modules")}
    command = ["node", FOREIGN / "cluster.cjs", str(port), "0", "rr"]
    with child(command, env=environment) as server:
        end_s = time.monotonic() + WAIT_S
        while not listens(port):
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < end_s, "the server does not listen"
            time.sleep(0.2)
        yield server.pid


@contextlib.contextmanager
def clients(port: int) -> Iterator[None]:
    """Some clients that stay connected."""
    command = [sys.executable, FOREIGN / "plain_clients.py", str(port)]
    with child(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdin.write("20\n")
        process.stdin.flush()
        assert process.stdout.readline() == "20 0\n", "not all clients came in"
        yield


def listens(port: int) -> bool:
    """Whether somebody does; without connecting, which he would count."""
    text = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    return any(
        words[1].endswith(f":{port:04X}") and words[3] == "0A"
        for words in (line.split() for line in text.splitlines()[1:])
        if len(words) > 3
    )


@contextlib.contextmanager
def child(command: Sequence[Any], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process group that is gone with the block."""
    process = subprocess.Popen(list(map(str, command)), start_new_session=True, **options)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def main(names: Sequence[str]) -> int:
    """Does the checks of these names."""
    for name in names:
        began_s = time.monotonic()
        try:
            facts = CHECKS[name]()
        except BaseException:  # noqa: BLE001  # the other checks are of use all the same
            facts = {"error": traceback.format_exc()[-2000:]}
        facts = {"check": name, "seconds": round(time.monotonic() - began_s, 1), **facts}
        print(json.dumps(facts), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
