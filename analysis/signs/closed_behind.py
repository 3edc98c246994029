"""What works behind the server closes those beyond its own number, with a word or two. Pure.

A store or a broker that takes so many clients, tells the others so and closes at once. Its own
client, the server, answers its clients with an error then, or closes them.
"""

from __future__ import annotations

from analysis.evidence import Evidence
from analysis.server import fates
from analysis.server.own_limits import SLACK_COUNT, SLACK_SHARE
from analysis.signs.room_left import Met
from analysis.signs.signs import Signs


def closed_behind(signs: Signs) -> list[Met]:
    """Processes behind the server that kept as many as clients got in, and closed the others."""
    view = signs.view
    connections = view.connections
    established = int(connections["established_s"].notna().sum())
    ended = connections["close_kind"].isin(["eof", "rst", "protocol"])
    kept_out = connections[connections["is_failed"] & ended]
    if view.is_attached or established < fates.LEAST_COUNT or len(kept_out) < fates.LEAST_COUNT:
        return []
    found = []
    rows = fates.latest(view)
    for pid in fates.backend_pids(view):
        mine = rows[rows["pid"] == pid].set_index("fate")
        closed = mine[mine.index.isin(["closed_answered", "closed_unread", "closed_unanswered"])]
        accepted = int(mine["connection_total"][mine.index == "accepted"].sum())
        count = int(closed["at_once_total"].sum())
        if not _is_near(count, len(kept_out)) or not _is_near(accepted - count, established):
            continue
        first_s = view.seconds(int(closed["first_ns"].min()))
        evidence = Evidence("closed_at_once", count, "connection_fates", first_s)
        found.append(
            Met(
                pid,
                f"closed the other {count:,} at once",
                first_s,
                view.seconds(int(closed["last_ns"].max())),
                accepted - count,
                (evidence,),
                len(kept_out),
            )
        )
    return found


def _is_near(one: int, other: int) -> bool:
    return abs(one - other) <= max(SLACK_COUNT, SLACK_SHARE * other) and min(one, other) > 0
