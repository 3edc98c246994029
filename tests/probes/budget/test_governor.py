"""The budget of an attached run: what it gives, and that it is kept whatever samples cost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from probes.budget.governor import (
    CALM_STRETCH,
    LONGEST_FORWARD_NS,
    LONGEST_PERIOD_NS,
    MOST_STRETCH,
    QUIET_AFTER_NS,
    QUIET_STRETCH,
    STARVED_NS,
    Governor,
    KernelPurse,
    aligned_ns,
)
from probes.contract.clock import NS_PER_MS, NS_PER_S


def simulated(governor: Governor, cost_share: float, seconds: int, *, alert: bool) -> float:
    """CPU time in ns of probes that take that share of a core at their own periods."""
    used_ns = 0.0
    for second in range(1, seconds + 1):
        at_ns = second * NS_PER_S
        if alert:
            governor.alert(at_ns)
        governor.spend(at_ns, round(used_ns))
        used_ns += cost_share * NS_PER_S / governor.stretch(at_ns)
    return used_ns


@given(cost_share=st.floats(0.0001, 0.15), alert=st.booleans())
def test_the_budget_is_kept_whatever_the_samples_cost(cost_share, alert):
    governor = Governor(budget_share=0.005)
    used_ns = simulated(governor, cost_share, 600, alert=alert)
    # A burst and one second at the wrong factor, each time that it is tried again.
    assert used_ns <= 1.5 * 0.005 * 600 * NS_PER_S + governor.burst_ns


def test_cheap_probes_are_never_put_off():
    governor = Governor(budget_share=0.005)
    simulated(governor, 0.004, 100, alert=True)
    assert governor.debt_stretch == 1
    assert governor.stretch(100 * NS_PER_S) == 1


def test_samples_are_close_while_something_happens_and_the_saved_budget_lasts():
    governor = Governor(budget_share=0.005, burst_ns=100 * NS_PER_MS)
    governor.spend(NS_PER_S, 7_000_000_000)  # what was used before is not charged
    assert governor.balance_ns == governor.burst_ns
    assert governor.period_ns(NS_PER_S, 100) == 100 * CALM_STRETCH
    governor.alert(NS_PER_S)
    assert governor.period_ns(2 * NS_PER_S, 100) == 100
    governor.spend(2 * NS_PER_S, 7_000_000_000 + 120 * NS_PER_MS)
    assert governor.balance_ns < 0
    assert governor.period_ns(2 * NS_PER_S, 100) == 100 * CALM_STRETCH * 2
    assert governor.period_ns(600 * NS_PER_S, 100) == 100 * QUIET_STRETCH * 2
    for second in range(3, 40):  # nothing is spent: the debt is paid and saved up again
        governor.spend(second * NS_PER_S, 7_000_000_000 + 120 * NS_PER_MS)
    assert governor.debt_stretch == 1
    assert not governor.is_alert(40 * NS_PER_S)


def test_samples_are_far_apart_when_nothing_has_happened_for_a_while():
    governor = Governor()
    governor.spend(NS_PER_S, 0)
    quiet_ns = NS_PER_S + QUIET_AFTER_NS
    assert governor.stretch(quiet_ns - 1) == CALM_STRETCH
    assert governor.stretch(quiet_ns) == QUIET_STRETCH
    governor.alert(quiet_ns)
    assert governor.stretch(quiet_ns + 1) == 1
    assert governor.stretch(quiet_ns + QUIET_AFTER_NS - 1) == CALM_STRETCH
    assert governor.stretch(quiet_ns + QUIET_AFTER_NS) == QUIET_STRETCH


def test_no_probe_is_put_off_for_ever():
    governor = Governor()
    for second in range(60):
        governor.spend(second * NS_PER_S, second * NS_PER_S)
    assert governor.debt_stretch == MOST_STRETCH
    assert governor.period_ns(NS_PER_S, NS_PER_S) == LONGEST_PERIOD_NS
    assert governor.period_ns(NS_PER_S, 60 * NS_PER_S) == 60 * NS_PER_S


@given(at_ns=st.integers(0, 10**18), period_ns=st.integers(1, 10**11))
def test_periods_meet_on_one_grid(at_ns, period_ns):
    due_ns = aligned_ns(at_ns, period_ns)
    assert at_ns < due_ns <= at_ns + period_ns
    assert due_ns % period_ns == 0


def watched_share(calls_per_s: int, seconds: int, *, near: bool) -> tuple[float, float]:
    """Part of the time watched, and cost in ns, of looks five times a second."""
    purse, attached, calls, on, at_ns = KernelPurse(), True, 1, 0, 0
    step_ns = NS_PER_S // 5
    for tick in range(1, seconds * 5 + 1):
        at_ns = tick * step_ns
        if attached:
            calls += calls_per_s // 5
            on += 1
        purse.pay(at_ns, calls if attached else 0)
        attached = purse.affords(near, attached)
    return on / (seconds * 5), float(calls * purse.call_cost_ns)


def test_few_calls_are_watched_all_the_time():
    assert watched_share(6_000, 300, near=False)[0] == 1


@given(calls_per_s=st.integers(20_000, 3_000_000), near=st.booleans())
def test_many_calls_are_watched_as_long_as_their_cost_is_within_the_share(calls_per_s, near):
    share, cost_ns = watched_share(calls_per_s, 600, near=near)
    assert 0 < share < 1
    one_look_ns = calls_per_s / 5 * 150
    assert cost_ns <= 0.001 * 600 * NS_PER_S + 100 * NS_PER_MS + one_look_ns


def test_what_was_saved_up_is_for_a_process_near_its_limit():
    purse = KernelPurse()
    calls = 1
    purse.pay(NS_PER_S, calls)
    for second in range(2, 62):
        purse.pay(second * NS_PER_S, calls)
    assert purse.balance_ns == purse.burst_ns
    calls += 400_000  # 60 ms
    purse.pay(63 * NS_PER_S, calls)
    assert not purse.affords(False, True)
    assert purse.affords(True, True)
    assert not purse.affords(False, False)
    assert purse.affords(True, False)


def test_a_process_without_descriptors_is_watched_beyond_the_share_but_not_again_and_again():
    purse, calls = KernelPurse(), 1
    purse.pay(NS_PER_S, calls)
    purse.balance_ns = -50.0 * NS_PER_MS
    purse.grant(NS_PER_S)
    assert purse.affords(True, False)
    for tick in range(1, 11):  # 2 s of a million calls
        calls += 100_000
        purse.pay(NS_PER_S + tick * NS_PER_S // 5, calls)
    assert purse.affords(True, True)
    calls += 1_000_000
    purse.pay(4 * NS_PER_S, calls)
    purse.grant(4 * NS_PER_S)
    assert not purse.affords(True, True)
    purse.grant(62 * NS_PER_S)
    assert purse.affords(True, False)


def test_a_watch_that_gets_no_core_takes_its_turn_for_a_while_and_longer_where_it_starves_again():
    governor = Governor()
    governor.wait(NS_PER_S, STARVED_NS - 1)
    assert not governor.is_starved(NS_PER_S)
    lengths_s = []
    at_s = 1
    for _ in range(7):
        governor.wait(at_s * NS_PER_S, STARVED_NS)
        since_s = at_s
        while governor.is_starved(at_s * NS_PER_S):
            governor.wait(at_s * NS_PER_S, STARVED_NS)  # it is on its way: nothing new
            at_s += 1
        lengths_s.append(at_s - since_s)
        at_s += 2
    assert lengths_s == [10, 20, 40, 80, 160, 160, 160]
    at_s += LONGEST_FORWARD_NS // NS_PER_S  # a calm while, and it begins anew
    governor.wait(at_s * NS_PER_S, STARVED_NS)
    assert governor.is_starved((at_s + 9) * NS_PER_S)
    assert not governor.is_starved((at_s + 10) * NS_PER_S)
