"""Keeps what watching costs within a budget: decides how far apart the samples of a run are. Pure.

A server in service pays for who watches it with CPU that it cannot have, so an attached run has a
budget of CPU time, which is saved up to a burst and spent where something happens. ``Governor``
is told what was used and answers with one factor by which every probe's period is multiplied:
1 while something happens that deserves it, ``CALM_STRETCH`` when nothing does, ``QUIET_STRETCH``
when nothing has for a while, and more for as long as the budget is overdrawn. It also knows when
the watch stands back too far: a host that is full leaves it no core at all, and what makes the host
full is what somebody wants to know.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from probes.contract.clock import NS_PER_MS, NS_PER_S

BUDGET_SHARE = 0.005
"""CPU time over wall time that all processes of an attached run may take in the long run."""

BURST_NS = 150 * NS_PER_MS
"""CPU time that may be saved up, and spent at once in a moment that matters."""

ALERT_NS = 10 * NS_PER_S
"""How long a sign that something happens keeps the samples close."""

QUIET_AFTER_NS = 15 * NS_PER_S
"""How long after the start, or after the last sign, it is quiet: as it is for hours."""

GRANT_NS = 200 * NS_PER_MS
GRANT_PAUSE_NS = 60 * NS_PER_S
"""What ``KernelPurse`` may spend beyond its share when a process has no descriptor left."""

BEGIN_SHARE = 0.1
"""What ``KernelPurse`` saves up before it begins: it watches often and shortly, so that no second
of the target is a much slower one."""

STARVED_NS = NS_PER_S
"""A watch that waited so long for a core between two looks does not see what it is there for."""

FORWARD_NS, LONGEST_FORWARD_NS = 10 * NS_PER_S, 160 * NS_PER_S
"""How long it takes its turn like others then, and at most where it starves again and again."""

CALM_STRETCH, QUIET_STRETCH = 2.0, 4.0
MOST_STRETCH = 32.0
LONGEST_PERIOD_NS = 20 * NS_PER_S
"""No probe is put off for longer, whatever it costs."""


@dataclass(slots=True)
class Governor:
    """The budget of one run.

    Attributes:
        budget_share: CPU time over wall time, 1.0 is one core.
        burst_ns: Most that can be saved up.
        balance_ns: What is left; below zero the run costs too much.
        debt_stretch: Factor for the sake of the budget alone, a power of two.
    """

    budget_share: float = BUDGET_SHARE
    burst_ns: int = BURST_NS
    balance_ns: float = field(default=0.0)
    debt_stretch: float = 1.0
    _read_ns: int = 0
    _used_ns: int = -1
    _alert_until_ns: int = 0
    _quiet_from_ns: int = 0
    _forward_until_ns: int = 0
    _forward_ns: int = FORWARD_NS

    def spend(self, at_ns: int, used_total_ns: int) -> None:
        """Takes a reading of the clocks, about once a second.

        Args:
            at_ns: When.
            used_total_ns: CPU time of all processes of the run since any fixed moment.
        """
        if self._used_ns < 0:  # the first reading: what was used before is not of the watch
            self.balance_ns = float(self.burst_ns)
            self._quiet_from_ns = at_ns + QUIET_AFTER_NS
        else:
            earned_ns = self.budget_share * (at_ns - self._read_ns)
            spent_ns = used_total_ns - self._used_ns
            self.balance_ns = min(self.burst_ns, self.balance_ns + earned_ns - spent_ns)
            if self.balance_ns < 0 and spent_ns > earned_ns:
                self.debt_stretch = min(MOST_STRETCH, 2 * self.debt_stretch)
            elif self.balance_ns > self.burst_ns / 2:
                self.debt_stretch = max(1.0, self.debt_stretch / 2)
        self._read_ns, self._used_ns = at_ns, used_total_ns

    def alert(self, at_ns: int) -> None:
        """Something happens that deserves close samples, as far as the budget allows."""
        self._alert_until_ns = at_ns + ALERT_NS
        self._quiet_from_ns = at_ns + QUIET_AFTER_NS

    def is_alert(self, at_ns: int) -> bool:
        """Whether something happened lately."""
        return at_ns < self._alert_until_ns

    def wait(self, at_ns: int, waited_ns: int) -> None:
        """Takes how long the watch has waited for a core since the look before."""
        if waited_ns < STARVED_NS or self.is_starved(at_ns):
            return
        if self._forward_until_ns and at_ns - self._forward_until_ns < self._forward_ns:
            self._forward_ns = min(LONGEST_FORWARD_NS, 2 * self._forward_ns)
        else:
            self._forward_ns = FORWARD_NS
        self._forward_until_ns = at_ns + self._forward_ns

    def is_starved(self, at_ns: int) -> bool:
        """Whether those who want the cores left the watch none lately."""
        return at_ns < self._forward_until_ns

    def is_quiet(self, at_ns: int) -> bool:
        """Whether nothing has happened for a while."""
        return at_ns >= self._quiet_from_ns

    def pace(self, at_ns: int) -> float:
        """The factor for every period that what happens deserves, whatever it costs."""
        if self.is_quiet(at_ns):
            return QUIET_STRETCH
        return 1.0 if self.is_alert(at_ns) and self.balance_ns > 0 else CALM_STRETCH

    def stretch(self, at_ns: int) -> float:
        """The factor for every period, at least 1."""
        return min(MOST_STRETCH, self.pace(at_ns) * self.debt_stretch)

    def period_ns(self, at_ns: int, period_ns: int) -> int:
        """The period of a probe whose own is given."""
        return max(period_ns, min(round(period_ns * self.stretch(at_ns)), LONGEST_PERIOD_NS))


def aligned_ns(at_ns: int, period_ns: int) -> int:
    """The next multiple of a period: probes with commensurable periods wake the process together.

    A process that sleeps between two probes finds its code gone from the caches: what runs together
    costs less than the same one by one.
    """
    return at_ns + period_ns - at_ns % period_ns


@dataclass(slots=True)
class KernelPurse:
    """What a tracepoint that every system call passes may cost the calling processes.

    That cost is no CPU time of ours: it is in the calls of the target and of all others. It is
    known from the number of calls that passed.

    Attributes:
        share: CPU time over wall time that may be spent in the long run, 1.0 is one core.
        burst_ns: Most that can be saved up; half of it is kept for processes near their limit.
        balance_ns: What is left. At first it is just enough to learn how many calls there are.
        call_cost_ns: Of one call that passes.
        attach_cost_ns: Of attaching and detaching: every thread of the host is told.
    """

    share: float = 0.001
    burst_ns: int = 100 * NS_PER_MS
    balance_ns: float = 60.0 * NS_PER_MS
    call_cost_ns: int = 150
    attach_cost_ns: int = NS_PER_MS
    _at_ns: int = 0
    _calls_count: int = 0
    _granted_ns: int = 0

    def pay(self, at_ns: int, calls_total: int) -> None:
        """Takes a reading.

        Args:
            at_ns: When.
            calls_total: Calls that passed so far; 0 while nothing is attached.
        """
        length_ns = at_ns - self._at_ns if self._at_ns else 0
        cost_ns = 0
        if calls_total:
            cost_ns = (calls_total - self._calls_count) * self.call_cost_ns
            self._calls_count = calls_total
        earned_ns = self.share * length_ns
        most_ns = max(self.burst_ns, self.balance_ns)  # a grant is more than can be saved up
        self.balance_ns = min(most_ns, self.balance_ns + earned_ns - cost_ns)
        self._at_ns = at_ns

    def grant(self, at_ns: int) -> None:
        """What is looked for is to be expected now: gives ``GRANT_NS``, not too often."""
        if at_ns >= self._granted_ns + GRANT_PAUSE_NS or not self._granted_ns:
            self._granted_ns = at_ns
            self.balance_ns = max(self.balance_ns, GRANT_NS)

    def affords(self, is_near: bool, is_attached: bool) -> bool:
        """Whether to go on watching, or to begin.

        Args:
            is_near: A process is near its limit: what was saved up is for this.
            is_attached: It watches now; to begin takes more than to go on, else it would flutter.
        """
        kept_ns = 0.0 if is_near else self.burst_ns / 2
        if is_attached:
            return self.balance_ns > kept_ns
        begins = self.balance_ns >= kept_ns + BEGIN_SHARE * self.burst_ns
        if begins:
            self.balance_ns -= self.attach_cost_ns
        return begins
