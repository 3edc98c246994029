"""``full-worker-on-shared-listener`` of a server that is only watched: its clients are elsewhere.

Proof: one listener that several of its processes own, EMFILE in one of them, and descriptors that
another of them had left at that moment. Every such EMFILE is a connection that the sibling could
have had.
Told apart from ``fd-limit-process`` like there: as long as somebody had room.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.evidence import Evidence, Finding, Fix, capitalised, times
from analysis.server.nofile_setting import lasting_limit_command
from analysis.signs.signs import EMFILE, Signs

_ROOM_PART = 0.02
"""Room that is certain although descriptors are sampled twice a second."""
_LEAST_ROOM_COUNT = 4


def find(signs: Signs) -> list[Finding]:
    """One finding about the worker that was full first, or none."""
    view = signs.view
    emfile = signs.accept_errors(EMFILE, role="server")
    if emfile.empty:
        return []
    first = emfile.sort_values("first_s", kind="stable").iloc[0]
    pid, full_s = int(first["pid"]), float(first["first_s"])
    if not np.isfinite(full_s):
        return []
    rooms = {each: _room_count(signs, each, full_s) for each in _siblings(signs, pid)}
    roomy = {each: room for each, room in rooms.items() if room > 0}
    if not roomy:
        return []
    roomiest = max(roomy, key=lambda each: (roomy[each], -each))
    room = roomy[roomiest]
    subject, sibling = view.subject(pid), view.subject(roomiest)
    name = capitalised(str(subject))
    soft, count = _soft_count(signs, pid), int(first["event_count"])
    confidence, missing = signs.trust("failing_syscalls", "process_samples")
    return [
        Finding(
            cause="full-worker-on-shared-listener",
            severity="warning",
            side="server",
            subject=subject,
            first_s=full_s,
            last_s=max(full_s, float(first["last_s"])),
            evidence=(
                Evidence(
                    "emfile_calls", count, str(first["source"]), full_s, of=str(first["syscalls"])
                ),
                Evidence("descriptor_limit", soft, "processes"),
                Evidence("descriptors_left", room, "process_samples", full_s, of=str(sibling)),
                Evidence("listener_processes", len(rooms) + 1, "listener_owners"),
            ),
            explanation=(
                f"Several processes accept from one listener. {name} was full while worker "
                f"{sibling.worker} (pid {sibling.pid}) had {room:,} descriptors left. A full "
                "worker that stays on the shared listener takes connections from its sibling, and "
                f"cannot keep them: {first['syscall']} returned EMFILE {times(count)}."
            ),
            fix=(
                Fix(
                    "leave the shared listener when full (in node: server.close() in that worker), "
                    "come back when a descriptor is freed",
                    f"the connections go to the worker with room for {room:,} more",
                ),
                Fix(
                    lasting_limit_command(signs.view, pid, max(65_535, 2 * soft)),
                    f"no worker is full before {max(65_535, 2 * soft):,} descriptors",
                ),
            ),
            at_connections=view.open_count_at(full_s),
            confidence=confidence,
            missing=missing,
            sentence=f"{name} was full while worker {sibling.worker} of the same listener had "
            f"{room:,} descriptors left",
            explained_count=count,
        )
    ]


def _siblings(signs: Signs, pid: int) -> list[int]:
    """Server processes that own a listener of the server's ports which that one owns too."""
    view = signs.view
    owners = view.frames["listener_owners"]
    listeners = view.frames["listeners"]
    inodes = listeners[listeners["local_port"].isin(view.server_ports)]["socket_inode"]
    owners = owners[owners["socket_inode"].isin(inodes)]
    mine = owners[owners["pid"] == pid]["socket_inode"]
    others = owners[owners["socket_inode"].isin(mine) & (owners["pid"] != pid)]["pid"]
    return sorted({int(other) for other in others} & set(view.pids_of("server")))


def _room_count(signs: Signs, pid: int, at_s: float) -> int:
    """Descriptors that a process surely had left at a moment, 0 when that is not known."""
    samples = signs.view.frames["process_samples"]
    mine = samples[(samples["pid"] == pid) & (samples["fd_count"] >= 0)]
    soft = _soft_count(signs, pid)
    if mine.empty or not soft:
        return 0
    moments = signs.view.seconds_of(mine["at_ns"])
    # the next sample: descriptors only grow while clients come
    index = min(int(np.searchsorted(moments, at_s)), len(moments) - 1)
    left = soft - int(mine["fd_count"].iloc[index])
    return left if left > max(_LEAST_ROOM_COUNT, _ROOM_PART * soft) else 0


def _soft_count(signs: Signs, pid: int) -> int:
    processes: pd.DataFrame = signs.view.frames["processes"]
    mine = processes[processes["pid"] == pid]["nofile_soft_count"]
    return int(mine.iloc[-1]) if len(mine) else 0
