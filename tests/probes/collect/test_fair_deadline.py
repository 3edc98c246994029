"""A deadline that who waits for a core meets later, and who hangs meets in time."""

from __future__ import annotations

import time

import pytest

from probes.collect.driven import (
    LONGEST_STOP_S,
    STOP_LIMIT_S,
    ProbeHangs,
    longest_stop_s,
    time_limit,
)
from probes.collect.fair_deadline import FairDeadline

S = 10**9


class Crowded:
    """A host on which a process gets a core for a part of the time."""

    def __init__(self, core_share):
        self.now_s, self._core_share = 100.0, core_share

    def deadline(self, limit_s, longest_s):
        return FairDeadline(
            limit_s, longest_s, 7, clock=lambda: self.now_s, waited_ns=self._waited_ns
        )

    def _waited_ns(self, pid):
        assert pid == 7
        return int((self.now_s - 50.0) * (1 - self._core_share) * S)

    def lasts_s(self, limit_s, longest_s):
        deadline, began_s = self.deadline(limit_s, longest_s), self.now_s
        while (left_s := deadline.left_s()) > 1e-6:
            self.now_s += left_s
        return self.now_s - began_s


@pytest.mark.parametrize(("core_share", "lasts_s"), [(1.0, 6.5), (0.5, 13.0), (0.25, 26.0)])
def test_what_is_waited_for_a_core_does_not_count(core_share, lasts_s):
    assert Crowded(core_share).lasts_s(6.5, 60.0) == pytest.approx(lasts_s)


def test_it_comes_at_last_and_who_hurries_waits_for_nobody():
    assert Crowded(0.01).lasts_s(6.5, 60.0) == pytest.approx(60.0)
    assert Crowded(0.01).lasts_s(1.5, longest_stop_s(1.5)) == pytest.approx(1.5)
    assert STOP_LIMIT_S < longest_stop_s(STOP_LIMIT_S) < LONGEST_STOP_S


def test_who_hangs_is_told_so_after_what_it_waited_for():
    waited = iter([0, 0, S // 5, *[S // 5] * 1000])
    deadline = FairDeadline(0.1, 60.0, 7, waited_ns=lambda _pid: next(waited))
    began_s = time.monotonic()
    with pytest.raises(ProbeHangs), time_limit(deadline):
        time.sleep(60)
    assert time.monotonic() - began_s >= 0.3


def test_who_is_done_in_time_is_left_alone():
    with time_limit(FairDeadline(60.0, 60.0)):
        pass
    with pytest.raises(ValueError, match="its own"), time_limit(FairDeadline(60.0, 60.0)):
        raise ValueError("its own")
