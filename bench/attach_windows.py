"""The server under load that ``bench.attach`` watches, the watch, and one window of both."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from bench.attach_figures import Figures
from bench.proc_figures import host_busy_ns
from probes.budget.own_cost import process_cpu_ns
from probes.proc import process_tree

_DEADLINE_S = 60.0
_ROOM_LIMIT_COUNT = 16_384


class Load:
    """The server and its clients.

    Each has a core of its own where there are two: else the scheduler puts both on one core in one
    window and on two in the next, which makes more difference than any watch. The watch may run on
    every core.

    Args:
        idle_count: Connections that say nothing.
        busy_count: Connections that talk.
    """

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
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) > 1:
            os.sched_setaffinity(self.server.pid, cores[:1])
            os.sched_setaffinity(self.client.pid, cores[-1:])
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

    def window(
        self,
        seconds: float,
        rate_per_s: float,
        watch: Attached | None = None,
        *,
        begin: Callable[[], Attached] | None = None,
    ) -> Figures:
        """One window, with what the server, the watch and strangers used of the CPU.

        Args:
            seconds: Its length.
            rate_per_s: Messages, 0 for as fast as it goes.
            watch: Who watches all the time.
            begin: Begins a watch when the window has begun.
        """
        assert self.client.stdin is not None
        ours = [self.server.pid, self.client.pid, os.getpid(), *(watch.pids() if watch else [])]
        busy_ns, used_s = host_busy_ns(), {pid: cpu_s(pid) for pid in ours}
        begin_s = time.monotonic()
        self.client.stdin.write(f"{seconds} {rate_per_s}\n")
        self.client.stdin.flush()
        if begin is not None:
            watch = begin()
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
            found["watch_cpu_s"] = watch.total_cpu_s()
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
    """A profile-attach for the time of some windows; ``began_s`` is when it began to watch."""

    def __init__(self, port: int, probes: str, folder: Path) -> None:
        words = [sys.executable, "-P", "-m", "harness.commands.attach", "--port", str(port)]
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
        self.began_s = time.monotonic()

    def pids(self) -> list[int]:
        """Itself, its probe process and the py-spys of that, now."""
        found = process_tree.tree_of(self.child.pid)
        self.seen.update(found)
        return found

    def total_cpu_s(self) -> float:
        """What it has used since its start, with those that have ended, like its compiler."""
        total_s = 0.0
        for pid in self.pids():
            with contextlib.suppress(psutil.Error):
                total_s += sum(psutil.Process(pid).cpu_times()[:4])  # of itself, of the reaped
        return total_s

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
