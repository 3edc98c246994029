"""What was harmed while no core was free: the half of ``host-cpu-saturated`` that makes it matter.

A run of ours knows what its clients and event loops missed. Of a server that is only watched it is
the server itself: it was ready to run and had no core for much of the time. An idle one beside it
waits hardly ever, however full the host is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.evidence import Evidence, Finding
from analysis.frames.cpu import df_host_pressure
from analysis.frames.keepalive import ping_work
from analysis.frames.run_view import Floats, RunView
from analysis.signs.full_processes import is_server_full
from analysis.signs.signs import ETIMEDOUT, Signs
from analysis.stats.spans import runs_of
from analysis.stats.thresholds import FULL_HOST_PCT
from probes.contract.schema import SERVER_ROLES

Flags = npt.NDArray[np.bool_]

BUSY_PCT = FULL_HOST_PCT
LEAST_S = 1.0
_BEHIND = 0.8
_STALLED_LOOP_S = 0.5
_WATCHED_WAIT_PCT = 20.0
"""An idle server waits up to a tenth of the time for the few turns that it takes."""
_WATCHED_LONG_WAIT_PCT = 40.0
"""So much is a lot, also beside more time on a core."""
_RESTED_WAIT_PCT = 10.0
"""Who waits less for an interval came to rest: no more than a burst lies before and behind it."""
_WATCHED_PRESSURE_PCT = 60.0
_WATCHED_LEAST_S = 3.0
_STILL_PCT, _STILL_LOOKS = 1.0, 5
_IDLE_PCT = 20.0
"""Who gets and wants less of a core than this is not kept from its work by who has them."""
_SETTLED_S = 0.6
"""An interval that ends sooner lies partly in the time before."""


@dataclass(frozen=True, slots=True)
class Harm:
    """What was harmed while no core was free: when, in words, with numbers.

    Attributes:
        from_s: When it began.
        until_s: When it ended.
        words: For people.
        evidence: Its numbers.
        explained_count: Attempts that it explains.
        sustained_per_s: What was done a second, 0 when that is not it.
        due_per_s: What was wanted.
        is_of_any_task: Nobody knows whether those that waited were the server's.
    """

    from_s: float
    until_s: float
    words: str
    evidence: tuple[Evidence, ...]
    explained_count: int = 0
    sustained_per_s: float = 0.0
    due_per_s: float = 0.0
    is_of_any_task: bool = False


def harms_of(signs: Signs, keeping_out: Callable[[Signs], list[Finding]]) -> list[Harm]:
    """Everything that was harmed, what proves most first; a full host is not looked for.

    Args:
        signs: From the run.
        keeping_out: Finds what of the server itself lets nobody in; asked when attempts waited.
    """
    if signs.view.is_attached:
        found = [_waiting_server(signs)]
    else:
        found = [_behind(signs), _stalled_loops(signs), _stalled_attempts(signs, keeping_out)]
    return [harm for harm in found if harm is not None]


def _behind(signs: Signs) -> Harm | None:
    """Messages or pings that went out at less than their rate in the hold phase."""
    view = signs.view
    if view.hold.duration_s < LEAST_S:
        return None
    live = view.frames["live_samples"]
    at_s = view.seconds_of(live["at_ns"])
    inside = live[(at_s >= view.hold.start_s) & (at_s <= view.hold.end_s)]
    due_per_s = float(view.settings.get("message_rate_per_s") or 0)
    if due_per_s and view.held_count:
        sent_per_s = _per_s(inside[inside["role"] == "client"], "tx_messages_total")
        if sent_per_s is not None and sent_per_s < _BEHIND * due_per_s:
            return _rate_harm(signs, "messages", sent_per_s, due_per_s)
    work = [w for w in ping_work(view) if w.is_long_enough]
    due_per_s = sum(w.due_per_s for w in work)
    sent_per_s = sum(w.pings_per_s for w in work)
    if work and sent_per_s < _BEHIND * due_per_s:
        return _rate_harm(signs, "pings", sent_per_s, due_per_s)
    return None


def _per_s(rows: pd.DataFrame, column: str) -> float | None:
    """Growth of a total over all processes, per second; None without two samples of one."""
    rates = [
        (part[column].iloc[-1] - part[column].iloc[0])
        / max(1e-9, float(part["at_ns"].iloc[-1] - part["at_ns"].iloc[0]) / 1e9)
        for _, part in rows.groupby("pid", sort=False)
        if len(part) >= 2
    ]
    return float(sum(rates)) if rates else None


def _rate_harm(signs: Signs, what: str, sent_per_s: float, due_per_s: float) -> Harm:
    hold = signs.view.hold
    return Harm(
        hold.start_s,
        hold.end_s,
        f"{sent_per_s:,.0f} of the {due_per_s:,.0f} {what} due a second went out",
        (
            Evidence("sent_rate", sent_per_s, "live_samples", hold.start_s, of=what),
            Evidence("due_rate", due_per_s, "manifest", of=what),
        ),
        sustained_per_s=sent_per_s,
        due_per_s=due_per_s,
    )


def _stalled_loops(signs: Signs) -> Harm | None:
    """Turns of half a second and more in most workers while connections are only held."""
    view = signs.view
    live = view.frames["live_samples"]
    at_s = view.seconds_of(live["at_ns"])
    # a sample's longest turn may reach back into the ramp
    from_s = view.hold.start_s + _STALLED_LOOP_S
    rows = live[(live["role"] == "server") & (at_s > from_s) & (at_s <= view.hold.end_s)]
    longest_s = rows.groupby("pid")["loop_max_lag_ns"].quantile(0.75) / 1e9
    if longest_s.empty or float(longest_s.median()) < _STALLED_LOOP_S:
        return None
    typical_s = float(longest_s.median())
    return Harm(
        view.hold.start_s,
        view.hold.end_s,
        f"a turn of the workers' event loops lasted {typical_s:.1f} s",
        (Evidence("typical_loop_turn", typical_s, "live_samples"),),
    )


def _stalled_attempts(signs: Signs, keeping_out: Callable[[Signs], list[Finding]]) -> Harm | None:
    """Attempts that waited in vain, unless full servers, or idle ones, explain them."""
    view = signs.view
    if not signs.stalled_count or is_server_full(signs):
        return None
    if _is_kept_out_by_an_idle_server(signs, keeping_out(signs)):
        return None
    connections = view.connections
    late = connections["is_failed"] & (
        (connections["close_kind"] == "timeout") | (connections["errno"] == ETIMEDOUT)
    )
    ended = connections["closed_s"][late]
    until_s = view.stop_s if view.waiting_count or ended.empty else float(ended.max())
    return Harm(
        signs.first_stalled_s,
        until_s,
        f"{signs.stalled_count:,} attempts waited in vain",
        (Evidence("stalled_attempts", signs.stalled_count, "connections", signs.first_stalled_s),),
        explained_count=signs.stalled_count,
    )


def _is_kept_out_by_an_idle_server(signs: Signs, findings: list[Finding]) -> bool:
    """Most attempts wait for a server that wants no core: a free one would not have let them in.

    Where it works behind a proxy, that may want one as it likes: it waits for who is behind it.
    """
    telling = [each for each in findings if 2 * each.explained_count >= signs.stalled_count]
    if not telling:
        return False
    cpu = signs.worker_cpu
    since_s = min(finding.first_s for finding in telling)
    is_behind = all(finding.subject.role == "backend" for finding in telling)
    roles = ["backend"] if is_behind else list(SERVER_ROLES)
    rows = cpu[cpu["role"].isin(roles) & (cpu["at_s"] > since_s + _SETTLED_S)]
    # one whose waits are not known may have been ready all the time; but a scheduler that is fair
    # gives whoever is ready some of a core in seconds
    is_still = rows.groupby("pid")["cpu_pct"].transform("max") < _STILL_PCT
    is_still &= rows.groupby("pid")["at_s"].transform("count") >= _STILL_LOOKS
    waits_pct = rows["wait_pct"].mask(rows["wait_pct"].isna() & is_still, 0.0)
    wanted_pct = (rows["cpu_pct"] + waits_pct).groupby(rows["pid"]).mean(skipna=False)
    return bool(len(wanted_pct)) and bool((wanted_pct < _IDLE_PCT).all())


def host_busy_between(
    view: RunView, since_s: Floats, until_s: Floats
) -> tuple[Floats, Floats, Floats]:
    """The share of all cores that was not idle in each span, from their totals.

    A core that the hypervisor has taken is not free either. On a full host the samples themselves
    come late, down to one in several seconds.

    Args:
        view: The run.
        since_s: Where the spans begin.
        until_s: Where they end.

    Returns:
        Per cent, NaN where nobody knows; of these what the hypervisor took; and how much of each
        span lies between the first sample and the last, in s.
    """
    raw = view.host_cpu
    raw = raw[(raw["core"] == -1) == bool((raw["core"] == -1).any())]
    totals = raw.drop(columns="core").groupby("at_ns").sum()
    if len(totals) < 2:
        nobody_knows = np.full(len(since_s), np.nan)
        return nobody_knows, nobody_knows, np.zeros(len(since_s))
    at_s = view.seconds_of(totals.index)
    whole = totals.sum(axis=1).to_numpy(dtype=np.float64)
    free = totals["idle_ns_total"].to_numpy(dtype=np.float64)

    def grown(values: Floats) -> Floats:
        """By how much, in each span; before the first sample and after the last it stands."""
        difference: Floats = np.interp(until_s, at_s, values) - np.interp(since_s, at_s, values)
        return difference

    of_all = grown(whole)
    of_all = np.where(of_all > 0, of_all, np.nan)
    stolen = totals["steal_ns_total"].to_numpy(dtype=np.float64)
    return 100 * grown(whole - free) / of_all, 100 * grown(stolen) / of_all, grown(at_s)


def is_starved(wait_pct: Floats, cpu_pct: Floats) -> Flags:
    """Whether a process got much less of a core than it wanted, which is what it got and waited.

    Args:
        wait_pct: Part of the time that it was ready to run and had no core; NaN is not starved.
        cpu_pct: Part of the time that it had one.
    """
    less_than_half = (wait_pct >= _WATCHED_WAIT_PCT) & (wait_pct >= cpu_pct)
    starved: Flags = less_than_half | (wait_pct >= _WATCHED_LONG_WAIT_PCT)
    return starved


def _starved_intervals(view: RunView, rows: pd.DataFrame) -> Flags:
    """Intervals that lie in 3 s or more in which a process was starved and no core was free.

    Means of the whole 3 s are looked at: on a full host a row's moment and what it says may be a
    second apart. The process must not have come to rest in between.

    Args:
        view: The run.
        rows: Of one process: since_s, at_s, wait_pct, cpu_pct.
    """
    since_s, at_s, wait_pct, cpu_pct = (
        rows[name].to_numpy(dtype=np.float64) for name in ("since_s", "at_s", "wait_pct", "cpu_pct")
    )
    last = np.searchsorted(at_s, since_s + _WATCHED_LEAST_S - 1e-6)
    first = np.flatnonzero(last < len(at_s))
    last = last[first]

    def between(values: Floats) -> Floats:
        """The sum over the intervals from each first to its last."""
        sums = np.concatenate([[0.0], np.cumsum(values)])
        grown: Floats = sums[last + 1] - sums[first]
        return grown

    lengths_s = at_s - since_s
    whole_s = between(lengths_s)
    flags = is_starved(
        between(np.nan_to_num(wait_pct) * lengths_s) / whole_s,
        between(cpu_pct * lengths_s) / whole_s,
    )
    flags &= between(np.where(wait_pct >= _RESTED_WAIT_PCT, 0.0, 1.0)) == 0
    flags &= host_busy_between(view, since_s[first], at_s[last])[0] >= BUSY_PCT
    edges = np.zeros(len(at_s) + 1)
    np.add.at(edges, first[flags], 1)
    np.add.at(edges, last[flags] + 1, -1)
    inside: Flags = np.cumsum(edges)[:-1] > 0
    return inside


def _waiting_server(signs: Signs) -> Harm | None:
    """The longest time in which a process of the server was starved and no core free, all along.

    What clients or event loops missed by it is not seen from outside: it takes longer to be told.
    """
    rows = signs.worker_cpu
    rows = rows[rows["side"] == "server"]
    if not rows["wait_pct"].notna().any():
        return _waiting_tasks(signs)
    begun_s = _first_sample_s(signs.view)
    best: tuple[float, float, pd.DataFrame] | None = None
    for pid, of_pid in rows.groupby("pid", sort=True):
        since_s = of_pid["at_s"].shift(fill_value=max(0.0, begun_s[int(str(pid))]))
        mine = _until_the_stop(of_pid.assign(since_s=since_s), signs.view.stop_s)
        for start, stop in runs_of(_starved_intervals(signs.view, mine)):
            part = mine.iloc[start:stop]
            from_s = float(part["since_s"].iloc[0])
            until_s = float(part["at_s"].iloc[-1])
            if best is None or until_s - from_s > best[1] - best[0]:
                best = from_s, until_s, part
    if best is None:
        return None
    from_s, until_s, part = best
    wait_pct, cpu_pct = (
        float((part[column] * part["length_s"]).sum() / part["length_s"].sum())
        for column in ("wait_pct", "cpu_pct")
    )
    subject = signs.view.subject(int(part["pid"].iloc[0]))
    return Harm(
        from_s,
        until_s,
        f"{subject} waited for a core {wait_pct:.0f} % of the time and got {cpu_pct:.0f} %",
        (
            Evidence("core_wait", wait_pct, "process_samples", from_s, of=str(subject)),
            Evidence("process_cpu", cpu_pct, "process_samples", from_s, of=str(subject)),
        ),
    )


def _until_the_stop(rows: pd.DataFrame, stop_s: float) -> pd.DataFrame:
    """The intervals within the watch, with what is certain of one that reaches beyond its end.

    A full host delays the samples, the last one by seconds. So much of its wait as fits behind the
    end is taken to lie there, and all of its time on a core before it.

    Args:
        rows: Of one process: since_s, at_s, wait_pct, cpu_pct.
        stop_s: End of the watch.
    """
    rows = rows[(rows["since_s"] < stop_s) & (rows["since_s"] < rows["at_s"])]
    whole_s = rows["at_s"] - rows["since_s"]
    length_s = rows["at_s"].clip(upper=stop_s) - rows["since_s"]
    wait_s = (rows["wait_pct"] / 100 * whole_s - (whole_s - length_s)).clip(lower=0)
    cpu_s = (rows["cpu_pct"] / 100 * whole_s).clip(upper=length_s - wait_s)
    return rows.assign(
        at_s=rows["at_s"].clip(upper=stop_s),
        length_s=length_s,
        wait_pct=100 * wait_s / length_s,
        cpu_pct=100 * cpu_s / length_s,
    )


def _first_sample_s(view: RunView) -> dict[int, float]:
    """When each process was sampled first."""
    first_ns = view.frames["process_samples"].groupby("pid")["at_ns"].min()
    return {int(str(pid)): view.seconds(at_ns) for pid, at_ns in first_ns.items()}


def _waiting_tasks(signs: Signs) -> Harm | None:
    """For a recording without the server's own waits: any task of the host waited all along."""
    rows = df_host_pressure(signs.view)
    rows = rows[(rows["resource"] == "cpu") & (rows["at_s"] <= signs.view.stop_s)]
    at_s = rows["at_s"].to_numpy()
    spans = [
        (float(at_s[start - 1]) if start else 0.0, rows.iloc[start:stop])
        for start, stop in runs_of(rows["some_pct"].to_numpy() >= _WATCHED_PRESSURE_PCT)
    ]
    if not spans:
        return None
    since_s, part = max(spans, key=lambda span: float(span[1]["at_s"].iloc[-1]) - span[0])
    until_s, mean = float(part["at_s"].iloc[-1]), float(part["some_pct"].mean())
    if until_s - since_s < _WATCHED_LEAST_S:
        return None
    evidence = Evidence("core_pressure", mean, "host_pressure", since_s)
    words = f"tasks waited for a core {mean:.0f} % of {until_s - since_s:.1f} s"
    return Harm(since_s, until_s, words, (evidence,), is_of_any_task=True)
