"""Processes at their limit of descriptors, for all who ask whether a server was full."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd

from analysis.signs.signs import ACCEPT_CALLS, EMFILE, Signs
from analysis.stats.remembered import remembered
from probes.contract.schema import SERVER_ROLES

_OTHER_CALLS = (
    *("openat", "open", "openat2", "pipe2", "pipe", "socketpair", "dup", "epoll_create1"),
    *("eventfd2", "timerfd_create", "signalfd4", "memfd_create", "pidfd_open"),
)
"""Calls that take a descriptor and say EMFILE for no other limit, as inotify_init does."""
_SERVER_CALLS, _CLIENT_CALLS = (*ACCEPT_CALLS, "socket"), ("socket",)
_NEARLY_SHARE = 0.9
"""Who needs several at once, and gives back those that it got, is never seen quite full."""


@remembered
def full_processes(signs: Signs, roles: tuple[str, ...]) -> pd.DataFrame:
    """Which processes of some roles had no descriptor left while more were wanted.

    Returns:
        Their rows of ``descriptors`` with emfile_count, emfile_table, emfile_calls, first_s and
        last_s; who was full first comes first.
    """
    fleet = signs.descriptors[signs.descriptors["role"].isin(roles)]
    calls = _CLIENT_CALLS if roles[0] == "client" else _SERVER_CALLS
    emfile = signs.errors_by_pid(calls, EMFILE)
    records = emfile.to_dict("records") if len(emfile) else []
    if roles[0] != "client":
        records += _refused_otherwise(signs, fleet, {int(row["pid"]) for row in records})
    hits = {int(row["pid"]): row for row in records}
    is_near = (fleet["peak_count"] >= fleet["capacity_count"] - 1).to_numpy(dtype=bool)
    fleet = fleet[is_near | np.array([int(pid) in hits for pid in fleet["pid"]], dtype=bool)]
    rows = []
    for row in fleet.to_dict("records") if len(fleet) else []:
        pid, role = int(row["pid"]), str(row["role"])
        hit = hits.get(pid)
        is_full = int(row["peak_count"]) >= int(row["capacity_count"]) - 1
        is_wanted = role != "client" and signs.unmet_count > 0 and is_full
        if signs.view.is_attached:  # nobody says how many want in: full is full
            is_wanted = int(row["peak_count"]) >= int(row["capacity_count"])
        if hit is None and not is_wanted:
            continue
        # EMFILE has its exact moment; a sample only says that it was so by then
        exact_s = float(hit["first_s"]) if hit is not None else float("nan")
        first_s = exact_s if np.isfinite(exact_s) else float(row["first_full_s"])
        last_s = float(hit["last_s"]) if hit is not None else signs.view.stop_s
        if not np.isfinite(first_s):
            continue
        rows.append(
            {
                **row,
                "emfile_count": int(hit["event_count"]) if hit is not None else 0,
                "emfile_table": str(hit["source"]) if hit is not None else "",
                "emfile_calls": str(hit["syscalls"]) if hit is not None else "",
                "first_s": first_s,
                "last_s": max(first_s, last_s),
            }
        )
    frame = pd.DataFrame(rows)
    if len(frame):
        frame = frame.sort_values(["first_s", "pid"], kind="stable", ignore_index=True)
    return frame


def _refused_otherwise(
    signs: Signs, fleet: pd.DataFrame, known: set[int]
) -> list[dict[Hashable, Any]]:
    """Who accepted to the end, and had no descriptor left for a file, a pipe or a child."""
    other = signs.errors_by_pid(_OTHER_CALLS, EMFILE)
    if other.empty:
        return []
    nearly = fleet["peak_count"] >= _NEARLY_SHARE * fleet["capacity_count"]
    wanted = set(fleet["pid"][nearly].astype(int)) - known
    return [row for row in other.to_dict("records") if int(row["pid"]) in wanted]


def is_server_full(signs: Signs) -> bool:
    """Some process of the server was at its limit: what it strands has that cause."""
    return len(full_processes(signs, SERVER_ROLES)) > 0
