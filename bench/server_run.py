"""One of other people's servers under ``profile-run``, watched from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import proc_figures, processes
from bench.figures import RunFigures
from bench.peers import catalogue
from bench.peers.catalogue import Peer
from bench.processes import BenchError, Guard
from bench.profiled_run import live_of, wait_for_end
from bench.server_figures import ServerRun
from bench.watch import FleetWatch
from harness.fleet import netns
from harness.planning.host import Host
from probes.contract.errors import ExitCode
from probes.contract.live import Live, Phase
from probes.netlink import socket_owners

_PORT = 9001
_START_S = 60.0
_QUIET_LOOK_S, _QUIET_PCT = 0.3, 5.0
_HOLD_S, _SETTLE_S = 2.0, 1.0
_HOLD_MORE_S = 1e-5  # for each connection: reading the memory of many takes longer


def measure(run: ServerRun, peer: Peer, host: Host) -> None:
    """Makes the run and fills in its figures.

    The server has all its processes up and idle before the first connection: how long a runtime
    takes to start is not its cost per connection.

    Args:
        run: Says server, connections and probes; what was measured before an error stays.
        peer: The server.
        host: Its hard limit of descriptors is what the server gets.

    Raises:
        BenchError: It did not get to its end.
        ToolkitError: There can be no namespace here.
    """
    run.workers = peer.workers_for(run.target_connections, host.nofile_hard_count)
    run.command = peer.started_by(run.workers)
    namespace_fd = netns.create({}) if host.may_own_namespace else -1
    try:
        with tempfile.TemporaryDirectory(prefix="connscope-bench-") as name:
            folder = Path(name)
            folder.chmod(0o755)  # nginx's workers are another user
            words = [word.replace("{port}", str(_PORT)) for word in peer.words(run.workers)]
            log = folder / "server.log"
            server = processes.start(
                words,
                log,
                namespace_fd=namespace_fd,
                nofile_count=host.nofile_hard_count,
                environment={**catalogue.environment(), "TMPDIR": name},
            )
            pids = [server.pid]
            try:
                pids = _wait_until_up(Guard(peer.name, server, log, _START_S), server.pid)
                _load(run, folder, pids)
                if namespace_fd >= 0:  # elsewhere the counter has what others did
                    run.listen_drop_count = _listen_drop_count(server.pid)
            finally:
                processes.stop(server, terminate=False)  # its clients are gone
                for pid in pids:  # what left the process group
                    _kill(pid)
                processes.wait_until_gone(pids, proc_figures.is_running)
    finally:
        if namespace_fd >= 0:
            os.close(namespace_fd)


def _wait_until_up(guard: Guard, pid: int) -> list[int]:
    """Waits until it listens and none of its processes does anything; returns them all."""
    while True:
        guard.check()
        pids = [pid, *proc_figures.descendants(pid)]
        before_ns = sum(map(proc_figures.cpu_ns, pids))
        time.sleep(_QUIET_LOOK_S)
        if not socket_owners.listeners(pid, _PORT):
            continue
        now = [pid, *proc_figures.descendants(pid)]
        used_ns = sum(map(proc_figures.cpu_ns, now)) - before_ns
        if now == pids and used_ns < _QUIET_LOOK_S * 1e7 * _QUIET_PCT:
            return pids


def _kill(pid: int) -> None:
    try:
        os.kill(pid, 9)
    except ProcessLookupError:
        pass


def _load(run: ServerRun, folder: Path, pids: list[int]) -> None:
    output = folder / "verdict.json"
    limit_s = 60 + run.target_connections / 400
    hold_s = _HOLD_S + _HOLD_MORE_S * run.target_connections
    base = proc_figures.memory(pids)
    run.base_pss_bytes = base.pss_bytes
    log = folder / "profile-run.log"
    with output.open("wb") as stdout, log.open("wb") as stderr:
        process = subprocess.Popen(
            [
                *(
                    sys.executable,
                    "-P",
                    "-m",
                    "harness.commands.run",
                    "--quiet",
                    "--json",
                    "--no-report",
                ),
                *("--connections", str(run.target_connections), "--hold", str(hold_s)),
                *("--target", f"ws://127.0.0.1:{_PORT}/", "--server-pid", str(pids[0])),
                *("--probes", run.probes, "--output", str(folder / "runs")),
            ],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    slab = [_slab_bytes()]
    try:
        guard = Guard("profile-run", process, log, limit_s)
        live = live_of(folder / "runs", guard)
        figures = _watch(live, guard, pids, slab)
        code = wait_for_end(process, guard)
    finally:
        processes.stop(process, terminate=True)
    if code not in (ExitCode.REACHED, ExitCode.LIMIT_MET):
        raise BenchError(f"profile-run ended with {code}: {guard.last_line()}")
    _fill(run, figures, slab)
    _read_verdict(run, json.loads(output.read_text(encoding="utf-8")))


def _watch(live: Live, guard: Guard, pids: list[int], slab: list[int]) -> RunFigures:
    """The figures of the ramp and of the hold; ``slab`` gets the last look before and in it."""

    def check() -> None:
        guard.check()
        if live.phase == Phase.START:
            slab[:] = [_slab_bytes()]

    figures = RunFigures("server", 0)
    watch = FleetWatch(live, check, pids)
    watch.wait_for_phase(Phase.RAMP)
    watch.wait_for_ramp_end()
    watch.wait_for_phase(Phase.HOLD)
    time.sleep(_SETTLE_S)
    slab.append(_slab_bytes())
    watch.fill_hold(figures)
    watch.fill_ramp(figures)
    return figures


def _fill(run: ServerRun, figures: RunFigures, slab: list[int]) -> None:
    run.ramp_s = figures.ramp_s
    run.established_count = figures.established_count
    run.failed_count = figures.failed_count
    run.held_count = figures.held_count
    run.server_cpu_us = figures.server_cpu_us
    run.client_cpu_us = figures.client_cpu_us
    run.host_cpu_us = figures.host_cpu_us
    if figures.ramp_s and figures.host_cpu_us and figures.established_count:
        busy_s = figures.host_cpu_us * figures.established_count / 1e6
        run.ramp_busy_pct = min(100.0, 100 * busy_s / figures.ramp_s / (os.cpu_count() or 1))
    if not figures.held_count:
        return
    if figures.server_pss_bytes and run.base_pss_bytes:
        grown_bytes = figures.server_pss_bytes - run.base_pss_bytes
        run.server_pss_bytes = grown_bytes / figures.held_count
    run.slab_bytes = (slab[-1] - slab[0]) / figures.held_count


def _slab_bytes() -> int:
    """Memory of kernel objects, of the whole host (proc(5), meminfo: Slab)."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("Slab:"):
            return int(line.split()[1]) * 1024
    raise BenchError("/proc/meminfo has no Slab")


def _listen_drop_count(pid: int) -> int:
    """TcpExt ListenOverflows of the process's network namespace."""
    lines = Path(f"/proc/{pid}/net/netstat").read_text(encoding="ascii").splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        if names.startswith("TcpExt:"):
            return int(dict(zip(names.split(), values.split(), strict=True))["ListenOverflows"])
    raise BenchError("/proc/net/netstat has no TcpExt")


def _read_verdict(run: ServerRun, found: dict[str, Any]) -> None:
    said = found["verdict"]
    sentence = str(said["sentence"])
    for mark in ("; raise it with ", "; what helps: "):
        sentence = sentence.partition(mark)[0]
    run.cause, run.sentence = str(said["cause"]), sentence.rstrip(".") + "."
    ahead = [r for r in found["ladder"] if not r["met"] and r["predicted_connections"]]
    server = [r for r in ahead if "client" not in str(r["subject"])]
    if server:
        rung = server[0]
        run.next_wall = f"{rung['limit']} of {rung['subject']}"
        run.next_wall_connections = int(rung["predicted_connections"])
