"""The tables of several hosts as those of one run, on one clock, with host and pid as one key.

What belongs to a process, a connection or an event comes from every host. What is a count or a
state of a whole host (its cores, its memory, its counters) cannot be added up: it is of one host,
the one that serves unless another is asked for (``RunFrames.of_host``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from probes.contract import schema
from probes.contract.several_hosts import PIDS_PER_HOST

OF_ONE_HOST = frozenset({
    *("sockstat", "host_memory", "cgroups", "cgroup_memory", "cgroup_cpu", "slab_caches"),
    *("net_counters", "host_cpu", "host_pressure", "skb_allocs", "skb_drops", "probe_health"),
    *("listeners", "tcp_states", "socket_memory", "socket_traffic"),
})  # fmt: skip
"""Tables whose rows are of a whole host, or of a moment at which all of its sockets were seen."""

MOMENTS = frozenset({
    *("at_ns", "start_ns", "exited_ns", "connected_ns", "established_ns", "closed_ns"),
    *("first_ns", "last_ns", "since_ns", "turn_ns", "failed_ns"),
})  # fmt: skip
"""Columns that are moments of a host's clock."""
SPANS = frozenset({
    *("loop_lag_ns", "loop_max_lag_ns", "gc_max_pause_ns", "longest_standing_ns", "quota_ns"),
    *("period_ns", "lag_ns", "bucket_low_ns", "cpu_ns", "bpf_run_ns", "unwatched_ns"),
    *("from_ns", "until_ns", "longest_ns"),
})  # fmt: skip
"""Columns that end in ``_ns`` as well, and are lengths of time."""


@dataclass(frozen=True, slots=True, eq=False)
class HostPart:
    """One host of a run.

    Attributes:
        name: Its name.
        number: Its number, 0 of the one that serves.
        share: Connections that it was to make.
        first_client: Number of its first client in the whole run.
        first_connection: Likewise of its first connection.
        at_ns: A moment by the reference's clock, at which ``offset_ns`` was true.
        offset_ns: Its clock less the reference's.
        drift_ppm: By how much that grows.
        bound_ns: How wrong its moments may be.
        is_lost: Nothing was heard of it at the end.
        lost_ns: Since when, by the reference's clock; 0 not known.
        has_rows: What it recorded is there.
        manifest: Its own.
    """

    name: str
    number: int
    share: int
    first_client: int
    first_connection: int
    at_ns: int
    offset_ns: int
    drift_ppm: float
    bound_ns: int
    is_lost: bool
    lost_ns: int
    has_rows: bool
    manifest: Mapping[str, Any]

    def pid(self, pid: int) -> int:
        """The key of one of its processes."""
        return self.number * PIDS_PER_HOST + pid if pid > 0 else pid

    def reference_ns(self, at_ns: Any) -> Any:
        """Moments of its clock by the reference's; 0 and less (never, not known) stay."""
        local = np.asarray(at_ns, dtype=np.int64)
        about = local - self.offset_ns
        drift = np.rint((about - self.at_ns) * (self.drift_ppm / 1e6)).astype(np.int64)
        return np.where(local > 0, about - drift, local)


def parts_of(
    hosts: Sequence[Mapping[str, Any]], manifests: Mapping[str, Mapping[str, Any]]
) -> list[HostPart]:
    """The hosts of a manifest, in the order of their numbers."""
    found = []
    clients = connections = 0
    for each in hosts:
        name, clock = str(each["name"]), each.get("clock") or {}
        found.append(
            HostPart(
                name=name,
                number=int(each["index"]),
                share=int(each.get("connections") or 0),
                first_client=clients,
                first_connection=connections,
                at_ns=int(clock.get("at_ns") or 0),
                offset_ns=int(clock.get("offset_ns") or 0),
                drift_ppm=float(clock.get("drift_ppm") or 0.0),
                bound_ns=int(clock.get("bound_ns") or 0),
                is_lost=bool(each.get("is_lost")),
                lost_ns=int(each.get("lost_ns") or 0),
                has_rows=bool(each.get("has_rows")) and name in manifests,
                manifest=manifests.get(name, {}),
            )
        )
        clients += int(each.get("clients") or 0)
        connections += int(each.get("connections") or 0)
    return found


def moved(table: str, frame: pd.DataFrame, part: HostPart) -> pd.DataFrame:
    """One host's rows of a table, with the keys and the clock of the whole run.

    Args:
        table: Its name.
        frame: Rows as that host wrote them.
        part: The host.
    """
    if frame.empty:
        return frame
    changed: dict[str, Any] = {}
    for column in schema.TABLES[table].column_names:
        if column in MOMENTS:
            changed[column] = part.reference_ns(frame[column].to_numpy())
    if "pid" in frame.columns:
        pids = frame["pid"].to_numpy()
        changed["pid"] = np.where(pids > 0, pids + part.number * PIDS_PER_HOST, pids)
    if table == "connections":
        changed["connection"] = frame["connection"] + part.first_connection
        changed["client"] = frame["client"] + part.first_client
    elif "role" in frame.columns and "worker" in frame.columns:
        is_client = (frame["role"] == "client").to_numpy()
        changed["worker"] = frame["worker"] + np.where(is_client, part.first_client, 0)
    return frame.assign(**changed)
