"""``calibrate`` of a scenario's row: an option that follows from what this machine did just now.

    options = { connections = 6000, keepalive = 0.01, hold = 6 }
    calibrate = { option = "keepalive", times = 0.5, of = "keepalive_full_s" }

First the row runs as its options say, with a hold of ``TRIAL_HOLD_S``. Then ``option`` is set to
``times`` the figure ``of`` (``analysis.matrix.figures``) of that trial, and the row runs.

A load that is written down as a number fills a core of one processor and leaves another one idle;
so what a row is to show would hang on the machine. What is kept is the proportion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

TRIAL_HOLD_S = 2.0


@dataclass(frozen=True, slots=True)
class Calibration:
    """What is set, and from which figure of the trial.

    Attributes:
        option: Of profile-run, without its dashes; one with a number.
        times: Factor, above 0.
        of: Name of the figure.
    """

    option: str
    times: float
    of: str

    @classmethod
    def of_row(cls, raw: Mapping[str, Any], options: Mapping[str, Any]) -> Self:
        """From a scenario file.

        Args:
            raw: The table ``calibrate``.
            options: Those of the row.

        Raises:
            ValueError: Not of this form.
        """
        made = cls(str(raw["option"]), float(raw["times"]), str(raw["of"]))
        if set(raw) != {"option", "times", "of"} or made.times <= 0:
            raise ValueError("calibrate has option, times above 0, and of, the name of a figure")
        if made.option not in options:
            raise ValueError(f"calibrate names {made.option!r}, which is no option of the row")
        return made

    @property
    def text(self) -> str:
        """In the place of the value that is not known yet."""
        return f"{self.times:g} x {self.of}"

    def value(self, figure: float) -> float:
        """The option's value, to four digits."""
        return float(f"{self.times * figure:.4g}")

    def words(self, words: Sequence[str], value: float) -> list[str]:
        """The command line with the option set."""
        return _with(words, f"--{self.option.replace('_', '-')}", f"{value:g}")

    def trial_words(self, words: Sequence[str]) -> list[str]:
        """The command line of the trial."""
        return [*_with(words, "--hold", f"{TRIAL_HOLD_S:g}"), "--no-report"]


def _with(words: Sequence[str], option: str, value: str) -> list[str]:
    """The words with that option once, at their end."""
    kept = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if option not in (before, word)
    ]
    return [*kept, option, value]
