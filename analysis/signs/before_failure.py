"""What changed at the first failure: the same figures before it, right at it, and after."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import pandas as pd

from analysis.frames.cpu import cpu_between, df_flame
from analysis.frames.run_view import FAILURE_LEAD_S, Phase, RunView
from analysis.stacks.function_shares import function_name

COLUMNS = ["measure", "subject", "unit", "before", "at_failure", "after"]
_MAX_FUNCTIONS = 5
_LEAST_SAMPLES = 5
_LEAST_SPAN_S = 0.1
"""Shorter spans hold no sample of their own: the figure would be that of its neighbour."""

Figure = Callable[[Phase], float]


def df_before_failure(view: RunView, host_cpu: pd.DataFrame, pid: int) -> pd.DataFrame:
    """Figures of three spans: ramp until the first failure, the 2 s from it, the rest.

    Args:
        view: The run.
        host_cpu: From ``cpu.df_host_cpu``.
        pid: The worker that is set apart from its siblings, 0 for none.

    Returns:
        measure, subject, unit, before, at_failure, after; empty without a failure. NaN where
        nothing was sampled or where the span is too short.
    """
    window = view.failure_window_s
    if window is None:
        return pd.DataFrame(columns=COLUMNS)
    at_s = max(0.0, window[0] + FAILURE_LEAD_S)
    until_s = min(window[1], max(view.stop_s, at_s))
    spans = (
        Phase("before", 0.0, at_s),
        Phase("at_failure", at_s, until_s),
        Phase("after", until_s, max(view.stop_s, until_s)),
    )
    figures = [*_connections(view), *_cpu(view, host_cpu, pid)]
    rows = []
    for measure, subject, unit, figure in figures:
        values = [figure(s) if s.duration_s >= _LEAST_SPAN_S else np.nan for s in spans]
        if any(value == value for value in values):  # noqa: PLR0124 - NaN is not itself
            rows.append((measure, subject, unit, *values))
    rows += _functions(view, pid, spans)
    return pd.DataFrame(rows, columns=COLUMNS)


def _connections(view: RunView) -> Iterator[tuple[str, str, str, Figure]]:
    connections = view.connections
    bad = connections["is_failed"] | connections["is_lost"]
    for measure, moments in (
        ("new connections", connections["established_s"]),
        ("failed or lost connections", connections["closed_s"][bad]),
    ):
        yield measure, "", "per s", partial(_per_s, moments)


def _per_s(moments: pd.Series[float], span: Phase) -> float:
    return float(
        moments.between(span.start_s, span.end_s, inclusive="left").sum() / span.duration_s
    )


def _cpu(view: RunView, host_cpu: pd.DataFrame, pid: int) -> Iterator[tuple[str, str, str, Figure]]:
    kept: dict[str, pd.DataFrame] = {}

    def of(span: Phase) -> pd.DataFrame:
        if span.name not in kept:
            kept[span.name] = cpu_between(view, span)
        return kept[span.name]

    def median(span: Phase, column: str, role: str) -> float:
        frame = of(span)
        is_meant = (frame["role"] == role) & (frame["pid"] != pid) if role else frame["pid"] == pid
        frame = frame[is_meant]
        return float(frame[column].median()) if len(frame) else np.nan

    if pid:
        name = str(view.subject(pid))
        yield "CPU", name, "% of a core", lambda span: median(span, "cpu_pct", "")
        yield (
            "CPU in the kernel",
            name,
            "% of a core",
            lambda span: median(span, "system_pct", ""),
        )
    others = "the other workers, median" if pid else "workers, median"
    yield "CPU", others, "% of a core", lambda span: median(span, "cpu_pct", "server")
    yield "CPU", "clients, median", "% of a core", lambda span: median(span, "cpu_pct", "client")
    whole = host_cpu[host_cpu["core"] == -1]
    yield "CPU", "the host", "% of all cores", lambda span: _mean_busy(whole, span)


def _mean_busy(whole: pd.DataFrame, span: Phase) -> float:
    inside = whole[(whole["at_s"] > span.start_s) & (whole["at_s"] <= span.end_s + 0.25)]
    return float(inside["busy_pct"].mean()) if len(inside) else np.nan


def _functions(
    view: RunView, pid: int, spans: tuple[Phase, ...]
) -> list[tuple[str, str, str, float, float, float]]:
    """Share of that worker's samples by the function on top of the stack, most moved first."""
    if not pid:
        return []
    sampled = {
        span.name: df_flame(view, pid=pid, window_s=(span.start_s, span.end_s)) for span in spans
    }
    shares = {}
    # py-spy begins to look at a worker when it is hot: its samples serve only when all spans that
    # were sampled at all have some, else two kinds of samples would stand side by side.
    kind = "python" if _is_in_all(sampled.values(), "python") else "native"
    for name, stacks in sampled.items():
        of_kind = stacks[stacks["source"] == kind]
        total = int(of_kind["sample_count"].sum())
        if total >= _LEAST_SAMPLES:
            leaf = of_kind["stack"].str.rpartition(";")[2].map(function_name)
            shares[name] = 100 * of_kind.groupby(leaf)["sample_count"].sum() / total
    if len(shares) < 2:
        return []
    frame = pd.DataFrame(shares).fillna(0.0).reindex(columns=list(sampled))
    moved = (frame.max(axis=1) - frame.min(axis=1)).sort_values(ascending=False, kind="stable")
    return [
        (f"in {function}", str(view.subject(pid)), "% of its samples", *frame.loc[function])
        for function in moved.index[:_MAX_FUNCTIONS]
    ]


def _is_in_all(parts: Iterable[pd.DataFrame], kind: str) -> bool:
    filled = [part for part in parts if len(part)]
    return bool(filled) and all((part["source"] == kind).any() for part in filled)
