"""What a run shows of memory that was short: of the cgroup, of TCP as a whole, of one socket."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.frames.run_view import RunView
from analysis.stats.remembered import remembered

EAGAIN, ENOMEM, ENOBUFS, SIGKILL = 11, 12, 105, 9


@remembered
def until_stop(view: RunView, table: str) -> pd.DataFrame:
    """A sampled table with ``at_s``, without what came after the run began to stop."""
    frame = view.frames[table]
    at_s = view.seconds_of(frame["at_ns"])
    return frame.assign(at_s=at_s)[at_s <= view.last_sample_s]


def rise(frame: pd.DataFrame, column: str) -> tuple[int, float, float]:
    """How far a total rose, and when it was first and last seen higher; (0, 0, 0) when it did not.

    Where it falls another source began, as the cgroup of a worker that replaced one: no less rose.

    Args:
        frame: From ``until_stop``.
        column: A total; negative values are unknown.
    """
    if frame.empty:
        return 0, 0.0, 0.0
    known = frame[frame[column] >= 0]
    steps = known[column].diff()
    moved = known["at_s"][steps > 0]
    if moved.empty:
        return 0, 0.0, 0.0
    grown = int(steps[steps > 0].sum())
    return grown, float(moved.iloc[0]), float(moved.iloc[-1])


def counter(view: RunView, name: str) -> pd.DataFrame:
    """One counter of ``net_counters``: at_s, value_total."""
    frame = until_stop(view, "net_counters")
    if frame.empty:
        return frame
    return frame[frame["counter"] == name]


def lost_to_full_buffers(view: RunView) -> int:
    """Connections that a client gave up since its peer took no more (EAGAIN in a frame)."""
    connections = view.connections
    return int((connections["is_lost"] & (connections["errno"] == EAGAIN)).sum())


def gave_up(view: RunView) -> str:
    """How many did, in brackets; '' where clients were not watched."""
    return "" if view.is_attached else f" ({lost_to_full_buffers(view):,} did)"


def zero_windows(view: RunView) -> pd.DataFrame:
    """Sockets whose advertised window is zero over time: at_s, socket_count.

    TCPToZeroWindowAdv counts windows that closed, TCPFromZeroWindowAdv those that opened again
    (net/ipv4/tcp_output.c, tcp_select_window): the difference is what is closed now. Memory
    pressure counts openings of windows that never closed; that is no count of sockets.
    """
    closed, opened = (
        counter(view, "TcpExtTCPToZeroWindowAdv"),
        counter(view, "TcpExtTCPFromZeroWindowAdv"),
    )
    moments = np.unique(np.concatenate([closed["at_s"], opened["at_s"]]))
    now = _at(closed, moments) - _at(opened, moments)
    return pd.DataFrame({"at_s": moments, "socket_count": np.maximum(now, 0)})


def _at(frame: pd.DataFrame, moments: np.ndarray) -> np.ndarray:
    """Growth of a counter since its first row; it has a row only when it changed."""
    if frame.empty:
        return np.zeros(len(moments), dtype=np.int64)
    at = np.searchsorted(frame["at_s"].to_numpy(), moments, side="right") - 1
    values = frame["value_total"].to_numpy()
    found: np.ndarray = values[np.maximum(at, 0)] - values[0]
    return found


def unread_worker(view: RunView, since_s: float) -> int:
    """Pid of the only server process that receives nothing while its siblings do; 0 if unclear."""
    live = until_stop(view, "live_samples")
    mine = live[(live["role"] == "server") & (live["at_s"] >= since_s) & (live["open_count"] > 0)]
    if mine["pid"].nunique() < 2:
        pids = live[live["role"] == "server"]["pid"].unique()
        return int(pids[0]) if len(pids) == 1 else 0
    grown = mine.groupby("pid")["rx_messages_total"].agg(lambda total: total.max() - total.min())
    silent = grown[grown == 0]
    return int(silent.index[0]) if len(silent) == 1 and (grown > 0).any() else 0
