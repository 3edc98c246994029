"""The pools of local ports: how full each was, and what connect took as they filled."""

from __future__ import annotations

from typing import Any

from reports.elements import formatting
from reports.elements.tables import Cell, Heading, Part, number_column, table_of, text_column
from reports.figures.use import plot_by_use
from reports.sections.view import CLIENTS_ELSEWHERE, View

MIN_BINS = 4  # twentieths of the range with connects; fewer show no course


def ports_section(view: View) -> dict[str, Any]:
    """Local ports in use by source, destination and port."""
    s = view.summary
    part = Part("ports-all", "How full are the pools of local ports?")
    if s.ports.empty:
        part.empty = view.why_empty("port_groups", otherwise="No client connected.")
        if view.is_watched:
            part.empty = CLIENTS_ELSEWHERE
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
    return {"parts": [part, _use_part(view)]}


def _use_part(view: View) -> Part:
    s = view.summary
    part = Part("ports-use", "Did connect take longer as the ports ran out?")
    frame = s.connect_by_use
    if frame.empty:
        part.empty = "No connect succeeded, so there is no time to set against the use."
        return part
    first, last = frame.iloc[0], frame.iloc[-1]
    if len(frame) < MIN_BINS:
        part.lead = (
            f"The pools were never more than {last['used_pct'] + 2.5:.0f} % full, too little for a "
            "course: the median connect took "
            f"{formatting.seconds(float(first['p50_ms']) / 1e3)} "
            f"({formatting.count(float(frame['connection_count'].sum()))} connects, whole run)."
        )
        return part
    low_ms, high_ms = float(first["p50_ms"]), float(last["p50_ms"])
    ratio = formatting.significant(high_ms / max(low_ms, 1e-9), 2)
    part.lead = (
        f"The median connect took {formatting.seconds(low_ms / 1e3)} in pools under "
        f"{first['used_pct'] + 2.5:.0f} % full and {formatting.seconds(high_ms / 1e3)} in those "
        f"over {last['used_pct'] - 2.5:.0f} % full: {ratio} times as much."
    )
    if float(last["used_pct"]) > 50:
        part.lead += (
            " The kernel tries the ports of one parity first, so its search begins to cost at "
            "half full."
        )
    part.charts.append(
        view.chart(
            "use-chart",
            part.title,
            "Time of TCP connect against the share of its pool in use, per 5 % of the range, whole "
            "run; the time axis is logarithmic.",
            part.lead,
            lambda width_pt: plot_by_use(frame, width_pt=width_pt),
        )
    )
    return part
