"""What became of the attempts of a run, for the manifest: made, made again, never made, and why.

Read from the slots of the clients when the fleet is gone, so that it is also known of a client that
was killed.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from harness.fleet.config import FleetConfig
from probes.contract.live import CloseKind, Counter


class StopReason(IntEnum):
    """Why the supervisor ended the attempts of all clients (word STOP_REASON of the header)."""

    NONE = 0
    NO_SUCCESS = 1  # none was established for longer than any attempt may take
    FAILURES = 2  # as many had failed as --failures-max allows


def attempts_record(
    config: FleetConfig,
    client_slots: Sequence[Sequence[int]],
    *,
    failures_max_count: int,
    reason: StopReason,
    stopped_ns: int,
) -> dict[str, Any]:
    """The object ``attempts`` of the manifest.

    Args:
        config: What the fleet was told.
        client_slots: Words of the clients, in their order.
        failures_max_count: ``--failures-max``, 0: without a limit.
        reason: Why the supervisor ended the attempts, and ``stopped_ns`` when.
        stopped_ns: CLOCK_MONOTONIC, 0 when it did not.
    """

    def total(counter: Counter) -> int:
        return sum(slot[counter] for slot in client_slots)

    after = {
        kind.name.lower(): sum(slot[Counter.RETRIED_AFTER_BASE + kind] for slot in client_slots)
        for kind in CloseKind
    }
    return {
        "stall_s": config.stall_s,
        "failures_max_count": failures_max_count or None,
        "retry_count": config.retry_count,
        "begun_count": total(Counter.ATTEMPTED_TOTAL),
        "never_count": sum(map(_never_count, client_slots)),
        "again_count": total(Counter.RETRIED_TOTAL),
        "again_open_count": total(Counter.RETRIED_OPEN_TOTAL),
        "again_after": {kind: count for kind, count in after.items() if count},
        "stopped_by": reason.name.lower() if reason else None,
        "stopped_ns": stopped_ns,
        "gave_up": [
            {
                "client": index,
                "pid": slot[Counter.PID],
                "at_ns": slot[Counter.GAVE_UP_NS],
                "failed_in_row_count": slot[Counter.GAVE_UP_FAILED_COUNT],
                "never_count": _never_count(slot),
            }
            for index, slot in enumerate(client_slots)
            if slot[Counter.GAVE_UP_NS]
        ],
    }


def _never_count(slot: Sequence[int]) -> int:
    return max(0, slot[Counter.TARGET_COUNT] - slot[Counter.ATTEMPTED_TOTAL])
