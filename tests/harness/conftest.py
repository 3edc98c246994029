"""A small real fleet without probes: the same processes and namespace that profile-run uses."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.fleet import netns
from harness.fleet.config import FleetConfig, GroupShare
from harness.supervision.fleet import Fleet
from probes.contract import live as live_memory
from probes.contract.live import Counter, Live, Phase

DEADLINE_S = 60.0


def wait_until(what: str, condition: Callable[[], Any]) -> None:
    """Waits for a sign; fails with its name when it does not come."""
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end_s, f"waited {DEADLINE_S:.0f} s for: {what}"
        time.sleep(0.005)


class SmallFleet:
    """A fleet with its shared memory, in a namespace of its own when root."""

    def __init__(self, path: Path, **changes: Any) -> None:
        connections = changes.pop("connections", 500)
        clients = changes.pop("clients", 2)
        sysctls = changes.pop("sysctls", {})
        own_namespace = changes.pop("own_namespace", os.geteuid() == 0)
        ports = changes.get("destination_ports", [9001])
        share = connections // clients
        values: dict[str, Any] = {
            "server_address": "127.0.0.1",
            "destination_ports": ports,
            "accept": "reuseport",
            "at_fd_limit": "pause",
            "server_mode": "echo",
            "backlog_count": 1024,
            "workers": 2,
            "worker_nofile_count": 2000,
            "clients": clients,
            "client_nofile_count": 2000,
            "client_groups": [
                [GroupShare(f"127.0.0.{10 + index}", ports[0], share)] for index in range(clients)
            ],
            "keepalive_s": 0.0,
            "payload_bytes": 64,
            "message_rate_per_s": 0.0,
            "ramp_per_s": 0.0,
            "socket_port_range": [],
            "in_flight_max_count": 64,
            "connect_timeout_s": 10.0,
            "gc": True,
            "inject": [],
            "own_uid": 65534,
            "own_gid": 65534,
        }
        values.update(changes)
        self.config = FleetConfig(**values)
        for folder in ("logs", "raw"):
            (path / folder).mkdir(exist_ok=True)
        path.chmod(0o755)
        self.path = path
        self._live_fd = live_memory.create(
            path / "live.bin", self.config.slot_count, connections, self.config.timed_clients
        )
        self.live = Live(self._live_fd)
        self._namespace_fd = netns.create(sysctls) if own_namespace else -1
        self.fleet = Fleet(self.config, self.live, self._live_fd, path, self._namespace_fd)

    def ready(self) -> SmallFleet:
        wait_until("all processes ready", lambda: self.fleet.is_ready)
        return self

    def ramp(self) -> SmallFleet:
        self.ready()
        self.fleet.set_phase(Phase.RAMP)
        wait_until("all attempts made", self._attempts_done)
        return self

    def _attempts_done(self) -> bool:
        self.fleet.read_ends()
        return self.fleet.are_attempts_done

    def hold(self) -> SmallFleet:
        self.fleet.set_phase(Phase.HOLD)
        return self

    def clients_total(self, counter: Counter) -> int:
        return self.fleet.total(counter)

    def servers_total(self, counter: Counter) -> int:
        return self.fleet.total(counter, clients=False)

    def close(self) -> None:
        self.fleet.kill()
        os.close(self._live_fd)
        if self._namespace_fd >= 0:
            os.close(self._namespace_fd)


@pytest.fixture
def small_fleet(tmp_path: Path) -> Iterator[Callable[..., SmallFleet]]:
    """Starts fleets; all are gone after the test."""
    started: list[SmallFleet] = []

    def start(**changes: Any) -> SmallFleet:
        path = tmp_path / f"fleet{len(started)}"
        path.mkdir()
        for part in (tmp_path, *tmp_path.parents):
            if part == Path("/tmp"):
                break
            os.chmod(part, os.stat(part).st_mode | 0o055)
        fleet = SmallFleet(path, **changes)
        started.append(fleet)
        return fleet

    yield start
    for fleet in started:
        fleet.close()


@pytest.fixture
def until() -> Callable[[str, Callable[[], Any]], None]:
    """``until("what it waits for", condition)``."""
    return wait_until


@pytest.fixture
def hard_nofile() -> int:
    """The hard RLIMIT_NOFILE of this host."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]
