"""Is the evidence of a finding in the tables of its run? Found again without what found it first.

Each number is looked for among what plain arithmetic makes of the table that the evidence names:
cells, sums, counts, extremes and quantiles; differences and rates between two moments that the
finding speaks of, of one process or over several; shares of a sum; times between the moments of a
connection. That proves no cause. It proves that the number was not made up, and comes from where
the finding says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.frames.run_frames import RunFrames
from analysis.frames.run_view import RunView
from bench.recordings.table_rows import Rows
from probes.contract import schema

Floats = npt.NDArray[np.float64]

RELATIVE = 0.002
"""A number that is no whole count is the same when it differs by less."""
NEAR_S = 0.6
"""Most tables have a row twice a second: a moment's row is as near as that."""
MOST_CELLS = 5_000
_QUANTILES = (0.0, 0.5, 0.9, 0.99, 1.0)
_TIME_UNITS: Mapping[str, float] = {"s": 1e-9, "ms": 1e-6, "us": 1e-3}
_COUNT_UNITS = ("count", "ports", "")
_PAGE_BYTES = 4096
_MOST_KINDS = 40
_INTERVAL = ("event_count", "sample_count", "failed_count", "allocated_bytes")
"""Columns that count over an interval: what they add up to grows like a total."""
_NOTHING: Floats = np.zeros(0)


class Tables:
    """The tables of a run, as the search wants them.

    Args:
        frames: The run.
    """

    def __init__(self, frames: RunFrames) -> None:
        self._view = RunView(frames)
        self._cores = max(1, int(self._view.host.get("cpu_count") or 1))
        phases = self._view.phases.values()
        self._phases_s = [moment for phase in phases for moment in (phase.start_s, phase.end_s)]
        self._rows: dict[str, Rows] = {}

    def grounding(self, findings: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """How much of the evidence is in the tables.

        Args:
            findings: ``findings`` of verdict.json.

        Returns:
            ``found_count``, and ``missing``: cause, id and value of each that is not, as text. The
            control: ``made_up_count`` numbers that differ from these, and how many of them were
            found all the same.
        """
        found_count, missing = 0, []
        made_up_count, made_up_found_count = 0, 0
        for finding in findings:
            for each in finding["evidence"]:
                if self.has(each, finding):
                    found_count += 1
                else:
                    said = f"{finding['cause']}: {each['id']} {each['value']:g} {each['unit']}"
                    missing.append(said.rstrip())
                if each["value"]:
                    made_up = {**each, "value": _made_up(each["value"], made_up_count)}
                    made_up_count += 1
                    made_up_found_count += self.has(made_up, finding)
        return {
            "found_count": found_count,
            "missing": missing,
            "made_up_count": made_up_count,
            "made_up_found_count": made_up_found_count,
        }

    def has(self, evidence: Mapping[str, Any], finding: Mapping[str, Any]) -> bool:
        """Whether a number is in its table."""
        wanted, unit = float(evidence["value"]), str(evidence["unit"]).partition(" ")[0]
        is_whole = unit in _COUNT_UNITS and wanted.is_integer()
        tolerance = 1e-6 if is_whole else max(abs(wanted) * RELATIVE, 1e-6)
        return any(
            bool(np.any(np.abs(values - wanted) <= tolerance))
            for values in self._candidates(evidence, finding, unit)
        )

    def _candidates(
        self, evidence: Mapping[str, Any], finding: Mapping[str, Any], unit: str
    ) -> Iterator[Floats]:
        table, of = str(evidence["table"]), str(evidence["of"])
        if table == "manifest":
            yield np.array([*_numbers(self._view.manifest)], dtype=np.float64)
            return
        moments = [finding["first_s"], finding["last_s"], evidence["at_s"]]
        moments = [float(each) for each in dict.fromkeys(moments) if each is not None]
        for whose in self._of_whom(self._table(table), finding):
            if not whose.count:
                yield np.zeros(1)  # it counts what did not happen
                continue
            for rows in (whose, *whose.near(moments, NEAR_S)):
                for part in rows.parts(of, _MOST_KINDS):
                    yield from _values(part, unit)
                if unit == "pct":
                    yield from _shares(rows, of)
            for part in whose.parts(of, _MOST_KINDS):
                yield from self._between(part, unit, moments)

    def _table(self, name: str) -> Rows:
        if name not in self._rows:
            frame = self._view.frames[name]
            units = {
                column.name: column.unit
                for column in schema.TABLES[name].columns
                if column.type != schema.TEXT
            }
            self._rows[name] = Rows.of(_completed(name, frame, self._view, units), units,
                                       self._view.origin_ns)  # fmt: skip
        return self._rows[name]

    def _of_whom(self, rows: Rows, finding: Mapping[str, Any]) -> Iterator[Rows]:
        """The likeliest first: its process, all, its side, its siblings."""
        pid, side = finding["subject"]["pid"], finding["side"]
        if pid and "pid" in rows:
            yield rows.where(rows["pid"] == pid)
        yield rows
        if pid and "client" in rows:
            yield rows.where(rows["client"] == finding["subject"]["worker"])
        if "side" in rows:
            yield rows.where(rows["side"] == side)
        if "pid" in rows:
            roles = ("client",) if side == "client" else ("server", "acceptor")
            processes = self._view.frames["processes"]
            pids = set(processes.loc[processes["role"].isin(roles), "pid"])
            yield rows.where(np.isin(rows["pid"], [*pids]))
            yield rows.where(np.isin(rows["pid"], [*(pids - {pid})]))

    def _between(self, rows: Rows, unit: str, moments: list[float]) -> Iterator[Floats]:
        """What changed between two moments that the finding, or the run, speaks of."""
        if "at_ns" not in rows or rows.count < 2:
            return
        names = [n for n in rows.units if n.endswith("_total") or n in _INTERVAL]
        by_pid = rows.by("pid") if "pid" in rows else [rows]
        for group in by_pid[:_MOST_KINDS]:
            chosen, span_s = self._pairs(group.at_s, moments)
            if unit == "s":
                yield span_s
            for name in names:
                values = group[name].astype(np.float64)
                grown = np.cumsum(values) if name in _INTERVAL else values
                change = _differences(grown[chosen])
                yield from self._as_unit(change, span_s, unit, rows.units[name])
        if len(by_pid) > 1 and unit in ("pct", "per_s"):
            yield from self._over_processes(by_pid, names, unit, moments)

    def _over_processes(
        self, by_pid: list[Rows], names: list[str], unit: str, moments: list[float]
    ) -> Iterator[Floats]:
        """Sum, mean, median, least and most of several processes over the same two moments."""
        times = by_pid[0].at_s
        alike = [group for group in by_pid if np.array_equal(group.at_s, times)]
        if len(alike) < 2:
            return
        chosen, span_s = self._pairs(times, moments)
        for name in names:
            if name in _INTERVAL:
                continue
            changes = np.array([_differences(each[name].astype(float)[chosen]) for each in alike])
            for over in (np.sum, np.mean, np.median, np.min, np.max):
                yield from self._as_unit(over(changes, axis=0), span_s, unit, alike[0].units[name])

    def _pairs(self, at_s: Floats, moments: list[float]) -> tuple[npt.NDArray[np.int64], Floats]:
        """Samples beside the moments, and how far each pair of them is apart in seconds."""
        picked = {0, len(at_s) - 1}
        for moment in (*moments, *self._phases_s):
            place = int(np.searchsorted(at_s, moment))
            picked |= {i for i in range(place - 2, place + 3) if 0 <= i < len(at_s)}
        chosen = np.array(sorted(picked))
        span_s = _differences(at_s[chosen])
        return chosen, np.where(span_s > 0, span_s, np.nan)

    def _as_unit(
        self, change: Floats, span_s: Floats, unit: str, column_unit: str
    ) -> Iterator[Floats]:
        """A change over a span in the unit of the evidence; nothing where they do not fit."""
        if unit == "pct" and column_unit == "ns":
            share = change / 1e7 / span_s
            yield share
            yield share / self._cores
            yield 100 - share / self._cores
        elif unit == "per_s" and column_unit in _COUNT_UNITS:
            yield change / span_s
        elif unit in _TIME_UNITS and column_unit == "ns":
            yield change * _TIME_UNITS[unit]
        elif unit == column_unit or {unit, column_unit} <= {*_COUNT_UNITS}:
            yield change


def _made_up(value: float, number: int) -> float:
    """Another number of the same kind: 1.1 to 2.5 times as large, by the golden ratio's steps."""
    changed = value * (1.1 + 1.4 * (number * 0.618034 % 1.0))
    return float(round(changed)) if float(value).is_integer() else changed


def _completed(
    table: str, frame: pd.DataFrame, view: RunView, units: dict[str, str]
) -> pd.DataFrame:
    """A table with the sums that people speak of: CPU time, and descriptors in use."""
    if table == "process_samples":
        units["cpu_ns_total"] = "ns"
        return frame.assign(cpu_ns_total=frame["cpu_user_ns_total"] + frame["cpu_system_ns_total"])
    if table == "host_cpu":
        units["busy_ns_total"] = "ns"
        busy = [
            n
            for n in units
            if n.endswith("_ns_total") and n not in ("idle_ns_total", "busy_ns_total")
        ]
        return frame.assign(busy_ns_total=frame[busy].sum(axis=1))
    if table == "live_samples":
        units["descriptors_count"] = "count"
        own = view.frames["processes"].drop_duplicates("pid").set_index("pid")["own_fds_count"]
        return frame.assign(
            descriptors_count=frame["open_count"] + frame["pid"].map(own).fillna(0).astype("int64")
        )
    return frame


# -- what rows come to --------------------------------------------------------------------------


def _values(rows: Rows, unit: str) -> Iterator[Floats]:
    """What the columns that have this unit come to."""
    if unit in _COUNT_UNITS:
        yield np.array([rows.count], dtype=np.float64)
        for name in rows.with_unit(*_COUNT_UNITS):
            yield from _simple(rows[name])
            kinds, sizes = np.unique(rows[name], return_counts=True)
            yield np.array([len(kinds)], dtype=np.float64)
            if len(kinds) <= _MOST_KINDS:
                yield sizes.astype(np.float64)
    elif unit == "bytes":
        for name in rows.with_unit("bytes"):
            yield from _simple(rows[name])
        for name in rows.with_unit("pages"):
            yield from (values * _PAGE_BYTES for values in _simple(rows[name]))
    elif unit in _TIME_UNITS:
        yield from _times(rows, _TIME_UNITS[unit])


def _simple(column: npt.NDArray[Any]) -> Iterator[Floats]:
    """Its cells, or their quantiles where they are many; sum, and how far they are apart."""
    values = column.astype(np.float64)
    if not len(values):
        return
    if len(values) <= MOST_CELLS:
        yield values
    yield np.quantile(values, _QUANTILES)
    yield np.array([values.sum(), values.max() - values.min(), values[-1] - values[0]])


def _times(rows: Rows, scale: float) -> Iterator[Floats]:
    """Lengths of time, moments since the ramp began, and times between two moments of a row."""
    names = rows.with_unit("ns")
    for name in names:
        known = rows[name][rows[name] > 0]
        yield from (values * scale for values in _simple(known))
        yield from (values * scale for values in _simple(known - rows.origin_ns))
    if "connected_ns" not in rows:
        return
    for first in names:
        for last in names:
            both = (rows[first] > 0) & (rows[last] > rows[first])
            if first != last and both.any():
                took = (rows[last] - rows[first])[both].astype(np.float64)
                yield np.quantile(took, _QUANTILES) * scale


def _shares(rows: Rows, of: str) -> Iterator[Floats]:
    """Per cent that some of the rows have of all, by what they count, and by their number."""
    for name in (*(n for n in _INTERVAL if n in rows), "socket_count", ""):
        if name and name not in rows:
            continue
        weights = rows[name].astype(np.float64) if name else np.ones(rows.count)
        whole = weights.sum()
        if whole > 0:
            parts = [weights[chosen].sum() for chosen in rows.chosen(of, _MOST_KINDS)]
            shares = 100 * np.array(parts, dtype=np.float64) / whole
            yield np.concatenate([shares, 100 - shares])


def _differences(values: Floats) -> Floats:
    """Of each later value to each earlier one, flat."""
    first, last = np.triu_indices(len(values), k=1)
    return np.asarray(values[last] - values[first], dtype=np.float64)


def _numbers(document: Any) -> Iterator[float]:
    """All numbers of a JSON document, and the lengths of its lists."""
    if isinstance(document, Mapping):
        for value in document.values():
            yield from _numbers(value)
    elif isinstance(document, list):
        yield float(len(document))
        for value in document:
            yield from _numbers(value)
    elif isinstance(document, int | float) and not isinstance(document, bool):
        yield float(document)
