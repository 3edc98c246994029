"""Socket memory per connection, and TCP's memory against its limit."""

from __future__ import annotations

from typing import Any

import pandas as pd

from reports.elements import formatting, style
from reports.elements.tables import (
    Cell,
    Gauge,
    Heading,
    Part,
    Table,
    number_column,
    table_of,
    text_column,
)
from reports.figures.lines import plot_lines
from reports.sections.view import View

_KIND_NAMES = {"slab": "kernel slab", "buffers": "socket buffers", "user": "user memory"}

CHART_FROM_SHARE = 0.01


def memory_section(view: View) -> dict[str, Any]:
    """Bytes per connection by component, and TCP's memory against tcp_mem."""
    s = view.summary
    per = Part("memory-per", "What does one connection cost?")
    frame = s.memory_per_connection
    totals: list[dict[str, Any]] = []
    if frame.empty:
        per.empty = view.why_empty(
            "slab_caches",
            "socket_memory",
            otherwise="Too few samples while connections were opened to fit a slope.",
        )
        if view.is_watched and not s.memory_over_time.empty:
            per.empty = (
                "The connections changed too little while they were watched, or the host's other "
                "work too much, to tell what one of them costs."
            )
    else:
        known = frame[frame["bytes_per_connection"].notna()]
        whole = float(known["bytes_per_connection"].clip(lower=0).sum())
        by_kind = known.groupby("kind")["bytes_per_connection"].sum()
        totals = [
            {
                "name": name,
                "value": formatting.size(max(0.0, float(by_kind[kind]))),
                "share": max(0.0, float(by_kind[kind])) / whole if whole > 0 else 0.0,
                "kind": kind,
            }
            for kind, name in _KIND_NAMES.items()
            if kind in by_kind.index
        ]
        per.lead = (
            f"About {formatting.size(whole)} per connection, both ends and the kernel together, "
            "since server and clients share this machine."
        )
        if view.is_watched:
            per.lead = (
                f"About {formatting.size(whole)} per connection of the server's end, and of the "
                "client's where that is on this host as well."
            )
        per.tables.append(_memory_table(frame, whole))
    return {"parts": [per, _tcp_mem_part(view)], "totals": totals}


def _memory_table(frame: pd.DataFrame, whole: float) -> Table:
    return table_of(
        "memory-table",
        "Memory per connection by component",
        frame[frame["peak_bytes"] > 0].sort_values("bytes_per_connection", ascending=False),
        [
            text_column("Component", "component", is_code=True),
            (Heading("Kind"), lambda r: Cell(_KIND_NAMES.get(str(r["kind"]), str(r["kind"])))),
            (
                Heading("Side"),
                lambda r: Cell("both ends" if r["side"] == "both" else str(r["side"])),
            ),
            number_column(
                "Per connection",
                "bytes_per_connection",
                "slope over the run",
                formatting.size,
                share_of=max(whole, 1.0),
            ),
            number_column("Slope error", "fit_error_pct", "standard error", formatting.percent),
            number_column("Before", "baseline_bytes", "at the start", formatting.size),
            number_column("Peak", "peak_bytes", "in total", formatting.size),
        ],
    )


def _tcp_limits(view: View, peak: pd.Series[float]) -> tuple[float, float]:
    """Pressure threshold and hard limit in pages, 0 where unknown.

    A network namespace of its own does not show tcp_mem; the host's facts and the ladder have it.
    """
    pressure, limit = float(peak["tcp_mem_pressure_pages"]), float(peak["tcp_mem_max_pages"])
    host = view.summary.manifest.get("host") or {}
    words = str((host.get("sysctls") or {}).get("net.ipv4.tcp_mem", "")).split()
    if limit <= 0 and len(words) == 3 and all(word.isdigit() for word in words):
        pressure, limit = float(words[1]), float(words[2])
    if limit <= 0:
        capacities = [r.capacity for r in view.summary.ladder if r.limit == "tcp_mem"]
        limit = float(capacities[0] or 0.0) if capacities else 0.0
    return max(0.0, pressure), max(0.0, limit)


def _page_bytes(view: View) -> int:
    """Of the host of the run: 4 KiB of most, 64 KiB of some with ARM."""
    host = view.summary.manifest.get("host") or {}
    return int(host.get("page_size_bytes") or 4096)


def _pages(pages: float, page_bytes: int) -> str:
    return f"{formatting.quantity(pages, 'pages')} ({formatting.size(pages * page_bytes)})"


def _gauge_marks(pressure: float, limit: float, page_bytes: int) -> list[tuple[float, str]]:
    marks = [(1.0, f"hard limit {formatting.size(limit * page_bytes)}")]
    if 0 < pressure < limit:
        text = f"pressure from {formatting.size(pressure * page_bytes)}"
        marks.insert(0, (pressure / limit, text))
    return marks


def _tcp_mem_part(view: View) -> Part:
    s = view.summary
    part = Part("tcp-mem", "How close was TCP to its memory limit (tcp_mem)?")
    frame = s.tcp_mem_over_time
    if frame.empty:
        part.empty = view.why_empty("sockstat", otherwise="The counters were never read.")
        return part
    peak = frame.iloc[int(frame["tcp_mem_pages"].to_numpy().argmax())]
    used, (pressure, limit) = float(peak["tcp_mem_pages"]), _tcp_limits(view, peak)
    page_bytes = _page_bytes(view)
    part.lead = (
        f"At its peak, {formatting.moment(float(peak['at_s']))} {view.words.after_it}, TCP held "
        f"{_pages(used, page_bytes)} of buffers on the whole host"
    )
    if limit > 0:
        part.lead += (
            f": {formatting.percent(used / limit * 100)} of its hard limit of "
            f"{_pages(limit, page_bytes)}."
        )
        part.gauges.append(
            Gauge(
                "TCP buffers at their peak, of the whole host",
                share=min(1.0, used / limit),
                value=formatting.size(used * page_bytes),
                marks=_gauge_marks(pressure, limit, page_bytes),
            )
        )
    else:
        part.lead += "; its limit could not be read."
    if limit > 0 and used < CHART_FROM_SHARE * limit:
        return part  # a flat line far below its limit: the gauge has said it
    series = {"TCP buffers": (frame["at_s"], frame["tcp_mem_pages"] * page_bytes)}
    part.charts.append(
        view.chart(
            "tcp-mem-chart",
            part.title,
            "Buffer memory of all of TCP on this host, from /proc/net/sockstat.",
            part.lead,
            lambda width_pt: plot_lines(
                series,
                format_tick=style.binary_size,
                time=view.time,
                width_pt=width_pt,
                limit=("tcp_mem maximum", limit * page_bytes) if limit > 0 else None,
            ),
        )
    )
    return part
