"""Local ports in use per (source address, destination address, destination port)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.run_view import RunView

_DEFAULT_RANGE = (32768, 60999)
_EADDRNOTAVAIL = 99

_COLUMNS = [
    "source_address",
    "destination_address",
    "destination_port",
    "ports_used_count",
    "range_count",
    "used_pct",
    "refused_count",
    "source",
]


def port_range(view: RunView) -> tuple[int, int]:
    """The range of local ports of the run: snapshot, then plan, then sysctl, then the default."""
    groups = view.frames["port_groups"]
    known = groups[groups["range_high_port"] > 0]
    if len(known):
        return int(known["range_low_port"].iloc[-1]), int(known["range_high_port"].iloc[-1])
    planned = view.plan.get("port_range")
    if isinstance(planned, list | tuple) and len(planned) == 2:
        return int(planned[0]), int(planned[1])
    words = view.sysctl("net.ipv4.ip_local_port_range").split()
    if len(words) == 2:
        return int(words[0]), int(words[1])
    return _DEFAULT_RANGE


def df_ports(view: RunView) -> pd.DataFrame:
    """Peak use of each group against the range, fullest first.

    From the kernel's snapshots; groups that no snapshot saw, and runs without eBPF, from the
    connection records: a port is taken from connect to close.
    """
    low, high = port_range(view)
    range_count = high - low + 1
    groups = view.frames["port_groups"]
    key = ["source_address", "destination_port"]
    seen = groups.groupby([*key, "destination_address"], as_index=False).agg(
        ports_used_count=("ports_used_count", "max")
    )
    seen = seen.assign(source="port_groups")
    recorded = _from_records(view).assign(destination_address="", source="connections")
    refused = recorded.set_index(key)["refused_count"]
    from_kernel = pd.MultiIndex.from_frame(seen[key])
    absent = ~pd.MultiIndex.from_frame(recorded[key]).isin(from_kernel)
    frame = pd.concat([seen, recorded[absent].drop(columns="refused_count")], ignore_index=True)
    found = refused.reindex(pd.MultiIndex.from_frame(frame[key])).fillna(0).to_numpy()
    frame = frame.assign(
        range_count=range_count,
        used_pct=100 * frame["ports_used_count"] / range_count,
        refused_count=found.astype(np.int64),
    )
    frame = frame.sort_values("ports_used_count", ascending=False, kind="stable", ignore_index=True)
    return frame[_COLUMNS]


def by_source(ports: pd.DataFrame) -> pd.DataFrame:
    """The groups of each source address as one, fullest first.

    For ``--bind early``: a port that was taken at bind is taken for all destinations.

    Args:
        ports: From ``df_ports``.
    """
    frame = ports.groupby("source_address", as_index=False, sort=False).agg(
        destination_address=("destination_address", "first"),
        destination_port=("destination_port", "first"),
        ports_used_count=("ports_used_count", "sum"),
        range_count=("range_count", "first"),
        refused_count=("refused_count", "sum"),
        source=("source", "first"),
    )
    frame = frame.assign(used_pct=100 * frame["ports_used_count"] / frame["range_count"])
    frame = frame.sort_values("ports_used_count", ascending=False, kind="stable", ignore_index=True)
    return frame[_COLUMNS]


def _from_records(view: RunView) -> pd.DataFrame:
    connections = view.connections
    key = ["source_address", "destination_port"]
    rows = []
    for (address, port), part in connections.groupby(key, sort=False):
        refused = (part["errno"] == _EADDRNOTAVAIL) & (part["stage"] == "connect")
        holding = part[~refused & part["stage"].isin(["connect", "handshake", "open", "closed"])]
        begun = np.sort(holding["start_s"].to_numpy())
        ended = np.sort(holding["closed_s"].dropna().to_numpy())
        # in use after the i-th start: i + 1 less those that ended by then
        used = np.arange(1, len(begun) + 1) - np.searchsorted(ended, begun, side="right")
        rows.append(
            {
                "source_address": address,
                "destination_port": port,
                "ports_used_count": int(used.max()) if len(used) else 0,
                "refused_count": int(refused.sum()),
            }
        )
    columns = [*key, "ports_used_count", "refused_count"]
    return pd.DataFrame(rows, columns=columns).astype({"destination_port": "int64"})
