"""The probe process on its real command line, and its loop with probes that misbehave."""

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from probes.budget.pace import AttachedPace
from probes.collect import collector as collector_module
from probes.collect import registry
from probes.collect.collector import Collector
from probes.collect.driven import next_due_ns
from probes.collect.fleet_slots import fleet_is_ready, processes_of
from probes.collect.main import parse_ports
from probes.contract.clock import NS_PER_S, now_ns
from probes.contract.errors import ProbeUnavailableError, UsageError
from probes.contract.live import Counter, Header, Live, Phase, Role
from probes.contract.probe import Probe, Target
from probes.contract.rundir import RunDir

pytestmark = pytest.mark.shared

CHEAP = "live_samples,process_samples,host_counters"
SLEEPER = "ready(); time.sleep(60)"


def table(run: RunDir, name: str) -> list[dict]:
    return run.read_table(name).table.to_pylist()


def health(run: RunDir) -> dict[str, dict]:
    rows = table(run, "probe_health")
    assert len({row["probe"] for row in rows}) == len(rows)
    return {row["probe"]: row for row in rows}


# --- rules ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("due", "at", "wanted"),
    [
        (100, 100, (110, False)),
        (100, 105, (110, False)),
        (100, 110, (110, False)),
        (100, 111, (121, True)),
        (100, 175, (185, True)),
    ],
)
def test_a_late_sample_is_counted_and_does_not_catch_up(due: int, at: int, wanted):
    assert next_due_ns(due, at, 10) == wanted


def test_ports_are_read():
    assert parse_ports("") == frozenset()
    assert parse_ports("9001,9002") == {9_001, 9_002}


@pytest.mark.parametrize("text", ["x", "9001;9002", "0", "65536", "-1"])
def test_what_is_no_port_is_refused(text: str):
    with pytest.raises(UsageError, match="no ports"):
        parse_ports(text)


def test_the_fleet_is_ready_when_every_slot_with_a_role_reported(new_live, occupy):
    live, _ = new_live(3)
    assert not fleet_is_ready(live)
    live.slot(0)[Counter.ROLE] = Role.SERVER
    live.slot(2)[Counter.ROLE] = Role.CLIENT
    occupy(live, 0, Role.SERVER, 23)
    assert not fleet_is_ready(live)
    occupy(live, 2, Role.CLIENT, 1_009, worker=4)
    assert fleet_is_ready(live)
    found = processes_of(live)
    assert {pid: (ref.role, ref.worker) for pid, ref in found.items()} == {
        23: ("server", 0),
        1_009: ("client", 4),
    }


# --- the real process ----------------------------------------------------------------------------


class Process:
    """The probe process as the supervisor starts it."""

    def __init__(
        self,
        run: RunDir,
        live_fd: int,
        probes: str,
        *options: str,
        fds=(),
        code: str = "",
        soft_limit_count: int = 0,
    ) -> None:
        self.ready_fd, write_fd = os.pipe()
        self.log_path = run.path / "logs" / "probes.log"
        arguments = [
            *("--run-dir", str(run.path), "--probes", probes, "--live-fd", str(live_fd)),
            *("--server-ports", "9001", "--ready-fd", str(write_fd), *options),
        ]
        program = ["-c", code] if code else ["-m", "probes.collect.main"]
        command = [sys.executable, "-P", *program, *arguments]
        if soft_limit_count:
            command = ["sh", "-c", f'ulimit -Sn {soft_limit_count}; exec "$@"', "sh", *command]
        with self.log_path.open("wb") as log:
            self.child = subprocess.Popen(
                command,
                pass_fds=(live_fd, write_fd, *fds),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        os.close(write_fd)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def answer(self) -> dict:
        assert select.select([self.ready_fd], [], [], 40)[0], self.log
        line = os.read(self.ready_fd, 65_536)
        assert line.endswith(b"\n"), self.log
        assert os.read(self.ready_fd, 1) == b""
        return json.loads(line)

    def stop(self) -> int:
        assert self.child.stdin is not None
        self.child.stdin.close()
        return self.child.wait(timeout=60)

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        if self.child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.child.stdin.close()
        os.close(self.ready_fd)


@pytest.fixture
def start(run) -> Iterator[Callable[..., Process]]:
    made = []

    def make(*args, **kwargs) -> Process:
        made.append(Process(run, *args, **kwargs))
        return made[-1]

    yield make
    for process in made:
        process.close()


@pytest.fixture
def fleet(new_live, occupy, python_child):
    """A live.bin with a server and a client, both asleep."""
    live, fd = new_live(3)
    children = []
    for index, role in enumerate((Role.SERVER, Role.CLIENT)):
        child, _ = python_child(SLEEPER)
        occupy(live, index, role, child.pid)
        children.append(child)
    return live, fd, children


def test_a_run_from_the_first_word_to_the_last(run, fleet, start, deadline):
    live, fd, children = fleet
    process = start(fd, CHEAP)
    assert process.answer() == {"ready": CHEAP.split(","), "unavailable": []}
    assert 0 < live.header[Header.PROBES_READY_NS] <= now_ns()
    live.header[Header.PHASE] = Phase.RAMP
    live.slot(0)[Counter.ESTABLISHED_TOTAL] = 23
    deadline("rows reach the disk", lambda: table(run, "live_samples"))
    asked_ns = now_ns()
    assert process.stop() == 0
    for name in CHEAP.split(","):
        row = health(run)[name]
        assert (row["state"], row["asked_for"], row["reason"]) == ("ran", True, "")
        assert row["row_count"] > 0
        assert (row["lost_count"], row["bpf_run_ns"]) == (0, -1)
        assert (row["seen_count"], row["failed_ns"]) == (row["row_count"], 0)
        assert row["cpu_ns"] > 0
    assert set(health(run)) == set(registry.PROBES)
    others = [row for name, row in health(run).items() if name not in CHEAP]
    assert {row["state"] for row in others} == {"not_asked"}
    last = [row for row in table(run, "live_samples") if row["at_ns"] >= asked_ns]
    assert {row["pid"]: row["established_total"] for row in last} == {
        children[0].pid: 23,
        children[1].pid: 0,
    }
    assert run.read_table("live_samples").cut_files == []
    assert process.log == ""


def test_many_processes_are_watched_under_a_low_soft_limit(run, new_live, occupy, start, deadline):
    live, fd = new_live(40)
    sleepers = [subprocess.Popen(["sleep", "60"]) for _ in range(40)]
    try:
        for index, sleeper in enumerate(sleepers):
            occupy(live, index, Role.SERVER, sleeper.pid, worker=index)
        process = start(fd, CHEAP, soft_limit_count=64)
        assert process.answer() == {"ready": CHEAP.split(","), "unavailable": []}
        rows = deadline("rows reach the disk", lambda: table(run, "process_samples"))
        waiting = {row["pid"]: row["wait_channel"] for row in rows if row["role"] == "server"}
        assert set(waiting) == {sleeper.pid for sleeper in sleepers}
        assert all(waiting.values())  # each had its file opened
        assert process.stop() == 0
        assert {health(run)[name]["state"] for name in CHEAP.split(",")} == {"ran"}
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()


def test_pandas_stays_out_of_the_measurement(run, fleet, start, deadline):
    process = start(fleet[1], CHEAP)
    process.answer()
    deadline("rows reach the disk", lambda: table(run, "live_samples"))
    mapped = Path(f"/proc/{process.child.pid}/maps").read_text()
    assert "/pyarrow/" in mapped
    assert "/pandas/" not in mapped
    assert process.stop() == 0


def test_the_word_stop_ends_it_too(run, fleet, start):
    process = start(fleet[1], "live_samples")
    process.answer()
    process.child.stdin.write(b"stop\n")
    process.child.stdin.flush()
    assert process.child.wait(timeout=60) == 0


def test_it_waits_for_the_fleet_and_can_be_stopped_meanwhile(run, new_live, start, deadline):
    live, fd = new_live(1)
    live.slot(0)[Counter.ROLE] = Role.SERVER
    process = start(fd, "live_samples")
    deadline("it has made its files", lambda: run.table_dir("probe_health").is_dir())
    assert not select.select([process.ready_fd], [], [], 0)[0]
    assert process.stop() == 0
    assert live.header[Header.PROBES_READY_NS] == 0
    assert health(run)["live_samples"]["row_count"] == 0


NO_PY_SPY = """
import sys
from probes.python_stacks import python_stacks as pyspy
from probes.collect.main import main
pyspy.find_py_spy = lambda: None
sys.exit(main(sys.argv[1:]))
"""


def test_an_unavailable_probe_is_a_row_and_the_others_run(run, fleet, start):
    process = start(fleet[1], "live_samples,python_stacks", code=NO_PY_SPY)
    answer = process.answer()
    assert answer["ready"] == ["live_samples"]
    assert answer["unavailable"] == [
        {"name": "python_stacks", "reason": "py-spy is not installed", "fix": "make install"}
    ]
    early = health(run)["python_stacks"]
    assert (early["state"], early["fix"], early["asked_for"]) == (
        "unavailable",
        "make install",
        True,
    )
    assert process.stop() == 0
    assert health(run)["live_samples"]["state"] == "ran"
    assert health(run)["python_stacks"]["reason"] == "py-spy is not installed"


def test_a_worker_that_dies_is_no_failure(run, fleet, start, deadline):
    _, fd, children = fleet
    process = start(fd, CHEAP)
    process.answer()
    deadline("rows reach the disk", lambda: table(run, "process_samples"))
    children[0].kill()
    children[0].wait()
    killed_ns = now_ns()

    def later_rows() -> bool:
        return any(row["at_ns"] > killed_ns + NS_PER_S for row in table(run, "process_samples"))

    deadline("it goes on", later_rows)
    assert process.stop() == 0
    assert {health(run)[name]["state"] for name in CHEAP.split(",")} == {"ran"}


def test_ctrl_c_is_the_supervisors(run, fleet, start, deadline):
    process = start(fleet[1], "live_samples")
    process.answer()
    process.child.send_signal(signal.SIGINT)
    signalled_ns = now_ns()
    deadline(
        "it samples on",
        lambda: any(row["at_ns"] > signalled_ns for row in table(run, "live_samples")),
    )
    assert process.stop() == 0


def test_a_killed_probe_process_leaves_what_it_had_flushed(run, fleet, start, deadline):
    process = start(fleet[1], CHEAP)
    process.answer()
    deadline("rows reach the disk", lambda: len(table(run, "live_samples")) >= 4)
    before = table(run, "live_samples")
    process.child.kill()
    process.child.wait()
    after = table(run, "live_samples")
    assert after[: len(before)] == before
    assert len(run.read_table("live_samples").cut_files) == 1


def test_it_dies_with_its_supervisor(run, fleet, tmp_path, deadline):
    _, fd, _ = fleet
    # The keeper holds the other end of stdin, so that only the parent's death can end it.
    keep_read, keep_write = os.pipe()
    supervisor_code = f"""
import subprocess, sys, time
child = subprocess.Popen(
    [sys.executable, "-P", "-m", "probes.collect.main", "--run-dir", {str(run.path)!r}, "--probes",
     "live_samples,python_stacks", "--live-fd", "{fd}", "--ready-fd", "1"],
    stdin={keep_read}, pass_fds=({fd},), start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""
    supervisor = subprocess.Popen(
        [sys.executable, "-c", supervisor_code],
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=(fd, keep_read),
    )
    try:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        ready = json.loads(supervisor.stdout.readline())["ready"]
        assert set(ready) == {"live_samples", "python_stacks"}
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        assert len(children) == 1
        supervisor.kill()
        supervisor.wait()

        def is_gone(some_pid: int) -> bool:
            try:
                stat = Path(f"/proc/{some_pid}/stat").read_text()
            except OSError:
                return True
            return stat.rpartition(")")[2].split()[0] == "Z"

        deadline("the probe process ends", lambda: is_gone(pid))
        for child in children:
            deadline("its py-spy ends", lambda child=child: is_gone(int(child)))
    finally:
        supervisor.kill()
        supervisor.wait()
        supervisor.stdout.close()
        os.close(keep_read)
        os.close(keep_write)


def test_bad_arguments_are_one_line_and_the_fix(run, new_live, start):
    _, fd = new_live(1)
    process = start(fd, "nonsense")
    assert process.child.wait(timeout=60) == 2
    error, fix = process.log.splitlines()
    assert "nonsense" in error
    assert "live_samples" in fix


IN_NAMESPACE = """
import ctypes, socket
assert ctypes.CDLL(None, use_errno=True).unshare(0x40000000) == 0
import fcntl, struct
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:  # ip link set lo up
    fcntl.ioctl(control, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))
server = socket.create_server(("127.0.0.1", 0), backlog=100)
kept = [socket.create_connection(server.getsockname()) for _ in range(23)]
ready()
time.sleep(60)
"""


@pytest.mark.privileged
def test_it_reads_the_counters_of_the_runs_namespace(run, new_live, occupy, python_child, start):
    live, fd = new_live(1)
    child, _ = python_child(IN_NAMESPACE)
    occupy(live, 0, Role.SERVER, child.pid)
    namespace_fd = os.open(f"/proc/{child.pid}/ns/net", os.O_RDONLY)
    try:
        options = ("--netns-fd", str(namespace_fd))
        process = start(fd, "host_counters", *options, fds=(namespace_fd,))
        process.answer()
        assert process.stop() == 0
    finally:
        os.close(namespace_fd)
    counters = {row["counter"]: row["value_total"] for row in table(run, "net_counters")}
    assert counters["TcpActiveOpens"] == 23
    # 23 client ends, the listener; the server ends wait in its queue and have no owner yet
    assert counters["TcpCurrEstab"] == 46
    assert table(run, "sockstat")[-1]["tcp_inuse_count"] == 23 + 1 + 23


@pytest.mark.privileged
def test_every_probe_runs_here(run, fleet, start, deadline):
    live, fd, _ = fleet
    process = start(fd, "full")
    answer = process.answer()
    assert answer["unavailable"] == []
    assert set(answer["ready"]) == set(registry.PROBES)
    live.header[Header.PHASE] = Phase.HOLD
    deadline("snapshots reach the disk", lambda: table(run, "live_samples"))
    assert process.stop() == 0
    assert {row["state"] for row in health(run).values()} == {"ran"}, process.log
    assert table(run, "tcp_states") != []


@pytest.mark.privileged
@pytest.mark.alone
def test_a_hot_worker_is_announced_and_looked_at(
    run, new_live, occupy, python_child, start, deadline
):
    live, fd = new_live(2)
    idle, _ = python_child(SLEEPER)
    hot, _ = python_child("def burn():\n    while True:\n        pass\nready()\nburn()")
    occupy(live, 0, Role.SERVER, idle.pid)
    occupy(live, 1, Role.SERVER, hot.pid)
    process = start(fd, "live_samples,python_stacks")
    process.answer()
    live.header[Header.PHASE] = Phase.HOLD
    (announced,) = deadline("it is found", lambda: table(run, "events"))
    assert (announced["event"], announced["pid"]) == ("hot_worker", hot.pid)
    assert "of a core" in announced["detail"]
    found_ns = now_ns()
    deadline(
        "it is watched for a second",
        lambda: any(row["at_ns"] > found_ns + NS_PER_S for row in table(run, "live_samples")),
    )
    assert process.stop() == 0
    high = [row for row in table(run, "python_stacks") if row["period_ns"] == NS_PER_S // 100]
    assert {row["pid"] for row in high} == {hot.pid}
    assert all("burn" in row["stack"] for row in high)


# --- probes that misbehave -----------------------------------------------------------------------


class FakeProbe(Probe):
    """Writes one event a sample; ``breaks`` names the call that raises ``error``."""

    period_s = 0.01

    def __init__(self, name: str, breaks: str = "", error: Exception | None = None) -> None:
        super().__init__()
        self.name = name
        self.lost_count = 3
        self.is_sampled_at_hold = name == "tcp_snapshot"
        self.stop_order = {"tcp_snapshot": -1, "python_stacks": 1}.get(name, 0)
        self.calls: list[str] = []
        self.watched: list[set[int]] = []
        self._breaks = breaks
        self._error = error

    def _call(self, call: str) -> None:
        self.calls.append(call)
        if call == self._breaks and self._error is not None:
            raise self._error

    def check(self) -> None:
        self._call("check")

    def start(self, target: Target) -> None:
        self._call("start")
        self.writers = [target.run.writer("events", self.name)]

    def sample(self, at_ns: int) -> None:
        self._call("sample")
        self.writers[0].append(at_ns, self.name, 0, "")

    def stop(self, at_ns: int) -> None:
        self._call("stop")

    def watch(self, pids: set[int]) -> None:
        self.watched.append(pids)


@pytest.fixture
def drive(run, fleet, monkeypatch):
    """``drive(*probes)`` runs them in a Collector of this process until each was sampled twice."""
    live, _, _ = fleet

    def collect(
        *probes,
        names: list[str] | None = None,
        attached: bool = False,
        word: bytes = b"stop\n",
    ) -> Collector:
        by_name = {probe.name: probe for probe in probes}
        monkeypatch.setattr(registry, "make", lambda name: by_name[name])
        stop_read, stop_write = os.pipe()
        collector = Collector(run, names or list(by_name), live, frozenset({9_001}), stop_read)
        collector.attached = attached
        collector.prepare()
        assert collector.wait_for_fleet()
        collector.start()
        waited = collector.stop_is_asked

        def ask_when_sampled(timeout_s: float) -> bool:
            done = [
                probe.calls.count("sample") >= 2 or not entry.running
                for entry, probe in zip(collector.driven, probes, strict=True)
            ]
            if all(done):
                os.write(stop_write, word)
            return waited(timeout_s)

        monkeypatch.setattr(
            Collector, "stop_is_asked", lambda self, timeout_s: ask_when_sampled(timeout_s)
        )
        collector.loop()
        collector.stop()
        os.close(stop_read)
        os.close(stop_write)
        return collector

    return collect


@pytest.mark.parametrize("call", ["check", "start", "sample", "stop"])
def test_a_probe_that_breaks_does_not_take_the_others_with_it(run, drive, capsys, call: str):
    broken = FakeProbe("tcp_events", call, RuntimeError("boom"))
    good = FakeProbe("cpu_stacks")
    drive(broken, good)
    row = health(run)["tcp_events"]
    assert (row["state"], row["reason"]) == ("failed", "RuntimeError: boom")
    assert row["fix"] != ""
    assert (row["failed_ns"] > 0) is (call in ("sample", "stop"))  # before, it had not begun
    assert row["failed_ns"] <= row["at_ns"]
    assert health(run)["cpu_stacks"]["failed_ns"] == 0
    assert "boom" in capsys.readouterr().err
    assert broken.calls[-1] == "stop"
    assert health(run)["cpu_stacks"]["state"] == "ran"
    assert health(run)["cpu_stacks"]["row_count"] == good.calls.count("sample")
    assert health(run)["cpu_stacks"]["lost_count"] == 3
    assert health(run)["cpu_stacks"]["seen_count"] == good.calls.count("sample") + 3


def test_what_was_seen_is_said_by_a_probe_that_counts_it(run, drive):
    counting = FakeProbe("cpu_stacks")
    counting.seen_count = 1009
    drive(counting)
    assert health(run)["cpu_stacks"]["seen_count"] == 1009


@pytest.mark.parametrize("call", ["check", "start"])
def test_a_probe_that_cannot_run_says_why(run, drive, call: str):
    error = ProbeUnavailableError("no BTF", fix="install a kernel with BTF")
    collector = drive(FakeProbe("tcp_events", call, error), FakeProbe("cpu_stacks"))
    row = health(run)["tcp_events"]
    assert (row["state"], row["reason"], row["fix"]) == (
        "unavailable",
        "no BTF",
        "install a kernel with BTF",
    )
    assert collector.ready_message()["unavailable"][0]["name"] == "tcp_events"


def test_a_watch_keeps_its_budget_also_when_every_slot_is_taken(
    fleet, drive, occupy, python_child, monkeypatch
):
    live, _, _ = fleet
    occupy(live, 2, Role.SERVER, python_child(SLEEPER)[0].pid)
    assert all(live.slot(index)[Counter.PID] for index in range(live.slot_count))
    looks = []
    look = AttachedPace.look

    def noted(self, at_ns, *, is_hot):
        looks.append(at_ns)
        return look(self, at_ns, is_hot=is_hot)

    monkeypatch.setattr(AttachedPace, "look", noted)
    drive(FakeProbe("cpu_stacks"), attached=True)
    assert looks


@pytest.mark.parametrize("attached", [False, True])
def test_a_watch_has_its_first_samples_before_it_says_that_it_is_ready(
    run, fleet, monkeypatch, attached: bool
):
    """Else what happens meanwhile counts from nothing: strangers wait for nobody."""
    live, _, _ = fleet
    probe = FakeProbe("cpu_stacks")
    monkeypatch.setattr(registry, "make", lambda name: probe)
    collector = Collector(run, ["cpu_stacks"], live, frozenset(), 0)
    collector.attached = attached
    collector.prepare()
    assert live.header[Header.PROBES_READY_NS] == 0
    collector.start()
    assert live.header[Header.PROBES_READY_NS] > 0
    assert probe.calls.count("sample") == attached
    collector.stop()


def test_probes_are_told_which_processes_ended_and_who_has_the_number_next(
    run, new_live, occupy, python_child, monkeypatch, deadline
):
    live, _ = new_live(4)
    children = [python_child(SLEEPER)[0] for _ in range(2)]
    for index, child in enumerate(children):
        occupy(live, index, Role.SERVER, child.pid, worker=index)
        live.slot(index)[Counter.STARTED_NS] = 1
    told: list[tuple[str, object]] = []

    class Told(FakeProbe):
        def add_process(self, ref) -> None:
            told.append(("came", (ref.pid, ref.worker)))

        def remove_processes(self, pids) -> None:
            told.append(("ended", set(pids)))

    probe = Told("cpu_stacks")
    monkeypatch.setattr(registry, "make", lambda name: probe)
    at_ns = [now_ns()]
    collector = Collector(run, ["cpu_stacks"], live, frozenset(), 0, clock_ns=lambda: at_ns[0])
    collector.prepare()
    collector.start()

    def turn() -> list[tuple[str, object]]:
        at_ns[0] += NS_PER_S
        collector.turn()
        return told

    turn()
    assert told == []
    children[0].kill()
    children[0].wait()
    deadline("its end is told", turn)
    assert told == [("ended", {children[0].pid})]
    # Another worker has the number of one whose end nobody has noticed yet.
    later = live.slot(2)
    later[Counter.WORKER], later[Counter.STARTED_NS] = 2, 2
    occupy(live, 2, Role.SERVER, children[1].pid, worker=2)
    turn()
    pid = children[1].pid
    assert told[1:] == [("ended", {pid}), ("came", (pid, 2))]
    # A slot that was given back: the same slot, another process.
    third, _ = python_child(SLEEPER)
    live.slot(0)[Counter.STARTED_NS] = 3
    occupy(live, 0, Role.SERVER, third.pid, worker=3)
    turn()
    assert told[3:] == [("came", (third.pid, 3))]
    collector.stop()


def test_a_row_of_the_wrong_shape_fails_only_its_probe(run, drive, monkeypatch):
    monkeypatch.setattr(collector_module, "FLUSH_NS", 0)

    class Crooked(FakeProbe):
        def sample(self, at_ns: int) -> None:
            self._call("sample")
            self.writers[0].append(at_ns, "too short")

    drive(Crooked("tcp_events"), FakeProbe("cpu_stacks"))
    assert health(run)["tcp_events"]["state"] == "failed"
    assert health(run)["cpu_stacks"]["state"] == "ran"


def test_a_probe_that_hangs_in_stop_is_left_behind(run, drive, monkeypatch):
    monkeypatch.setattr(collector_module, "PROBE_STOP_LIMIT_S", 0.05)

    class Hanging(FakeProbe):
        def stop(self, at_ns: int) -> None:
            self._call("stop")
            time.sleep(60)

    good = FakeProbe("cpu_stacks")
    drive(Hanging("tcp_events"), good)
    assert health(run)["tcp_events"]["state"] == "failed"
    assert "did not stop" in health(run)["tcp_events"]["reason"]
    assert good.calls[-1] == "stop"
    assert health(run)["cpu_stacks"]["state"] == "ran"


@pytest.mark.parametrize(
    ("word", "is_stop", "limit_s"),
    [
        (b"stop 1.50\n", True, 1.35),
        (b"stop 0.20\n", True, 0.3),
        (b"stop 8.00\n", True, collector_module.STOP_LIMIT_S),
        (b"stop 40.00\n", True, 5 * collector_module.STOP_LIMIT_S),
        (b"stop 99.00\n", True, 7.5 * collector_module.STOP_LIMIT_S),
        (b"stop\n", True, collector_module.STOP_LIMIT_S),
        (b"", True, collector_module.STOP_LIMIT_S),
        (b"?", False, collector_module.STOP_LIMIT_S),
    ],
)
def test_how_long_the_stop_may_take_is_told_by_who_waits(run, fleet, word, is_stop, limit_s):
    read_fd, write_fd = os.pipe()
    collector = Collector(run, [], fleet[0], frozenset(), read_fd)
    assert not collector.stop_is_asked(timeout_s=0)
    if word:
        os.write(write_fd, word)
    os.close(write_fd)
    assert collector.stop_is_asked(timeout_s=10) is is_stop
    os.close(read_fd)
    assert collector._stop_limit_s == pytest.approx(limit_s)


def test_who_waits_for_the_end_waits_for_no_further_sample(run, fleet, monkeypatch):
    class Told(FakeProbe):
        def start(self, target: Target) -> None:
            super().start(target)
            self.target = target

        def sample(self, at_ns: int) -> None:
            super().sample(at_ns)
            self.seen = self.target.is_stop_asked()
            os.write(write_fd, b"stop\n")

    probes = [Told("tcp_events"), Told("cpu_stacks")]
    monkeypatch.setattr(registry, "make", lambda name: {p.name: p for p in probes}[name])
    read_fd, write_fd = os.pipe()
    collector = Collector(
        run, [probe.name for probe in probes], fleet[0], frozenset({9_001}), read_fd
    )
    collector.prepare()
    assert collector.wait_for_fleet()
    collector.start()
    collector.turn()
    assert [probe.calls.count("sample") for probe in probes] == [1, 0]
    assert probes[0].seen is False
    assert probes[0].target.is_stop_asked()
    assert collector.stop_is_asked(timeout_s=0), "asking does not take the word away"
    collector.stop()
    os.close(read_fd)
    os.close(write_fd)


def test_a_probe_may_say_that_its_stop_takes_longer(run, drive, monkeypatch):
    monkeypatch.setattr(collector_module, "PROBE_STOP_LIMIT_S", 0.05)

    class Slow(FakeProbe):
        stop_limit_s = 20.0

        def stop(self, at_ns: int) -> None:
            self._call("stop")
            time.sleep(0.2)

    drive(Slow("python_stacks"))
    assert health(run)["python_stacks"]["state"] == "ran"


@pytest.mark.parametrize(("told_s", "slowness"), [(40, 5.0), (8, 1.0)])
def test_probes_know_how_much_longer_their_end_may_take(drive, told_s, slowness):
    class Told(FakeProbe):
        def start(self, target: Target) -> None:
            super().start(target)
            self.target = target

        def request_stop(self) -> None:
            self.slowness = self.target.stop_slowness

    probe = Told("python_stacks")
    drive(probe, word=b"stop %.2f\n" % told_s)
    assert probe.slowness == pytest.approx(slowness)


UNREACHABLE = """
import signal, sys, time
from probes.collect import collector
from probes.collect import registry
from probes.collect.main import main
from probes.samplers.live_samples import LiveSamplesProbe

collector.STOP_LIMIT_S = 0.2

class Deaf(LiveSamplesProbe):
    def stop(self, at_ns):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        time.sleep(60)

make = registry.make
registry.make = lambda name: Deaf() if name == "live_samples" else make(name)
sys.exit(main(sys.argv[1:]))
"""


def test_a_probe_that_no_signal_reaches_does_not_keep_the_process(run, fleet, start):
    process = start(fleet[1], "live_samples,process_samples", code=UNREACHABLE)
    process.answer()
    assert process.stop() == 0
    rows = health(run)
    assert rows["live_samples"]["state"] == "failed"
    assert "did not stop" in rows["live_samples"]["reason"]
    assert set(rows) == set(registry.PROBES)
    assert run.read_table("process_samples").cut_files == []


def test_the_sockets_are_counted_before_all_else(run, drive):
    order = []

    class Noting(FakeProbe):
        def stop(self, at_ns: int) -> None:
            order.append(self.name)
            super().stop(at_ns)

        def request_stop(self) -> None:
            order.append(f"ask {self.name}")

    drive(Noting("live_samples"), Noting("python_stacks"), Noting("tcp_snapshot"))
    assert order[:3] == ["ask live_samples", "ask python_stacks", "ask tcp_snapshot"]
    assert order[3:] == ["tcp_snapshot", "live_samples", "python_stacks"]


def test_the_hold_phase_begins_with_a_snapshot(run, drive, fleet):
    live, _, _ = fleet
    live.header[Header.PHASE] = Phase.RAMP
    slow = FakeProbe("tcp_snapshot")
    slow.period_s = 3_600.0

    class Switching(FakeProbe):
        def sample(self, at_ns: int) -> None:
            super().sample(at_ns)
            live.header[Header.PHASE] = Phase.HOLD

    drive(Switching("cpu_stacks"), slow)
    assert slow.calls.count("sample") == 2


def test_syscalls_of_all_are_watched_when_asked_for(run, drive, fleet):
    _, _, children = fleet
    mix = FakeProbe("syscall_mix")
    drive(mix)
    assert mix.watched == [{child.pid for child in children}]


def test_in_the_default_set_nobody_is_watched_without_cause(run, drive):
    probes = [FakeProbe(name) for name in registry.resolve("auto")]
    drive(*probes)
    assert all(probe.watched == [] for probe in probes)


def test_rows_that_the_disk_refused_are_in_the_health_row(run, drive):
    class Full(FakeProbe):
        def sample(self, at_ns: int) -> None:
            super().sample(at_ns)
            self.writers[0]._stream = None
            self.writers[0]._try_again_s = math.inf
            self.writers[0].last_error = "No space left on device"

    probe = Full("tcp_events")
    drive(probe)
    row = health(run)["tcp_events"]
    assert row["state"] == "ran"
    assert "No space left" in row["reason"]
    assert "df -h" in row["fix"]
    assert row["lost_count"] == 3 + probe.calls.count("sample")


def test_a_reader_of_the_shared_memory_is_enough(new_live):
    live, fd = new_live(1)
    assert processes_of(Live(fd, writable=False)) == processes_of(live) == {}
