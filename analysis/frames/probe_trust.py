"""How far a table can be believed: did its probe see all of the run, and what did it lose? Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from analysis.frames.run_view import RunView
from probes.contract.schema import TABLES

MATERIAL_LOSS_SHARE = 0.01
"""Of all that a probe saw; what it lost below that changes no verdict.

Shares of samples (a function, a collector, the port search) decide from 10 % on, and those of ten
seconds at 49 samples a second scatter by more than a point themselves. Counts and rates decide by
factors of two and more, or by being there at all: an event that is one of a kind is lost only by a
full map, which loses the many kinds that come after it as well. Who rests on events that did *not*
happen takes any loss for material (``is_by_absence``).
"""

_ENDED_EARLY_S = 2.0
"""Probes flush once a second, and the last samples of a run may come a second late."""

_SAMPLED = ("live_samples", "process_samples", "host_cpu")
"""Tables that have rows as long as the probe process lives."""


@dataclass(frozen=True, slots=True)
class ProbeRecord:
    """What one probe did, from its health row.

    Attributes:
        probe: Its name.
        state: ran, unavailable, failed or not_asked; '' where it left no row.
        reason: Why it did not run, or what it could not see.
        lost_count: Events or samples that it lost.
        seen_count: All of them, None when not known.
        failed_s: When it failed after it had begun, in s since the ramp began; None when it did
            not, or when that is not known.
        missed_count: Runs of its eBPF programs that the kernel skipped, for anybody's events.
        run_count: All of them, 0 when not known.
    """

    probe: str
    state: str
    reason: str
    lost_count: int
    seen_count: int | None
    failed_s: float | None
    missed_count: int = 0
    run_count: int = 0

    @property
    def is_broken(self) -> bool:
        """It was asked for and did not see the run to its end."""
        return self.state in ("failed", "unavailable")

    @property
    def lost_share(self) -> float | None:
        """What it lost of all that it saw, 0 to 1; None when not known."""
        if not self.lost_count:
            return 0.0
        return min(1.0, self.lost_count / self.seen_count) if self.seen_count else None

    @property
    def is_missing_runs(self) -> bool:
        """So many runs of its programs were skipped that one event may well be among them.

        Every call of every process on the host is a run of some of these programs, so others bring
        about most of what is skipped: the share says how likely an event of this run was.
        """
        return self.missed_count > MATERIAL_LOSS_SHARE * max(1, self.run_count)

    def is_loss_material(self, *, is_by_absence: bool = False) -> bool:
        """What it lost may change a verdict.

        Args:
            is_by_absence: The verdict rests on events that were not seen.
        """
        share = self.lost_share
        if self.is_missing_runs:
            return True
        if share is None or is_by_absence:
            return self.lost_count > 0
        return share > MATERIAL_LOSS_SHARE

    def loss_words(self) -> str:
        """``7 of 12,345 events (0.057 %)``."""
        share = self.lost_share
        if self.is_missing_runs:
            pct = 100 * self.missed_count / max(1, self.run_count)
            return f"{self.missed_count:,} of {self.run_count:,} runs ({pct:.2g} %)"
        if share is None or self.seen_count is None:
            return f"{self.lost_count:,} events, of how many is not known"
        return f"{self.lost_count:,} of {self.seen_count:,} events ({100 * share:.2g} %)"


@dataclass(frozen=True)
class ProbeTrust:
    """What is not known of a run because of its probes.

    Attributes:
        view: The run.
    """

    view: RunView

    @cached_property
    def records(self) -> tuple[ProbeRecord, ...]:
        """One a health row, in their order."""
        return tuple(
            ProbeRecord(
                probe=str(row["probe"]),
                state=str(row["state"]),
                reason=str(row["reason"]),
                lost_count=int(row["lost_count"]),
                seen_count=int(row["seen_count"]) if int(row["seen_count"]) >= 0 else None,
                failed_s=self.view.seconds(row["failed_ns"]) if row["failed_ns"] > 0 else None,
                missed_count=max(0, int(row["missed_count"])),
                run_count=max(0, int(row["run_count"])),
            )
            for row in self.view.frames["probe_health"].to_dict("records")
        )

    def doubts(self, tables: Iterable[str], *, is_by_absence: bool = False) -> tuple[str, ...]:
        """What is not known of these tables, for people, each said once.

        Args:
            tables: Of ``probes.contract.schema``; one that no probe writes is never doubted.
            is_by_absence: See ``ProbeRecord.is_loss_material``.
        """
        said = (self._doubt(table, is_by_absence=is_by_absence) for table in tables)
        return tuple(dict.fromkeys(each for each in said if each))

    def unseen(self, tables: Iterable[str]) -> tuple[str, ...]:
        """What of these tables was asked for and not seen to the end, for people, each said once.

        A probe that nobody asked for is no surprise; one that failed, that this host cannot run, or
        whose process was killed may have hidden what the verdict says did not happen.

        Args:
            tables: Of ``probes.contract.schema``.
        """
        broken = {each.probe for each in self.records if each.is_broken}
        told = {each.probe for each in self.records}
        asked = set(self.view.manifest.get("probes_asked") or ())
        lacking = [
            table
            for table in tables
            if (probe := PROBE_OF_TABLE.get(table, "")) in broken
            or (probe not in told and (probe in asked or len(self.view.frames[table])))
        ]
        return self.doubts(lacking)

    @cached_property
    def broken_probes(self) -> tuple[str, ...]:
        """Probes that were asked for and did not see the run to its end, each in words."""
        return tuple(
            f"probe {each.probe} {self._how_it_broke(each)}: {each.reason}"
            for each in self.records
            if each.is_broken
        )

    def _doubt(self, table: str, *, is_by_absence: bool) -> str:
        probe = PROBE_OF_TABLE.get(table, "")
        if not probe:
            return ""
        rows = self.view.frames[table]
        found = [each for each in self.records if each.probe == probe]
        if not found and rows.empty:
            return f"{table} was not recorded: its health row is missing"
        if not found and self._ended_s is not None:
            return f"{table} ends {self._moment(self._ended_s)}: the probe process had ended"
        for record in found:
            if record.state == "ran":
                if record.is_loss_material(is_by_absence=is_by_absence):
                    return f"{table} is incomplete: its probe lost {record.loss_words()}"
            elif rows.empty:
                why = record.reason or _WHY_NOT.get(record.state, "no reason was recorded")
                return f"{table} was not recorded: {why}"
            elif record.is_broken:
                until_s = self._last_s(rows) if record.failed_s is None else record.failed_s
                return (
                    f"{table} ends {self._moment(until_s)}, when its probe failed: {record.reason}"
                )
        return ""

    @cached_property
    def _ended_s(self) -> float | None:
        """When the probe process was last at work, where it was gone long before the stop."""
        frames = self.view.frames
        lasts = [self._last_s(frames[table]) for table in _SAMPLED if len(frames[table])]
        if not lasts or max(lasts) >= self.view.stop_s - _ENDED_EARLY_S:
            return None
        return max(lasts)

    def _last_s(self, rows: pd.DataFrame) -> float:
        return self.view.seconds(int(rows["at_ns"].max()))

    def _how_it_broke(self, record: ProbeRecord) -> str:
        if record.failed_s is None:
            return "did not run"
        return f"failed {self._moment(record.failed_s)}"

    def _moment(self, at_s: float) -> str:
        return f"{at_s:.1f} s {self.view.words.after_it}"


_WHY_NOT = {"not_asked": "its probe was not asked for"}

PROBE_OF_TABLE = {table.name: table.probe for table in TABLES.values() if table.probe}
"""The probe whose health row speaks for a table."""
