"""Servers that answer everybody and close those beyond their own number with a close frame. Pure.

Up to the number connections stay open; nearly all that come later are closed right after their
upgrade. Clients know it, so no probe has to see who closes.
"""

from __future__ import annotations

import re

from analysis.evidence import Evidence
from analysis.server import fates
from analysis.signs.room_left import Met
from analysis.signs.signs import Signs

_RIGHT_AFTER_S = 0.5
_CLOSED_SHARE = 0.9
"""Of those that came later; some take the place of one that left."""
_CODE = re.compile(r"code (\d{4})")


def closed_after_upgrade(signs: Signs) -> list[Met]:
    """The server, where it keeps so many and closes whoever comes then."""
    view = signs.view
    connections = view.connections
    if view.is_attached or signs.is_server_process_gone:
        return []
    open_s = connections["closed_s"] - connections["established_s"]
    is_closed = connections["is_lost"] & (connections["close_kind"] == "close")
    closed = connections[is_closed & (open_s <= _RIGHT_AFTER_S)]
    events = view.frames["events"]
    told = [str(each) for each in events[events["event"] == "connection_closed"]["detail"]]
    if len(closed) < fates.LEAST_COUNT or not any(_CODE.match(each) for each in told):
        return []
    first_s = float(closed["established_s"].min())
    answered = connections[connections["established_s"].notna()]
    later = answered[answered["established_s"] >= first_s]
    kept_later = len(later) - len(closed)
    kept = len(answered) - len(closed)
    before = int((answered["established_s"] < first_s).sum())
    if len(closed) < _CLOSED_SHARE * len(later) or before < fates.LEAST_COUNT:
        return []
    pid = fates.closer_of(view, len(closed))
    if not pid:
        return []
    evidence = Evidence("connections_closed", len(closed), "connections", first_s)
    return [
        Met(
            pid,
            f"closed the other {len(closed):,} right after their upgrade, {told[0].rstrip('.')}",
            first_s,
            float(closed["closed_s"].max()),
            kept,
            (evidence,),
            len(closed),
            tried_after=len(later),
            let_in_after=kept_later,
            after_table="connections",
        )
    ]
