"""Processor time: per process, per core, per phase, and the stacks that explain it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.evidence import side_of_role
from analysis.frames.run_view import Floats, Phase, RunView
from analysis.stats.remembered import remembered
from analysis.stats.thresholds import FULL_CORE_PCT, NEVER_RESTED_PCT

_KINDS = ("user", "system", "softirq", "irq", "idle", "steal")
_WAIT = "run_queue_wait_ns_total"

_LEAST_HAD_PCT = 50.0


def wants_full_core(cpu_pct: npt.ArrayLike, wait_pct: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Whether a process wanted all of a core, whoever else did.

    It had one most of the time; or it had half of one and never rested: it ran, or was ready to. A
    process that needs less sleeps in between, however often it has to wait for its turn.

    Args:
        cpu_pct: How much of a core it had.
        wait_pct: How much of the time it was ready to run and had none; NaN when not known.
    """
    had = np.asarray(cpu_pct, dtype=np.float64)
    ready = had + np.nan_to_num(np.asarray(wait_pct, dtype=np.float64))
    wants: npt.NDArray[np.bool_] = had >= FULL_CORE_PCT
    return wants | ((had >= _LEAST_HAD_PCT) & (ready >= NEVER_RESTED_PCT))


def never_rested(cpu_pct: npt.ArrayLike, wait_pct: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Whether a process had a core most of the time, or was ready for one nearly all of it.

    How little it had does not matter: on a crowded host that says what its neighbours left. So a
    process that passes is not idle, and one that needs little may pass where each of its turns has
    to wait; what it did with the time tells them apart.

    Args:
        cpu_pct: How much of a core it had.
        wait_pct: How much of the time it was ready to run and had none; NaN when not known.
    """
    had = np.asarray(cpu_pct, dtype=np.float64)
    ready = had + np.nan_to_num(np.asarray(wait_pct, dtype=np.float64))
    busy: npt.NDArray[np.bool_] = (had >= FULL_CORE_PCT) | (ready >= NEVER_RESTED_PCT)
    return busy


def rates(frame: pd.DataFrame, key: str, totals: list[str]) -> pd.DataFrame:
    """The frame without the first row of each key, its totals turned into increase per second.

    Args:
        frame: Rows with ``at_ns``, in time order.
        key: Column that tells the series apart.
        totals: Cumulative columns. One that falls (its source began anew) gives 0.
    """
    if frame.empty:
        return frame.assign(**{name: frame[name].astype("float64") for name in totals})
    ordered = frame.sort_values(key, kind="stable")
    keys, at_ns = ordered[key].to_numpy(), ordered["at_ns"].to_numpy()
    elapsed_s = np.diff(at_ns.astype(np.float64)) / 1e9
    kept = np.flatnonzero((keys[1:] == keys[:-1]) & (elapsed_s > 0))
    changed = {}
    for name in totals:
        change = np.diff(ordered[name].to_numpy(dtype=np.float64))[kept]
        changed[name] = np.maximum(change, 0) / elapsed_s[kept]  # NaN stays
    return ordered.iloc[kept + 1].reset_index(drop=True).assign(**changed)


def df_worker_cpu(view: RunView) -> pd.DataFrame:
    """CPU of every process over time; each row covers the interval that ends at ``at_s``.

    ``wait_pct`` is the part of it in which it was ready to run and had no core; NaN when not known.
    """
    samples = view.frames["process_samples"]
    samples = samples.assign(
        **{_WAIT: samples[_WAIT].where(samples[_WAIT] >= 0)}, was_ready=_was_ready(samples)
    )
    totals = ["cpu_user_ns_total", "cpu_system_ns_total", _WAIT, "voluntary_switches_total"]
    rate = rates(samples, "pid", totals)
    user, system = rate["cpu_user_ns_total"] / 1e7, rate["cpu_system_ns_total"] / 1e7
    wait = (rate[_WAIT] / 1e7).clip(upper=100)
    # a wait is counted when it ends: one that neither ran nor slept from one row to the next waited
    is_stuck = (wait == 0) & (user + system == 0) & (rate["voluntary_switches_total"] == 0)
    is_stuck &= rate["was_ready"].astype(bool) & (rate["state"] == "running")
    # what ended waits for nothing; what the kernel adds to its total then is more than has passed
    wait = wait.mask(is_stuck, 100.0).mask(rate["state"] == "zombie")
    return pd.DataFrame(
        {
            "at_s": view.seconds_of(rate["at_ns"]),
            "pid": rate["pid"],
            "role": rate["role"],
            "worker": rate["worker"],
            "side": rate["role"].map(side_of_role).astype("str"),
            "user_pct": user,
            "system_pct": system,
            "cpu_pct": user + system,
            "wait_pct": wait,
            "rss_bytes": rate["rss_bytes"],
            "fd_count": rate["fd_count"],
            "state": rate["state"],
            "wait_channel": rate["wait_channel"],
        }
    )


def _was_ready(samples: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Whether the sample of a process before each one found it running, or ready to."""
    pids = samples["pid"].to_numpy()
    is_ready = (samples["state"] == "running").to_numpy(dtype=bool)
    order = np.argsort(pids, kind="stable")
    before, after = order[:-1], order[1:]
    found = np.zeros(len(samples), dtype=bool)
    found[after] = is_ready[before] & (pids[before] == pids[after])
    return found


def df_host_cpu(view: RunView) -> pd.DataFrame:
    """Share of each core's time by kind; core -1 is the mean over all.

    ``busy_pct`` is what was not idle: a core that the hypervisor has taken is not free.
    """
    samples = view.host_cpu
    totals = [f"{kind}_ns_total" for kind in _KINDS]
    rate = rates(samples, "core", totals)
    grown = {kind: rate[f"{kind}_ns_total"].to_numpy() for kind in _KINDS}
    whole = np.sum([*grown.values()], axis=0)
    at_s = view.seconds_of(rate["at_ns"])
    kept = (whole > 0) & ~np.isnan(at_s)
    columns = {f"{kind}_pct": 100 * each[kept] / whole[kept] for kind, each in grown.items()}
    frame = pd.DataFrame({"at_s": at_s[kept], "core": rate["core"].to_numpy()[kept], **columns})
    frame = frame.assign(busy_pct=100 - columns["idle_pct"])
    if len(frame) and not (frame["core"] == -1).any():
        mean = frame.groupby("at_s", as_index=False).mean().assign(core=-1)
        frame = pd.concat([frame, mean], ignore_index=True)
    return frame.astype({"core": "int64"}).sort_values("at_s", kind="stable", ignore_index=True)


def df_host_pressure(view: RunView) -> pd.DataFrame:
    """Share of time that some or all tasks waited for a resource."""
    samples = view.frames["host_pressure"]
    rate = rates(samples, "resource", ["some_ns_total", "full_ns_total"])
    return pd.DataFrame(
        {
            "at_s": view.seconds_of(rate["at_ns"]),
            "resource": rate["resource"],
            "some_pct": rate["some_ns_total"] / 1e7,
            "full_pct": rate["full_ns_total"] / 1e7,
        }
    )


@remembered
def cpu_between(view: RunView, phase: Phase) -> pd.DataFrame:
    """Mean CPU of every process between two moments, from its totals at the nearest samples.

    Returns:
        pid, role, worker, user_pct, system_pct, cpu_pct, wait_pct (waiting for a core, NaN when not
        known), user_s, system_s; processes with fewer than two samples there are left out. A phase
        shorter than the sampling interval takes the samples just outside it.
    """
    samples = view.frames["process_samples"]
    at_s = view.seconds_of(samples["at_ns"])
    columns = ["pid", "role", "worker", "user_pct", "system_pct", "cpu_pct", "wait_pct"]
    columns += ["user_s", "system_s"]
    inside = samples[(at_s >= phase.start_s - 0.25) & (at_s <= phase.end_s + 0.25)]
    if inside.empty:
        return pd.DataFrame({c: pd.Series(dtype="float64") for c in columns})
    pids = inside["pid"].to_numpy()
    _, first = np.unique(pids, return_index=True)
    last = len(pids) - 1 - np.unique(pids[::-1], return_index=True)[1]
    order = np.argsort(first)  # of their first samples
    at_ns = inside["at_ns"].to_numpy()
    order = order[at_ns[last[order]] > at_ns[first[order]]]
    first, last = first[order], last[order]

    def grown_s(column: str) -> Floats:
        totals = inside[column].to_numpy()
        grown: Floats = (totals[last] - totals[first]) / 1e9
        return grown

    elapsed_s = grown_s("at_ns")
    user_s, system_s = grown_s("cpu_user_ns_total"), grown_s("cpu_system_ns_total")
    waits = inside[_WAIT].to_numpy()
    is_known = (waits[first] >= 0) & (waits[last] >= 0)
    wait_s = np.where(is_known, grown_s(_WAIT), np.nan)
    who = inside[["pid", "role", "worker"]].iloc[last].reset_index(drop=True)
    return who.assign(
        user_pct=100 * user_s / elapsed_s,
        system_pct=100 * system_s / elapsed_s,
        cpu_pct=100 * (user_s + system_s) / elapsed_s,
        wait_pct=np.clip(100 * wait_s / elapsed_s, 0, 100),
        user_s=user_s,
        system_s=system_s,
    )


def df_probe_overhead(view: RunView) -> pd.DataFrame:
    """What watching cost: the probe process by phase, the eBPF programs over the whole run."""
    health = view.frames["probe_health"]
    counted = health[health["bpf_run_ns"] >= 0]["bpf_run_ns"]
    watched_s = view.stop_s - min(0.0, view.ramp.start_s)
    bpf_pct = float(counted.sum()) / 1e7 / watched_s if len(counted) and watched_s > 0 else np.nan
    samples = view.frames["process_samples"]
    rss = samples[samples["role"] == "probe"]["rss_bytes"]
    rows = []
    for phase in (view.ramp, view.hold):
        mean = cpu_between(view, phase)
        probe = mean[mean["role"] == "probe"]["cpu_pct"]
        rows.append(
            {
                "phase": phase.name,
                "probe_cpu_pct": float(probe.sum()) if len(probe) else np.nan,
                "bpf_cpu_pct": bpf_pct,
                "probe_rss_bytes": int(rss.max()) if len(rss) else 0,
            }
        )
    return pd.DataFrame(rows)


@remembered
def df_flame(
    view: RunView,
    *,
    pid: int | None = None,
    kind: str | None = None,
    window_s: tuple[float, float] | None = None,
) -> pd.DataFrame:
    """Folded stacks: pid, source (python, native), stack, sample_count; most samples first.

    Args:
        view: The run.
        pid: Only of this process.
        kind: Only ``python`` or ``native``.
        window_s: Only samples of this span.
    """
    parts = []
    if kind != "native":
        python = view.frames["python_stacks"]
        parts.append(python[["at_ns", "pid", "stack", "sample_count"]].assign(source="python"))
    if kind != "python":
        native = view.frames["cpu_stacks"]
        parts.append(
            native[["at_ns", "pid", "sample_count"]].assign(
                stack=_joined(native["user_stack"], native["kernel_stack"]), source="native"
            )
        )
    stacks = pd.concat(parts, ignore_index=True)
    if pid is not None:
        stacks = stacks[stacks["pid"] == pid]
    if window_s is not None:
        at_s = view.seconds_of(stacks["at_ns"])
        stacks = stacks[(at_s >= window_s[0]) & (at_s <= window_s[1])]
    folded: pd.DataFrame = (
        stacks.groupby(["pid", "source", "stack"])["sample_count"].sum().reset_index()
    )
    return folded.sort_values("sample_count", ascending=False, kind="stable", ignore_index=True)


def _joined(user: pd.Series[str], kernel: pd.Series[str]) -> pd.Series[str]:
    between = pd.Series(np.where((user != "") & (kernel != ""), ";", ""), index=user.index)
    return user + between.astype("str") + kernel


def df_flame_stacks(view: RunView, hot_pid: int) -> pd.DataFrame:
    """All stacks of the run by process, split into the failure window and the rest.

    Keeps the 400 largest of each process and source: beyond them a flame graph shows hair.
    """
    columns = ["pid", "role", "worker", "source", "stack", "sample_count", "is_hot"]
    window = view.failure_window_s
    inside = df_flame(view, window_s=window) if window else df_flame(view).iloc[:0]
    everywhere = df_flame(view)
    rest = everywhere.merge(inside, on=["pid", "source", "stack"], how="left", suffixes=("", "_in"))
    left = rest["sample_count"] - rest["sample_count_in"].fillna(0).astype("int64")
    rest = rest.assign(sample_count=left).drop(columns="sample_count_in")
    parts = [inside.assign(in_failure_window=True), rest.assign(in_failure_window=False)]
    frame = pd.concat(parts, ignore_index=True)
    frame = frame[frame["sample_count"] > 0]
    frame = frame.sort_values("sample_count", ascending=False, kind="stable")
    frame = frame.groupby(["pid", "source"], sort=False).head(400)
    frame = view.with_who(frame).assign(is_hot=lambda f: f["pid"] == hot_pid)
    return frame[[*columns, "in_failure_window"]].reset_index(drop=True)
