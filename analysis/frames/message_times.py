"""How long messages took, from when they were due until their answer was read. Pure.

From the table ``message_times``. A quantile is the end of the bucket that it falls into: at most
1 % above the time itself, never below it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.frames.run_view import RunView
from analysis.stats.remembered import remembered

QUANTILES = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99, "p99_9_ms": 0.999}
"""Name in tables and documents, and share of the messages that took no longer."""


@dataclass(frozen=True, slots=True)
class MessageTotals:
    """Messages of a run whose clients sent some.

    Attributes:
        sent_count: Messages that the clients sent.
        answered_count: Answers that were read. More than were sent where the server passes a
            message on to several clients: each that got it counts.
        p50_ms: Half of the answers took no longer, from when their message was due.
        p90_ms: Nine of ten.
        p99_ms: 99 of 100.
        p99_9_ms: 999 of 1,000.
        longest_ms: The longest one.
    """

    sent_count: int
    answered_count: int
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    p99_9_ms: float | None
    longest_ms: float | None

    @property
    def unanswered_count(self) -> int:
        """Messages that nobody answered before the run stopped, as far as counts tell."""
        return max(0, self.sent_count - self.answered_count)

    def record(self) -> dict[str, Any]:
        """As in ``verdict.json``."""
        return asdict(self) | {"unanswered_count": self.unanswered_count}


@remembered
def message_totals(view: RunView) -> MessageTotals | None:
    """All messages of the run; None where clients of ours sent none, or nobody counted them."""
    live = view.frames["live_samples"]
    sent = live[live["role"] == "client"].groupby("pid")["tx_messages_total"].max()
    sent_count = int(sent.sum())
    if view.is_attached or not sent_count:
        return None
    times = view.frames["message_times"]
    answered_count = int(times["message_count"].sum())
    if not answered_count:
        return MessageTotals(sent_count, 0, None, None, None, None, None)
    return MessageTotals(
        sent_count,
        answered_count,
        **_quantiles_ms(times),
        longest_ms=float(times["longest_ns"].max()) / 1e6,
    )


def df_message_times(view: RunView) -> pd.DataFrame:
    """Quantiles over time: at_s, message_count and a column for each of ``QUANTILES``, ms."""
    times = view.frames["message_times"]
    rows = [
        {
            "at_s": float(view.seconds(int(str(at_ns)))),
            "message_count": int(mine["message_count"].sum()),
            **_quantiles_ms(mine),
        }
        for at_ns, mine in times.groupby("at_ns")
    ]
    return pd.DataFrame(rows, columns=["at_s", "message_count", *QUANTILES])


def _quantiles_ms(times: pd.DataFrame) -> dict[str, float]:
    """Of rows of the table, at least one."""
    counts = times.groupby("until_ns")["message_count"].sum().sort_index()
    reached = np.cumsum(counts.to_numpy())
    until_ns = counts.index.to_numpy()
    wanted = [np.ceil(share * reached[-1]) for share in QUANTILES.values()]
    places = np.minimum(np.searchsorted(reached, np.maximum(1, wanted)), len(reached) - 1)
    return {
        name: float(until_ns[place]) / 1e6 for name, place in zip(QUANTILES, places, strict=True)
    }
