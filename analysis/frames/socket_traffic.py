"""What the server's sockets carried between two snapshots: messages by segments, and their size."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from analysis.frames.run_view import RunView
from analysis.stats.thresholds import LATE_LIVE_S


class Traffic(NamedTuple):
    """What all connections of the server carried in a span.

    Attributes:
        span_s: Its length.
        tx_per_s: Segments with data that the server sent.
        rx_per_s: Those that it received.
        tx_bytes: Mean of one that it sent, with the header of WebSocket.
        rx_bytes: Mean of one that it received.
        socket_count: Its established connections.
    """

    span_s: float
    tx_per_s: float
    rx_per_s: float
    tx_bytes: float
    rx_bytes: float
    socket_count: int


def traffic_between(view: RunView, since_s: float, until_s: float) -> Traffic | None:
    """Between the snapshots that lie furthest apart within the span, or else just around it.

    Sums are of open sockets: one that closed takes its part along. Where that outweighs what came
    (a sum that falls), nothing is said.
    """
    raw = view.frames["socket_traffic"]
    rows = raw[raw["side"] == "server"].sort_values("at_ns", kind="stable")
    at_s = view.seconds_of(rows["at_ns"])
    inside = np.flatnonzero((at_s >= since_s) & (at_s <= until_s + LATE_LIVE_S))
    if len(inside) < 2:
        before, after = np.flatnonzero(at_s < since_s), np.flatnonzero(at_s > until_s)
        inside = np.concatenate([before[-1:], inside, after[:1]])
    if len(inside) < 2:
        return None
    first, last = rows.iloc[inside[0]], rows.iloc[inside[-1]]
    span_s = float(at_s[inside[-1]] - at_s[inside[0]])
    grown = {
        name: int(last[f"{name}_total"]) - int(first[f"{name}_total"])
        for name in ("tx_segments", "tx_bytes", "rx_segments", "rx_bytes")
    }
    if min(grown.values()) <= 0 or span_s <= 0:
        return None
    return Traffic(
        span_s=span_s,
        tx_per_s=grown["tx_segments"] / span_s,
        rx_per_s=grown["rx_segments"] / span_s,
        tx_bytes=grown["tx_bytes"] / grown["tx_segments"],
        rx_bytes=grown["rx_bytes"] / grown["rx_segments"],
        socket_count=int(last["socket_count"]),
    )
