"""Our client fleet alone, against a server that is not ours."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from bench import processes
from harness.fleet.config import FleetConfig
from harness.supervision.fleet import write_config
from probes.contract import live as live_memory
from probes.contract.live import Header, Live, Phase
from probes.contract.rundir import LIVE

_STOP_S = 20.0


class ClientFleet:
    """The clients of a plan, without our server.

    Args:
        config: Of a whole fleet; its server's part is left out.
        target_connections: Records to keep.
        folder: For the shared memory and the log.
        namespace_fd: Network namespace of the run, -1 for this one.
    """

    def __init__(
        self, config: FleetConfig, target_connections: int, folder: Path, namespace_fd: int
    ) -> None:
        config = config._replace(workers=0, accept="reuseport")
        self.log = folder / "client.log"
        live_fd = live_memory.create(folder / LIVE, config.slot_count, target_connections)
        config_fd = write_config(config)
        report_fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)  # ends are seen in the counters
        try:
            self.live = Live(live_fd)
            inherited = [config_fd, live_fd, report_fd]
            inherited += [namespace_fd] if namespace_fd >= 0 else []
            arguments = [os.getpid(), config_fd, live_fd, report_fd, namespace_fd]
            self.process: subprocess.Popen[bytes] = processes.start(
                [sys.executable, "-P", "-m", "harness.client.main", *map(str, arguments)],
                self.log,
                pass_fds=inherited,
            )
        finally:
            os.close(config_fd)
            os.close(report_fd)
            os.close(live_fd)

    def set_phase(self, phase: Phase) -> None:
        """Tells the clients the phase."""
        words = {Phase.RAMP: Header.PHASE_RAMP_NS, Phase.HOLD: Header.PHASE_HOLD_NS}
        if phase in words:
            self.live.header[words[phase]] = time.monotonic_ns()
        self.live.header[Header.PHASE] = phase

    def stop(self) -> None:
        """Ends the clients: asked first, then killed."""
        self.set_phase(Phase.STOP)
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            pass
        processes.stop(self.process, terminate=False)
