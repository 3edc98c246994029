"""What became of connections that came to a worker which had no descriptor left for them."""

from __future__ import annotations

import pandas as pd

from analysis.frames.run_view import RunView
from analysis.signs.signs import ACCEPT_CALLS, Signs

CLOSED_LEAST_SHARE = 0.1
"""Connections accepted and closed for each call that failed: libuv and a reserve descriptor have
one or more, a listener that is only kept none."""
_LATE_S = 0.3
"""So much later the other side may see it."""


def refused_at_once(view: RunView, since_s: float, until_s: float = float("inf")) -> pd.DataFrame:
    """Records of clients whose opening handshake ended by RST (request unread) or EOF in a span."""
    connections = view.connections
    closed_s = connections["closed_s"]
    return connections[
        connections["is_failed"]
        & (connections["stage"] == "handshake")
        & connections["close_kind"].isin(["rst", "eof"])
        & (closed_s >= since_s - _LATE_S)
        & (closed_s <= until_s + _LATE_S)
    ]


def resets_sent(view: RunView, since_s: float, until_s: float) -> pd.DataFrame:
    """Rows of ``tcp_resets``, with at_s, of resets that the server's sockets sent in a span."""
    rows = view.frames["tcp_resets"]
    rows = rows.assign(at_s=view.seconds_of(rows["at_ns"]))
    is_sent = (rows["direction"] == "tx") & rows["side"].isin(["server", "other"])
    return rows[is_sent & (rows["at_s"] >= since_s) & (rows["at_s"] <= until_s)]


def is_closing_at_once(signs: Signs, pid: int, span_s: tuple[float, float]) -> bool:
    """Whether a full worker accepts and closes (a reserve descriptor), or only fails to accept.

    By what its calls returned where all of them were counted; else by what the clients of the run
    saw; of a server that is only watched by the resets that it sent.
    """
    since_s, until_s = span_s
    mix = signs.view.frames["syscall_mix"]
    at_s = signs.view.seconds_of(mix["at_ns"])
    calls = mix[
        (mix["pid"] == pid)
        & mix["syscall"].isin(ACCEPT_CALLS)
        & (at_s > since_s)
        & (at_s <= until_s)
    ]
    failed_count = int(calls["failed_count"].sum())
    if failed_count:
        accepted_count = int(calls["event_count"].sum()) - failed_count
        return accepted_count >= CLOSED_LEAST_SHARE * failed_count
    rates = signs.emfile_rates
    inside = rates[(rates["at_s"] > since_s) & (rates["at_s"] <= until_s)]
    emfile_count = float((inside["per_s"] * inside["interval_s"]).sum())
    if signs.view.is_attached:
        closed_count = int(resets_sent(signs.view, since_s, until_s)["event_count"].sum())
    else:
        closed_count = len(refused_at_once(signs.view, since_s, until_s))
    return closed_count > 0 and closed_count >= CLOSED_LEAST_SHARE * emfile_count
