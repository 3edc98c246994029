"""The slots of live.bin that the processes of a server which is not ours take, and give back.

A watch goes on for days, and its server's workers are replaced: by a manager after so many
requests, by a reload, by a crash. So a slot belongs to a process for as long as that lives and to
another one later. What the process was, and how it ended, is handed out (``Departed``) before the
slot's words are written anew; what it counted stays in the sums of the header.
"""

from __future__ import annotations

from dataclasses import dataclass

from probes.contract.live import COUNTER_WORDS, Counter, Header, Live, Role

GIVE_BACK_S = 30.0
"""So long the words of a process that ended stay as they are: every probe has looked at them by
then, also one whose period a budget has stretched
(``probes.budget.governor.LONGEST_PERIOD_NS``)."""

_SUMS = {
    Header.ENDED_ESTABLISHED_TOTAL: Counter.ESTABLISHED_TOTAL,
    Header.ENDED_EMFILE_TOTAL: Counter.ACCEPT_EMFILE_TOTAL,
}


@dataclass(frozen=True, slots=True)
class Departed:
    """A process that ended, as its slot had it.

    Attributes:
        slot: The slot, which is another process's by now.
        words: The slot's words, by ``Counter``.
    """

    slot: int
    words: tuple[int, ...]


class ProcessSlots:
    """Hands slots out, the lowest that is free first, so that those in use stay together.

    Args:
        live: Shared memory.
        count: Slots 0 to ``count`` - 1 are for these processes.
    """

    def __init__(self, live: Live, count: int) -> None:
        self._live = live
        self._count = count
        self._used_count = 0
        self._ended_s: dict[int, float] = {}

    def take(self, now_s: float) -> tuple[int, Departed | None] | None:
        """A slot for another process.

        A slot whose process ended long ago goes first, then one that nobody had yet, then the one
        whose process ended first.

        Args:
            now_s: Of any clock that only grows, the same for all calls.

        Returns:
            The slot, still with the words of the process that had it, and that process; None when
            every slot has a process that lives.
        """
        rested = [i for i, ended_s in self._ended_s.items() if now_s - ended_s >= GIVE_BACK_S]
        index = min(rested, default=-1)
        if index < 0 and self._used_count < self._count:
            self._used_count += 1
            return self._used_count - 1, None
        if index < 0:
            index = min(self._ended_s, key=lambda i: (self._ended_s[i], i), default=-1)
        if index < 0:
            return None
        del self._ended_s[index]
        departed = Departed(index, tuple(self._live.slot(index)))
        for word, counter in _SUMS.items():
            self._live.header[word] += departed.words[counter]
        self._live.header[Header.ENDED_COUNT] += 1
        return index, departed

    def clear(self, index: int) -> memoryview[int]:
        """Empties a slot that was taken.

        Its pid stays, and that this ended, until another one is written: who reads the slots in
        order takes one without a pid for the end of them.
        """
        slot = self._live.slot(index)
        slot[Counter.ROLE] = Role.FREE
        kept = (Counter.ROLE, Counter.PID, Counter.STOPPED_NS)
        for word in set(range(COUNTER_WORDS)).difference(kept):
            slot[word] = 0
        return slot

    def give_back(self, index: int, now_s: float) -> None:
        """The process of a slot has ended."""
        self._ended_s[index] = now_s
