"""Whether the disk has room for what a watch records, and what to say of it at the start."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from probes.budget import row_budget
from probes.contract.errors import HostError
from reports.elements.formatting import size

DAY_S = 86_400.0
_LEAST_FREE_BYTES = 64 << 20
_SHORT_S = 600.0
"""Of a shorter watch nothing is said: it takes a few megabytes."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a watch may write, and where.

    Attributes:
        path: The nearest folder that is there.
        free_bytes: Room on its file system for this user.
        duration_s: How long it watches, None for ever.
        processes: How many it watches.
        cores: Of the host.
    """

    path: Path
    free_bytes: int
    duration_s: float | None
    processes: int
    cores: int

    def most_bytes(self, duration_s: float) -> int:
        """The most that so long a watch writes."""
        return row_budget.most_bytes(duration_s, self.processes, self.cores)

    @property
    def needed_bytes(self) -> int:
        """What it takes at most, or in its first day."""
        return self.most_bytes(self.duration_s or DAY_S)

    def check(self) -> str:
        """What to say at the start, '' for a short watch with room.

        Raises:
            HostError: There is no room at all.
        """
        needed, free = self.needed_bytes, self.free_bytes
        if free < min(needed, _LEAST_FREE_BYTES):
            raise HostError(
                f"{size(free)} are free at {self.path}, and the watch records up to {size(needed)}",
                fix=f"df -h {self.path}; make room or choose another place with --output DIR",
            )
        if free < needed:
            return (
                f"{size(free)} are free at {self.path}: enough for {self._lasts()} at least; what "
                "comes after the disk is full is lost and counted"
            )
        if self.duration_s is not None and self.duration_s < _SHORT_S:
            return ""
        whole = "" if self.duration_s else " in the first day"
        each = self.most_bytes(2 * DAY_S) - self.most_bytes(DAY_S)
        further = f", {size(each)} in each further one" if not self.duration_s else ""
        return f"it records at most {size(needed)}{whole}{further}; {size(free)} are free"

    def _lasts(self) -> str:
        """How long it can record at least, in words."""
        low, high = 0.0, self.duration_s or DAY_S
        while high - low > 60:
            middle = (low + high) / 2
            if self.most_bytes(middle) <= self.free_bytes:
                low = middle
            else:
                high = middle
        return f"{low / 3_600:.1f} hours" if low >= 3_600 else f"{low / 60:.0f} minutes"


def room_at(output: Path, duration_s: float | None, processes: int, cores: int) -> Room:
    """Reads what is free where a run directory is to be made.

    Args:
        output: Folder of the run directories; need not be there yet.
        duration_s: How long the watch lasts, None for ever.
        processes: How many it watches.
        cores: Of the host.
    """
    path = output.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return Room(path, shutil.disk_usage(path).free, duration_s, processes, cores)
