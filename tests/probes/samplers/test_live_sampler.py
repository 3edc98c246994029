import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.contract import schema
from probes.contract.clock import now_ns
from probes.contract.errors import ProbeUnavailableError
from probes.contract.live import LAG_BUCKETS, Counter, Live, Role
from probes.contract.message_times import MessageTimes
from probes.contract.probe import Target
from probes.samplers.live_samples import LiveSamplesProbe, longest_turn_ns

DIRECT = {  # columns that are counters under the same name
    name: Counter[name.upper()]
    for name in schema.TABLES["live_samples"].column_names
    if name.upper() in Counter.__members__
}


def started(run, live: Live | None) -> LiveSamplesProbe:
    probe = LiveSamplesProbe()
    probe.check()
    probe.start(Target(run, {}, frozenset(), live))
    return probe


def rows(run, probe: LiveSamplesProbe) -> list[dict]:
    probe.stop(now_ns())
    for writer in probe.writers:
        writer.close()
    return run.read_table("live_samples").table.to_pylist()


def take_turn(live: Live, index: int, lag_ns: int) -> None:
    """What the event loop writes at the end of a turn."""
    slot = live.slot(index)
    slot[Counter.LOOP_ITERATIONS_TOTAL] += 1
    slot[Counter.LOOP_MAX_LAG_NS] = max(slot[Counter.LOOP_MAX_LAG_NS], lag_ns)
    live.lag_histogram(index)[min(lag_ns.bit_length(), LAG_BUCKETS - 1)] += 1


def test_every_counter_arrives_in_its_column(run, new_live, occupy):
    live, _ = new_live(3)
    occupy(live, 1, Role.CLIENT, 4_711, worker=5)
    slot = live.slot(1)
    for number, counter in enumerate(DIRECT.values()):
        if counter not in (Counter.PID, Counter.ROLE, Counter.WORKER):
            slot[counter] = 1_009 + number
    slot[Counter.LOOP_MAX_LAG_NS] = 23
    probe = started(run, live)
    probe.sample(1_000)
    first = rows(run, probe)[0]
    assert len(DIRECT) >= 15
    assert {name: first[name] for name in DIRECT if name != "role"} == {
        name: slot[counter] for name, counter in DIRECT.items() if name != "role"
    }
    assert (first["at_ns"], first["role"], first["slot"], first["worker"]) == (
        1_000,
        "client",
        1,
        5,
    )
    assert (first["loop_lag_ns"], first["loop_max_lag_ns"]) == (0, 23)


def test_free_slots_and_unborn_processes_have_no_row(run, new_live, occupy):
    live, _ = new_live(3)
    occupy(live, 0, Role.SERVER, 23)
    occupy(live, 1, Role.SERVER, 0)
    probe = started(run, live)
    probe.sample(1)
    assert {row["pid"] for row in rows(run, probe)} == {23}


def test_the_lag_of_the_current_turn_grows_until_it_ends(run, new_live, occupy):
    live, _ = new_live(1)
    occupy(live, 0, Role.SERVER, 23)
    probe = started(run, live)
    live.slot(0)[Counter.LOOP_ENTERED_NS] = 1_000
    probe.sample(1_500)
    probe.sample(9_000)
    live.slot(0)[Counter.LOOP_ENTERED_NS] = 0
    probe.sample(10_000)
    found = [(row["loop_lag_ns"], row["loop_max_lag_ns"]) for row in rows(run, probe)]
    assert found[:3] == [(500, 500), (8_000, 8_000), (0, 0)]


def test_the_longest_turn_is_that_since_the_previous_row(run, new_live, occupy):
    live, _ = new_live(1)
    occupy(live, 0, Role.SERVER, 23)
    probe = started(run, live)
    probe.sample(1)
    take_turn(live, 0, 1_000_000)
    probe.sample(2)
    take_turn(live, 0, 300)
    take_turn(live, 0, 20)
    probe.sample(3)
    probe.sample(4)
    take_turn(live, 0, 5_000_000)
    probe.sample(5)
    found = [row["loop_max_lag_ns"] for row in rows(run, probe)]
    assert found[:5] == [0, 1_000_000, 511, 0, 5_000_000]


@given(
    st.lists(st.integers(0, 1 << 60)),
    st.lists(st.integers(0, 1 << 60), min_size=1),
)
def test_the_longest_turn_is_never_understated(earlier: list[int], turns: list[int]):
    def histogram(values: list[int]) -> tuple[int, ...]:
        counts = [0] * LAG_BUCKETS
        for value in values:
            counts[min(value.bit_length(), LAG_BUCKETS - 1)] += 1
        return tuple(counts)

    before_max, after_max = max(earlier, default=0), max([*earlier, *turns])
    found = longest_turn_ns(histogram(earlier), histogram(earlier + turns), before_max, after_max)
    if max(turns) < 1 << (LAG_BUCKETS - 1) or after_max > before_max:
        assert max(turns) <= found
    assert found <= after_max


def test_a_killed_writer_keeps_its_rows(run, new_live, python_child):
    live, fd = new_live(1)
    code = f"""
from probes.contract.live import Counter, Live, Role
slot = Live({fd}).slot(0)
slot[Counter.ROLE] = Role.SERVER
slot[Counter.ESTABLISHED_TOTAL] = 23
slot[Counter.PID] = os.getpid()
ready()
time.sleep(60)
"""
    child, _ = python_child(code, pass_fds=(fd,))
    probe = started(run, live)
    child.send_signal(signal.SIGKILL)
    child.wait()
    probe.sample(now_ns())
    assert [(r["pid"], r["established_total"]) for r in rows(run, probe)] == [(child.pid, 23)] * 2


def test_foreign_servers_have_no_shared_counters(run):
    probe = LiveSamplesProbe()
    with pytest.raises(ProbeUnavailableError, match="no shared counters"):
        probe.start(Target(run, {}, frozenset(), None))
    probe.stop(now_ns())


def test_message_times_of_all_clients_are_rows_of_what_was_added(run, new_live):
    live, _ = new_live(3, timed_clients=2)
    one, other = (MessageTimes(live.message_times(client), 0) for client in range(2))

    def take(times: MessageTimes, count: int, time_us: int) -> None:
        for _ in range(count):
            times.sent(3, 1)
            times.received(3, b"", 1 + time_us * 1000)

    probe = started(run, live)
    take(one, 23, 100)
    take(other, 7, 100)
    probe.sample(2_000_000_000)
    take(other, 11, 10_000)
    probe.sample(2_500_000_000)  # buckets are read once a second
    probe.sample(3_000_000_000)
    rows(run, probe)
    found = run.read_table("message_times").table.to_pylist()
    assert [
        (row["at_ns"], row["from_ns"], row["until_ns"], row["message_count"], row["longest_ns"])
        for row in found
    ] == [
        (2_000_000_000, 100_000, 101_000, 30, 100_000),
        (3_000_000_000, 9_984_000, 10_048_000, 11, 10_000_000),
    ]
