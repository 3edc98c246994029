"""Keep-alives of a server that is only watched: told by the size of what its sockets carry.

Nobody counts its messages, but its sockets count segments and bytes (``socket_traffic``). A ping or
pong (RFC 6455, section 5.5) is 2 or 6 bytes of header and, in practice, no more than a clock of 8:
what people or programs send each other is longer. One goes out to each connection, one comes back,
and hardly any connection is new. A record of TLS adds 22 bytes (RFC 8446, section 5.2), so of a
server that ends TLS itself this says nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from analysis.frames.socket_traffic import Traffic, traffic_between
from analysis.signs.signs import Signs

_MOST_BYTES = 16.0
"""Of one message with its header: a pong with a clock in it has 14."""
_ANSWERS = (0.5, 1.5)
"""Messages that came for each one that went: a broadcast has few, a chat's are many or few."""
_MOST_CPU_US = 100.0
"""Servers of Python and Node need 10 to 80 us for a small message; beyond is code of their own."""
_LEAST_PER_S = 200.0
_MOST_NEW_SHARE = 0.02
_MOST_TIMES_SIBLINGS = 4.0


class WatchedKeepalives(NamedTuple):
    """A worker whose full core goes to small messages that are answered one by one.

    Attributes:
        pid: The worker.
        since_s: Begin of the span in which its core was full.
        until_s: Its end.
        cpu_pct: Its CPU there.
        cpu_us: CPU of all workers per message, both ways.
        messages_per_s: Of all workers, both ways.
        tx_bytes: Mean of one that the server sent, with the header of WebSocket.
        rx_bytes: Mean of one that it received.
        interval_s: Between two that one connection gets.
        socket_count: Its established connections.
    """

    pid: int
    since_s: float
    until_s: float
    cpu_pct: float
    cpu_us: float
    messages_per_s: float
    tx_bytes: float
    rx_bytes: float
    interval_s: float
    socket_count: int


def watched_keepalives(signs: Signs) -> WatchedKeepalives | None:
    """Whether the hot worker of a server that is only watched is hot of keep-alives."""
    hot = signs.hot_worker
    if not signs.view.is_attached or hot is None or hot["role"] != "server":
        return None
    pid, since_s, until_s = int(hot["pid"]), float(hot["since_s"]), float(hot["until_s"])
    traffic = traffic_between(signs.view, since_s, until_s)
    if traffic is None or not _are_small_and_answered(traffic):
        return None
    per_s = traffic.tx_per_s + traffic.rx_per_s
    servers = signs.view.pids_of("server")
    each_pct = {p: signs.cpu_pct_of(p, since_s, until_s) or 0.0 for p in servers}
    cpu_us = sum(each_pct.values()) * 1e4 / per_s
    taken = sum(signs.established_between(p, since_s, until_s) or 0 for p in each_pct)
    is_quiet = taken / max(until_s - since_s, 0.1) <= _MOST_NEW_SHARE * per_s
    if not is_quiet or cpu_us > _MOST_CPU_US or not _is_like_siblings(signs, pid, each_pct):
        return None
    return WatchedKeepalives(
        pid=pid,
        since_s=since_s,
        until_s=until_s,
        cpu_pct=float(hot["cpu_pct"]),
        cpu_us=cpu_us,
        messages_per_s=per_s,
        tx_bytes=traffic.tx_bytes,
        rx_bytes=traffic.rx_bytes,
        interval_s=traffic.socket_count / traffic.tx_per_s,
        socket_count=traffic.socket_count,
    )


def _are_small_and_answered(traffic: Traffic) -> bool:
    if min(traffic.tx_per_s, traffic.rx_per_s) < _LEAST_PER_S / 2:
        return False
    low, high = _ANSWERS
    is_answered = low * traffic.tx_per_s <= traffic.rx_per_s <= high * traffic.tx_per_s
    return is_answered and max(traffic.tx_bytes, traffic.rx_bytes) <= _MOST_BYTES


def _is_like_siblings(signs: Signs, pid: int, each_pct: dict[int, float]) -> bool:
    """Every connection gets its pings: what one costs must be alike in all workers."""
    live = signs.view.watched_samples
    held = live.groupby("pid")["open_count"].max()
    cost = {p: pct / int(held[p]) for p, pct in each_pct.items() if int(held.get(p, 0)) > 0}
    theirs = [each for p, each in cost.items() if p != pid and each > 0]
    if pid not in cost or not theirs:
        return pid in cost
    return cost[pid] <= _MOST_TIMES_SIBLINGS * float(np.median(theirs))
