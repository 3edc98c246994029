"""One run of ``profile-run`` as a user starts it, watched from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench import proc_figures, processes
from bench.figures import RunFigures
from bench.processes import BenchError, Guard
from bench.watch import TICK_S, FleetWatch
from probes.contract.errors import ExitCode, RunDirError
from probes.contract.live import Header, Live, Phase
from probes.contract.rundir import LIVE, REPORT

_READING_S = 0.5  # left of the hold for the last reading
_COLLECTOR = "probes.collect.main"


def measure(figures: RunFigures, connections: int, hold_s: float) -> None:
    """Makes the run and fills in its figures.

    Args:
        figures: Its subject is the probe set; what was measured before an error stays.
        connections: Target.
        hold_s: How long they are held.

    Raises:
        BenchError: It did not get to its end.
    """
    with tempfile.TemporaryDirectory(prefix="connscope-bench-") as name:
        folder = Path(name)
        log = folder / "profile-run.log"
        command = [
            *(
                sys.executable,
                "-P",
                "-m",
                "harness.commands.run",
                "--connections",
                str(connections),
            ),
            *("--probes", figures.subject, "--hold", str(hold_s), "--output", str(folder / "runs")),
        ]
        limit_s = 60 + hold_s + connections / 1_000
        began_s = time.monotonic()
        process = processes.start(command, log)
        try:
            guard = Guard("profile-run", process, log, limit_s)
            live = live_of(folder / "runs", guard)
            watch = FleetWatch(live, guard.check)
            watch.wait_for_phase(Phase.RAMP)
            watch.wait_for_ramp_end()
            watch.wait_for_phase(Phase.HOLD)
            _watch_hold(figures, watch, live, process.pid, hold_s, guard)
            watch.fill_ramp(figures)
            figures.exit_code = wait_for_end(process, guard)
            figures.command_s = time.monotonic() - began_s
        finally:
            processes.stop(process, terminate=True)
        if figures.exit_code not in (ExitCode.REACHED, ExitCode.LIMIT_MET):
            raise BenchError(f"profile-run ended with {figures.exit_code}: {guard.last_line()}")
        _read_report(figures, run_path_in(folder / "runs"))


def run_path_in(runs: Path) -> Path | None:
    """The run directory; ``latest`` is a link to it."""
    found = [path for path in runs.glob(f"*/{LIVE}") if not path.parent.is_symlink()]
    return found[0].parent if found else None


def live_of(runs: Path, guard: Guard) -> Live:
    """The shared memory of the run in a folder, as soon as it is there."""
    while True:
        guard.check()
        path = run_path_in(runs)
        if path is not None:
            fd = os.open(path / LIVE, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return Live(fd, writable=False)
            except RunDirError:
                pass  # its header is not written yet
            finally:
                os.close(fd)
        time.sleep(TICK_S)


@dataclass(slots=True)
class _ProbeTree:
    """The probe process of a run and its children; empty where there are no probes."""

    profile_run_pid: int
    most_pss_bytes: int = 0
    most_rss_bytes: int = 0
    most_count: int = 0

    def pids(self) -> list[int]:
        below = proc_figures.descendants(self.profile_run_pid)
        collectors = [pid for pid in below if _COLLECTOR in proc_figures.command(pid)]
        return sorted(
            {pid for each in collectors for pid in [each, *proc_figures.descendants(each)]}
        )

    def sample(self) -> None:
        pids = self.pids()
        used = proc_figures.memory(pids)
        self.most_pss_bytes = max(self.most_pss_bytes, used.pss_bytes)
        self.most_rss_bytes = max(self.most_rss_bytes, used.rss_bytes)
        self.most_count = max(self.most_count, len(pids))


def _watch_hold(
    figures: RunFigures,
    watch: FleetWatch,
    live: Live,
    profile_run_pid: int,
    hold_s: float,
    guard: Guard,
) -> None:
    tree = _ProbeTree(profile_run_pid)
    began_ns = time.monotonic_ns()
    cpu_ns = proc_figures.tree_cpu_ns(tree.pids())
    host_ns = proc_figures.host_busy_ns()
    for at_s in (hold_s * 0.1, hold_s * 0.5, max(hold_s * 0.5, hold_s - _READING_S)):
        due_ns = live.header[Header.PHASE_HOLD_NS] + int(at_s * 1e9)
        while (left_ns := due_ns - time.monotonic_ns()) > 0:
            guard.check()
            time.sleep(min(0.2, left_ns / 1e9))
        tree.sample()
    watch.fill_hold(figures)
    used_ns = proc_figures.tree_cpu_ns(tree.pids()) - cpu_ns
    host_used_ns = proc_figures.host_busy_ns() - host_ns
    elapsed_ns = time.monotonic_ns() - began_ns
    if live.phase != Phase.HOLD:
        raise BenchError("the hold ended before it was measured; use a longer --hold")
    figures.hold_host_cpu_pct = 100 * host_used_ns / elapsed_ns
    if tree.most_count:
        figures.probe_cpu_pct = 100 * used_ns / elapsed_ns
        figures.probe_pss_bytes = tree.most_pss_bytes
        figures.probe_rss_bytes = tree.most_rss_bytes
        figures.probe_process_count = tree.most_count


def wait_for_end(process: subprocess.Popen[bytes], guard: Guard) -> int:
    """Its exit code.

    Raises:
        BenchError: It was not done in time.
    """
    try:
        return process.wait(max(0.1, guard.end_s - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise BenchError("profile-run was not done in time") from None


def _read_report(figures: RunFigures, run_path: Path | None) -> None:
    if run_path is None or not (run_path / REPORT).exists():
        raise BenchError("profile-run wrote no report")
    manifest = json.loads((run_path / "manifest.json").read_text(encoding="utf-8"))
    written = (run_path / REPORT).stat()
    figures.report_s = (written.st_mtime_ns - manifest["clock"]["end"]["wall_ns"]) / 1e9
    figures.report_bytes = written.st_size
