import json
import mmap
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.bpf_loader.own_rights import parse_status
from probes.contract.clock import NS_PER_S, now_ns
from probes.contract.errors import ProbeUnavailableError
from probes.contract.probe import ProcessRef, Target
from probes.python_stacks import pyspy_process
from probes.python_stacks import python_stacks as pyspy
from probes.python_stacks.python_stacks import (
    HIGH_RATE_PER_S,
    LOW_RATE_PER_S,
    PythonStacksProbe,
    python_build_note,
)
from probes.python_stacks.trace import (
    CpuBilling,
    Outcome,
    Span,
    explain_failure,
    frame_text,
    parse_outcome,
    parse_trace,
)
from probes.rights.privileges import bits_of

pytestmark = pytest.mark.alone

MS = 1_000_000


def event(phase, name, at_us, line=1, tid=7, filename="/srv/app/server.py"):
    arguments = {"filename": filename, "line": line}
    return {"args": arguments, "cat": "py-spy", "name": name, "ph": phase, "tid": tid, "ts": at_us}


# --- the trace -----------------------------------------------------------------------------------


def test_spans_run_from_one_change_of_the_stack_to_the_next():
    text = json.dumps(
        [
            event("B", "thread (12): MainThread", 1_000, 0, filename=""),
            event("B", "main", 1_000, 10),
            event("B", "alpha", 1_000, 5),
            event("E", "alpha", 4_000, 5),
            event("B", "beta", 4_000, 8),
            event("E", "beta", 9_000, 8),
            event("E", "main", 9_000, 10),
            event("E", "thread (12): MainThread", 9_000, 0, filename=""),
        ]
    )
    main = "main (app/server.py:10);"
    assert parse_trace(text, started_ns=MS) == [
        Span(2 * MS, 5 * MS, "MainThread", main + "alpha (app/server.py:5)"),
        Span(5 * MS, 10 * MS, "MainThread", main + "beta (app/server.py:8)"),
    ]


def test_threads_are_kept_apart():
    text = json.dumps(
        [
            event("B", "thread (0xC): a;b", 0, 0, tid=1),
            event("B", "f", 0, tid=1),
            event("B", "thread (0xD)", 1_000, 0, tid=2),
            event("B", "g", 1_000, tid=2),
            event("E", "f", 2_000, tid=1),
            event("E", "g", 3_000, tid=2),
        ]
    )
    found = {span.thread: (span.start_ns, span.end_ns) for span in parse_trace(text, 0)}
    assert found == {"a;b": (0, 2 * MS), "0xD": (MS, 3 * MS)}


def test_metadata_of_newer_versions_is_skipped():
    text = json.dumps([event("M", "thread_name", 0), event("B", "f", 0), event("E", "f", 1_000)])
    assert parse_trace(text, 0) == [Span(0, MS, "", "f (app/server.py:1)")]


def test_nothing_sampled_is_no_span():
    assert parse_trace("", 0) == []
    assert parse_trace("[]\n", 0) == []


@pytest.mark.parametrize("text", ['[{"ph": "B"', "{}", '"x"', "nonsense"])
def test_a_cut_trace_is_refused(text: str):
    with pytest.raises(ValueError, match=r"."):
        parse_trace(text, 0)


@pytest.mark.parametrize(
    ("filename", "wanted"),
    [
        ("/usr/lib/python3.11/asyncio/events.py", "f (asyncio/events.py:9)"),
        ("server.py", "f (server.py:9)"),
        ("/server.py", "f (server.py:9)"),
        ("<frozen runpy>", "f (<frozen runpy>:9)"),
        ("/a;b/c.py", "f (a,b/c.py:9)"),
    ],
)
def test_a_frame_names_function_file_and_line(filename: str, wanted: str):
    assert frame_text("f", filename, 9) == wanted


# --- billing -------------------------------------------------------------------------------------


def span(start_ms, end_ms, stack, thread="t"):
    return Span(start_ms * MS, end_ms * MS, thread, stack)


def test_a_busy_process_is_billed_by_the_time_of_its_stacks():
    billing = CpuBilling(10 * MS)
    spans = [span(0, 700, "alpha"), span(700, 1_000, "beta"), span(1_000, 2_000, "beta")]
    cpu = [(0, 0), (1_000 * MS, 1_000 * MS), (2_000 * MS, 2_000 * MS)]
    found = [(row.at_ns, row.stack, row.sample_count) for row in billing.rows(spans, cpu)]
    assert found == [
        (1_000 * MS, "alpha", 70),
        (1_000 * MS, "beta", 30),
        (2_000 * MS, "beta", 100),
    ]


def test_waiting_is_not_billed():
    rows = CpuBilling(10 * MS).rows(
        [span(0, 1_000, "poll")], [(0, 5 * NS_PER_S), (1_000 * MS, 5 * NS_PER_S + 20 * MS)]
    )
    assert [row.sample_count for row in rows] == [2]


def test_time_that_nobody_watched_is_not_billed():
    # py-spy began in the middle of the second: half of the CPU time cannot be placed
    rows = CpuBilling(10 * MS).rows([span(500, 1_000, "f")], [(0, 0), (1_000 * MS, 1_000 * MS)])
    assert [row.sample_count for row in rows] == [50]


def test_two_threads_share_the_time_of_their_process():
    spans = [span(0, 1_000, "f", "a"), span(0, 1_000, "g", "b")]
    rows = CpuBilling(10 * MS).rows(spans, [(0, 0), (1_000 * MS, 1_000 * MS)])
    assert {row.thread: row.sample_count for row in rows} == {"a": 50, "b": 50}


@given(st.lists(st.integers(0, 1_000), min_size=1, max_size=30))
def test_what_is_left_over_is_billed_later(cpu_ms: list[int]):
    billing = CpuBilling(250 * MS)
    cpu = [(0, 0)]
    for number, used_ms in enumerate(cpu_ms, start=1):
        cpu.append((number * NS_PER_S, cpu[-1][1] + used_ms * MS))
    rows = billing.rows([span(0, len(cpu_ms) * 1_000, "f")], cpu)
    billed_ns = sum(row.sample_count * row.period_ns for row in rows)
    assert 0 <= sum(cpu_ms) * MS - billed_ns <= 250 * MS + len(cpu_ms)
    assert all(row.sample_count > 0 for row in rows)


# --- messages ------------------------------------------------------------------------------------

WROTE = """py-spy> Sampling process 4 times a second for 61 seconds. Press Control-C to exit.

py-spy> 1.23s behind in sampling, results may be inaccurate. Try reducing the sampling rate.
py-spy> 2.50s behind in sampling, results may be inaccurate. Try reducing the sampling rate.

py-spy> Stopped sampling because Control-C pressed
py-spy> Wrote chrome trace to '/proc/self/fd/9'. Samples: 1009 Errors: 23
"""
BANNER = "py-spy> Sampling process 5 times a second for 51 seconds. Press Control-C to exit.\n\n"
DENIED = (
    "Permission Denied: Try running again with elevated permissions by going"
    " 'sudo env \"PATH=$PATH\" !!'\n"
)
GONE = """Error: Failed to get process executable name. Check that the process is running.

Caused by:
    0: No such file or directory (os error 2)
"""


def test_samples_errors_and_lateness_are_read():
    assert parse_outcome(WROTE) == Outcome(1_009, 23, 2, "")
    assert parse_outcome("") == Outcome(-1, 0, 0, "")
    assert parse_outcome(GONE).failure.startswith("Error: Failed to get process executable")


@pytest.mark.parametrize(
    ("stderr", "reason", "fix"),
    [
        (DENIED, "ptrace is denied", "CAP_SYS_PTRACE"),
        ("Error: Operation not permitted (os error 1)\n", "ptrace is denied", "root"),
        ("Error: Failed to find python version from target process\n", "interpreter", "upgrade"),
        (GONE, "ended with status 1: Error: Failed to get process", "probes.log"),
        ("", "py-spy ended with status 1", "probes.log"),
        (BANNER, "py-spy ended with status 1", "probes.log"),
    ],
)
def test_failures_are_explained(stderr: str, reason: str, fix: str):
    message, help_text = explain_failure(stderr, "ended with status 1")
    assert "Press Control-C" not in message
    assert reason in message
    assert fix in help_text


@pytest.mark.parametrize(
    ("scope", "reason", "fix"),
    [(-1, "denied", "CAP_SYS_PTRACE"), (0, "denied", "root"), (1, "is 1", "root"),
     (2, "is 2", "CAP_SYS_PTRACE"), (3, "is 3", "boot")],
)  # fmt: skip
def test_a_denied_ptrace_names_yamas_sysctl(scope: int, reason: str, fix: str):
    message, help_text = explain_failure(DENIED, "ended with status 1", scope)
    assert reason in message
    assert fix in help_text


def test_no_py_spy_makes_the_probe_unavailable(monkeypatch):
    monkeypatch.setattr(pyspy, "find_py_spy", lambda: None)
    with pytest.raises(ProbeUnavailableError, match="not installed") as refusal:
        PythonStacksProbe().check()
    assert refusal.value.fix == "make install"


def test_a_py_spy_that_does_not_run_makes_the_probe_unavailable(monkeypatch, tmp_path):
    broken = tmp_path / "py-spy"
    broken.write_text("no program")
    broken.chmod(0o755)
    monkeypatch.setattr(pyspy, "find_py_spy", lambda: broken)
    with pytest.raises(ProbeUnavailableError, match="does not run"):
        PythonStacksProbe().check()


def test_py_spy_is_that_of_this_environment():
    assert pyspy_process.find_py_spy() == Path(sys.executable).parent / "py-spy"


@pytest.fixture(params=["setpriv", "python"])
def start_kind(request, monkeypatch):
    """With util-linux's setpriv, and where it is missing or is BusyBox's, which lacks options."""
    pyspy_process._setpriv.cache_clear()
    if request.param == "python":
        monkeypatch.setattr(pyspy_process.shutil, "which", lambda name: None)
    yield request.param
    pyspy_process._setpriv.cache_clear()


def test_a_setpriv_that_lacks_an_option_is_not_used(monkeypatch, tmp_path):
    poor = tmp_path / "setpriv"
    poor.write_text("#!/bin/sh\necho 'unrecognized option' >&2\nexit 1\n")
    poor.chmod(0o755)
    pyspy_process._setpriv.cache_clear()
    monkeypatch.setattr(pyspy_process.shutil, "which", lambda name: str(poor))
    try:
        assert "probes.rights.limited_start" in pyspy_process.launcher(os.getpid())
    finally:
        pyspy_process._setpriv.cache_clear()


def test_a_py_spy_has_two_capabilities_and_gains_none(start_kind):
    words = pyspy_process.launcher(os.getpid())
    assert ("probes.rights.limited_start" in words) is (start_kind == "python")
    done = subprocess.run(
        [*words, "cat", "/proc/self/status"], capture_output=True, text=True, check=True
    )
    said = parse_status(done.stdout)
    own = parse_status(Path("/proc/self/status").read_text())
    kept = bits_of(pyspy_process.PY_SPY_KEEPS) & int(own["CapPrm"], 16)
    assert int(said["CapEff"], 16) == int(said["CapPrm"], 16) == kept
    assert said["NoNewPrivs"] == "1"
    if os.geteuid() == 0:
        assert int(said["CapBnd"], 16) == kept
    command = [*words, str(pyspy_process.find_py_spy()), "dump", "--pid"]
    with subprocess.Popen([sys.executable, "-c", "print(1, flush=True); input()"],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as target:  # fmt: skip
        assert target.stdout.readline() == b"1\n"
        read = subprocess.run(
            [*command, str(target.pid), "--nonblocking"], capture_output=True, text=True
        )
        target.stdin.close()
    if os.geteuid() == 0:
        assert "<module>" in read.stdout, read.stderr


READS_ITS_LIKE = """
import os, subprocess, sys
from probes.rights import privileges
from probes.python_stacks import pyspy_process
if sys.argv[1] == "python":
    pyspy_process.shutil.which = lambda name: None
privileges.bound_by(set(privileges.CAPABILITIES) - {"sys_ptrace"})
privileges.keep_only(set(privileges.CAPABILITIES) - {"sys_ptrace"})
privileges.gain_nothing()
code = "print(1, flush=True); input()"
target = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE)
target.stdout.readline()
words = [*pyspy_process.launcher(os.getpid()), str(pyspy_process.find_py_spy())]
subprocess.run([*words, "dump", "--nonblocking", "--pid", str(target.pid)])
target.stdin.close()
target.wait()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="is about root of a container: needs root")
@pytest.mark.parametrize("kind", ["setpriv", "python"])
def test_root_of_a_container_without_sys_ptrace_reads_a_server_that_is_root_beside_it(kind):
    """Who lacks that capability may read only who has no other that it lacks."""
    done = subprocess.run(
        [sys.executable, "-c", READS_ITS_LIKE, kind], capture_output=True, text=True, timeout=60
    )
    assert "<module>" in done.stdout, done.stderr


def test_a_command_whose_parent_died_before_it_began_does_not_begin(tmp_path, start_kind):
    witness = tmp_path / "began"
    foreign = [*pyspy_process.launcher(1), "touch", str(witness)]  # init never started it
    assert subprocess.run(foreign, check=False).returncode == 1
    assert not witness.exists()
    assert (
        subprocess.run(
            [*pyspy_process.launcher(os.getpid()), *foreign[-2:]], check=False
        ).returncode
        == 0
    )
    assert witness.exists()


@pytest.mark.privileged
def test_denied_ptrace_makes_the_probe_unavailable(tmp_path):
    # A process without dumpable memory and without privilege: its py-spy may not read it.
    code = """
import ctypes, os
os.setgroups([]); os.setgid(65534); os.setuid(65534)
ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
from probes.python_stacks.python_stacks import PythonStacksProbe
from probes.contract.errors import ProbeUnavailableError
try:
    PythonStacksProbe().check()
except ProbeUnavailableError as error:
    print(error.message)
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert "ptrace is denied" in done.stdout


READS_ANOTHER_USERS = """
import subprocess, sys, time
from pathlib import Path
from probes.contract.clock import now_ns
from probes.contract.errors import ProbeUnavailableError
from probes.contract.probe import ProcessRef, Target
from probes.python_stacks.python_stacks import PythonStacksProbe
from probes.contract.rundir import create_run_dir

code = "print('ready', flush=True)\\nwhile True: pass"
target = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, user=65534)
target.stdout.readline()
probe = PythonStacksProbe()
probe.check()
print(probe.note)
processes = {target.pid: ProcessRef(target.pid, "server", 0, is_python=True)}
probe.start(Target(create_run_dir(Path(sys.argv[1]), "run"), processes, frozenset(), None))
end_s = time.monotonic() + 60
while not probe.lost_count and time.monotonic() < end_s:
    time.sleep(0.05)
    probe.sample(now_ns())
try:
    probe.stop(now_ns())
except ProbeUnavailableError as error:
    print(error.message, error.fix, sep="\\n")
finally:
    target.kill()
    target.wait()
"""


@pytest.mark.privileged
def test_who_may_read_none_of_the_processes_is_unavailable_and_said_so_before(tmp_path):
    before = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-all"]
    done = subprocess.run(
        [*before, sys.executable, "-P", "-c", READS_ANOTHER_USERS, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    note, reason, fix = done.stdout.splitlines()
    assert "no process of another user" in note
    assert "ptrace is denied" in reason
    assert "SYS_PTRACE" in fix


# --- real processes ------------------------------------------------------------------------------

SPIN = """
def spinning_function():
    while True:
        sum(range(100))
ready()
spinning_function()
"""
ONE_AFTER_THE_OTHER = """
def first_function():
    while select.select([0], [], [], 0)[0] == []:
        sum(range(1000))
    os.read(0, 1)
def second_function():
    while select.select([0], [], [], 0)[0] == []:
        sum(range(1000))
ready()
first_function()
ready("second")
second_function()
"""


def started(run, pids: list[int], role: str = "server") -> PythonStacksProbe:
    probe = PythonStacksProbe()
    probe.check()
    processes = {pid: ProcessRef(pid, role, index, True) for index, pid in enumerate(pids)}
    probe.start(Target(run, processes, frozenset(), None))
    return probe


def stopped(run, probe: PythonStacksProbe) -> list[dict]:
    probe.request_stop()
    probe.stop(now_ns())
    for writer in probe.writers:
        writer.close()
    return run.read_table("python_stacks").table.to_pylist()


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """No window is lost because a py-spy was slow to stop, or waited long by its nature."""
    monkeypatch.setattr(pyspy, "STOP_LIMIT_S", 20.0)


def samples_already(window: pyspy_process.Window) -> bool:
    """It has its handler of SIGINT, the last thing before its first sample."""
    status = Path(f"/proc/{window.child.pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return status.startswith("Name:\tpy-spy\n") and bool(caught >> signal.SIGINT - 1 & 1)


def keep_sampling(probe: PythonStacksProbe, seconds: float) -> None:
    """Lets every py-spy watch for so long, as the loop of the probe process would."""
    begin_by_s = time.monotonic() + 60
    while not all(samples_already(each) for each in probe._windows if not each.asked):
        assert time.monotonic() < begin_by_s, "no py-spy began to sample"
        time.sleep(0.01)
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        time.sleep(0.25)
        probe.sample(now_ns())


def py_spies() -> list[str]:
    own = os.getpid()
    return [
        pid
        for pid in Path(f"/proc/self/task/{own}/children").read_text().split()
        if "py-spy" in Path(f"/proc/{pid}/cmdline").read_text()
    ]


@pytest.mark.privileged
def test_a_spinning_function_is_named(run, python_child):
    child, _ = python_child(SPIN)
    probe = started(run, [child.pid])
    probe.focus(child.pid)
    keep_sampling(probe, 2.0)
    rows = stopped(run, probe)
    total = sum(row["sample_count"] * row["period_ns"] for row in rows)
    named = [row for row in rows if "spinning_function (<string>:" in row["stack"]]
    assert total > 0
    assert sum(row["sample_count"] * row["period_ns"] for row in named) > 0.9 * total
    assert {row["pid"] for row in rows} == {child.pid}
    assert {row["thread"] for row in rows} == {"MainThread"}
    assert any(row["period_ns"] == NS_PER_S // HIGH_RATE_PER_S for row in rows)
    assert probe.child_cpu_ns > 0
    assert py_spies() == []


@pytest.mark.privileged
def test_time_tells_the_first_function_from_the_second(run, python_child):
    child, _ = python_child(ONE_AFTER_THE_OTHER)
    probe = started(run, [child.pid])
    probe.focus(child.pid)
    keep_sampling(probe, 1.5)
    child.stdin.write("x")
    child.stdin.flush()
    assert child.stdout.readline() == "second\n"
    switched_ns = now_ns()
    keep_sampling(probe, 1.5)
    rows = stopped(run, probe)
    # A row counts the interval that ends at at_ns; py-spy's clock is known to about 20 ms.
    margin_ns = 600 * MS
    early = [row for row in rows if row["at_ns"] < switched_ns - margin_ns]
    late = [row for row in rows if row["at_ns"] > switched_ns + margin_ns]
    assert sum(row["sample_count"] for row in early) > 0
    assert sum(row["sample_count"] for row in late) > 0
    assert all("first_function" in row["stack"] for row in early)
    assert all("second_function" in row["stack"] for row in late)


@pytest.mark.privileged
def test_clients_are_sampled_only_when_hot(run, python_child, deadline):
    child, _ = python_child(SPIN)
    probe = started(run, [child.pid], role="client")
    assert py_spies() == []
    probe.focus(child.pid)
    deadline("a py-spy runs", py_spies)
    probe.focus(0)
    probe.focus(999_999)  # not of the target
    stopped(run, probe)
    assert py_spies() == []


@pytest.mark.privileged
def test_a_window_that_ends_is_followed_without_loss(run, python_child, deadline, monkeypatch):
    rate_per_s = 50
    monkeypatch.setattr(pyspy, "WINDOW_S", 1.0)
    monkeypatch.setattr(pyspy, "LOW_RATE_PER_S", rate_per_s)
    child, _ = python_child(SPIN)
    probe = started(run, [child.pid])

    def rows_of_an_ended_window() -> int:
        time.sleep(0.2)
        probe.sample(now_ns())
        return len(probe.writers[0]._rows)

    deadline("a window ended while the probe runs", rows_of_an_ended_window)
    assert len(py_spies()) >= 1
    rows = stopped(run, probe)
    # A window that is lost counts with all its samples, a stack that was torn (there is no pause
    # while it is read) with one.
    assert probe.lost_count < rate_per_s // 4
    assert all(row["period_ns"] == NS_PER_S // rate_per_s for row in rows)


@pytest.mark.privileged
def test_a_worker_that_dies_keeps_what_was_seen(run, python_child, deadline):
    child, _ = python_child(SPIN)
    probe = started(run, [child.pid])
    probe.focus(child.pid)
    keep_sampling(probe, 1.0)
    child.kill()
    child.wait()

    def all_ended() -> bool:
        probe.sample(now_ns())
        return py_spies() == []

    deadline("py-spy ends with its process", all_ended)
    rows = stopped(run, probe)
    assert any("spinning_function" in row["stack"] for row in rows)


@pytest.mark.privileged
def test_a_py_spy_that_was_killed_counts_as_lost(run, python_child):
    child, _ = python_child(SPIN)
    probe = started(run, [child.pid])
    keep_sampling(probe, 1.0)
    (py_spy,) = py_spies()
    os.kill(int(py_spy), 9)
    stopped(run, probe)
    assert probe.lost_count >= LOW_RATE_PER_S - 1
    assert probe.seen_count >= probe.lost_count
    assert probe.note == f"pid {child.pid}: py-spy was killed by SIGKILL"
    assert py_spies() == []


def test_a_py_spy_that_does_not_end_in_time_is_said_to_have_been_killed(
    run, python_child, monkeypatch
):
    monkeypatch.setattr(pyspy, "STOP_LIMIT_S", 0.3)
    child, _ = python_child(SPIN)
    probe = started(run, [child.pid])
    keep_sampling(probe, 1.0)
    (py_spy,) = py_spies()
    os.kill(int(py_spy), signal.SIGSTOP)  # it sees no SIGINT, as one that waits for its next sample
    stopped(run, probe)
    assert probe.lost_count == probe.seen_count >= LOW_RATE_PER_S
    found = re.fullmatch(
        r"pid \d+: py-spy did not write within (\d\.\d) s of being asked, and was killed",
        probe.note,
    )
    assert found, probe.note
    assert float(found[1]) >= 0.3
    assert py_spies() == []


def test_the_end_of_the_run_is_waited_for_as_long_as_it_may_take(run, python_child):
    child, _ = python_child(SPIN)
    probe = started(run, [child.pid])
    keep_sampling(probe, 0.5)
    (py_spy,) = py_spies()
    os.kill(int(py_spy), signal.SIGSTOP)
    probe._target.stop_by_ns = now_ns() + NS_PER_S // 5
    stopped(run, probe)
    assert "did not write within 0.2 s" in probe.note


def test_on_a_slow_host_a_py_spy_gets_longer_to_write(run, python_child, monkeypatch):
    monkeypatch.setattr(pyspy, "STOP_LIMIT_S", 0.3)
    child, _ = python_child(SPIN)
    probe = started(run, [child.pid])
    keep_sampling(probe, 1.0)
    (py_spy,) = py_spies()
    os.kill(int(py_spy), signal.SIGSTOP)
    probe._target.stop_slowness = 200.0
    later = threading.Timer(1.0, os.kill, (int(py_spy), signal.SIGCONT))
    later.start()
    try:
        stopped(run, probe)
    finally:
        later.join()
    assert "killed" not in probe.note


@pytest.mark.parametrize(
    ("returncode", "said"),
    [
        (0, "ended with status 0"),
        (101, "ended with status 101"),
        (-9, "was killed by SIGKILL"),
        (-64, "was killed by SIGRTMAX"),
        (-99, "was killed by signal 99"),
        (None, "runs"),
    ],
)
def test_how_a_py_spy_ended_in_words(returncode, said):
    assert pyspy_process.end_words(returncode) == said


def test_no_descriptor_stays_open(run, python_child):
    child, _ = python_child("ready(); time.sleep(60)")
    before = os.listdir("/proc/self/fd")
    stopped(run, started(run, [child.pid]))
    assert os.listdir("/proc/self/fd") == before


def test_stopping_without_a_start_is_no_failure():
    PythonStacksProbe().stop(now_ns())


# -- what py-spy cannot see ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("python3.13t", "free-threaded"),
        ("libpython3.14t.so.1.0", "free-threaded"),
        ("_interpreters.cpython-313-x86_64-linux-gnu.so", "only the one created last"),
        ("_xxsubinterpreters.cpython-312-x86_64-linux-gnu.so", "only the one created last"),
        ("python3.13", ""),
        ("libpython3.13.so.1.0", ""),
    ],
)
def test_the_kind_of_an_interpreter_is_told_by_its_files(tmp_path, file, said):
    path = tmp_path / file
    path.write_bytes(b"x")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ):
        note = python_build_note(os.getpid())
    assert said in note
    assert bool(said) is bool(note)


PYTHON_WITH_INTERPRETERS = Path(__file__).parents[3] / ".venv-peers/python3.15/usr/bin/python3.15"
TWO_INTERPRETERS = """
from concurrent import interpreters
def spinning_in_the_first():
    ready()
    while True:
        sum(range(100))
second = interpreters.create()
code = '''
def spinning_in_the_second():
    while True:
        sum(range(100))
spinning_in_the_second()
'''
threading.Thread(target=second.exec, args=(code,), daemon=True).start()
spinning_in_the_first()
"""


@pytest.mark.privileged
def test_of_several_interpreters_the_last_is_seen_and_the_row_says_so(run, python_child):
    if not PYTHON_WITH_INTERPRETERS.is_file():
        pytest.skip("no Python 3.15 of Debian: make install-peers")
    child, _ = python_child(TWO_INTERPRETERS, program=PYTHON_WITH_INTERPRETERS)
    probe = started(run, [child.pid])
    probe.focus(child.pid)
    keep_sampling(probe, 1.0)
    rows = stopped(run, probe)
    assert "of several interpreters py-spy reads only the one created last" in probe.note
    seen = " ".join(row["stack"] for row in rows)
    assert "spinning_in_the_second" in seen
    assert "spinning_in_the_first" not in seen


def test_a_note_is_given_once_for_all_workers_of_a_kind():
    probe = PythonStacksProbe()
    for pid in (1, 2):
        probe._add_note("of several interpreters py-spy reads only the last", pid)
    probe._add_note("another thing", 3)
    assert probe.note == (
        "pid 1: of several interpreters py-spy reads only the last; pid 3: another thing"
    )


@pytest.mark.parametrize(
    "said",
    [
        "Error: failed to get gil_thread_id\n",
        # py-spy 0.4.3 with CPython 3.13.5, --disable-gil
        "Error: Failed to find a python interpreter in the .data section\n\nStack backtrace:\n",
    ],
)
def test_a_build_that_py_spy_cannot_read_is_explained(said):
    message, fix = explain_failure(said, "ended with status 1")
    assert "free-threaded" in message
    assert "-X perf" in fix
