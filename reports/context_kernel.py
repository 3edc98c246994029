"""Socket memory, ports, and what the kernel's TCP did."""

from __future__ import annotations

from typing import Any

import pandas as pd

from reports import formatting, style
from reports.figures.lines import plot_lines
from reports.tables import (
    Cell,
    Heading,
    MakeCell,
    Part,
    number_column,
    process_column,
    table_of,
    text_column,
)
from reports.view import View

_KIND_NAMES = {"slab": "kernel slab", "buffers": "socket buffers", "user": "user memory"}
_MAX_LINES = 5


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
    else:
        known = frame[frame["bytes_per_connection"].notna()]
        whole = float(known["bytes_per_connection"].clip(lower=0).sum())
        by_kind = known.groupby("kind")["bytes_per_connection"].sum()
        totals = [
            {
                "name": name,
                "value": formatting.size(float(by_kind[kind])),
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
        per.tables.append(_memory_table(frame, whole))
    return {"parts": [per, _tcp_mem_part(view)], "totals": totals}


def _memory_table(frame: pd.DataFrame, whole: float) -> Any:
    return table_of(
        "memory-table",
        "Memory per connection by component",
        frame.sort_values("bytes_per_connection", ascending=False),
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


def _tcp_mem_part(view: View) -> Part:
    s = view.summary
    part = Part("tcp-mem", "How close was TCP to its memory limit (tcp_mem)?")
    frame = s.tcp_mem_over_time
    if frame.empty:
        part.empty = view.why_empty("sockstat", otherwise="The counters were never read.")
        return part
    peak = frame.iloc[int(frame["tcp_mem_pages"].to_numpy().argmax())]
    used, limit = float(peak["tcp_mem_pages"]), float(peak["tcp_mem_max_pages"])
    pressure = float(peak["tcp_mem_pressure_pages"])
    part.lead = (
        f"At its peak, {formatting.moment(float(peak['at_s']))} after the ramp began, TCP held "
        f"{formatting.quantity(used, 'pages')} of buffers: "
        f"{formatting.percent(used / limit * 100 if limit else float('nan'))} of its hard limit of "
        f"{formatting.quantity(limit, 'pages')}; pressure begins at "
        f"{formatting.quantity(pressure, 'pages')}. Host wide."
    )
    series = {"TCP buffers": (frame["at_s"], frame["tcp_mem_pages"] * formatting.PAGE_BYTES)}
    part.charts.append(
        view.chart(
            "tcp-mem-chart",
            part.title,
            "Buffer memory of all of TCP on this host, from /proc/net/sockstat.",
            part.lead,
            lambda width_pt: plot_lines(
                series,
                format_tick=style.binary_size,
                phases=view.phases,
                window_s=s.failure_window_s,
                end_s=view.end_s,
                width_pt=width_pt,
                limit=("tcp_mem maximum", limit * formatting.PAGE_BYTES),
            ),
        )
    )
    return part


def ports_section(view: View) -> dict[str, Any]:
    """Local ports in use by source, destination and port."""
    s = view.summary
    part = Part("ports-all", "How full are the pools of local ports?")
    if s.ports.empty:
        part.empty = view.why_empty("port_groups", otherwise="No client connected.")
        return {"parts": [part]}
    fullest = s.ports.iloc[0]
    part.lead = (
        f"{len(s.ports)} pool{'s' if len(s.ports) != 1 else ''}, one for each source address, "
        f"destination address and destination port. The fullest, "
        f"{fullest['source_address']} to {fullest['destination_address']}:"
        f"{fullest['destination_port']}, used "
        f"{formatting.count(float(fullest['ports_used_count']))} of "
        f"{formatting.count(float(fullest['range_count']))} ports "
        f"({formatting.percent(float(fullest['used_pct']))})."
    )

    def use(row: dict[str, Any]) -> Cell:
        value = float(row["used_pct"])
        tone = "bad" if value >= 99.5 else "warn" if value >= 80 else ""
        return Cell(formatting.percent(value), value, min(1.0, value / 100), tone)

    part.tables.append(
        table_of(
            "ports-table",
            "Pools of local ports, fullest first",
            s.ports,
            [
                text_column("From", "source_address", is_code=True),
                (
                    Heading("To"),
                    lambda r: Cell(
                        f"{r['destination_address']}:{r['destination_port']}", is_code=True
                    ),
                ),
                (Heading("Used", "% of the range, peak", is_number=True), use),
                number_column("Ports", "ports_used_count", "in use at the peak"),
                number_column("Range", "range_count", "ports"),
                number_column("Refused", "refused_count", "EADDRNOTAVAIL, whole run"),
                text_column("From table", "source", is_code=True),
            ],
        )
    )
    return {"parts": [part]}


def kernel_section(view: View) -> dict[str, Any]:
    """States, accept queues, drops, resets, retransmits, counters."""
    s = view.summary
    first_last = [
        number_column("First", "first_s", "s after the ramp began", formatting.moment),
        number_column("Last", "last_s", "s after the ramp began", formatting.moment),
    ]
    count = number_column("Count", "event_count", "whole run")
    side, state = text_column("Side", "side"), text_column("State", "state")
    parts = [_states_part(view), _listeners_part(view)]
    harmful_drops = s.drops[~s.drops["benign"].astype(bool)]
    specs: list[tuple[str, str, pd.DataFrame, str, str, list[tuple[Heading, MakeCell]]]] = [
        (
            "drops",
            "Did the kernel drop packets?",
            harmful_drops,
            "skb_drops",
            "No packet was dropped but as part of normal work.",
            [
                text_column("Reason", "reason", is_code=True),
                text_column("In", "location", is_code=True),
                count,
                number_column(
                    "Per connection", "per_connection", "of the run", formatting.significant
                ),
                *first_last,
            ],
        ),
        (
            "resets",
            "Who reset connections?",
            s.resets,
            "tcp_resets",
            "No RST was sent or received.",
            [
                (
                    Heading("Direction"),
                    lambda r: Cell("sent" if r["direction"] == "tx" else "received"),
                ),
                side,
                state,
                text_column("Reason", "reason", is_code=True),
                count,
                *first_last,
            ],
        ),
        (
            "retransmits",
            "Was anything sent twice?",
            s.retransmits,
            "tcp_retransmits",
            "Nothing was retransmitted.",
            [side, state, count, *first_last],
        ),
        (
            "pressure",
            "Did a socket or TCP run out of buffer?",
            s.socket_pressure,
            "socket_pressure",
            "No socket met its buffer limit.",
            [
                text_column("Kind", "kind", is_code=True),
                side,
                count,
                number_column("TCP memory", "allocated_max_pages", "pages, largest seen"),
                *first_last,
            ],
        ),
        (
            "transitions",
            "Which way did sockets go?",
            s.state_transitions,
            "tcp_state_transitions",
            "No state transition was seen.",
            [
                side,
                text_column("From", "old_state", is_code=True),
                text_column("To", "new_state", is_code=True),
                count,
            ],
        ),
        (
            "counters",
            "Which kernel counters moved?",
            s.net_counters,
            "net_counters",
            "No counter of /proc/net/netstat moved.",
            [
                text_column("Counter", "counter", is_code=True),
                number_column("Change", "change_total", "whole run"),
                *first_last,
            ],
        ),
    ]
    for part_id, title, frame, table, otherwise, columns in specs:
        part = Part(part_id, title)
        if frame.empty:
            part.empty = view.why_empty(table, otherwise=otherwise)
        else:
            part.tables.append(table_of(f"{part_id}-table", title, frame, columns))
        parts.append(part)
    parts += _full_set_parts(view)
    return {"parts": parts}


def _states_part(view: View) -> Part:
    s = view.summary
    part = Part("states", "In which TCP states were the sockets?")
    if s.states.empty:
        part.empty = view.why_empty("tcp_states", otherwise="No socket was seen.")
        return part
    peaks = s.states.groupby(["side", "state"])["socket_count"].max().sort_values(ascending=False)
    series = {}
    for key in peaks.index[:_MAX_LINES]:
        side, state = key
        rows = s.states[(s.states["side"] == side) & (s.states["state"] == state)]
        series[f"{side} {state}"] = (rows["at_s"], rows["socket_count"])
    frame = peaks.rename("peak").reset_index()
    label = "Sockets at their peaks: " + ", ".join(
        f"{row['side']} {row['state']} {row['peak']:,.0f}" for row in frame.to_dict("records")
    )
    part.charts.append(
        view.chart(
            "states-chart",
            part.title,
            "Sockets by side and state, from snapshots of all TCP sockets of the run.",
            label,
            lambda width_pt: plot_lines(
                series,
                format_tick=style.thousands,
                phases=view.phases,
                window_s=s.failure_window_s,
                end_s=view.end_s,
                width_pt=width_pt,
            ),
        )
    )
    part.tables.append(
        table_of(
            "states-table",
            "Sockets by side and state",
            frame,
            [
                text_column("Side", "side"),
                text_column("State", "state", is_code=True),
                number_column("Sockets", "peak", "at the peak"),
            ],
        )
    )
    return part


def _listeners_part(view: View) -> Part:
    s = view.summary
    part = Part("listeners", "Did connections wait for accept?")
    if s.listeners.empty:
        part.empty = view.why_empty("listeners", otherwise="No listening socket was seen.")
        return part
    worst = s.listeners.sort_values("used_pct", ascending=False)
    top = worst.iloc[0]
    part.lead = (
        f"The longest accept queue held {formatting.count(float(top['accept_queue_max_count']))} "
        f"of {formatting.count(float(top['backlog_count']))} connections "
        f"({formatting.percent(float(top['used_pct']))})."
    )

    def use(row: dict[str, Any]) -> Cell:
        value = float(row["used_pct"])
        return Cell(
            formatting.percent(value), value, min(1.0, value / 100), "bad" if value >= 100 else ""
        )

    part.tables.append(
        table_of(
            "listeners-table",
            "Accept queues by listening socket",
            worst,
            [
                (
                    Heading("Listener"),
                    lambda r: Cell(f"{r['local_address']}:{r['local_port']}", is_code=True),
                ),
                number_column("Socket", "socket_inode", "inode", lambda v: f"{v:.0f}"),
                (Heading("Used", "% of the backlog, peak", is_number=True), use),
                number_column("Queue", "accept_queue_max_count", "connections, peak"),
                number_column("Backlog", "backlog_count", "connections"),
                number_column("When", "at_s", "s after the ramp began", formatting.moment),
            ],
        )
    )
    return part


def _full_set_parts(view: View) -> list[Part]:
    """Tables of the full probe set; left out when that set was not asked for."""
    s = view.summary
    parts: list[Part] = []
    if not s.runq_latency.empty:
        waits = Part("runq", "How long did threads wait for a core?")
        waits.tables.append(
            table_of(
                "runq-table",
                "Run-queue latency",
                s.runq_latency,
                [
                    process_column(),
                    number_column("At least", "bucket_low_us", "microseconds"),
                    number_column("Waits", "event_count", "whole run"),
                ],
            )
        )
        parts.append(waits)
    if not s.skb_allocs.empty:
        allocations = Part("skb-allocs", "Which code allocated packet buffers?")
        allocations.tables.append(
            table_of(
                "skb-table",
                "Packet buffer allocations by place",
                s.skb_allocs,
                [
                    text_column("Cache", "cache", is_code=True),
                    text_column("In", "location", is_code=True),
                    number_column("Allocations", "event_count", "whole run"),
                    number_column("Bytes", "allocated_bytes", "whole run", formatting.size),
                ],
            )
        )
        parts.append(allocations)
    return parts
