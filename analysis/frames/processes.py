"""The processes of the run, the probes that watched them, and what is missing of either."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.evidence import side_of_role
from analysis.frames.cpu import cpu_between
from analysis.frames.probe_trust import ProbeTrust
from analysis.frames.run_view import RunView


def df_processes(view: RunView) -> pd.DataFrame:
    """One row a process: limits, connections, peaks, CPU, how it ended."""
    frame = view.who.copy()
    by_start = view.frames["processes"].sort_values("start_ns", kind="stable")
    known = by_start.drop_duplicates("pid", keep="last").set_index("pid")
    frame = frame.assign(side=frame["role"].map(side_of_role).astype("str"))
    for column in ("slot", "exit_status"):
        frame[column] = _looked_up(frame["pid"], known[column], -1)
    for column in ("exit_signal", "nofile_soft_count", "own_fds_count"):
        frame[column] = _looked_up(frame["pid"], known[column], 0)
    for column in ("start", "exited"):
        at_ns = _looked_up(frame["pid"], known[f"{column}_ns"], 0)
        frame[f"{column}_s"] = view.seconds_of(at_ns)
    live = view.frames["live_samples"].groupby("pid")
    frame["peak_open_count"] = _looked_up(frame["pid"], live["open_count"].max(), 0)
    for column in ("established_total", "failed_total", "lost_total"):
        frame[column] = _looked_up(frame["pid"], live[column].max(), 0)
    sampled = view.frames["process_samples"].groupby("pid")
    frame["peak_fd_count"] = _looked_up(frame["pid"], sampled["fd_count"].max(), -1)
    frame["peak_rss_bytes"] = _looked_up(frame["pid"], sampled["rss_bytes"].max(), 0)
    for kind in ("user", "system"):
        total_ns = sampled[f"cpu_{kind}_ns_total"].max()
        frame[f"cpu_{kind}_s"] = frame["pid"].map(total_ns) / 1e9
    for name, phase in (("ramp", view.ramp), ("hold", view.hold)):
        mean = cpu_between(view, phase).set_index("pid")["cpu_pct"]
        frame[f"{name}_cpu_pct"] = frame["pid"].map(mean)
    order = frame["role"].map({"server": 0, "acceptor": 1, "backend": 2, "client": 3}).fillna(4)
    frame = frame.assign(order=order).sort_values(
        ["order", "worker", "pid"], kind="stable", ignore_index=True
    )
    return frame.drop(columns="order")


def _looked_up(pids: pd.Series[int], values: pd.Series[int], default: int) -> pd.Series[int]:
    return pids.map(values).fillna(default).astype("int64")


def df_probe_health(view: RunView) -> pd.DataFrame:
    """What each probe did; those that were asked for and left no row are marked failed."""
    health = view.frames["probe_health"]
    bpf_ns = health["bpf_run_ns"]
    records = ProbeTrust(view).records
    shares = [np.nan if each.lost_share is None else each.lost_share for each in records]
    frame = health.assign(
        cpu_s=health["cpu_ns"] / 1e9,
        bpf_run_s=(bpf_ns / 1e9).where(bpf_ns >= 0, np.nan),
        lost_pct=100 * np.array(shares, dtype=np.float64),
        is_loss_material=[each.is_loss_material() for each in records],
        failed_s=view.seconds_of(health["failed_ns"].clip(lower=0)),
    )
    frame = frame[_HEALTH_COLUMNS]
    silent = sorted(_silent_probes(view))
    if not silent:
        return frame
    unseen = pd.DataFrame({"probe": silent}).reindex(columns=_HEALTH_COLUMNS)
    unseen = unseen.assign(
        asked_for=True,
        state="failed",
        reason="it left no health row: the probe process was late or ended early",
        fix="cat -v logs/probes.log in the run directory",
        row_count=0,
        lost_count=0,
        seen_count=-1,
        is_loss_material=False,
        late_count=0,
        missed_count=0,
        run_count=-1,
        cpu_s=0.0,
    ).astype(frame.dtypes.to_dict())
    return pd.concat([frame, unseen], ignore_index=True) if len(frame) else unseen


def _silent_probes(view: RunView) -> set[str]:
    """Probes that were asked for and left no health row."""
    asked = {str(probe) for probe in view.manifest.get("probes_asked") or []}
    return asked - {each.probe for each in ProbeTrust(view).records}


_HEALTH_COLUMNS = [
    *("probe", "asked_for", "state", "reason", "fix", "row_count"),
    *("lost_count", "seen_count", "lost_pct", "is_loss_material", "late_count"),
    *("missed_count", "run_count"),
    *("cpu_s", "bpf_run_s", "failed_s"),
]


def df_syscall_mix(view: RunView) -> pd.DataFrame:
    """Syscalls of the watched processes over the time they were watched."""
    raw = view.frames["syscall_mix"]
    spans = raw.groupby("pid")["at_ns"].agg(["min", "max", "nunique"])
    # n moments are the ends of n intervals
    watched_s = (spans["max"] - spans["min"]) / 1e9 * spans["nunique"]
    watched_s = (watched_s / (spans["nunique"] - 1).clip(lower=1)).where(spans["nunique"] > 1, 1.0)
    counts = raw.groupby(["pid", "syscall"])[["event_count", "failed_count"]].sum()
    frame: pd.DataFrame = counts.reset_index()
    frame["events_per_s"] = frame["event_count"] / frame["pid"].map(watched_s).replace(0, np.nan)
    known = view.with_who(frame)
    columns = ["pid", "role", "worker", "syscall", "event_count", "failed_count", "events_per_s"]
    return known[columns].sort_values(
        "event_count", ascending=False, kind="stable", ignore_index=True
    )


def df_runq_latency(view: RunView) -> pd.DataFrame:
    """Histogram of the wait for a core by process."""
    raw = view.frames["runq_latency"]
    counts = raw.groupby(["pid", "bucket_low_ns"]).agg(event_count=("event_count", "sum"))
    frame = counts.reset_index()
    frame = view.with_who(frame.assign(bucket_low_us=frame["bucket_low_ns"] / 1e3))
    return frame[["pid", "role", "worker", "bucket_low_us", "event_count"]]


def df_skb_allocs(view: RunView) -> pd.DataFrame:
    """Packet buffers by the place that allocated them, most bytes first."""
    raw = view.frames["skb_allocs"]
    frame = raw.groupby(["cache", "location"], as_index=False)[
        ["event_count", "allocated_bytes"]
    ].sum()
    return frame.sort_values("allocated_bytes", ascending=False, kind="stable", ignore_index=True)


def what_is_missing(view: RunView) -> list[str]:
    """What could not be read or measured and may change the verdict, for people.

    What a probe lost besides is in its health row. Call after all tables were read.
    """
    lines = list(view.frames.missing)
    trust = ProbeTrust(view)
    lines += trust.broken_probes
    lines += [
        f"probe {each.probe} lost {each.loss_words()}: its counts are too low"
        for each in trust.records
        if not each.is_broken and each.is_loss_material()
    ]
    lines += _clocks_that_contradict(view)
    silent = _silent_probes(view)
    if silent:
        lines.append(f"probes without a health row (they ended early): {_listed(silent)}")
    if view.manifest.get("status") == "interrupted":
        lines.append("the run was interrupted: what came later is missing")
    return lines


def _clocks_that_contradict(view: RunView) -> list[str]:
    """No connection is accepted before it was begun, where clocks are what they seem."""
    fates, connections = view.frames["connection_fates"], view.frames["connections"]
    accepted = fates[(fates["fate"] == "accepted") & (fates["first_ns"] > 0)]
    bounds = [part.bound_ns for part in view.frames.hosts]
    if not bounds or accepted.empty or connections.empty:
        return []
    early_ns = int(connections["start_ns"].min()) - int(accepted["first_ns"].min())
    if early_ns <= max(bounds):
        return []
    return [
        f"the server accepted {early_ns / 1e6:.3f} ms before the first client began: the clocks of "
        f"the hosts are further apart than their bound of {max(bounds) / 1e6:.3f} ms"
    ]


def _listed(words: set[str]) -> str:
    return ", ".join(sorted(words))
