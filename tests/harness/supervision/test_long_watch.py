"""A day of watching in compressed time: a clock that the test moves, everything else real.

A server in a pid namespace of its own replaces its workers in every turn, and their numbers come
round again and again. The probes, the follower of processes and the files are those of a watch; at
the end nothing has grown with the number of workers but one row for each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.privileged, pytest.mark.timeout(400)]

TURNS_COUNT = 300
TURN_S = 288.0
WORKERS = 7
REPLACED_COUNT = TURNS_COUNT * WORKERS

SERVER = """
import os, select, signal, socket, sys
from pathlib import Path
def fail(*_):
    try:
        os.rmdir("/proc/self")
    except OSError:
        pass
signal.signal(signal.SIGUSR1, fail)
listener = socket.create_server(("127.0.0.1", 0), backlog=64)
print(listener.getsockname()[1], flush=True)
def worker():
    child = os.fork()
    if not child:
        while select.select([listener], [], []):
            listener.accept()
    return child
children = [worker() for _ in range(7)]
print(*children, flush=True)
for turn, line in enumerate(sys.stdin):
    for child in children:
        os.kill(child, signal.SIGUSR1)
    for _ in list(children):
        oldest = children.pop(0)
        os.kill(oldest, signal.SIGTERM)
        os.waitpid(oldest, 0)
        children.append(worker())
    if turn % 50 == 49:  # the numbers begin again
        Path("/proc/sys/kernel/ns_last_pid").write_text("300")
    print(*children, flush=True)
"""

WATCH = """
import gc, json, os, subprocess, sys, time
from pathlib import Path
from harness.supervision import recording
from harness.foreign.processes import ForeignProcesses
from harness.supervision.recorder import EventLog
from probes.contract import live as live_memory
from probes.collect.collector import Collector
from probes.contract.live import Counter, Header, Live, Phase
from probes.contract.rundir import RunDir
from probes.symbols.symbols import user_symbols

SERVER, folder, turns, turn_s = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
SLOTS = 64
server = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True)
port = int(server.stdout.readline())
server.stdout.readline()
now_ns = [1_000_000_000]
clock = lambda: now_ns[0]
run = RunDir(folder)
live_fd = live_memory.create(folder / "live.bin", SLOTS, 1)
live = Live(live_fd)
live.header[Header.PHASE] = Phase.HOLD
processes = ForeignProcesses(live, SLOTS, port, clock_ns=clock)
processes.watch_tree([server.pid])
processes.begin_watch()
names = ["live_samples", "blocked_samples", "process_samples", "host_counters", "tcp_snapshot",
         "failing_syscalls", "tcp_events", "cpu_stacks"]
collector = Collector(run, names, live, frozenset({port}), 0, attached=True, clock_ns=clock)
collector.prepare()
collector.start()
assert collector._target.is_sparing
events, rows = EventLog(), recording.ProcessRows()

def resident_bytes():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def size_bytes():
    return sum(path.stat().st_size for path in folder.rglob("*.arrows"))

seen = []
def note():
    for event in processes.follow():
        events.append((clock(), event[0], event[1], event[2]))
    for departed, end in processes.take_departed():
        rows.add(departed.words, departed.slot, end)

told = {"resident": [], "size": [], "descriptors": []}
for turn in range(turns):
    server.stdin.write("next\\n")
    server.stdin.flush()
    seen += map(int, server.stdout.readline().split())
    now_ns[0] += int(turn_s * 1e9)
    note()
    collector.turn()
    if turn == turns // 2:
        half_ns = time.monotonic_ns()
    if turn % (turns // 8) == turns // 8 - 1:
        told["resident"].append(resident_bytes())
        told["size"].append(size_bytes())
        told["descriptors"].append(len(os.listdir("/proc/self/fd")))
loaded = next(e.probe._object for e in collector.driven if e.name == "failing_syscalls")
watched, _ = loaded.maps["watched_pids"].items()
failing, _ = loaded.maps["failures"].items()
told |= {
    "half_ns": half_ns,
    "alive": processes.pids, "held": len(processes.held), "watched": watched.tolist(),
    "failing_keys": len(failing), "targets": len(collector._target.processes),
    "symbols": len(user_symbols()._processes), "names": len(user_symbols()._known),
    "numbers": len(seen), "distinct": len(set(seen)),
    "failed": [e.name for e in collector.driven if e.state != "ran"],
    "files": sum(1 for _ in folder.rglob("*.arrows")),
}
server.kill()
server.wait()
collector.stop()
recording.write_events(run, events)
recording.write_processes(run, live, processes.ends, 0, rows)
processes.close()
print(json.dumps(told), flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    folder = tmp_path_factory.mktemp("day")
    inside = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    words = [sys.executable, "-P", "-c", WATCH, SERVER, str(folder), str(TURNS_COUNT), str(TURN_S)]
    done = subprocess.run(
        [*inside, *words], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


def table(folder: Path, name: str) -> list[dict]:
    from probes.contract.rundir import RunDir

    return RunDir(folder).read_table(name).table.to_pylist()


def test_every_worker_of_the_day_has_its_row(day):
    folder, told = day
    rows = table(folder, "processes")
    assert len(rows) == 1 + WORKERS + REPLACED_COUNT  # the parent and all its children
    assert len({row["worker"] for row in rows}) == len(rows)
    assert told["distinct"] <= REPLACED_COUNT / 3  # the same numbers, again and again
    assert sum(row["exited_ns"] > 0 for row in rows) == REPLACED_COUNT


def test_only_who_lives_is_watched(day):
    _, told = day
    assert len(told["alive"]) == 1 + WORKERS
    assert set(told["watched"]) <= set(told["alive"])
    assert told["targets"] <= 1 + 2 * WORKERS  # some may have ended a moment ago
    assert told["held"] <= 64


def test_what_is_kept_for_a_process_goes_with_it(day):
    _, told = day
    assert told["failing_keys"] <= 40
    assert told["symbols"] <= 1 + 2 * WORKERS
    assert told["failed"] == []


def test_memory_and_descriptors_are_flat(day):
    _, told = day
    grown = told["resident"][-1] - told["resident"][1]
    assert grown < 12 << 20, told["resident"]
    assert max(told["descriptors"]) - min(told["descriptors"][1:]) < 24, told["descriptors"]


def test_failing_calls_were_counted_all_the_time(day):
    folder, told = day
    failed = [row for row in table(folder, "failing_syscalls") if row["syscall"] == "rmdir"]
    count = sum(row["event_count"] for row in failed)
    assert 0.5 * REPLACED_COUNT < count <= REPLACED_COUNT
    # What a process that ended had left is read when it is let go, by the clock of the host.
    late = sum(row["event_count"] for row in failed if row["at_ns"] > told["half_ns"])
    assert 0.3 * count < late < 0.7 * count


def test_the_recording_keeps_to_its_size_and_to_few_batches(day):
    folder, told = day
    from probes.budget.row_budget import most_bytes

    assert told["size"][-1] < most_bytes(TURNS_COUNT * TURN_S, 4, os.cpu_count() or 1)
    assert told["files"] < 26 * 40  # a file an hour and table at most
    import pyarrow as pa

    batches = 0
    for path in (folder / "raw" / "host_cpu").glob("*.arrows"):
        with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as stream:
            batches += sum(1 for _ in stream)
    assert batches < 24 + 70  # merged by the hour, but for the last one
