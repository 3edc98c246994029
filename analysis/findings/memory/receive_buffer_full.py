"""``receive-buffer-full``: sockets' own receive buffers are full, since nobody reads them.

Proof: windows that closed and stayed so for a while (TCPToZeroWindowAdv less
TCPFromZeroWindowAdv), and the fullest socket's sk_rmem_alloc against sk_rcvbuf.
Told apart from ``tcp-memory-pressure``: there TCP as a whole is at its limit, segments are dropped
(TCPRcvQDrop) while the sockets' own buffers have room. A window that closes and soon opens again
is flow control at work, not this. In a network namespace that others use the windows may be theirs:
there a socket of the run must stay full meanwhile.
"""

from __future__ import annotations

import pandas as pd

from analysis.causes import Cause, Effect
from analysis.evidence import Evidence, Finding, Fix, Side, Subject, capitalised
from analysis.signs.memory import (
    gave_up,
    lost_to_full_buffers,
    unread_worker,
    until_stop,
    zero_windows,
)
from analysis.signs.signs import Signs

CAUSE = Cause(
    id="receive-buffer-full",
    line="one socket's own receive buffer is full",
    follows_from=(
        "slow-consumers",
        "tcp-memory-pressure",
        Effect.SLOWS_ACCEPT,
    ),
)

_LASTING_S = 1.0
"""A worker whose turn is long opens its windows within one turn: tens of ms in loaded runs."""
_FULL_SHARE = 0.5
"""Of the mean sk_rcvbuf: a window closes when less than a segment fits. The buffers of those that
are read grow up to twice meanwhile, and with them the mean, where no snapshot came before that."""

_MOST_SNAPSHOTS = 0.5


def find(signs: Signs) -> list[Finding]:
    """One finding about the side whose sockets are fullest."""
    view = signs.view
    span = _longest(zero_windows(view), view.stop_s)
    if span is None:
        return []
    first_s, last_s, count = span
    sockets = until_stop(view, "socket_memory")
    fullest = _fullest(sockets, first_s)
    if fullest is None:
        return []
    side, at_s, used, limit = fullest
    if side == "client" and view.is_attached:
        return []  # its clients are not watched; some may happen to be on this host
    if not view.has_own_namespace:
        mine = sockets[
            (sockets["side"] == side) & sockets["at_s"].between(first_s, view.last_sample_s)
        ]
        if not _stays_full(mine, limit):
            return []
        count = min(count, int(mine["socket_count"].max()))
    subject = Subject("server" if side == "server" else "client")
    if side == "server" and (pid := unread_worker(view, first_s)):
        subject = view.subject(pid)
    confidence, missing = signs.trust("net_counters", "socket_memory")
    if not subject.pid:
        missing += ("which process does not read could not be told: all of them received",)
    name = str(subject)
    name = capitalised(name)
    lost = lost_to_full_buffers(view)
    return [
        Finding(
            cause=CAUSE.id,
            severity="warning",
            side=side,
            subject=subject,
            first_s=first_s,
            last_s=last_s,
            evidence=(
                Evidence("closed_windows", count, "net_counters", first_s),
                Evidence("span_length", last_s - first_s, "net_counters"),
                Evidence("receive_queue_memory", used, "socket_memory", at_s),
                Evidence("receive_queue_limit", limit, "socket_memory", at_s),
            ),
            explanation=(
                f"{name} does not read what is sent to it: {count:,} sockets told their peers to "
                f"stop (window 0) for {last_s - first_s:.1f} s, the fullest with {used:,} of "
                f"{limit:,} bytes. Nothing is dropped; the data wait in the senders, which give up "
                f"when their own buffers are full{gave_up(view)}."
            ),
            fix=(
                Fix(
                    "ss -tmn state established | sort -k1 -n | tail",
                    f"shows the {count:,} sockets and their unread bytes; the reader is what to "
                    "mend, a larger tcp_rmem only delays it",
                ),
            ),
            at_connections=view.open_count_at(first_s),
            confidence=confidence,
            missing=missing,
            sentence=f"{name} left {count:,} receive buffers full for {last_s - first_s:.1f} s",
            explained_count=lost,
        )
    ]


def _stays_full(sockets: pd.DataFrame, limit: int) -> bool:
    """The fullest socket is full in most snapshots: of one that is read it is a moment."""
    rows = sockets[(sockets["state"] == "ESTABLISHED") & (sockets["socket_count"] > 0)]
    full = rows["rmem_alloc_max_bytes"] >= _FULL_SHARE * limit
    return bool(len(rows)) and bool(full.mean() >= _MOST_SNAPSHOTS)


def _longest(windows: pd.DataFrame, stop_s: float) -> tuple[float, float, int] | None:
    """The longest span in which some windows stayed closed, and the fewest of them; None if short.

    Rows come only when a counter changed, so a value holds until the next row.
    """
    best: tuple[float, float, int] | None = None
    begun_s, fewest = -1.0, 0
    moments = [*windows["at_s"].tolist(), stop_s]
    for at_s, count in zip(moments, [*windows["socket_count"].tolist(), 0], strict=True):
        if count > 0:
            fewest = min(fewest, count) if begun_s >= 0 else count
            begun_s = begun_s if begun_s >= 0 else at_s
        elif begun_s >= 0:
            if at_s - begun_s >= _LASTING_S and (
                best is None or at_s - begun_s > best[1] - best[0]
            ):
                best = (begun_s, at_s, fewest)
            begun_s = -1.0
    return best


def _fullest(sockets: pd.DataFrame, since_s: float) -> tuple[Side, float, int, int] | None:
    """Side, moment, bytes and limit of the fullest queue once windows had closed.

    The limit is the lowest mean sk_rcvbuf of that side: it grows by reading (tcp_rcv_space_adjust),
    so those that are not read keep the one that all began with.
    """
    rows = sockets[
        (sockets["state"] == "ESTABLISHED")
        & sockets["side"].isin(["server", "client"])
        & (sockets["socket_count"] > 0)
    ]
    means = rows["rcvbuf_bytes"] / rows["socket_count"]
    limits = means.groupby(rows["side"]).transform("min")
    shares = (rows["rmem_alloc_max_bytes"] / limits)[rows["at_s"] >= since_s - 1.0]
    full = shares[shares >= _FULL_SHARE]
    if full.empty:
        return None
    at = full.index[int(full.to_numpy().argmax())]
    row = rows.loc[at]
    side: Side = "server" if row["side"] == "server" else "client"
    return side, float(row["at_s"]), int(row["rmem_alloc_max_bytes"]), int(limits.loc[at])
