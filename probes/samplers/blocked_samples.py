"""Where an event loop stands still: the stack of a turn that is on no CPU.

Measures:
    Ten times a second: every fleet process whose event loop is in a turn (not in epoll_wait) since
    at least 5 ms and that sleeps meanwhile; with how long the turn has lasted, state, wait channel,
    system call, kernel stack, and for long ones the Python stack (table ``blocked_samples``). It is
    a sampling profiler of the time off the CPU: samples times period is the time blocked.
Hook:
    The turn's begin in ``live.bin``; /proc/PID/stat, syscall, wchan and stack (proc(5)) of those
    that qualify; of servers that are not ours stat and wchan at each look, and schedstat of those
    that stand still; ``py-spy dump --nonblocking`` of one that is blocked for 0.1 s, at most once a
    second and process. A sample counts only if the same turn still lasts after it was read.
Cost:
    0.3 us a process and look while nothing is blocked: 14 processes at 10 Hz cost nothing that can
    be measured. 30 us a look for a process that is not ours. 40 us a blocked sample; 13 ms of CPU
    for each Python stack.
Misses:
    Blocks shorter than 5 ms, however many. Of a server that is not ours nothing says when a turn
    began: only what is seen at two looks counts (probes/samplers/still_process.py), and a turn is
    as long as its main thread was seen not to run. Without root the kernel stack; with ptrace_scope
    the system call as well.
Checked against:
    Processes that sleep, wait for a lock, are stopped, or calculate (tests/probes/
    test_blocked_worker.py).
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from probes.budget.own_cost import WATCH_NICE, stand_back
from probes.contract.clock import NS_PER_MS, NS_PER_S
from probes.contract.errors import ProbeUnavailableError
from probes.contract.live import Counter, Live, Role
from probes.contract.probe import Probe, Target
from probes.proc import stat_text
from probes.proc.process_tree import is_32_bit, is_python
from probes.proc.syscall_names import syscall_name
from probes.python_stacks.pyspy_process import find_py_spy, launcher
from probes.python_stacks.trace import frame_text
from probes.samplers.still_process import OFF_CPU, SleepWatch, StillWatch, turns_of

LEAST_LAG_NS = 5 * NS_PER_MS
_SERVING = (Role.SERVER, Role.ACCEPTOR)
_PYTHON_LAG_NS = 100 * NS_PER_MS
_PYTHON_EVERY_NS = NS_PER_S


def state_of(stat: str) -> str:
    """The state letter of ``/proc/PID/stat``; the command name before it may hold anything."""
    return stat_text.state_of(stat.encode("utf-8", "replace"))


def syscall_of(text: str, *, is_32_bit: bool = False) -> str:
    """The name of the call that ``/proc/PID/syscall`` shows, '' when it is in none or hidden."""
    number = text.split(" ", 1)[0].strip()
    return syscall_name(int(number), is_32_bit=is_32_bit) if number.isdigit() else ""


def kernel_stack_of(text: str) -> str:
    """Root first, from the text of ``/proc/PID/stack``: ``[<0>] name+0x1/0x2`` a line, leaf first.

    The way from user mode into the call is the same in every stack and is left out.
    """
    names = []
    for line in text.splitlines():
        name = line.partition("] ")[2].partition("+0x")[0]
        if name and not name.startswith(
            ("do_syscall_64", "entry_SYSCALL", "el0", "invoke_syscall")
        ):
            names.append(f"{name}_[k]")
    return ";".join(reversed(names))


def python_stack_of(dump: str, tid: int) -> str:
    """One thread's stack, root first, from ``py-spy dump --json``; '' when it has none.

    Raises:
        ValueError: Not such an output.
    """
    for thread in json.loads(dump):
        if thread["os_thread_id"] == tid:
            frames = [
                frame_text(frame["name"], frame["filename"], frame["line"] or 0)
                for frame in reversed(thread["frames"])
            ]
            return ";".join(frames)
    return ""


@dataclass(slots=True)
class _Sample:
    """One row to be, and whose.

    Attributes:
        stands_for_ns: Wall time since the look before, or as long as the turn has lasted.
    """

    at_ns: int
    pid: int
    turn_ns: int
    stands_for_ns: int
    state: str
    wait_channel: str
    syscall: str
    kernel_stack: str


@dataclass(slots=True)
class _Dump:
    """A py-spy that runs, and the row that waits for its stack."""

    sample: _Sample
    is_same: Callable[[], bool]
    child: subprocess.Popen[bytes]
    output_fd: int


class BlockedSamplesProbe(Probe):
    """Appends rows to ``blocked_samples``."""

    name = "blocked_samples"
    period_s = 0.1

    def __init__(self) -> None:
        super().__init__()
        self.seen_count = 0
        self._slots: list[memoryview[int]] = []
        self._live: Live | None = None
        self._py_spy: Path | None = None
        self._dump: _Dump | None = None
        self._dumped_ns: dict[int, int] = {}
        self._still: StillWatch | None = None
        self._sleeps = SleepWatch()
        self._is_python: dict[int, bool] = {}
        self._looked_ns = 0
        self._distance_ns = round(self.period_s * NS_PER_S)
        self._is_attached = False

    def check(self) -> None:
        """Always possible where a fleet of ours runs."""

    def start(self, target: Target) -> None:
        """Opens the table and remembers the slots.

        Raises:
            ProbeUnavailableError: There is no shared memory that says whom to look at.
        """
        if target.live is None:
            raise ProbeUnavailableError(
                "there is no shared memory that says which processes serve",
                fix="none needed: process_samples shows state and wait channel of all processes",
            )
        self._live = target.live
        self._still = StillWatch() if target.attached or target.is_foreign else None
        self._is_attached = target.attached
        self._py_spy = find_py_spy()
        self.writers = [target.run.writer("blocked_samples", self.name)]
        self._slots = [target.live.slot(index) for index in range(target.live.slot_count)]

    def remove_processes(self, pids: Collection[int]) -> None:
        """Forgets processes that ended."""
        for pid in pids:
            self._dumped_ns.pop(pid, None)
            self._is_python.pop(pid, None)
        if self._still is not None:
            self._still.remove(pids)
        self._sleeps.remove(pids)

    def sample(self, at_ns: int) -> None:
        """Looks at every process in a turn; writes the row that waited for its Python stack."""
        self._take_dump()
        self._distance_ns = round(self.period_s * NS_PER_S)
        if self._looked_ns:
            self._distance_ns = at_ns - self._looked_ns
            if self._still is not None:
                self._distance_ns = min(self._distance_ns, NS_PER_S)
        self._looked_ns = at_ns
        self.is_alarmed = False
        if self._still is not None and self._live is not None:
            for slot in self._live.followed_slots():
                if slot[Counter.ROLE] in _SERVING:
                    self._look_from_outside(at_ns, slot, self._still)
            if self._is_attached:
                return
        for slot in self._slots:
            turn_ns = slot[Counter.LOOP_ENTERED_NS]
            if turn_ns and at_ns - turn_ns >= LEAST_LAG_NS:
                self._look(at_ns, slot, turn_ns)

    def _look(self, at_ns: int, slot: memoryview[int], turn_ns: int) -> None:
        pid = slot[Counter.PID]
        folder = f"/proc/{pid}"
        stat = _read(f"{folder}/stat")
        if not stat or state_of(stat) not in OFF_CPU:
            return
        channel = _read(f"{folder}/wchan")
        period_ns = round(self.period_s * NS_PER_S)
        sample = _Sample(
            at_ns,
            pid,
            turn_ns,
            # on a slow host looks are seconds apart, and only this turn is known to have been
            min(self._distance_ns, max(period_ns, at_ns - turn_ns)),
            state_of(stat),
            "" if channel == "0" else channel,
            syscall_of(_read(f"{folder}/syscall")),
            kernel_stack_of(_read(f"{folder}/stack")),
        )
        if slot[Counter.LOOP_ENTERED_NS] != turn_ns:
            return  # the turn ended meanwhile: it may have been asleep in epoll_wait
        is_due = at_ns - self._dumped_ns.get(pid, 0) >= _PYTHON_EVERY_NS
        if (
            at_ns - turn_ns >= _PYTHON_LAG_NS
            and is_due
            and self._begin_dump(sample, lambda: slot[Counter.LOOP_ENTERED_NS] == turn_ns)
        ):
            return
        self._append(sample, "")

    def _look_from_outside(self, at_ns: int, slot: memoryview[int], still: StillWatch) -> None:
        """The same for a process that says nothing of its turns."""
        pid = slot[Counter.PID]
        if slot[Counter.STOPPED_NS]:
            return
        folder = f"/proc/{pid}"
        stat, channel = _read(f"{folder}/stat"), _read(f"{folder}/wchan")
        if not stat:
            return
        channel = "" if channel == "0" else channel
        since_ns = still.since_ns(at_ns, pid, state_of(stat), channel)
        if not since_ns and not still.is_same(pid, at_ns):
            return
        # also at the first look: on a slow host the second is seconds later, in the same sleep
        turns_count = turns_of(_read(f"{folder}/schedstat"))
        counted_ns = slot[Counter.COUNTED_NS]  # before the count, which is written first
        slept_ns, took_some = self._sleeps.look(
            at_ns, pid, turns_count, counted_ns, slot[Counter.OPEN_COUNT]
        )
        if not since_ns:
            return
        if took_some:
            still.leave_alone(pid)
            return
        self.is_alarmed = True
        call = syscall_of(_read(f"{folder}/syscall"), is_32_bit=is_32_bit(pid))
        stack = kernel_stack_of(_read(f"{folder}/stack"))
        turn_ns = slept_ns if turns_count >= 0 else since_ns
        sample = _Sample(
            at_ns, pid, turn_ns, self._distance_ns, state_of(stat), channel, call, stack
        )
        if pid not in self._is_python:
            self._is_python[pid] = is_python(pid)
        is_due = at_ns - self._dumped_ns.get(pid, 0) >= _PYTHON_EVERY_NS
        wants_stack = self._is_python[pid] and is_due
        if wants_stack and self._begin_dump(sample, lambda: still.is_same(pid, since_ns)):
            return
        self._append(sample, "")

    def _begin_dump(self, sample: _Sample, is_same: Callable[[], bool]) -> bool:
        if self._py_spy is None or self._dump is not None:
            return False
        output_fd = os.memfd_create("py-spy-dump")
        try:
            child = subprocess.Popen(
                [
                    *launcher(os.getpid()),
                    str(self._py_spy),
                    *("dump", "--nonblocking", "--json", "--pid", str(sample.pid)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output_fd,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            os.close(output_fd)
            self._py_spy = None
            return False
        if self._still is not None:
            stand_back(WATCH_NICE, child.pid)
        self._dumped_ns[sample.pid] = sample.at_ns
        self._dump = _Dump(sample, is_same, child, output_fd)
        return True

    def _take_dump(self) -> None:
        """Appends the row of a finished dump; the stack only if the same turn still lasts."""
        dump = self._dump
        if dump is None:
            return
        pid, status, usage = os.wait4(dump.child.pid, os.WNOHANG)
        if pid == 0:
            return
        self._dump = None
        dump.child.returncode = os.waitstatus_to_exitcode(status)
        self.child_cpu_ns += round((usage.ru_utime + usage.ru_stime) * NS_PER_S)
        size_bytes = os.fstat(dump.output_fd).st_size
        text = os.pread(dump.output_fd, size_bytes, 0).decode("utf-8", "replace")
        os.close(dump.output_fd)
        stack = ""
        if dump.is_same():
            try:
                stack = python_stack_of(text, dump.sample.pid)
            except (ValueError, KeyError, TypeError):
                self.lost_count += 1
        else:
            self._dumped_ns[dump.sample.pid] = 0  # too late: the next long turn gets another
        self._append(dump.sample, stack)

    def _append(self, sample: _Sample, python_stack: str) -> None:
        self.seen_count += 1
        self.writers[0].append(
            sample.at_ns,
            sample.pid,
            sample.turn_ns,
            sample.at_ns - sample.turn_ns,
            sample.state,
            sample.wait_channel,
            sample.syscall,
            sample.kernel_stack,
            python_stack,
            sample.stands_for_ns,
        )

    def stop(self, at_ns: int) -> None:
        """Writes what still waits; a py-spy that runs is killed."""
        if self._dump is not None:
            os.kill(self._dump.child.pid, 9)
            self._dump.child.wait()
            os.close(self._dump.output_fd)
            self._append(self._dump.sample, "")
            self._dump = None
        self._slots = []
        self._live = None


def _read(path: str) -> str:
    """The start of a file of /proc, '' when it is gone or not ours to read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, 8192).decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        os.close(fd)
