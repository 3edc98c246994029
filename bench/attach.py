"""What ``profile-attach`` costs the server that it watches: windows with and without it, in turn.

``make bench-attach`` prints the page docs/benchmarks-attach.md; ``ARGS=--write`` also writes it.
One server and one client process live through the whole bench. Windows come in the order off, on,
on, off, so that what else the machine does, and how it drifts, meets both alike. Before a window of
the other kind the load runs unmeasured for a moment: what is measured is the watch, not its start.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench import attach_document
from bench.attach_figures import Figures, Pair, undisturbed
from bench.command import say, write
from bench.proc_figures import host_busy_ns
from harness.host import read_host
from probes import process_tree
from probes.own_cost import process_cpu_ns

_DEADLINE_S = 60.0
_SETTLE_S = 1.5
_ROOM_LIMIT_COUNT = 16_384
_NEAR_USE_SHARE = 0.95
_DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks-attach.md"


class Load:
    """The server and its clients."""

    def __init__(self, idle_count: int, busy_count: int) -> None:
        self.connections = idle_count + busy_count
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.port: int = taken.getsockname()[1]
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.room_limit_count = min(max(_ROOM_LIMIT_COUNT, 4 * self.connections), hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (self.room_limit_count, hard))
        module = [sys.executable, "-m", "bench.attach_load"]
        self.server = subprocess.Popen([*module, "serve", str(self.port)])
        self._wait_for_listener()
        self.client = subprocess.Popen(
            [*module, "load", str(self.port), str(idle_count), str(busy_count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer()["open"] == self.connections

    def limit_descriptors(self, soft_count: int) -> None:
        """Of the server, while it runs (prlimit(2))."""
        _, hard = resource.prlimit(self.server.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(self.server.pid, resource.RLIMIT_NOFILE, (soft_count, hard))

    def _wait_for_listener(self) -> None:
        end_s = time.monotonic() + _DEADLINE_S
        while time.monotonic() < end_s:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise SystemExit("error: the bench's server does not listen")

    def _answer(self) -> Figures:
        assert self.client.stdout is not None
        answer: Figures = json.loads(self.client.stdout.readline())
        return answer

    def window(self, seconds: float, rate_per_s: float, watch: Attached | None = None) -> Figures:
        """One window, with what the server, the watch and strangers used of the CPU."""
        assert self.client.stdin is not None
        ours = [self.server.pid, self.client.pid, os.getpid(), *(watch.pids() if watch else [])]
        busy_ns, used_s = host_busy_ns(), {pid: cpu_s(pid) for pid in ours}
        begin_s = time.monotonic()
        self.client.stdin.write(f"{seconds} {rate_per_s}\n")
        self.client.stdin.flush()
        found = self._answer()
        length_s = time.monotonic() - begin_s
        ours += [pid for pid in (watch.pids() if watch else []) if pid not in used_s]
        used = {pid: max(0.0, cpu_s(pid) - used_s.get(pid, 0.0)) for pid in ours}
        server_s = used[self.server.pid]
        # What a py-spy used that was reaped meanwhile is taken for a stranger's.
        foreign_s = (host_busy_ns() - busy_ns) / 1e9 - sum(used.values())
        found["server_cpu_us"] = 1e6 * server_s / found["message_count"]
        found["server_cpu_pct"] = 100 * server_s / length_s
        found["foreign_cpu_pct"] = 100 * max(0.0, foreign_s) / length_s
        if watch is not None:
            supervisor_s = used[watch.child.pid]
            probes_s = sum(used[pid] for pid in used if pid in watch.seen) - supervisor_s
            found["supervisor_cpu_pct"] = 100 * supervisor_s / length_s
            found["probe_cpu_pct"] = 100 * probes_s / length_s
        return found

    def end(self) -> None:
        """Ends both."""
        for child in (self.client, self.server):
            child.kill()
            child.wait()
        for stream in (self.client.stdin, self.client.stdout):
            if stream is not None:
                stream.close()


class Attached:
    """A profile-attach for the time of some windows."""

    def __init__(self, port: int, probes: str, folder: Path) -> None:
        words = [sys.executable, "-P", "-m", "harness.cli_attach", "--port", str(port)]
        words += ["--probes", probes, "--output", str(folder)]
        self.seen: set[int] = set()
        log_path = folder / "attach.log"
        with log_path.open("w") as log:
            self.child = subprocess.Popen(
                words, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True
            )
        end_s = time.monotonic() + _DEADLINE_S
        while "| watch " not in log_path.read_text():
            if time.monotonic() > end_s or self.child.poll() is not None:
                raise SystemExit(f"error: profile-attach did not begin: {log_path.read_text()}")
            time.sleep(0.05)

    def pids(self) -> list[int]:
        """Itself, its probe process and the py-spys of that, now."""
        found = process_tree.tree_of(self.child.pid)
        self.seen.update(found)
        return found

    def end(self) -> None:
        """Kills it, as its report is not measured; its probe process and programs go with it."""
        tree = self.pids()
        self.child.send_signal(signal.SIGKILL)
        self.child.wait(_DEADLINE_S)
        end_s = time.monotonic() + _DEADLINE_S
        while any(process_cpu_ns(pid) >= 0 for pid in tree[1:]):
            if time.monotonic() > end_s:
                raise SystemExit("error: the probe process did not end")
            time.sleep(0.02)


def cpu_s(pid: int) -> float:
    """CPU time of a process; 0 when it is gone."""
    return max(0, process_cpu_ns(pid)) / 1e9


@dataclass(slots=True)
class Part:
    """One kind of load.

    Attributes:
        title: Of the table's rows.
        figures: Which are judged.
        rate_per_s: Messages, 0 for as fast as it goes.
        pairs: What was measured.
    """

    title: str
    figures: tuple[str, ...]
    rate_per_s: float
    pairs: list[Pair] = field(default_factory=list)


def kinds(pair_count: int) -> Iterator[str]:
    """Off on, on off, off on, ..."""
    for pair in range(pair_count):
        yield from ("off", "on") if pair % 2 == 0 else ("on", "off")


def measure(load: Load, part: Part, *, pair_count: int, seconds: float, probes: str) -> None:
    """Adds pairs of windows (off, on) to a part."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-attach-") as folder,
        contextlib.ExitStack() as end,
    ):
        watch: Attached | None = None
        before = ""
        windows: dict[str, Figures] = {}
        for kind in kinds(pair_count):
            if kind != before:
                if kind == "on":
                    watch = Attached(load.port, probes, Path(folder))
                    end.callback(watch.end)
                elif watch is not None:
                    end.pop_all().close()
                    watch = None
                load.window(_SETTLE_S, part.rate_per_s)
            before = kind
            windows[kind] = load.window(seconds, part.rate_per_s, watch)
            if len(windows) == 2:
                part.pairs.append((windows["off"], windows["on"]))
                windows = {}
                say(f"{part.title}: pair {len(part.pairs)} of {pair_count}")


def parser() -> argparse.ArgumentParser:
    """The parser of ``python -m bench.attach``."""
    top = argparse.ArgumentParser(prog="make bench-attach", description=__doc__, allow_abbrev=False)
    add = top.add_argument
    add("--pairs", type=int, default=18, metavar="N", help="of each kind of load, default 18")
    add("--seconds", type=float, default=2.5, metavar="S", help="of a window, default 2.5")
    add("--idle", type=int, default=2_000, metavar="N", help="silent connections, default 2000")
    add("--busy", type=int, default=32, metavar="N", help="connections that talk, default 32")
    add("--probes", default="auto", metavar="SET", help="as of profile-attach")
    add("--share", type=float, default=0.3, help="load with room, of the most; default 0.3")
    add("--parts", default="room,near,full", metavar="LIST", help="default room,near,full")
    add("--json", type=Path, metavar="FILE", help="every window's figures as JSON")
    add("--write", action="store_true", help="also write docs/benchmarks-attach.md")
    return top


def main() -> None:
    """Measures, prints and writes."""
    options = parser().parse_args()
    load = Load(options.idle, options.busy)
    parts: list[Part] = []
    try:
        load.window(1.0, 0)
        most_per_s = max(load.window(1.0, 0)["messages_per_s"] for _ in range(3))
        rate_per_s = options.share * most_per_s
        at_rate = ("p50_us", "p99_us", "server_cpu_us")
        share = f"{100 * options.share:.0f} % of the most"
        near_count = int(load.connections / _NEAR_USE_SHARE)
        known = {
            "room": (Part(share, at_rate, rate_per_s), load.room_limit_count),
            "near": (Part(f"{share}, descriptors 95 % used", at_rate, rate_per_s), near_count),
            "full": (
                Part("as fast as it goes", ("messages_per_s", *at_rate), 0.0),
                load.room_limit_count,
            ),
        }
        for name in options.parts.split(","):
            part, limit_count = known[name]
            parts.append(part)
            load.limit_descriptors(limit_count)
            measure(
                load,
                part,
                pair_count=options.pairs,
                seconds=options.seconds,
                probes=options.probes,
            )
    finally:
        load.end()
    if options.json:
        found = {part.title: part.pairs for part in parts}
        options.json.write_text(json.dumps(found), encoding="utf-8")
    host = read_host()
    text = attach_document.page(
        attach_document.Setting(
            kernel=host.kernel,
            cpus=f"{host.cpu_count} cores of {host.cpu_model}",
            connections=load.connections,
            busy_count=options.busy,
            seconds=options.seconds,
            probes=options.probes,
        ),
        [(part.title, part.figures, len(part.pairs), undisturbed(part.pairs)) for part in parts],
    )
    sys.stdout.write(text)
    if options.write:
        write(_DOCUMENT, text)


if __name__ == "__main__":
    main()
