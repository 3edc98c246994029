"""Dask's settings for a control plane that stands beside a measurement: what it does else is off.

Each is of distributed 2026.8 (``distributed.yaml``); why each, docs/design/0019-several-hosts.md.
"""

from __future__ import annotations

import logging

SETTINGS: dict[str, object] = {
    "distributed.worker.profile.enabled": False,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.worker.http.routes": [],
    "distributed.scheduler.http.routes": [],
    "distributed.scheduler.work-stealing": False,
    "distributed.scheduler.active-memory-manager.start": False,
    "distributed.scheduler.allowed-failures": 0,
    "distributed.scheduler.worker-ttl": None,
    "logging": {"distributed": "critical", "distributed.client": "critical"},
    "distributed.scheduler.locks.lease-timeout": "1h",
    "distributed.comm.compression": None,
    "distributed.comm.timeouts.connect": "10s",
    "distributed.comm.timeouts.tcp": "30s",
    "distributed.comm.retry.count": 0,
    "distributed.admin.system-monitor.interval": "60s",
    "distributed.admin.system-monitor.disk": False,
    "distributed.admin.system-monitor.host-cpu": False,
    "distributed.admin.tick.interval": "5s",
    "distributed.admin.tick.limit": "60s",
    "distributed.admin.log-length": 100,
}


def turn_off() -> None:
    """Sets them in this process, before anything of Dask is started."""
    import dask

    dask.config.set(SETTINGS)
    for name in ("distributed", "tornado"):  # what it says of a run is said by who makes it
        logging.getLogger(name).setLevel(logging.CRITICAL)
