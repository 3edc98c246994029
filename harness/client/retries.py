"""Which connections a client makes again, and when: back-off and jitter as real clients do it.

The wait before attempt n + 1 is the first wait doubled n - 1 times, at most the longest one, times
a number between 0.5 and 1.5 by chance, so that those who failed together do not come together
again. That is what Socket.IO's client does (``reconnectionDelay``, ``reconnectionDelayMax``,
``randomizationFactor`` 0.5). An attempt that got through does not begin the count anew: a server
that closes whoever it let in would keep the run going for ever.
"""

from __future__ import annotations

import heapq
import random

JITTER_SHARE = 0.5
"""A wait is shorter or longer by up to this part of it."""


class Retries:
    """The connections of one client that wait for their next attempt.

    Args:
        most_count: Attempts of one connection after its first.
        first_s: The first wait.
        longest_s: No wait is longer, before the jitter.
        chance: Gives numbers from 0 to 1.
    """

    __slots__ = ("_chance", "_due", "_first_s", "_longest_s", "_made_counts", "_most_count")

    def __init__(
        self,
        most_count: int,
        first_s: float,
        longest_s: float,
        chance: random.Random | None = None,
    ) -> None:
        self._most_count = most_count
        self._first_s, self._longest_s = first_s, longest_s
        self._chance = chance or random.Random()
        self._made_counts: dict[int, int] = {}
        self._due: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._due)

    def plan(self, record: int, now_ns: int) -> bool:
        """A connection failed or was lost; whether it will be tried again."""
        made_count = self._made_counts.get(record, 0)
        if made_count >= self._most_count:
            return False
        self._made_counts[record] = made_count + 1
        wait_s = min(self._longest_s, self._first_s * 2.0 ** min(made_count, 64))
        wait_s *= self._chance.uniform(1 - JITTER_SHARE, 1 + JITTER_SHARE)
        heapq.heappush(self._due, (now_ns + int(wait_s * 1e9), record))
        return True

    def forget(self) -> None:
        """None of them is made again."""
        self._due.clear()

    def take(self, now_ns: int, most_count: int) -> list[int]:
        """The connections whose wait is over, first come first, at most ``most_count``."""
        taken: list[int] = []
        while self._due and self._due[0][0] <= now_ns and len(taken) < most_count:
            taken.append(heapq.heappop(self._due)[1])
        return taken

    def wait_s(self, now_ns: int, idle_wait_s: float) -> float:
        """How long until the next one is due, at most ``idle_wait_s``."""
        if not self._due:
            return idle_wait_s
        return min(idle_wait_s, max(0.0, (self._due[0][0] - now_ns) / 1e9))
