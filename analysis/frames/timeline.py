"""How the run went over time: phases, connections, latency, event loops, states, queues."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.evidence import side_of_role
from analysis.frames.cpu import cpu_between, rates
from analysis.frames.run_view import PHASES, Floats, RunView

_ALL_CLIENTS = -1


def bin_width_s(span_s: float) -> float:
    """Width of a time bin: 100 ms for short runs, 250 ms to a minute, then 240 bins a run."""
    if span_s <= 20:
        return 0.1
    return 0.25 if span_s <= 60 else float(np.ceil(span_s / 240 * 4) / 4)


def df_phases(view: RunView, host_cpu: pd.DataFrame) -> pd.DataFrame:
    """One row a phase: length, connections, CPU of both sides."""
    connections = view.connections
    rows = []
    everywhere = host_cpu[host_cpu["core"] == -1]
    for name in PHASES:
        phase = view.phases.get(name)
        if phase is None:
            continue
        established = int(connections["established_s"].between(phase.start_s, phase.end_s).sum())
        if view.is_attached:
            established = _taken_between(view, phase.start_s, phase.end_s)
        failed = connections[connections["is_failed"]]["closed_s"]
        mean = cpu_between(view, phase)
        sides = mean["role"].map(side_of_role)
        server, client = mean[sides == "server"], mean[sides == "client"]
        host = everywhere[everywhere["at_s"].between(phase.start_s, phase.end_s)]["busy_pct"]
        known = len(mean) > 0
        rows.append(
            {
                "phase": name,
                "start_s": phase.start_s,
                "end_s": phase.end_s,
                "duration_s": phase.duration_s,
                "established_count": established,
                "failed_count": int(failed.between(phase.start_s, phase.end_s).sum()),
                "established_per_s": established / phase.duration_s if phase.duration_s else 0.0,
                "open_count": view.open_count_at(phase.end_s - 1e-6),
                "server_cpu_pct": float(server["cpu_pct"].sum()) if known else np.nan,
                "server_user_pct": float(server["user_pct"].sum()) if known else np.nan,
                "server_system_pct": float(server["system_pct"].sum()) if known else np.nan,
                "client_cpu_pct": float(client["cpu_pct"].sum()) if known else np.nan,
                "client_user_pct": float(client["user_pct"].sum()) if known else np.nan,
                "client_system_pct": float(client["system_pct"].sum()) if known else np.nan,
                "probe_cpu_pct": float(mean[mean["role"] == "probe"]["cpu_pct"].sum())
                if known
                else np.nan,
                "host_cpu_pct": float(host.mean()) if len(host) else np.nan,
            }
        )
    columns = [
        "phase",
        "start_s",
        "end_s",
        "duration_s",
        "established_count",
        "failed_count",
        "established_per_s",
        "open_count",
        *(f"{side}_{kind}_pct" for side in ("server", "client") for kind in _KINDS),
        "probe_cpu_pct",
        "host_cpu_pct",
    ]
    return pd.DataFrame(rows, columns=columns)


_KINDS = ("cpu", "user", "system")


def _bins(view: RunView) -> Floats:
    end_s = max(view.stop_s, view.ramp.end_s, 0.1)
    width_s = bin_width_s(end_s)
    count = min(2000, int(np.ceil(end_s / width_s)))
    return np.arange(count + 1, dtype=np.float64) * np.float64(width_s)


def df_connections_over_time(view: RunView) -> pd.DataFrame:
    """Counts at the end of every bin, for each client and for all (client -1)."""
    if view.is_attached:
        return _watched_over_time(view)
    connections = view.connections
    edges = _bins(view)
    parts = []
    clients = [_ALL_CLIENTS, *sorted(int(c) for c in connections["client"].unique())]
    client_of = connections["client"].to_numpy()
    established_s = connections["established_s"].to_numpy()
    closed_s = connections["closed_s"].to_numpy()
    is_failed = connections["is_failed"].to_numpy()
    is_lost = connections["is_lost"].to_numpy()
    for client in clients if len(connections) else []:
        mine = np.full(len(client_of), True) if client == _ALL_CLIENTS else client_of == client
        ever = mine & ~np.isnan(established_s)
        ended = ever & ~np.isnan(closed_s)
        totals = {
            "established_total": _cumulated(established_s[ever], edges),
            "failed_total": _cumulated(closed_s[mine & is_failed], edges),
            "lost_total": _cumulated(closed_s[mine & is_lost], edges),
        }
        gone = _cumulated(closed_s[ended], edges)
        width_s = float(edges[1] - edges[0])
        parts.append(
            pd.DataFrame(
                {
                    "at_s": edges[1:],
                    "client": client,
                    "open_count": totals["established_total"] - gone,
                    **totals,
                    "established_per_s": np.diff(totals["established_total"], prepend=0) / width_s,
                    "failed_per_s": np.diff(totals["failed_total"], prepend=0) / width_s,
                }
            )
        )
    columns = ["at_s", "client", "open_count", "established_total", "failed_total", "lost_total"]
    columns += ["established_per_s", "failed_per_s"]
    if not parts:
        return pd.DataFrame({c: pd.Series(dtype="float64") for c in columns})
    return pd.concat(parts, ignore_index=True)[columns]


def _watched_over_time(view: RunView) -> pd.DataFrame:
    """The same from the servers' own counts; what failed is not known of clients elsewhere."""
    edges = _bins(view)
    totals = view.watched_samples.pivot_table(
        index="at_ns", columns="pid", values="established_total"
    )
    taken = totals.ffill().fillna(0).sum(axis=1)
    columns = ["at_s", "client", "open_count", "established_total", "failed_total", "lost_total"]
    columns += ["established_per_s", "failed_per_s"]
    if taken.empty:
        return pd.DataFrame({c: pd.Series(dtype="float64") for c in columns})
    at = np.searchsorted(view.seconds_of(taken.index), edges[1:], side="right") - 1
    grown = taken.to_numpy(dtype=np.int64)[np.maximum(at, 0)]
    grown = grown - grown[0]
    return pd.DataFrame(
        {
            "at_s": edges[1:],
            "client": _ALL_CLIENTS,
            "open_count": view.open_at(edges[1:]),
            "established_total": grown,
            "failed_total": 0,
            "lost_total": 0,
            "established_per_s": np.diff(grown, prepend=0) / float(edges[1] - edges[0]),
            "failed_per_s": 0.0,
        }
    )[columns]


def _taken_between(view: RunView, since_s: float, until_s: float) -> int:
    """Connections that watched servers took in a span."""
    samples = view.watched_samples
    at_s = view.seconds_of(samples["at_ns"])
    inside = samples[(at_s >= since_s) & (at_s <= until_s)].groupby("pid")["established_total"]
    return int((inside.max() - inside.min()).sum())


def _cumulated(moments_s: Floats, edges: Floats) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    ordered = np.sort(moments_s[~np.isnan(moments_s)])
    return np.searchsorted(ordered, edges[1:], side="right").astype(np.int64)


def df_worker_connections(view: RunView) -> pd.DataFrame:
    """Live counters of the server side over time; rates over the interval before ``at_s``."""
    samples = view.frames["live_samples"]
    served = samples[samples["role"].isin(["server", "acceptor"])]
    flows = ["rx_messages_total", "tx_messages_total", "rx_pings_total", "tx_pings_total"]
    rate = rates(served, "pid", flows)
    return pd.DataFrame(
        {
            "at_s": view.seconds_of(rate["at_ns"]),
            "pid": rate["pid"],
            "role": rate["role"],
            "worker": rate["worker"],
            "open_count": rate["open_count"],
            "established_total": rate["established_total"],
            "attempted_total": rate["attempted_total"],
            "failed_total": rate["failed_total"],
            "accept_emfile_total": rate["accept_emfile_total"],
            "rx_messages_per_s": rate["rx_messages_total"],
            "pings_per_s": rate["rx_pings_total"] + rate["tx_pings_total"],
        }
    )


def df_latency(view: RunView) -> pd.DataFrame:
    """Quantiles of connect and handshake time over time, by the moment they ended."""
    connections = view.connections
    edges = _bins(view)
    parts = []
    for kind, begun, ended in (
        ("connect", "start_s", "connected_s"),
        ("handshake", "connected_s", "established_s"),
    ):
        took = (connections[ended] - connections[begun]) * 1e3
        known = took.notna()
        width_s = float(edges[1] - edges[0])
        place = np.floor(connections[ended][known] / width_s)
        grouped = took[known].groupby(place)
        quantiles = grouped.quantile(np.array([0.5, 0.9, 0.99])).unstack()
        if not len(quantiles):
            continue
        parts.append(
            pd.DataFrame(
                {
                    "at_s": (quantiles.index.to_numpy() + 1) * width_s,
                    "kind": kind,
                    "connection_count": grouped.size().to_numpy(),
                    "p50_ms": quantiles[0.5].to_numpy(),
                    "p90_ms": quantiles[0.9].to_numpy(),
                    "p99_ms": quantiles[0.99].to_numpy(),
                    "max_ms": grouped.max().to_numpy(),
                }
            )
        )
    columns = ["at_s", "kind", "connection_count", "p50_ms", "p90_ms", "p99_ms", "max_ms"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def df_latency_totals(view: RunView) -> pd.DataFrame:
    """Quantiles of connect, handshake and both together (open) over the whole run."""
    connections = view.connections
    rows = []
    for kind, begun, ended in (
        ("connect", "start_s", "connected_s"),
        ("handshake", "connected_s", "established_s"),
        ("open", "start_s", "established_s"),
    ):
        took_ms = ((connections[ended] - connections[begun]) * 1e3).dropna()
        if took_ms.empty:
            continue
        p50_ms, p90_ms, p99_ms = took_ms.quantile([0.5, 0.9, 0.99])
        rows.append((kind, len(took_ms), p50_ms, p90_ms, p99_ms, took_ms.max()))
    columns = ["kind", "connection_count", "p50_ms", "p90_ms", "p99_ms", "max_ms"]
    return pd.DataFrame(rows, columns=columns)


def df_loop_lag(view: RunView) -> pd.DataFrame:
    """How long event loops were away: turn in progress, longest turn, busy share."""
    samples = view.frames["live_samples"]
    # A server that is not ours does not count its turns: no rows, rather than rows of 0.
    if view.is_foreign:
        samples = samples[samples["role"] == "client"]
    rate = rates(samples, "pid", ["loop_busy_ns_total"])
    return pd.DataFrame(
        {
            "at_s": view.seconds_of(rate["at_ns"]),
            "pid": rate["pid"],
            "role": rate["role"],
            "worker": rate["worker"],
            "lag_ms": rate["loop_lag_ns"] / 1e6,
            "max_lag_ms": rate["loop_max_lag_ns"] / 1e6,
            "busy_pct": (rate["loop_busy_ns_total"] / 1e7).clip(upper=100),
        }
    )


def df_states(view: RunView) -> pd.DataFrame:
    """Sockets by side and TCP state over time."""
    states = view.frames["tcp_states"]
    frame = states.assign(at_s=view.seconds_of(states["at_ns"]))
    return frame[["at_s", "side", "state", "socket_count"]]


def _own_listeners(view: RunView) -> pd.DataFrame:
    """Those of the server; a namespace that is not the run's own has others."""
    listeners = view.frames["listeners"]
    if not view.is_attached:
        return listeners
    return listeners[listeners["local_port"].isin(view.server_ports)]


def df_listeners_over_time(view: RunView) -> pd.DataFrame:
    """Accept queues over time."""
    listeners = _own_listeners(view)
    frame = listeners.assign(at_s=view.seconds_of(listeners["at_ns"]))
    return frame[["at_s", "local_port", "socket_inode", "accept_queue_count", "backlog_count"]]


def df_listeners(view: RunView) -> pd.DataFrame:
    """Each listener at the moment its accept queue was longest, fullest first."""
    listeners = _own_listeners(view)
    frame = listeners.assign(at_s=view.seconds_of(listeners["at_ns"]))
    key = ["local_address", "local_port", "socket_inode"]
    longest = frame.sort_values("accept_queue_count", ascending=False, kind="stable")
    longest = longest.drop_duplicates(key, ignore_index=True)
    backlog = longest["backlog_count"].astype("float64").replace(0, np.nan)
    longest = longest.rename(columns={"accept_queue_count": "accept_queue_max_count"})
    longest = longest.assign(used_pct=100 * longest["accept_queue_max_count"] / backlog)
    return longest[[*key, "backlog_count", "accept_queue_max_count", "used_pct", "at_s"]]


def df_events(view: RunView) -> pd.DataFrame:
    """Moments of the run, with the process they are about."""
    events = view.frames["events"]
    frame = view.with_who(events.assign(at_s=view.seconds_of(events["at_ns"])))
    return frame[["at_s", "event", "pid", "role", "worker", "detail"]]
