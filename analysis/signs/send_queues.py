"""Connections whose peers take nothing: when they stood, and what their process kept meanwhile."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.frames.run_view import RunView
from analysis.server.control_group import owner_of
from analysis.signs.memory import until_stop
from analysis.signs.oom_victims import groups_above
from analysis.stats import slopes
from probes.contract.schema import SERVER_ROLES

_LEAST_S = 3.0
_STEADY_SHARE, _STEADY_LEAST_COUNT = 0.1, 2
_LEAST_GROWN_BYTES = 16 << 20
_LEAST_SAMPLES, _LEAST_GROWTH_S = 4, 5.0
_MOST_TIMES_NEW = 3.0
"""What grows for those that do not read is more than new connections would take for themselves."""
_GOES_ON = 0.25
"""Of the mean growth, that of the last third: a heap that found its size grows no more."""
_MOST_TIMES_SENT = 40.0
"""What is kept for one that does not read is about what one that reads is sent. Where most
connections are idle the mean of all is far below that; a heap that grows by itself is far above."""
_LIKE_SENT = 4.0


class Peer(NamedTuple):
    """One whose client does not read.

    Attributes:
        address: As ``192.0.2.1:40000``, with brackets around one of IPv6.
        queue_bytes: Of it in the kernel.
    """

    address: str
    queue_bytes: int


class Standing(NamedTuple):
    """A span in which connections of one process and port stood.

    Attributes:
        pid: The process, 0 when not known.
        port: Of the server.
        since_s: When the first of them stood.
        until_s: The last look at which some did.
        end_s: Until when nothing says that they moved: the next look, or the end of the run.
        socket_count: Connections that stood at the last look.
        closed_count: Of them those whose peer closed its window.
        queue_bytes: Their data in the kernel.
        queued_count: Connections with data in their queue at that look, those that stand too.
        unlooked_count: Connections whose queue may stand as well.
        peers: Those with most, at the last look.
    """

    pid: int
    port: int
    since_s: float
    until_s: float
    end_s: float
    socket_count: int
    closed_count: int
    queue_bytes: int
    queued_count: int
    unlooked_count: int
    peers: list[Peer]


class Growth(NamedTuple):
    """How a process's memory grew while nothing but standing queues explains it.

    Attributes:
        since_s: Begin of the span.
        until_s: Its last sample.
        grown_bytes: From first to last sample.
        per_s_bytes: By least squares.
        is_like_sent: As much as those that read were sent meanwhile.
    """

    since_s: float
    until_s: float
    grown_bytes: int
    per_s_bytes: float
    is_like_sent: bool


class Room(NamedTuple):
    """What memory is left.

    Attributes:
        what: Whose limit, for people.
        left_bytes: How much.
        table: Where it is from.
    """

    what: str
    left_bytes: int
    table: str


def standing(view: RunView) -> list[Standing]:
    """The longest span of each process and port, if it lasted, longest first."""
    rows = until_stop(view, "send_queues")
    found = []
    for (pid, port), part in rows.groupby(["pid", "local_port"], sort=True):
        span = _longest(view, int(str(pid)), int(str(port)), part)
        if span is not None and span.until_s - span.since_s >= _LEAST_S:
            found.append(span)
    return sorted(found, key=lambda each: each.since_s - each.until_s)


def _longest(view: RunView, pid: int, port: int, rows: pd.DataFrame) -> Standing | None:
    best: Standing | None = None
    begun = -1
    moments = rows["at_s"].to_numpy()
    stood = (rows["standing_count"] > 0).to_numpy()
    for index in range(len(rows)):
        if not stood[index]:
            begun = -1
            continue
        begun = index if begun < 0 else begun
        if index + 1 < len(rows) and stood[index + 1]:
            continue
        last = rows.iloc[index]
        run = rows.iloc[begun : index + 1]
        since_s = float((run["at_s"] - run["longest_standing_ns"] / 1e9).min())
        span = Standing(
            pid=pid,
            port=port,
            since_s=max(since_s, view.ramp.start_s),
            until_s=float(moments[index]),
            end_s=float(moments[index + 1]) if index + 1 < len(rows) else view.stop_s,
            socket_count=int(last["standing_count"]),
            closed_count=int(last["closed_window_count"]),
            queue_bytes=int(last["standing_bytes"]),
            queued_count=int(last["queued_count"]),
            unlooked_count=int(last["unlooked_count"]),
            peers=_peers(view, pid, port, int(last["at_ns"])),
        )
        if best is None or span.until_s - span.since_s > best.until_s - best.since_s:
            best = span
    return best


def _peers(view: RunView, pid: int, port: int, at_ns: int) -> list[Peer]:
    rows = view.frames["standing_sockets"]
    rows = rows[(rows["at_ns"] == at_ns) & (rows["pid"] == pid) & (rows["local_port"] == port)]
    rows = rows.sort_values("send_queue_bytes", ascending=False, kind="stable")
    return [
        Peer(f"[{host}]:{number}" if ":" in host else f"{host}:{number}", int(held))
        for host, number, held in zip(
            rows["remote_address"], rows["remote_port"], rows["send_queue_bytes"], strict=True
        )
    ]


def growth(view: RunView, span: Standing) -> Growth | None:
    """How the memory of its process grew while they stood and hardly a connection came or went.

    None where it did not, where it soon grew no more, or where so much more came than the others
    are sent that something else must have it.
    """
    pid = span.pid or _largest_server(view)
    sampled = until_stop(view, "process_samples")
    mine = sampled[sampled["pid"] == pid]
    since_s, end_s = _steady(view, span)
    mine = mine[(mine["at_s"] >= since_s) & (mine["at_s"] <= end_s)]
    if len(mine) < _LEAST_SAMPLES:
        return None
    at_s, rss = mine["at_s"].to_numpy(), mine["rss_bytes"].to_numpy(dtype=np.float64)
    line = slopes.fit(at_s, rss)
    grown_bytes = int(rss[-1] - rss[0])
    counts = view.open_at([at_s[0], at_s[-1]])
    new_bytes = rss[0] * max(0, int(counts[1] - counts[0])) / max(1, int(counts[0]))
    least_bytes = max(_LEAST_GROWN_BYTES, _MOST_TIMES_NEW * new_bytes)
    if line is None or line.per_x <= 0 or grown_bytes < least_bytes:
        return None
    if at_s[-1] - at_s[0] < _LEAST_GROWTH_S:
        return None
    late = at_s >= at_s[0] + (at_s[-1] - at_s[0]) * 2 / 3
    late[np.flatnonzero(late)[0] - 1] = True  # the sample that the last third begins with
    late_s, late_rss = at_s[late], rss[late]
    if late_rss[-1] - late_rss[0] < _GOES_ON * line.per_x * (late_s[-1] - late_s[0]):
        return None
    sent_per_s = _sent_per_s(view, span, since_s)
    is_like_sent = False
    if sent_per_s is not None:
        share = line.per_x / max(1.0, span.socket_count * sent_per_s)
        if share > _MOST_TIMES_SENT:
            return None
        is_like_sent = 1 / _LIKE_SENT <= share <= _LIKE_SENT
    return Growth(float(at_s[0]), float(at_s[-1]), grown_bytes, line.per_x, is_like_sent)


def _largest_server(view: RunView) -> int:
    sampled = until_stop(view, "process_samples")
    servers = sampled[sampled["role"].isin(SERVER_ROLES)]
    if servers.empty:
        return 0
    return int(servers["pid"].to_numpy()[int(servers["rss_bytes"].to_numpy().argmax())])


def _steady(view: RunView, span: Standing) -> tuple[float, float]:
    """From when until when about as many connections were open as at the last look."""
    moments = np.linspace(span.since_s, max(span.end_s, span.until_s), 400)
    counts, last = view.open_at(moments), view.open_count_at(span.until_s)
    most = max(_STEADY_LEAST_COUNT, _STEADY_SHARE * last)
    moved = np.abs(counts - last) > most
    before = moments[moved & (moments < span.until_s)]
    after = moments[moved & (moments > span.until_s)]
    since_s = float(before[-1]) if len(before) else span.since_s
    return since_s, float(after[0]) if len(after) else float(moments[-1])


def _sent_per_s(view: RunView, span: Standing, since_s: float) -> float | None:
    """Bytes a second to each connection that does not stand, None when not known or none is left.

    Sums are of open sockets: where more closed than came, they fall and say nothing.
    """
    rows = until_stop(view, "socket_traffic")
    rows = rows[(rows["side"] == "server") & (rows["at_s"] >= since_s - 1.0)]
    if len(rows) < 2:
        return None
    first, last = rows.iloc[0], rows.iloc[-1]
    grown = int(last["tx_bytes_total"]) - int(first["tx_bytes_total"])
    moving = int(last["socket_count"]) - span.socket_count
    elapsed_s = float(last["at_s"] - first["at_s"])
    if grown <= 0 or moving <= 0 or elapsed_s <= 0:
        return None
    return grown / elapsed_s / moving


def rooms(view: RunView, pid: int) -> list[Room]:
    """What may be used up by a process that grows, the least first."""
    found = []
    groups = until_stop(view, "cgroup_memory")
    for cgroup_id in groups_above(view, pid):
        rows = groups[(groups["cgroup_id"] == cgroup_id) & (groups["max_bytes"] > 0)]
        if len(rows):
            last = rows.iloc[-1]
            left = max(0, int(last["max_bytes"]) - int(last["used_bytes"]))
            name = owner_of(_path(view, cgroup_id))
            found.append(Room(f"the memory limit of {name}", left, "cgroup_memory"))
    host = until_stop(view, "host_memory")
    if len(host):
        left = int(host["available_bytes"].iloc[-1])
        found.append(Room("the memory that the host has available", left, "host_memory"))
    sampled = until_stop(view, "process_samples")
    rss = sampled[sampled["pid"] == pid]["rss_bytes"]
    limits = view.frames["runtime_limits"]
    for option, size in zip(
        *(limits[limits["pid"] == pid][name] for name in ("option", "size_bytes")), strict=True
    ):
        if len(rss) and size > int(rss.iloc[-1]):
            left = int(size) - int(rss.iloc[-1])
            found.append(Room(f"the heap of its runtime ({option})", left, "runtime_limits"))
    return sorted(found, key=lambda room: room.left_bytes)


def _path(view: RunView, cgroup_id: int) -> str:
    known = view.frames["cgroups"]
    paths = known[known["cgroup_id"] == cgroup_id]["path"]
    return str(paths.iloc[0]) if len(paths) else ""
