"""Rows of one table as arrays: chosen, parted and looked at without a frame for each choice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

Array = npt.NDArray[Any]


class Rows:
    """Some rows of a table.

    Args:
        columns: Arrays of one length by name; texts as objects.
        units: Of the columns that are numbers.
        origin_ns: When the ramp began.
    """

    def __init__(
        self, columns: Mapping[str, Array], units: Mapping[str, str], origin_ns: int
    ) -> None:
        self._columns = columns
        self.units = units
        self.origin_ns = origin_ns
        self.count = len(next(iter(columns.values())))

    @classmethod
    def of(cls, frame: pd.DataFrame, units: Mapping[str, str], origin_ns: int) -> Rows:
        """All rows of a frame."""
        columns = {
            str(name): frame[name].to_numpy(dtype=object if name not in units else None)
            for name in frame.columns
        }
        return cls(columns, units, origin_ns)

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def __getitem__(self, name: str) -> Array:
        return self._columns[name]

    @property
    def at_s(self) -> npt.NDArray[np.float64]:
        """Moments of the rows, seconds since the ramp began."""
        moment = self._columns["at_ns" if "at_ns" in self else "start_ns"]
        return np.asarray((moment - self.origin_ns) / 1e9, dtype=np.float64)

    def with_unit(self, *units: str) -> list[str]:
        """Columns of numbers that have one of these units."""
        return [name for name, unit in self.units.items() if unit in units and name in self]

    def where(self, chosen: Array) -> Rows:
        """The rows of a mask."""
        columns = {name: column[chosen] for name, column in self._columns.items()}
        return Rows(columns, self.units, self.origin_ns)

    def by(self, name: str) -> list[Rows]:
        """Rows of each value of a column, by themselves."""
        return [self.where(self[name] == value) for value in np.unique(self[name])]

    def near(self, moments: Sequence[float], near_s: float) -> Iterator[Rows]:
        """Rows until each moment, around it, and from the first moment to the last."""
        if not moments or not ("at_ns" in self or "start_ns" in self):
            return
        at_s = self.at_s
        for moment in moments:
            yield self.where(at_s <= moment + near_s)
            yield self.where(np.abs(at_s - moment) <= near_s)
        yield self.where((at_s >= min(moments) - near_s) & (at_s <= max(moments) + near_s))

    def parts(self, of: str, most_kinds: int) -> Iterator[Rows]:
        """All of them, then those that a qualifier or one of their texts tells apart."""
        yield self
        for chosen in self.chosen(of, most_kinds):
            yield self.where(chosen)

    def chosen(self, of: str, most_kinds: int) -> Iterator[Array]:
        """Masks of ``parts``.

        Args:
            of: A qualifier: a call, a function, an address; '' for none.
            most_kinds: A column with more different texts is not parted.
        """
        for name in [name for name in self._columns if name not in self.units]:
            texts = self[name]
            for word in _words(of):
                chosen = np.array([word in text for text in texts], dtype=bool)
                if 0 < chosen.sum() < self.count:
                    yield chosen
                    if ";" in texts[0]:
                        leaf = [word in str(text).rpartition(";")[2] for text in texts]
                        yield np.array(leaf, dtype=bool)
            kinds = set(texts)
            if 1 < len(kinds) <= most_kinds:
                yield from (texts == kind for kind in sorted(kinds))


def _words(of: str) -> list[str]:
    """How a table may write a qualifier: in full, without its file, without its class."""
    name = of.partition(" (")[0]
    return [word for word in dict.fromkeys((of, name, name.rpartition(".")[2])) if word]
