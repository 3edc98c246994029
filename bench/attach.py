"""What ``profile-attach`` costs the server that it watches: windows with and without it, in turn.

``make bench-attach`` prints the table of docs/benchmarks-attach.md. One server and one client
process live through the whole bench; before each window of the kind "on" a profile-attach is
started and waited for until its probes run, after it it is ended. The windows of a pair are next to
each other in time, in alternating order, so that what else the machine does meets both alike.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from harness.host import read_host

_DEADLINE_S = 60.0
FIGURES = ("messages_per_s", "p50_us", "p99_us")
BAR_PCT = 1.0


class Load:
    """The server and its clients."""

    def __init__(self, idle_count: int, busy_count: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.port: int = taken.getsockname()[1]
        limit = idle_count + busy_count + 100
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, hard), hard))
        module = [sys.executable, "-m", "bench.attach_load"]
        self.server = subprocess.Popen([*module, "serve", str(self.port)])
        self._wait_for_listener()
        self.client = subprocess.Popen(
            [*module, "load", str(self.port), str(idle_count), str(busy_count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer()["open"] == idle_count + busy_count

    def _wait_for_listener(self) -> None:
        end_s = time.monotonic() + _DEADLINE_S
        while time.monotonic() < end_s:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise SystemExit("error: the bench's server does not listen")

    def _answer(self) -> dict[str, float]:
        assert self.client.stdout is not None
        answer: dict[str, float] = json.loads(self.client.stdout.readline())
        return answer

    def window(self, seconds: float, rate_per_s: float) -> dict[str, float]:
        """One window; with the server's CPU time for each message."""
        assert self.client.stdin is not None
        before = cpu_s(self.server.pid)
        self.client.stdin.write(f"{seconds} {rate_per_s}\n")
        self.client.stdin.flush()
        found = self._answer()
        used_s = cpu_s(self.server.pid) - before
        return found | {"server_cpu_us": 1e6 * used_s / (found["messages_per_s"] * seconds)}

    def end(self) -> None:
        """Ends both."""
        for child in (self.client, self.server):
            child.kill()
            child.wait()


class Attached:
    """A profile-attach for the time of a window."""

    def __init__(self, port: int, probes: str, folder: Path) -> None:
        words = [sys.executable, "-P", "-m", "harness.cli_attach", "--port", str(port)]
        words += ["--probes", probes, "--output", str(folder)]
        self.log = folder / "attach.log"
        with self.log.open("w") as log:
            self.child = subprocess.Popen(
                words, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True
            )
        end_s = time.monotonic() + _DEADLINE_S
        while "| watch " not in self.log.read_text():
            if time.monotonic() > end_s or self.child.poll() is not None:
                raise SystemExit(f"error: profile-attach did not begin: {self.log.read_text()}")
            time.sleep(0.05)
        time.sleep(1.0)  # what it does once is over

    def end(self) -> float:
        """Ends it; CPU time of its probes, with py-spy, in per cent of a core while it watched."""
        self.child.send_signal(signal.SIGINT)
        self.child.wait(_DEADLINE_S)
        folder = max(self.log.parent.glob("2*-attach-*"))
        stages = json.loads((folder / "manifest.json").read_text())["stages"]
        watched = next(each for each in stages if each["stage"] == "watch")
        probes = json.loads((folder / "verdict.json").read_text())["probes"]
        watched_s = (watched["end_ns"] - watched["start_ns"]) / 1e9
        return 100 * sum(probe["cpu_s"] for probe in probes) / watched_s


def cpu_s(pid: int) -> float:
    """User and system time of a process (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(load: Load, *, rate_per_s: float, pairs: int, seconds: float, probes: str) -> list[Any]:
    """Pairs of windows (off, on), each a dict of figures."""
    found = []
    with tempfile.TemporaryDirectory(prefix="bench-attach-") as folder:
        for pair in range(pairs):
            windows: dict[str, dict[str, float]] = {}
            for kind in ("off", "on") if pair % 2 == 0 else ("on", "off"):
                attached = Attached(load.port, probes, Path(folder)) if kind == "on" else None
                windows[kind] = load.window(seconds, rate_per_s)
                if attached is not None:
                    windows[kind]["probe_cpu_pct"] = attached.end()
            found.append((windows["off"], windows["on"]))
    return found


def rows(found: list[Any], names: tuple[str, ...]) -> list[list[str]]:
    """A line of the table for each figure: off, on, change with its standard error."""
    lines = []
    for name in names:
        off, on = [pair[0][name] for pair in found], [pair[1][name] for pair in found]
        changes = [100 * (b - a) / a for a, b in zip(off, on, strict=True)]
        error = stdev(changes) / len(changes) ** 0.5 if len(changes) > 1 else float("nan")
        worse = -mean(changes) if name == "messages_per_s" else mean(changes)
        verdict = "within" if worse <= BAR_PCT else "over"
        if worse - 2 * error <= BAR_PCT < worse + 2 * error:
            verdict += ", by less than the error"
        lines.append(
            [
                name,
                f"{median(off):,.0f}",
                f"{median(on):,.0f}",
                f"{mean(changes):+.2f} % ± {error:.2f}",
                verdict,
            ]
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-attach")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--idle", type=int, default=2_000)
    parser.add_argument("--busy", type=int, default=32)
    parser.add_argument("--probes", default="auto")
    parser.add_argument("--share", type=float, default=0.3, help="of the most, for the second part")
    options = parser.parse_args()
    load = Load(options.idle, options.busy)
    try:
        load.window(1.0, 0)
        shared = {"pairs": options.pairs, "seconds": options.seconds, "probes": options.probes}
        full = measure(load, rate_per_s=0, **shared)
        most = median(pair[0]["messages_per_s"] for pair in full)
        part = measure(load, rate_per_s=options.share * most, **shared)
    finally:
        load.end()
    host = read_host()
    print(f"Linux {host.kernel}, {host.cpu_count} cores of {host.cpu_model}")
    probe_pct = mean(pair[1]["probe_cpu_pct"] for pair in (*full, *part))
    print(
        f"{options.pairs} pairs of windows of {options.seconds:g} s, "
        f"{options.idle + options.busy:,} connections, --probes {options.probes}; the probes took "
        f"{probe_pct:.1f} % of a core\n"
    )
    print("| load | figure | without | with | change | bar of 1 % |\n|---|---|---|---|---|---|")
    names = (*FIGURES, "server_cpu_us")
    for title, found in (("as fast as it goes", full), (f"{options.share:.0%} of that", part)):
        for line in rows(found, names if found is full else names[1:]):
            print("| " + " | ".join([title, *line]) + " |")


if __name__ == "__main__":
    main()
