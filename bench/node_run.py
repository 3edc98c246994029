"""Node ``ws`` in a cluster under our client fleet, laid out as our own run is."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from bench import proc_figures, processes
from bench.client_fleet import ClientFleet
from bench.figures import NODE_RR, RunFigures
from bench.processes import BenchError, Guard
from bench.watch import FleetWatch
from harness.fleet import netns
from harness.options import run as run_options
from harness.planning.host import Host
from harness.planning.layout import Plan
from harness.planning.plan import make_plan
from probes.contract.live import Phase
from probes.rights.own_user import own_user

_SERVER = Path(__file__).resolve().parent / "node" / "server.js"
_MODULES = Path(__file__).resolve().parent.parent / "tests" / "node_modules"
_HOLD_S = 2.0


def versions() -> dict[str, str]:
    """Versions of Node and ws.

    Raises:
        BenchError: One of them is missing; says how to get it.
    """
    package = _MODULES / "ws" / "package.json"
    if shutil.which("node") is None or not package.exists():
        raise BenchError("node or its package ws is missing (make install-dev, or --skip-node)")
    done = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
    return {
        "Node": done.stdout.strip().lstrip("v"),
        "ws": json.loads(package.read_text(encoding="utf-8"))["version"],
    }


def plan_of(connections: int, host: Host) -> Plan:
    """The plan that ``profile-run --connections N`` makes here."""
    return make_plan(
        run_options.plan_request(_options(connections), own_namespace=host.may_own_namespace), host
    )


def measure(figures: RunFigures, connections: int, host: Host) -> None:
    """Makes the run and fills in its figures.

    Args:
        figures: Its subject is the scheduling policy.
        connections: Target.
        host: What the plan is made for.

    Raises:
        BenchError: It did not get to its end.
        ToolkitError: The plan or the namespace cannot be made here.
    """
    plan = plan_of(connections, host)
    config = run_options.fleet_config(_options(connections), plan, own_user())
    namespace_fd = netns.create(plan.sysctls) if plan.own_namespace else -1
    try:
        with tempfile.TemporaryDirectory(prefix="connscope-bench-") as name:
            folder = Path(name)
            server = _start_server(folder / "node.log", figures.subject, plan, namespace_fd)
            pids = [server.pid]
            try:
                ready = Guard("node", server, folder / "node.log", 30)
                _wait_until_listening(ready, folder / "node.log")
                pids += proc_figures.descendants(server.pid)
                clients = ClientFleet(config, connections, folder, namespace_fd)
                try:
                    _watch(figures, clients, pids)
                finally:
                    clients.stop()
            finally:
                processes.stop(server, terminate=False)
                processes.wait_until_gone(pids, proc_figures.is_running)
    finally:
        if namespace_fd >= 0:
            os.close(namespace_fd)


def _options(connections: int) -> argparse.Namespace:
    return run_options.parse(["--connections", str(connections)])


def _start_server(
    log: Path, subject: str, plan: Plan, namespace_fd: int
) -> subprocess.Popen[bytes]:
    ports = ",".join(map(str, plan.destination_ports))
    arguments = [plan.server_address, ports, str(plan.backlog_count), str(plan.workers)]
    return processes.start(
        ["node", str(_SERVER), *arguments],
        log,
        namespace_fd=namespace_fd,
        nofile_count=plan.worker_nofile_count,
        environment={
            "NODE_PATH": str(_MODULES),
            "NODE_CLUSTER_SCHED_POLICY": "rr" if subject == NODE_RR else "none",
        },
    )


def _wait_until_listening(guard: Guard, log: Path) -> None:
    while '"ready":true' not in log.read_text(errors="replace"):
        guard.check()
        time.sleep(0.02)


def _watch(figures: RunFigures, clients: ClientFleet, pids: list[int]) -> None:
    limit_s = 60 + clients.live.capacity / 1_000
    guard = Guard("the client fleet", clients.process, clients.log, limit_s)
    watch = FleetWatch(clients.live, guard.check, pids, pids[0])
    watch.wait_until_ready()
    clients.set_phase(Phase.RAMP)
    watch.wait_for_ramp_end()
    clients.set_phase(Phase.HOLD)
    time.sleep(_HOLD_S)
    watch.fill_hold(figures)
    watch.fill_ramp(figures)
