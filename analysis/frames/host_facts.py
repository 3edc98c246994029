"""What the manifest says of the host, where figures of the tables need it: cores and quota."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

_MOST_CPUS = 65_536


def allowed_cpus(host: Mapping[str, Any]) -> frozenset[int]:
    """Cores that the run may use, by the host's numbers; empty where it was not recorded.

    Args:
        host: The manifest's ``host``; ``cpus_allowed`` is ``0-3,8``.
    """
    found: set[int] = set()
    for part in str(host.get("cpus_allowed") or "").split(","):
        low, _, high = part.partition("-")
        if low.isdigit() and (high or low).isdigit() and int(high or low) < _MOST_CPUS:
            found.update(range(int(low), int(high or low) + 1))
    return frozenset(found)


def of_allowed_cpus(host_cpu: pd.DataFrame, allowed: frozenset[int]) -> pd.DataFrame:
    """The rows of ``host_cpu`` of the cores that the run may use, -1 for those together.

    On a host with more of them the others are no room for the run, and no sign that it has any: a
    container with four cores of 128 is full when the host is 3 % busy.

    Args:
        host_cpu: The table.
        allowed: The cores; empty for all.
    """
    cores = set(host_cpu["core"]) - {-1}
    if not allowed or not cores or cores <= allowed or not cores & allowed:
        return host_cpu
    own = host_cpu[host_cpu["core"].isin(allowed)]
    together = own.groupby("at_ns", as_index=False).sum().assign(core=-1)
    rows = pd.concat([together[host_cpu.columns], own], ignore_index=True)
    return rows.sort_values(["at_ns", "core"], kind="stable", ignore_index=True)


def quota_cores(host: Mapping[str, Any]) -> float | None:
    """Cores that the quota of the run's control group pays for; None for no quota."""
    value = (host.get("cgroup") or {}).get("cpu_quota_cores")
    return float(value) if value else None
