"""What the terminal shows of several hosts: one line each. Pure."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Mapping
from typing import Any, Protocol

from harness.hosts.layout import HostsPlan
from reports.terminal.terminal import Status


class Heard(Protocol):
    """What is read of a member."""

    told: dict[str, Any]

    @property
    def is_lost(self) -> bool:
        """Nothing is heard of it any more."""


def status_of(
    phase: str, plan: HostsPlan, members: Mapping[str, Heard], *, time_left_s: float | None = None
) -> Status:
    """The sum of all hosts, and a cell for each."""
    loads = {part.entry.name: part for part in plan.loads}
    told = {name: member.told for name, member in members.items()}

    def total(key: str) -> int:
        return sum(int(told[name].get(key, 0)) for name in loads if name in told)

    errors: Tally[tuple[str, str]] = Tally()
    for each in told.values():
        for side, what, count in each.get("errors", ()):
            errors[side, what] += count
    lost = [name for name, member in members.items() if member.is_lost]
    server = told.get(plan.server.entry.name, {})
    cells = [(str(label), int(a), int(b), float(c)) for label, a, b, c in server.get("workers", ())]
    cells += [
        (name, int(told.get(name, {}).get("open_count", 0)), part.share, -1.0)
        for name, part in loads.items()
    ]
    return Status(
        elapsed_s=max((float(each.get("elapsed_s", 0.0)) for each in told.values()), default=0.0),
        phase=phase,
        established=total("established"),
        open_count=total("open_count"),
        rate_per_s=float(sum(told[name].get("rate_per_s", 0.0) for name in loads if name in told)),
        failed=total("failed"),
        errors=[(side, what, count) for (side, what), count in errors.most_common()],
        workers=cells,
        time_left_s=time_left_s,
        note=f"lost: {', '.join(lost)}" if lost else "",
    )
