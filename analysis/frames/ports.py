"""Local ports in use per (source address, destination address, destination port)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.frames.run_view import Floats, RunView

_DEFAULT_RANGE = (32768, 60999)
_EADDRNOTAVAIL = 99
_USE_STEP_PCT = 5.0

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
    """The range of the clients' local ports, both ends inclusive.

    Where each socket of theirs has one of its own (IP_LOCAL_PORT_RANGE, ip(7)), no snapshot knows
    it.
    """
    planned = _planned(view)
    return planned if planned and _is_by_socket(view) else namespace_port_range(view)


def namespace_port_range(view: RunView) -> tuple[int, int]:
    """What a socket has that asks for none: snapshot, then plan, then sysctl, then the default."""
    groups = view.frames["port_groups"]
    known = groups[groups["range_high_port"] > 0]
    if len(known):
        return int(known["range_low_port"].iloc[-1]), int(known["range_high_port"].iloc[-1])
    planned = _planned(view)
    if planned and not _is_by_socket(view):
        return planned
    words = view.sysctl("net.ipv4.ip_local_port_range").split()
    if len(words) == 2:
        return int(words[0]), int(words[1])
    return _DEFAULT_RANGE


def _planned(view: RunView) -> tuple[int, int] | None:
    planned = view.plan.get("port_range")
    if isinstance(planned, list | tuple) and len(planned) == 2:
        return int(planned[0]), int(planned[1])
    return None


def _is_by_socket(view: RunView) -> bool:
    return view.plan.get("port_range_by") == "socket"


def df_ports(view: RunView) -> pd.DataFrame:
    """Peak use of each group against the range, fullest first.

    From the kernel's snapshots; groups that no snapshot saw, and runs without eBPF, from the
    connection records: a port is taken from connect to close.
    """
    low, high = port_range(view)
    range_count = high - low + 1
    refused = {}
    recorded = []
    for pool in pool_use(view):
        key = (pool.source_address, pool.destination_port)
        refused[key] = pool.refused_count
        recorded.append((key, "", int(pool.used_count.max(initial=0)), "connections"))
    seen = _from_snapshots(view)
    from_kernel = {key for key, *_ in seen}
    rows = seen + [row for row in recorded if row[0] not in from_kernel]
    if _is_by_socket(view):
        # sockets of earlier runs, closed a minute ago, have other ports of the host's range
        rows = [(key, to, min(used, range_count), table) for key, to, used, table in rows]
    rows.sort(key=lambda row: -row[2])
    used_count = np.array([row[2] for row in rows], dtype=np.int64)
    return pd.DataFrame(
        {
            "source_address": pd.Series([address for (address, _), *_ in rows], dtype="str"),
            "destination_address": pd.Series([row[1] for row in rows], dtype="str"),
            "destination_port": np.array([port for (_, port), *_ in rows], dtype=np.int64),
            "ports_used_count": used_count,
            "range_count": np.full(len(rows), range_count, dtype=np.int64),
            "used_pct": 100 * used_count / range_count,
            "refused_count": np.array([refused.get(row[0], 0) for row in rows], dtype=np.int64),
            "source": pd.Series([row[3] for row in rows], dtype="str"),
        }
    )


_Group = tuple[tuple[str, int], str, int, str]
"""(source address, destination port), destination address, ports in use, the table that says so."""


def _from_snapshots(view: RunView) -> list[_Group]:
    """Peak use of each group that the kernel's snapshots saw, in the order of addresses."""
    groups = view.frames["port_groups"]
    if groups.empty:
        return []
    key = ["source_address", "destination_port", "destination_address"]
    peaks = groups.groupby(key)["ports_used_count"].max()
    found: list[_Group] = []
    for (address, port, to), used in zip(peaks.index, peaks, strict=True):
        found.append(((str(address), int(port)), str(to), int(used), "port_groups"))
    return found


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


@dataclass(frozen=True, slots=True)
class PoolUse:
    """One pool while it filled: an entry for each connection that held a port of it.

    Attributes:
        source_address: Of the clients.
        destination_port: Of the server.
        begun_s: When each took its port, ascending.
        used_count: Ports of the pool in use then, this one included.
        connect_ms: What connect took, NaN where it did not succeed.
        refused_count: Connections that got EADDRNOTAVAIL.
    """

    source_address: str
    destination_port: int
    begun_s: Floats
    used_count: npt.NDArray[np.int64]
    connect_ms: Floats
    refused_count: int


def pool_use(view: RunView) -> list[PoolUse]:
    """How each pool filled: a port is taken from connect to close."""
    pools = []
    groups = view.connections.groupby(["source_address", "destination_port"], sort=False)
    for key, part in groups:
        address, port = str(key[0]), int(str(key[1]))
        refused = (part["errno"] == _EADDRNOTAVAIL) & (part["stage"] == "connect")
        holding = part[~refused & part["stage"].isin(["connect", "handshake", "open", "closed"])]
        holding = holding.sort_values("start_s", kind="stable")
        begun_s = holding["start_s"].to_numpy()
        ended_s = np.sort(holding["closed_s"].dropna().to_numpy())
        # in use after the i-th start: i + 1 less those that ended by then
        used = np.arange(1, len(begun_s) + 1) - np.searchsorted(ended_s, begun_s, side="right")
        connect_ms = (holding["connected_s"].to_numpy() - begun_s) * 1e3
        pools.append(PoolUse(address, port, begun_s, used, connect_ms, int(refused.sum())))
    return pools


def df_connect_by_use(view: RunView) -> pd.DataFrame:
    """What connect took against how full its pool was, all pools together.

    Returns:
        used_pct (middle of a twentieth of the range), connection_count, p50_ms, p90_ms, p99_ms;
        only twentieths with connections.
    """
    low, high = port_range(view)
    columns = ["used_pct", "connection_count", "p50_ms", "p90_ms", "p99_ms"]
    pools = pool_use(view)
    if not pools:
        return pd.DataFrame(columns=columns)
    frame = pd.DataFrame(
        {
            "used_pct": np.concatenate([p.used_count for p in pools]) * 100.0 / (high - low + 1),
            "connect_ms": np.concatenate([p.connect_ms for p in pools]),
        }
    ).dropna()
    place = np.ceil(frame["used_pct"] / _USE_STEP_PCT).clip(1, 100 / _USE_STEP_PCT)
    grouped = frame.groupby(place)["connect_ms"]
    quantiles = grouped.quantile(np.array([0.5, 0.9, 0.99])).unstack()
    if quantiles.empty:
        return pd.DataFrame(columns=columns)
    return pd.DataFrame(
        {
            "used_pct": (quantiles.index.to_numpy(dtype="float64") - 0.5) * _USE_STEP_PCT,
            "connection_count": grouped.size().to_numpy(),
            "p50_ms": quantiles[0.5].to_numpy(),
            "p90_ms": quantiles[0.9].to_numpy(),
            "p99_ms": quantiles[0.99].to_numpy(),
        }
    )
