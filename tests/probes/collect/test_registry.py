import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.collect import registry
from probes.collect.registry import PROBES, ProbeEntry, names_of_set, resolve
from probes.contract.errors import ProbeUnavailableError, UsageError

LIGHT = {
    "live_samples",
    "blocked_samples",
    "process_samples",
    "host_counters",
    "tcp_snapshot",
    "failing_syscalls",
    "oom_kills",
    "open_fates",
    "send_queues",
    "connection_fates",
    "runtime_limits",
    "server_words",
}


def test_the_sets_are_the_documented_ones():
    assert set(resolve("light")) == LIGHT
    assert set(resolve("auto")) == LIGHT | {
        "tcp_events",
        "cpu_stacks",
        "python_stacks",
        "syscall_mix",
    }
    assert set(resolve("full")) == set(PROBES)
    assert set(resolve("full")) - set(resolve("auto")) == {"runq_latency", "skb_allocs"}
    assert resolve("none") == []


@given(st.lists(st.sampled_from([*PROBES, "light", "auto", "full"]), min_size=1))
def test_a_list_is_resolved_once_and_in_order_of_start(words: list[str]):
    names = resolve(",".join(words))
    assert names == [name for name in PROBES if name in names]
    assert resolve(",".join(names)) == names
    for word in words:
        assert set(names) >= (set(names_of_set(word)) or {word})


def test_spaces_in_a_list_are_no_matter():
    assert resolve(" cpu_stacks , tcp_events,") == ["tcp_events", "cpu_stacks"]


@pytest.mark.parametrize("spec", ["cpu_stack", "auto,nonsense", "none,light", "Auto"])
def test_an_unknown_name_is_answered_with_the_known_ones(spec: str):
    with pytest.raises(UsageError) as refusal:
        resolve(spec)
    assert all(name in refusal.value.fix for name in (*PROBES, "auto", "light", "full", "none"))


@pytest.mark.parametrize("spec", ["", " ", ",,"])
def test_nothing_is_not_a_choice(spec: str):
    with pytest.raises(UsageError, match="empty"):
        resolve(spec)


def test_syscalls_of_all_are_counted_only_when_asked_for():
    assert not registry.every_call_is_counted(resolve("auto"))
    assert registry.every_call_is_counted(resolve("full"))
    assert registry.every_call_is_counted(["syscall_mix"])
    assert not registry.every_call_is_counted(resolve("light"))


@pytest.mark.parametrize("name", PROBES)
def test_every_probe_can_be_made_and_keeps_the_protocol(name: str):
    probe = registry.make(name)
    assert probe.name == name
    assert probe.period_s > 0
    assert (probe.lost_count, probe.late_count, probe.writers) == (0, 0, [])
    probe.stop(0)  # must work when it never started


def test_listing_imports_no_probe():
    code = (
        "import sys; from probes.collect import registry; registry.resolve('full');"
        "print([m for m in sys.modules if m.split('.')[0] in ('bcc', 'pyarrow', 'psutil', 'numpy')"
        " or m.startswith('probes.bpf') or m == 'probes.python_stacks.python_stacks'])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, check=True)
    assert done.stdout == b"[]\n"


def test_a_missing_module_makes_the_probe_unavailable(monkeypatch):
    entry = ProbeEntry("gone", "probes.not_there:Probe", ("full",))
    monkeypatch.setitem(registry.PROBES, "gone", entry)
    with pytest.raises(ProbeUnavailableError, match="not_there"):
        registry.make("gone")
