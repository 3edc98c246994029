"""Control groups of a run's own: a memory limit for the fleet, or a group where connect fails.

They are made, held and removed by a child process (``harness.faults.cgroup_guard``) that ends when
its standard input does: so they are gone after any end of the supervisor, SIGKILL included. Only
the fleet's processes are moved into them; each joins by itself, while it is still root
(``forker.fork_all``), and the lean parents stay outside.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

from harness.faults import kinds as faults
from harness.faults.cgroup_folders import remove_when_empty
from harness.fleet.config import FleetConfig
from probes.contract.errors import HostError
from probes.contract.private_file import open_new
from probes.rights.own_process import start_module

_STOP_DEADLINE_S = 8.0
_EMPTY_DEADLINE_S = 3.0
CONNECT_ENOBUFS = "connect-enobufs"


class Wish(NamedTuple):
    """What control groups a run needs; bytes are 0 for no limit.

    ``failing_clients`` are the numbers of clients whose connect shall fail, each with the connects
    that still succeed.
    """

    memory_max_bytes: int
    tcp_memory_max_bytes: int
    failing_clients: list[tuple[int, int]]

    @property
    def is_empty(self) -> bool:
        """None is needed: the usual run."""
        return not (self.memory_max_bytes or self.tcp_memory_max_bytes or self.failing_clients)


def wish_of(config: FleetConfig) -> Wish:
    """What the configuration asks for."""
    found = [
        (client, int(fault.value))
        for client in range(config.clients)
        for fault in faults.faults_of(config.inject, "client", client)
        if fault.name == CONNECT_ENOBUFS
    ]
    return Wish(config.memory_max_bytes, config.tcp_memory_max_bytes, found)


class RunCgroups:
    """The run's groups, as the supervisor holds them.

    Args:
        config: What the fleet is to be told.
        log_path: Where the guard's words go.
    """

    def __init__(self, config: FleetConfig, log_path: Path) -> None:
        self._config = config
        self._log_path = log_path
        self._guard: subprocess.Popen[bytes] | None = None
        self._folders: list[Path] = []

    @property
    def pid(self) -> int:
        """Of the guard, 0 when there is none."""
        return self._guard.pid if self._guard else 0

    def start(self) -> FleetConfig:
        """Makes them; returns the configuration with the groups to join.

        Raises:
            HostError: This host, or this user, cannot.
        """
        wish = wish_of(self._config)
        if wish.is_empty:
            return self._config
        with open_new(self._log_path) as log:
            self._guard = start_module(
                "harness.faults.cgroup_guard",
                [str(os.getpid()), json.dumps(wish)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self._guard.stdout is not None
        answer = json.loads(self._guard.stdout.readline() or b"{}")
        if "join" not in answer:
            raise HostError(
                answer.get("error", "the process that makes control groups ended"),
                fix=answer.get("fix", f"cat -v {self._log_path}"),
            )
        self._folders = [
            Path(path).parent for path in (*answer["join"], *answer["clients"].values())
        ]
        return self._config._replace(
            cgroups=answer["join"],
            client_cgroups=answer["clients"],
        )

    def stop(self) -> None:
        """Has them removed; the fleet must be gone. May be called twice."""
        if self._guard is None:
            return
        guard, self._guard = self._guard, None
        assert guard.stdin is not None
        assert guard.stdout is not None
        guard.stdin.close()
        try:
            guard.wait(_STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            guard.kill()
            guard.wait()
        guard.stdout.close()
        remove_when_empty(self._folders, _EMPTY_DEADLINE_S)  # a guard that was killed left them
