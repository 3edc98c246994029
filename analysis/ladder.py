"""The limit ladder: for every limit the capacity, the use, the slope, and where it is met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis import slopes
from analysis.cpu import cpu_between
from analysis.evidence import Subject, side_of_role
from analysis.run_view import RunView

_NO_LIMIT = 10**12
"""A capacity beyond this is "unlimited" written as a number (fs.file-max is 2^63 - 1 today)."""

_MET_SHARE = 0.995
_IDLE_PCT = 2.0
"""Below this much of a core in the hold phase, CPU says nothing about how many more fit."""


@dataclass(frozen=True, slots=True)
class Rung:
    """One limit of this run. Sorted by ``predicted_connections``, the first is the next wall.

    Attributes:
        limit: fds_per_process, file_max, ephemeral_ports, tcp_mem, memory, cpu_worker, cpu_host,
            accept_queue or conntrack.
        scope: process, port_group, host or listener.
        subject: What it is about, e.g. ``worker 3 (pid 812, server)``.
        capacity: Where the limit is, in ``unit``; None when it could not be read.
        used_at_peak: Use when most connections were open, in ``unit``; None when not measured.
        unit: count, pages, bytes, pct, ...
        per_connection: Use per connection of the whole run (not of this process), in ``unit``.
        fit_error_pct: Error of the slope in percent of the slope (``analysis.slopes``); None when
            the slope was not fitted.
        predicted_connections: Connections of the whole run at which this limit is met; None when
            this run cannot tell: ``note`` says why.
        source: Where capacity and use come from.
        note: For people: what raises it, or why there is no prediction.
        met: The run was at this limit.
    """

    limit: str
    scope: str
    subject: str
    capacity: float | None
    used_at_peak: float | None
    unit: str
    per_connection: float | None
    fit_error_pct: float | None
    predicted_connections: int | None
    source: str
    note: str = ""
    met: bool = False


def ordered(rungs: Sequence[Rung]) -> list[Rung]:
    """Next wall first. Met ones lead at equal counts; those without a prediction are last,
    fullest first.
    """  # noqa: D205  # one sentence does not fit one line

    def key(rung: Rung) -> tuple[float, bool, float, str, str]:
        used = (rung.used_at_peak or 0.0) / rung.capacity if rung.capacity else 0.0
        predicted = rung.predicted_connections
        where = float("inf") if predicted is None else float(predicted)
        return where, not rung.met, -used, rung.limit, rung.subject

    return sorted(rungs, key=key)


def next_wall(rungs: Sequence[Rung]) -> Rung | None:
    """The nearest limit that the run did not meet, None when no rung has a prediction."""
    open_rungs = [r for r in rungs if not r.met and r.predicted_connections is not None]
    return open_rungs[0] if open_rungs else None


def build_ladder(
    view: RunView, descriptors: pd.DataFrame, ports: pd.DataFrame, listeners: pd.DataFrame
) -> list[Rung]:
    """Every rung of this run, next wall first.

    Args:
        view: The run.
        descriptors: From ``analysis.descriptors.df_descriptors``.
        ports: From ``analysis.ports.df_ports``.
        listeners: From ``analysis.timeline.df_listeners``.
    """
    rungs = [
        *_descriptor_rungs(view, descriptors),
        _port_rung(view, ports),
        _file_max_rung(view),
        _tcp_mem_rung(view),
        _memory_rung(view),
        _worker_cpu_rung(view),
        _host_cpu_rung(view),
        _accept_queue_rung(listeners),
        _conntrack_rung(view),
    ]
    return ordered([_not_below_peak(rung, view.peak_count) for rung in rungs])


def _not_below_peak(rung: Rung, peak_count: int) -> Rung:
    """A limit that was not met cannot lie below what was held."""
    predicted = rung.predicted_connections
    if rung.met or predicted is None or predicted > peak_count:
        return rung
    return replace(rung, predicted_connections=peak_count + 1)


def predict(capacity: float, line: slopes.Slope | None, peak_count: int) -> tuple[int | None, str]:
    """Where a line meets a capacity, or why that cannot be said.

    Returns:
        Connections and '', or None and the reason.
    """
    if capacity >= _NO_LIMIT:
        return None, f"{capacity:.3g} is no limit in practice"
    if line is None:
        return None, "too few samples over the ramp to fit a slope"
    if not line.is_usable:
        return None, "its use did not grow with the connections of this run"
    connections = (capacity - line.intercept) / line.per_x
    if connections > _NO_LIMIT:
        return None, "its use grows too slowly for this run to see where it ends"
    if connections > 1000 * max(1, peak_count):
        return None, f"more than 1,000 times the {peak_count:,} connections of this run"
    return int(connections), ""


# -- descriptors ------------------------------------------------------------------------------


def _descriptor_rungs(view: RunView, descriptors: pd.DataFrame) -> list[Rung]:
    rungs = []
    peak_total = view.peak_count
    for row in descriptors.to_dict("records"):
        if row["role"] == "acceptor":
            continue
        subject = Subject(str(row["role"]), int(row["pid"]), int(row["worker"]))
        capacity, used = int(row["capacity_count"]), int(row["peak_count"])
        met = used >= capacity - 1
        share = used / peak_total if peak_total else 0.0
        predicted = round(capacity / share) if share > 0 else None
        line = _share_slope(view, subject.pid)
        knob = "--nofile" if subject.role == "server" else "ulimit -n"
        soft, own = int(row["soft_count"]), int(row["own_count"])
        note = f"{soft:,} descriptors less {own:,} of its own; {knob} raises it"
        if predicted is None:
            note = "it held no connection, so its share of them is not known"
        rungs.append(
            Rung(
                limit="fds_per_process",
                scope="process",
                subject=str(subject),
                capacity=float(capacity),
                used_at_peak=float(used),
                unit="count",
                per_connection=share if share > 0 else None,
                fit_error_pct=line.error_pct if line and line.is_usable else None,
                predicted_connections=predicted,
                source=f"processes (getrlimit), {row['table']}",
                note=note,
                met=met,
            )
        )
    return rungs


def _share_slope(view: RunView, pid: int) -> slopes.Slope | None:
    """The part of all connections that this process took, as a slope over the ramp."""
    live = view.frames["live_samples"]
    mine = live[live["pid"] == pid]
    at_s = view.seconds_of(mine["at_ns"])
    inside = (at_s >= 0) & (at_s <= view.ramp.end_s)
    return slopes.fit(view.open_at(at_s[inside]), mine["open_count"][inside])


def _port_rung(view: RunView, ports: pd.DataFrame) -> Rung:
    source = "iter/tcp port_groups, ip_local_port_range"
    if ports.empty:
        return _blind("ephemeral_ports", "port_group", "port", "no connection was recorded", source)
    top = ports.iloc[0]
    used, capacity = int(top["ports_used_count"]), int(top["range_count"])
    share = used / view.peak_count if view.peak_count else 0.0
    predicted = round(capacity / share) if share > 0 else None
    others = f"; {len(ports) - 1} more groups, the least with {ports['ports_used_count'].min():,}"
    group = f"{top['source_address']} -> {top['destination_address']}:{top['destination_port']}"
    return Rung(
        limit="ephemeral_ports",
        scope="port_group",
        subject=group,
        capacity=float(capacity),
        used_at_peak=float(used),
        unit="ports",
        per_connection=share if share > 0 else None,
        fit_error_pct=None,
        predicted_connections=predicted,
        source=source if top["source"] == "port_groups" else "connections, ip_local_port_range",
        note="more source addresses or a wider range raise it" + (others if len(ports) > 1 else ""),
        met=used >= capacity or int(top["refused_count"]) > 0,
    )


# -- host wide tables and memory --------------------------------------------------------------


def _blind(limit: str, scope: str, unit: str, why: str, source: str) -> Rung:
    """A rung that this run cannot see, and says so."""
    return Rung(limit, scope, "the host", None, None, unit, None, None, None, source, why)


def _sampled(view: RunView, table: str) -> pd.DataFrame:
    """Samples up to the stop with at_s and open_count."""
    raw = view.frames[table]
    at_s = view.seconds_of(raw["at_ns"])
    frame = raw.assign(at_s=at_s)[at_s <= view.stop_s]
    return frame.assign(open_count=view.open_at(frame["at_s"]))


def _fitted(
    limit: str,
    x: pd.Series[int],
    y: pd.Series[int],
    capacity: float,
    *,
    unit: str,
    source: str,
    note: str,
    peak_count: int,
) -> Rung:
    line = slopes.fit(x, y)
    predicted, why = predict(capacity, line, peak_count)
    usable = line is not None and line.is_usable
    used = float(y.max())
    return Rung(
        limit=limit,
        scope="host",
        subject="the host",
        capacity=capacity,
        used_at_peak=used,
        unit=unit,
        per_connection=line.per_x if line and usable else None,
        fit_error_pct=line.error_pct if line and usable else None,
        predicted_connections=predicted,
        source=source,
        note=why or note,
        met=used >= _MET_SHARE * capacity,
    )


def _file_max_rung(view: RunView) -> Rung:
    rows = _sampled(view, "sockstat")
    source = "/proc/sys/fs/file-nr, fs.file-max"
    if rows.empty:
        return _blind("file_max", "host", "count", "the host's counters were not sampled", source)
    return _fitted(
        "file_max",
        rows["open_count"],
        rows["file_nr_count"],
        float(rows["file_max_count"].iloc[-1]),
        unit="count",
        source=source,
        note="sysctl fs.file-max raises it",
        peak_count=view.peak_count,
    )


def _tcp_mem_rung(view: RunView) -> Rung:
    rows = _sampled(view, "sockstat")
    source = "/proc/net/sockstat, net.ipv4.tcp_mem"
    if rows.empty:
        return _blind("tcp_mem", "host", "pages", "the host's counters were not sampled", source)
    rung = _fitted(
        "tcp_mem",
        rows["open_count"],
        rows["tcp_mem_pages"],
        float(rows["tcp_mem_max_pages"].iloc[-1]),
        unit="pages",
        source=source,
        note="sysctl net.ipv4.tcp_mem raises it",
        peak_count=view.peak_count,
    )
    if rung.predicted_connections is None and not rung.met and "grow" in rung.note:
        return replace(rung, note="idle connections hold no pages of it; traffic would")
    return rung


def _memory_rung(view: RunView) -> Rung:
    host = _sampled(view, "host_memory")
    source = "slab and resident sets of the fleet against MemAvailable"
    if host.empty:
        return _blind("memory", "host", "bytes", "the host's memory was not sampled", source)
    before = host.iloc[0]
    capacity = float(before["available_bytes"])
    if int(before["cgroup_max_bytes"]) > 0:
        room = float(before["cgroup_max_bytes"] - before["cgroup_used_bytes"])
        if room < capacity:
            capacity, source = room, "slab and resident sets of the fleet against memory.max"
    samples = view.frames["process_samples"]
    fleet = samples[samples["role"].isin(["server", "acceptor", "client"])]
    rounds = fleet.groupby("at_ns")["rss_bytes"].agg(["sum", "count"])
    rounds = rounds[rounds["count"] == rounds["count"].max()]
    rss = np.zeros(len(host))
    if len(rounds):
        rss = np.interp(host["at_ns"], rounds.index, rounds["sum"])
    grown = host["slab_bytes"] + rss
    grown = grown - float(grown.iloc[0])
    return _fitted(
        "memory",
        host["open_count"],
        grown,
        capacity,
        unit="bytes",
        source=source,
        note="kernel slab of both ends and user memory of the fleet, above the first sample",
        peak_count=view.peak_count,
    )


def _conntrack_rung(view: RunView) -> Rung:
    rows = _sampled(view, "sockstat")
    source = "nf_conntrack_count, nf_conntrack_max"
    rows = rows[rows["conntrack_max_count"] > 0]
    if rows.empty:
        why = "no connection tracking in the run's namespace, or it was not sampled"
        return _blind("conntrack", "host", "count", why, source)
    return _fitted(
        "conntrack",
        rows["open_count"],
        rows["conntrack_count"],
        float(rows["conntrack_max_count"].iloc[-1]),
        unit="count",
        source=source,
        note="sysctl net.netfilter.nf_conntrack_max raises it",
        peak_count=view.peak_count,
    )


# -- processor time and queues ----------------------------------------------------------------


def _cpu_rung(
    view: RunView, limit: str, subject: str, cpu_pct: float, error_pct: float | None, source: str
) -> Rung:
    held = view.held_count
    per_connection = cpu_pct / held if held else None
    predicted, note = None, "CPU in the hold phase, from keep-alives and messages"
    if cpu_pct < _IDLE_PCT:
        note = f"{cpu_pct:.1f} % in the hold phase: these connections cost no CPU while they idle"
    elif view.settings.get("keepalive_s") is None and not view.settings.get("message_rate_per_s"):
        note = f"{cpu_pct:.0f} % in the hold phase does not come from the connections (no traffic)"
    elif held:
        predicted = round(100 / (cpu_pct / held))
        if error_pct is not None and error_pct >= 50:
            predicted, note = None, "CPU in the hold phase varies too much to fit a slope"
    return Rung(
        limit=limit,
        scope="process" if limit == "cpu_worker" else "host",
        subject=subject,
        capacity=100.0,
        used_at_peak=cpu_pct,
        unit="pct",
        per_connection=per_connection,
        fit_error_pct=error_pct,
        predicted_connections=predicted,
        source=source,
        note=note,
        met=cpu_pct >= 97 and predicted is not None,
    )


def _error_of_mean_pct(values: np.ndarray) -> float | None:
    mean = float(values.mean()) if len(values) else 0.0
    if len(values) < 3 or mean <= 0:
        return None
    return float(100 * values.std(ddof=1) / np.sqrt(len(values)) / mean)


def _worker_cpu_rung(view: RunView) -> Rung:
    source = "process_samples in the hold phase"
    mean = cpu_between(view, view.hold) if view.hold.duration_s >= 1 else pd.DataFrame()
    servers = mean[mean["role"].map(side_of_role) == "server"] if len(mean) else mean
    if servers.empty or not view.held_count:
        return _blind("cpu_worker", "process", "pct", "the run did not hold for a second", source)
    top = servers.loc[servers["cpu_pct"] == servers["cpu_pct"].max()].iloc[0]
    samples = view.frames["process_samples"]
    mine = samples[samples["pid"] == top["pid"]]
    at_s = view.seconds_of(mine["at_ns"])
    busy = (mine["cpu_user_ns_total"] + mine["cpu_system_ns_total"]).to_numpy()
    steps = 100 * np.diff(busy) / np.maximum(1, np.diff(mine["at_ns"].to_numpy()))
    inside = (at_s[1:] > view.hold.start_s + 0.5) & (at_s[1:] <= view.hold.end_s)
    subject = str(Subject(str(top["role"]), int(top["pid"]), int(top["worker"])))
    error_pct = _error_of_mean_pct(steps[inside])
    return _cpu_rung(view, "cpu_worker", subject, float(top["cpu_pct"]), error_pct, source)


def _host_cpu_rung(view: RunView) -> Rung:
    source = "/proc/stat in the hold phase, less what was busy before the ramp"
    raw = view.frames["host_cpu"]
    kinds = ["user", "system", "softirq", "irq"]
    whole = raw[raw["core"] >= 0] if (raw["core"] >= 0).any() else raw
    moments = whole.groupby("at_ns")[[f"{k}_ns_total" for k in [*kinds, "idle", "steal"]]].sum()
    at_s = view.seconds_of(moments.index)
    steps = moments.diff().iloc[1:]
    share = 100 * steps[[f"{k}_ns_total" for k in kinds]].sum(axis=1) / steps.sum(axis=1)
    inside = (at_s[1:] > view.hold.start_s + 0.5) & (at_s[1:] <= view.hold.end_s)
    busy = share.to_numpy()[inside]
    if not len(busy) or not view.held_count:
        return _blind("cpu_host", "host", "pct", "the hold phase was not sampled", source)
    earlier = share.to_numpy()[at_s[1:] < 0]
    quiet = float(earlier.min()) if len(earlier) else 0.0
    cpu_pct = max(0.0, float(busy.mean()) - quiet)
    return _cpu_rung(view, "cpu_host", "the host", cpu_pct, _error_of_mean_pct(busy), source)


def _accept_queue_rung(listeners: pd.DataFrame) -> Rung:
    source = "iter/tcp: sk_ack_backlog, sk_max_ack_backlog"
    if listeners.empty:
        return _blind("accept_queue", "listener", "count", "no listener was seen", source)
    top = listeners.sort_values("used_pct", ascending=False, kind="stable").iloc[0]
    used, capacity = int(top["accept_queue_max_count"]), int(top["backlog_count"])
    return Rung(
        limit="accept_queue",
        scope="listener",
        subject=f"{top['local_address']}:{top['local_port']} (inode {top['socket_inode']})",
        capacity=float(capacity),
        used_at_peak=float(used),
        unit="count",
        per_connection=None,
        fit_error_pct=None,
        predicted_connections=None,
        source=source,
        note="it follows the rate of new connections, not their number",
        met=used >= capacity > 0,
    )
