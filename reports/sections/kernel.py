"""What the kernel's TCP did: states, accept queues, drops, resets, retransmits, counters."""

from __future__ import annotations

from typing import Any

import pandas as pd

from reports.elements import formatting, style
from reports.elements.tables import (
    Cell,
    Chart,
    Heading,
    MakeCell,
    Part,
    number_column,
    process_column,
    table_of,
    text_column,
)
from reports.figures.lines import plot_lines
from reports.sections.view import View

_MAX_LINES = 5
CHART_FROM_PCT = 10.0  # queues that stayed nearly empty need no chart


def kernel_section(view: View) -> dict[str, Any]:
    """States, accept queues, drops, resets, retransmits, counters."""
    s = view.summary
    first_last = [
        number_column("First", "first_s", view.words.after_it, formatting.moment),
        number_column("Last", "last_s", view.words.after_it, formatting.moment),
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
                (
                    Heading("Of"),
                    lambda r: Cell("any network" if r["namespace_known"] == 0 else "the run"),
                ),
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
                time=view.time,
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

    if float(top["used_pct"]) >= CHART_FROM_PCT:
        part.charts.append(_queues_chart(view, part, worst))

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
                number_column("When", "at_s", view.words.after_it, formatting.moment),
            ],
        )
    )
    return part


def _queues_chart(view: View, part: Part, worst: pd.DataFrame) -> Chart:
    s = view.summary
    series = {}
    for row in worst.head(_MAX_LINES).to_dict("records"):
        rows = s.listeners_over_time[s.listeners_over_time["socket_inode"] == row["socket_inode"]]
        name = f":{row['local_port']} inode {int(row['socket_inode'])}"
        series[name] = (rows["at_s"], rows["accept_queue_count"])
    return view.chart(
        "queues-chart",
        part.title,
        "Connections in the accept queue of each listening socket, from snapshots.",
        part.lead,
        lambda width_pt: plot_lines(
            series,
            format_tick=style.thousands,
            time=view.time,
            width_pt=width_pt,
            limit=("backlog", float(worst.iloc[0]["backlog_count"])),
        ),
    )


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
