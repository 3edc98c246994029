"""The limit ladder: for every limit the capacity, the use, the slope, and where it is met."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.frames.ports import by_source
from analysis.frames.run_view import RunView
from analysis.ladder.cpu import accept_queue_rung, host_cpu_rung, worker_cpu_rung
from analysis.ladder.rung import (
    HARDWARE,
    PLAN,
    SETTING,
    NoPrediction,
    Rung,
    blind,
    layout_wall,
    next_wall,
    ordered,
    predict,
)
from analysis.stats import slopes
from analysis.stats.remembered import remembered
from probes.contract.limits import SAMPLED, file_max, tcp_mem
from probes.contract.limits.limit import Limit, Sampled
from probes.contract.schema import SERVER_ROLES

__all__ = ["Rung", "build_ladder", "layout_wall", "next_wall", "ordered", "predict"]

_MET_SHARE = 0.995


def build_ladder(
    view: RunView, descriptors: pd.DataFrame, ports: pd.DataFrame, listeners: pd.DataFrame
) -> list[Rung]:
    """Every rung of this run, next wall first.

    Args:
        view: The run.
        descriptors: From ``analysis.frames.descriptors.df_descriptors``.
        ports: From ``analysis.frames.ports.df_ports``.
        listeners: From ``analysis.frames.timeline.df_listeners``.
    """
    rungs = [
        *_descriptor_rungs(view, descriptors),
        _port_rung(view, ports),
        _file_max_rung(view),
        _tcp_mem_rung(view),
        _memory_rung(view),
        worker_cpu_rung(view),
        host_cpu_rung(view),
        accept_queue_rung(listeners),
        *(_sampled_rung(view, *each) for each in SAMPLED),
    ]
    return ordered([_not_below_peak(rung, view.peak_count) for rung in rungs])


def _not_below_peak(rung: Rung, peak_count: int) -> Rung:
    """A limit that was not met cannot lie below what was held."""
    predicted = rung.predicted_connections
    if rung.met or predicted is None or predicted > peak_count:
        return rung
    return replace(rung, predicted_connections=peak_count + 1)


# -- descriptors ------------------------------------------------------------------------------


def _descriptor_rungs(view: RunView, descriptors: pd.DataFrame) -> list[Rung]:
    rungs = []
    for row in descriptors.to_dict("records"):
        if row["role"] == "acceptor":
            continue
        subject = view.subject(int(row["pid"]))
        capacity, used = int(row["capacity_count"]), int(row["peak_count"])
        met = used >= capacity - 1
        share = float(row["share"]) if used else 0.0
        share *= view.descriptors_per_connection(str(row["role"]))
        predicted = round(capacity / share) if share > 0 else None
        line = _share_slope(view, subject.pid)
        knob = "--nofile" if subject.role == "server" else "ulimit -n"
        if view.is_foreign and subject.role == "server":
            knob = f"prlimit --pid {subject.pid} --nofile" if not view.server_command else knob
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
                moved_by=_moved_by(view, "server" if subject.role == "server" else "client"),
            )
        )
    return rungs


_LAID_OUT_BY = {
    "server": {"workers", "nofile", "accept_weights"},
    "client": {"clients"},
    "ports": {"source_addresses", "destination_ports", "port_range"},
}
"""What the user decides by which option; what is left to the planner moves with the target."""


def _moved_by(view: RunView, what: str) -> str:
    """Whether the planner lays out this part of a run, or somebody has to.

    Args:
        view: The run.
        what: A key of ``_LAID_OUT_BY``.
    """
    fixed = view.plan.get("fixed")
    if not isinstance(fixed, list):  # recorded by an earlier version, or a watch
        return SETTING
    if view.is_foreign and what != "client":  # neither its processes nor its addresses are ours
        return SETTING
    return SETTING if _LAID_OUT_BY[what] & set(map(str, fixed)) else PLAN


def _share_slope(view: RunView, pid: int) -> slopes.Slope | None:
    """The part of all connections that this process took, as a slope over the ramp."""
    live = view.frames["live_samples"]
    mine = live[live["pid"] == pid]
    at_s = view.seconds_of(mine["at_ns"])
    inside = (at_s >= 0) & (at_s <= (view.stop_s if view.is_attached else view.ramp.end_s))
    return slopes.fit(view.open_at(at_s[inside]), mine["open_count"][inside])


def _port_rung(view: RunView, ports: pd.DataFrame) -> Rung:
    source = "iter/tcp port_groups, ip_local_port_range"
    if ports.empty or view.is_attached:
        why = "no connection was recorded"
        if view.is_attached:
            why = "the clients are elsewhere: their local ports are not seen here"
        return blind("ephemeral_ports", "port_group", "port", why, source)
    is_early = view.plan.get("bind") == "early"
    if is_early:
        ports = by_source(ports)
    top = ports.iloc[0]
    used, capacity = int(top["ports_used_count"]), int(top["range_count"])
    share = used / max(1, int(ports["ports_used_count"].sum()))
    predicted = round(capacity / share) if share > 0 else None
    least = f"the least with {ports['ports_used_count'].min():,}"
    others = f"; {len(ports) - 1} more groups, {least}" if len(ports) > 2 else f"; 1 more, {least}"
    group = f"{top['source_address']} to {top['destination_address']}:{top['destination_port']}"
    if not top["destination_address"]:  # the connection records do not say it
        group = f"{top['source_address']} to port {top['destination_port']}"
    if is_early:
        group = f"{top['source_address']}, taken at bind for all destinations"
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
        moved_by=_moved_by(view, "ports"),
    )


# -- host wide tables and memory --------------------------------------------------------------


@remembered
def _sampled(view: RunView, table: str) -> pd.DataFrame:
    """Samples up to the stop with at_s and open_count."""
    raw = view.frames[table]
    at_s = view.seconds_of(raw["at_ns"])
    frame = raw.assign(at_s=at_s)[at_s <= view.stop_s]
    return frame.assign(open_count=view.open_at(frame["at_s"]))


def _fitted(
    limit: str,
    x: pd.Series[int],
    y: pd.Series[int] | pd.Series[float],
    capacity: float,
    *,
    unit: str,
    source: str,
    note: str,
    peak_count: int,
    of_run: float = float("inf"),
    used: float | None = None,
    moved_by: str = SETTING,
    without_growth: str = NoPrediction.DID_NOT_GROW.value,
) -> Rung:
    """A rung of a table of the whole host.

    Args:
        limit: Its name.
        x: Connections open.
        y: Use by connections: whoever's, or the run's on top of what others mostly use.
        capacity: Where it ends.
        unit: Of both.
        source: Where they come from.
        note: For people.
        peak_count: Most connections of the run.
        of_run: What processes of the run used at most, where that is known.
        used: Most that was used, whoever's; that of ``y`` when None.
        moved_by: See ``Rung``.
        without_growth: Note of a limit whose use did not grow with the connections.
    """
    line = slopes.fit(x, y)
    used = float(y.max()) if used is None else used
    predicted = predict(capacity, line, peak_count, min(used, of_run))
    met = used >= _MET_SHARE * capacity
    if isinstance(predicted, NoPrediction):
        is_idle = predicted is NoPrediction.DID_NOT_GROW and not met
        note = without_growth if is_idle else predicted.value
    usable = line is not None and line.is_usable
    return Rung(
        limit=limit,
        scope="host",
        subject="the host",
        capacity=capacity,
        used_at_peak=used,
        unit=unit,
        per_connection=line.per_x if line and usable else None,
        fit_error_pct=line.error_pct if line and usable else None,
        predicted_connections=None if isinstance(predicted, NoPrediction) else predicted,
        source=source,
        note=note,
        met=met,
        moved_by=moved_by,
    )


def _file_max_rung(view: RunView) -> Rung:
    rows = _sampled(view, "sockstat")
    source = file_max.LIMIT.source
    rows = rows[rows["file_max_count"] > 0]
    if rows.empty:
        return blind("file_max", "host", "count", "the host's counters were not sampled", source)
    own = _descriptors_over_time(view, rows["at_ns"])
    used = rows["file_nr_count"].astype(float)
    if own is not None:  # the files of others come and go meanwhile: they stay what they mostly are
        used = own + max(0.0, float((used - own).median()))
    return _fitted(
        "file_max",
        rows["open_count"],
        used,
        float(rows["file_max_count"].iloc[-1]),
        unit="count",
        source=source,
        note=f"{file_max.LIMIT.raised_by} raises it",
        peak_count=view.peak_count,
        used=float(rows["file_nr_count"].max()),
        of_run=_descriptors_of_run(view),
    )


def _descriptors_over_time(view: RunView, at_ns: pd.Series[int]) -> pd.Series[float] | None:
    """Descriptors of all processes of the run together at each moment; None when not sampled.

    Each is a file of the host at most, and no other process moves their number.
    """
    samples = view.frames["process_samples"]
    fleet = samples[samples["role"].isin([*SERVER_ROLES, "client"])]
    if fleet.empty or (fleet["fd_count"] < 0).any():
        return None
    total = pd.Series(0.0, index=at_ns.index)
    for _, mine in fleet.groupby(["pid", "worker"]):
        total += np.interp(at_ns, mine["at_ns"], mine["fd_count"], right=0.0)
    return total


def _descriptors_of_run(view: RunView) -> float:
    """Descriptors of all processes of the run together, each at its most; inf when not sampled."""
    samples, processes = view.frames["process_samples"], view.frames["processes"]
    fleet = processes["pid"][processes["role"].isin([*SERVER_ROLES, "client"])]
    most = samples[samples["pid"].isin(fleet)].groupby("pid")["fd_count"].max()
    is_known = len(most) == fleet.nunique() and bool((most >= 0).all())
    return float(most.sum()) if is_known and len(most) else float("inf")


def _tcp_mem_rung(view: RunView) -> Rung:
    rows = _sampled(view, "sockstat")
    source = tcp_mem.LIMIT.source
    if rows.empty:
        return blind("tcp_mem", "host", "pages", "the host's counters were not sampled", source)
    capacity = float(rows["tcp_mem_max_pages"].iloc[-1])
    recorded = view.sysctl("net.ipv4.tcp_mem").split()
    if capacity <= 0 and len(recorded) == 3:
        capacity = float(recorded[2])
    if capacity <= 0:
        return blind("tcp_mem", "host", "pages", "tcp_mem cannot be read in this namespace", source)
    return _fitted(
        "tcp_mem",
        rows["open_count"],
        rows["tcp_mem_pages"],
        capacity,
        unit="pages",
        source=source,
        note=f"{tcp_mem.LIMIT.raised_by} raises it",
        peak_count=view.peak_count,
        without_growth="idle connections hold no pages of it; traffic would",
    )


def _memory_rung(view: RunView) -> Rung:
    host = _sampled(view, "host_memory")
    source = "slab and resident sets of the fleet against MemAvailable"
    if host.empty:
        return blind("memory", "host", "bytes", "the host's memory was not sampled", source)
    before = host.iloc[0]
    capacity, moved_by = float(before["available_bytes"]), HARDWARE
    if int(before["cgroup_max_bytes"]) > 0:
        room = float(before["cgroup_max_bytes"] - before["cgroup_used_bytes"])
        if room < capacity:
            capacity, source = room, "slab and resident sets of the fleet against memory.max"
            moved_by = SETTING
    samples = view.frames["process_samples"]
    fleet = samples[samples["role"].isin([*SERVER_ROLES, "client"])]
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
        moved_by=moved_by,
    )


def _sampled_rung(view: RunView, limit: Limit, sampled: Sampled) -> Rung:
    """A limit of the whole host whose capacity and use are two columns of one table."""
    rows = _sampled(view, sampled.table)
    rows = rows[rows[sampled.capacity] > 0]
    if rows.empty:
        why = f"none of {limit.words} in the run's namespace, or it was not sampled"
        return blind(limit.name, "host", limit.unit, why, limit.source)
    return _fitted(
        limit.name,
        rows["open_count"],
        rows[sampled.used],
        float(rows[sampled.capacity].iloc[-1]),
        unit=limit.unit,
        source=limit.source,
        note=f"{limit.raised_by} raises it",
        peak_count=view.peak_count,
    )
