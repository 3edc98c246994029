"""What profile-doctor calls available has run; what cannot run says why, in one line."""

from __future__ import annotations

import gc
import os
from contextlib import suppress

import pytest

from probes.bpf_loader import kernel_features
from probes.bpf_loader import program as bpf_program
from probes.bpf_loader import syscalls as bpf_kernel
from probes.bpf_loader.btf import Btf, MissingTypeError
from probes.bpf_loader.compile import refusal_reason
from probes.collect import trial
from probes.collect.registry import PROBES
from probes.contract.errors import ProbeUnavailableError
from probes.ebpf import base as bpf_probe

pytestmark = pytest.mark.privileged


def by_name(*names):
    return {check.name: check for check in trial.check_all(names)}


def test_every_probe_runs_here():
    checks = trial.check_all()
    assert [check.name for check in checks] == list(PROBES)
    assert {check.name: check.reason for check in checks if check.reason} == {}
    for check in checks:
        assert check.sets == PROBES[check.name].sets
        assert (check.state, check.fix) == ("available", "")


def test_a_trial_leaves_nothing_behind():
    """A program lives as long as somebody has a descriptor of it (bpf(2))."""

    def held():
        links = []
        for fd in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):
                links.append(os.readlink(f"/proc/self/fd/{fd}"))
        return sorted(link for link in links if "bpf" in link or "perf_event" in link)

    before = held()
    loaded = []
    real = bpf_program.BpfObject.attach_raw_tracepoint

    def seen(self, *words):
        made = real(self, *words)
        loaded.append(held())
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpf_program.BpfObject, "attach_raw_tracepoint", seen)
        trial.check_all(["failing_syscalls"])
    assert loaded
    assert loaded[0] != before
    gc.collect()
    assert held() == before


def test_a_broken_probe_does_not_hide_the_others(monkeypatch):
    class Broken:
        def check(self) -> None:
            raise RuntimeError("boom")

    real = trial.make
    monkeypatch.setattr(
        trial, "make", lambda name: Broken() if name == "tcp_events" else real(name)
    )
    checks = by_name("tcp_events", "live_samples")
    assert checks["tcp_events"].state == "failed"
    assert "boom" in checks["tcp_events"].reason
    assert checks["live_samples"].state == "available"


def test_what_fails_at_its_first_reading_is_not_available(monkeypatch):
    def without_batches(*_, **__):
        raise OSError(524, "Unknown error 524")

    monkeypatch.setattr(bpf_kernel.BpfMap, "items", without_batches)
    checks = by_name("failing_syscalls", "host_counters")
    assert checks["failing_syscalls"].state == "failed"
    assert "524" in checks["failing_syscalls"].reason
    assert checks["host_counters"].state == "available"


def test_what_the_verifier_refuses_is_told_with_its_words(monkeypatch, tmp_path):
    for path in bpf_program._C_DIRECTORY.iterdir():
        text = path.read_text()
        if path.name == "failing_syscalls.c":
            text = text.replace("long ret = (long)ctx[1];", "long ret = *(long *)ctx[1];")
        (tmp_path / path.name).write_text(text)
    monkeypatch.setattr(bpf_program, "_C_DIRECTORY", tmp_path)
    checks = by_name("failing_syscalls", "tcp_events")
    check = checks["failing_syscalls"]
    assert check.state == "unavailable"
    assert "refused the program failing_syscalls" in check.reason
    assert "invalid mem access" in check.reason
    assert "\n" not in check.reason
    assert checks["tcp_events"].state == "available"


def test_without_rights_for_ebpf_the_sockets_are_listed_by_sock_diag(monkeypatch):
    def refuse():
        raise ProbeUnavailableError("eBPF needs root", fix="run it with sudo")

    monkeypatch.setattr(bpf_probe, "check_bpf", refuse)
    checks = by_name("failing_syscalls", "tcp_snapshot")
    assert checks["failing_syscalls"].state == "unavailable"
    assert checks["failing_syscalls"].fix == "run it with sudo"
    assert checks["tcp_snapshot"].state == "available"
    (note,) = checks["tcp_snapshot"].notes
    assert note == "the sockets were listed by sock_diag: eBPF needs root"


def test_a_kernel_that_lacks_an_argument_is_told_with_the_version(monkeypatch):
    real = Btf.tracepoint_arguments

    def before_6_1(self, event):
        names = real(self, event)
        return [n for n in names if n != "kmem_cache"] if event == "kmem_cache_alloc" else names

    monkeypatch.setattr(Btf, "tracepoint_arguments", before_6_1)
    check = by_name("skb_allocs")["skb_allocs"]
    assert check.state == "unavailable"
    assert "does not name the cache" in check.reason
    assert check.fix == "run Linux 6.1"


def test_unknown_machines_are_refused_with_a_word(monkeypatch):
    monkeypatch.setattr(bpf_program.platform, "machine", lambda: "s390x")
    with pytest.raises(ProbeUnavailableError, match="not supported on s390x") as caught:
        bpf_program.check_bpf()
    assert "x86_64" in caught.value.fix


def test_lockdown_is_refused_with_a_word(monkeypatch, tmp_path):
    lockdown = tmp_path / "lockdown"
    monkeypatch.setattr(kernel_features, "LOCKDOWN", lockdown)
    lockdown.write_text("none [integrity] confidentiality\n")
    bpf_program.check_bpf()
    lockdown.write_text("none integrity [confidentiality]\n")
    with pytest.raises(ProbeUnavailableError, match="confidentiality") as caught:
        bpf_program.check_bpf()
    assert "lockdown" in caught.value.fix


def test_a_refused_perf_event_names_the_sysctl(monkeypatch, tmp_path):
    paranoid = tmp_path / "perf_event_paranoid"
    paranoid.write_text("3\n")
    monkeypatch.setattr(kernel_features, "PERF_PARANOID", paranoid)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(bpf_kernel, "attach_cpu_clock", refuse)
    check = by_name("cpu_stacks")["cpu_stacks"]
    assert check.state == "unavailable"
    assert "kernel.perf_event_paranoid=2 (it is 3)" in check.fix


VERIFIER_5_10 = """
0: (bf) r6 = r1
; u64 nr = 0;
107: (71) r2 = *(u8 *)(r9 +16)
R9 unbounded memory access, make sure to bounds check any such access
processed 108 insns (limit 1000000) max_states_per_insn 0 total_states 6 peak_states 6 mark_read 3

"""


@pytest.mark.parametrize(
    ("error", "log", "reason"),
    [
        ("Failed to load BPF program b'x': Permission denied", "", None),
        (
            "Failed",
            VERIFIER_5_10,
            "107: (71) r2 = *(u8 *)(r9 +16): R9 unbounded memory access, make sure to bounds check "
            "any such access",
        ),
        (
            "Failed",
            "bpf: Failed to load program: Invalid argument\nunknown func bpf_x#300\n",
            "unknown func bpf_x#300",
        ),
        ("two\nlines", "", "two lines"),
    ],
)
def test_the_reason_is_one_line(error, log, reason):
    assert refusal_reason(error, log) == (error if reason is None else reason)


def test_what_has_a_missing_thing():
    assert kernel_features.what_has("struct bpf_iter__tcp") == "run Linux 5.9"
    assert "newer kernel" in kernel_features.what_has("field sock.sk_gone")
    assert MissingTypeError("struct x").name == "struct x"
    assert str(MissingTypeError("struct x")) == "this kernel has no struct x"


def test_what_this_kernel_lacks_is_found_out_and_not_looked_up(monkeypatch):
    monkeypatch.setattr(Btf, "enum", lambda self, name: {})
    monkeypatch.setattr(kernel_features, "kernel_counts", lambda: False)
    since = [lack.since for lack in kernel_features.lacks_of_kernel()]
    assert since[:3] == ["5.17", "6.2", "6.10"]
