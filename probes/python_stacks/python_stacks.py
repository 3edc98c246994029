"""Python stacks of the servers: a low rate on all, a high one on whichever is hot.

Measures:
    Which Python code each process spends CPU time in, second by second (table ``python_stacks``).
Hook:
    One ``py-spy record --nonblocking --format chrometrace`` per process: it reads the interpreter's
    memory (process_vm_readv) and never stops the target. One per process, because
    ``--subprocesses`` scans all of /proc ten times a second: 4.6 % of a core against 0.1 %.
    Windows of WINDOW_S; the next begins before the last ends, so there is no gap, and a killed
    probe process loses at most one window.
Cost:
    About 10 ms of CPU to start, 0.15 ms a sample, 5 MB (shared text). Seven servers at 5 Hz take
    1 % of a core; a hot one at 100 Hz 1.8 %. Of a server in service four processes at a time are
    sampled, in turn, and a hot one 20 times a second, less when the run's budget is overdrawn: 0.1
    and 0.4 % of a core; when nothing has happened for a while, a third of the time.
Misses:
    Clients, unless one is hot; C code (the caller's frame is shown); a process that is not Python.
    The time of a sample is py-spy's clock, placed at its start with an uncertainty of about 20 ms.
    A stack is billed with the CPU time of its process in that second, shared by the time it was
    the last one seen: in a nearly idle process at 5 Hz that is coarse. Of several interpreters in
    one process only the one created last, of a free-threaded build nothing (``note`` says so).
    Without stopping the target a stack can be torn: py-spy notices most (``lost_count``). One that
    has not written 4 s after the end (on a host where all takes long, so many times longer), or
    1.2 s after Ctrl-C, is killed and its window lost.
Checked against:
    Processes that spin in known functions, one after the other
    (tests/probes/python_stacks/test_pyspy.py).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from probes.bpf_loader.kernel_features import ptrace_scope
from probes.budget.governor import QUIET_STRETCH
from probes.budget.hot_worker import parse_cpu_ns
from probes.budget.own_cost import END_NICE, WATCH_NICE, stand_back
from probes.contract.clock import NS_PER_S, now_ns
from probes.contract.errors import ProbeUnavailableError
from probes.contract.probe import Probe, ProcessRef, Target
from probes.contract.schema import SERVER_ROLES
from probes.proc import stat_text
from probes.python_stacks.pyspy_process import Window, end_words, find_py_spy, launcher
from probes.python_stacks.trace import (
    CpuBilling,
    explain_failure,
    is_denied,
    parse_outcome,
    parse_trace,
)
from probes.rights.privileges import bits_of, permitted

_OWN_USER_ONLY = (
    "without CAP_SYS_PTRACE no process of another user can be read, as those of a run are (docker: "
    "--cap-add SYS_PTRACE)"
)
LOW_RATE_PER_S = 5
HIGH_RATE_PER_S = 100
ATTACHED_RATE_PER_S = 20
"""The high rate where a server in service is watched, while the budget of the run lasts."""
ATTACHED_LOW_MOST_COUNT = 4
"""Of such a server so many processes at a time are sampled at the low rate, in turn."""
WINDOW_S = 30.0
HOT_WINDOW_S = 5.0
ATTACHED_HOT_WINDOW_S = 10.0
QUIET_REST_S = 60.0
"""So long nobody samples a server in service at which nothing has happened for a while."""
LONGEST_REST_S = 1_800.0
STOP_LIMIT_S = 4.0
"""py-spy sees SIGINT at its next sample, and its waits are exponential: at 5 Hz one in 400 takes
longer than 1.2 s, one in 5e8 longer than this. On cores that are full it comes later still."""
_NOT_EXECUTED = (126, 127)
"""Exit statuses of what starts it."""
_CHECK_LIMIT_S = 60.0  # 0.1 s as a rule; more than 10 s on an emulated host beside others
_FREE_THREADED = re.compile(r"/(?:lib)?python3\.\d+td?(?:\.so[.\d]*)?$", re.MULTILINE)
_SUB_INTERPRETERS = re.compile(r"/_(?:xxsub|xx)?interpreters\.[^/]*so$", re.MULTILINE)
_SAMPLED_ROLES = SERVER_ROLES


def python_build_note(pid: int) -> str:
    """What py-spy cannot see of this process by the kind of its interpreter, '' for nothing.

    Told by the files that it has mapped: an interpreter of a free-threaded build has a ``t`` after
    its version, and who uses sub-interpreters from Python has loaded their module. Where that
    module is built into the interpreter, or C code makes them, it cannot be told.
    """
    try:
        maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    if _FREE_THREADED.search(maps):
        return "a free-threaded build, of which py-spy may read no stacks (its issue 711)"
    if _SUB_INTERPRETERS.search(maps):
        return "of several interpreters py-spy reads only the one created last"
    return ""


@dataclass(slots=True)
class _Watched:
    """One process that is or was sampled."""

    pid: int
    stat_fd: int
    cpu: list[tuple[int, int]] = field(default_factory=list)
    billing: dict[int, CpuBilling] = field(default_factory=dict)
    failures_count: int = 0
    has_ended: bool = False

    def read_cpu(self, at_ns: int) -> None:
        """Notes its CPU clock; a process that is gone keeps its last reading."""
        try:
            self.cpu.append((at_ns, parse_cpu_ns(os.pread(self.stat_fd, 1024, 0))))
        except (OSError, ValueError):
            return


class PythonStacksProbe(Probe):
    """Appends rows to ``python_stacks``; ``focus`` moves the high rate to one process."""

    name = "python_stacks"
    period_s = 1.0
    stop_limit_s = STOP_LIMIT_S + 0.5
    stop_order = 1  # py-spy writes its file while the others stop

    def __init__(self) -> None:
        super().__init__()
        self.seen_count = 0
        self._notes: dict[str, int] = {}
        self._refusal: ProbeUnavailableError | None = None
        self._has_read = False
        self._py_spy: Path | None = None
        self._launcher: list[str] = []
        self._windows: list[Window] = []
        self._watched: dict[int, _Watched] = {}
        self._python_pids: set[int] = set()
        self._low_pids: set[int] = set()
        self._begun_ns: dict[int, int] = {}
        self._hot_pid = 0
        self._resting: dict[int, int] = {}
        self._stop_by_ns = 0
        self._target: Target | None = None
        self._low_most_count = sys.maxsize
        self._pauses: tuple[str, ...] = ("--nonblocking",)

    def check(self) -> None:
        """Finds py-spy and lets it read this process once.

        Raises:
            ProbeUnavailableError: No py-spy, or it may not read other processes.
        """
        self._py_spy = find_py_spy()
        if self._py_spy is None:
            raise ProbeUnavailableError("py-spy is not installed", fix="make install")
        # With the rights that it will have: it may lack what reading takes.
        self._launcher = launcher(os.getpid())
        command = [
            *(*self._launcher, str(self._py_spy)),
            *("dump", "--nonblocking", "--pid", str(os.getpid())),
        ]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_CHECK_LIMIT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ProbeUnavailableError(
                f"{self._py_spy} took more than {_CHECK_LIMIT_S:.0f} s to read this process",
                fix="run again when the machine is less loaded",
            ) from error
        except OSError as error:
            raise ProbeUnavailableError(
                f"{self._py_spy} does not run: {error}", fix="make clean install"
            ) from error
        if done.returncode in _NOT_EXECUTED:
            said = done.stderr.strip().rpartition("\n")[2][:200]
            raise ProbeUnavailableError(
                f"{self._py_spy} does not run: {said}", fix="make clean install"
            )
        if done.returncode != 0:
            message, fix = explain_failure(done.stderr, end_words(done.returncode), ptrace_scope())
            raise ProbeUnavailableError(message, fix=fix)
        if os.geteuid() == 0 and not permitted() & bits_of({"sys_ptrace"}):
            self._add_note(_OWN_USER_ONLY)

    def start(self, target: Target) -> None:
        """Starts one py-spy per server process.

        Raises:
            ProbeUnavailableError: py-spy is missing.
        """
        if self._py_spy is None:
            self.check()
        self._launcher = launcher(os.getpid())
        self._target = target
        if target.is_sparing:
            self._low_most_count = ATTACHED_LOW_MOST_COUNT
        if target.allow_pauses:  # exact stacks, paid for with a pause of the target for each
            self._pauses = ()
        self.writers = [target.run.writer("python_stacks", self.name)]
        processes = target.processes.values()
        self._python_pids = {ref.pid for ref in processes if ref.is_python}
        self._low_pids = {
            ref.pid for ref in processes if ref.is_python and ref.role in _SAMPLED_ROLES
        }
        first = sorted(self._low_pids)[: self._low_most_count]
        for index, pid in enumerate(first):
            # The first windows differ in length, so that later starts do not fall together.
            share = (index + 1) / len(first)
            self._open(pid, LOW_RATE_PER_S, WINDOW_S * (0.5 + 0.5 * share))

    def add_process(self, ref: ProcessRef) -> None:
        """Samples a process that came later at the low rate, where it is Python."""
        if ref.is_python and ref.pid not in self._python_pids:
            self._python_pids.add(ref.pid)
            if ref.role in _SAMPLED_ROLES:
                self._low_pids.add(ref.pid)
                self._open_low(ref.pid)

    def remove_processes(self, pids: Collection[int]) -> None:
        """Forgets processes that ended; what their last windows wrote is still taken."""
        for pid in pids:
            self._python_pids.discard(pid)
            self._low_pids.discard(pid)
            self._begun_ns.pop(pid, None)
            self._resting.pop(pid, None)
            if pid == self._hot_pid:
                self._hot_pid = 0
            if pid in self._watched:
                self._watched[pid].has_ended = True
        self._drop_ended()

    def _drop_ended(self) -> None:
        sampled = {window.pid for window in self._windows}
        for pid in [pid for pid, each in self._watched.items() if each.has_ended]:
            if pid not in sampled:
                os.close(self._watched.pop(pid).stat_fd)

    def focus(self, pid: int) -> None:
        """Samples this process at the high rate and all others at the low one.

        Args:
            pid: A process of the target, 0 for none.
        """
        if pid == self._hot_pid or (pid and pid not in self._python_pids):
            return
        before, self._hot_pid = self._hot_pid, pid
        self._resting.pop(before, 0)
        self._resting.pop(pid, 0)
        for window in self._windows:
            if window.pid in (before, pid):
                window.ask_to_write()
        if before in self._low_pids:
            self._open_low(before)
        if pid:
            self._open_hot()

    def _open_low(self, pid: int) -> None:
        """At the low rate, unless as many as may be are sampled: then its turn comes later."""
        sampled = [each for each in self._windows if not each.asked and each.pid != self._hot_pid]
        if len(sampled) < self._low_most_count:
            self._open(pid, LOW_RATE_PER_S, WINDOW_S)

    def _open_hot(self) -> None:
        if self._target is None or not self._target.attached:
            self._open(self._hot_pid, HIGH_RATE_PER_S, HOT_WINDOW_S)
            return
        rate_per_s = max(LOW_RATE_PER_S, round(ATTACHED_RATE_PER_S / self._target.stretch))
        self._open(self._hot_pid, rate_per_s, ATTACHED_HOT_WINDOW_S)

    def _open_next(self, window: Window) -> None:
        """What follows a window at its end: a rest, the same process, or whose turn it is."""
        if window.pid == self._hot_pid:
            self._open_hot()
        elif self._is_quiet:
            self._add_note("a quiet server: its stacks were sampled a third of the time")
            self._resting[window.pid] = now_ns() + int(self._rest_s() * NS_PER_S)
        else:
            self._open_in_turn(window.pid)

    def _open_in_turn(self, pid: int) -> None:
        if len(self._low_pids) > self._low_most_count:
            busy = {each.pid for each in self._windows}
            waiting = [each for each in self._low_pids - busy if self._is_there(each)]
            pid = min(waiting, key=lambda each: (self._begun_ns.get(each, 0), each), default=pid)
        self._open(pid, LOW_RATE_PER_S, WINDOW_S)

    @staticmethod
    def _is_there(pid: int) -> bool:
        return os.path.exists(f"/proc/{pid}")  # noqa: PTH110 - 2 us

    def _open(self, pid: int, rate_per_s: int, window_s: float) -> None:
        watched = self._watched.get(pid)
        if watched is not None and watched.has_ended:  # another process has its pid by now
            os.close(self._watched.pop(pid).stat_fd)
            watched = None
        if watched is None:
            self._add_note(python_build_note(pid), pid)
            try:
                stat_fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return  # it is gone; the supervisor reports that
            watched = self._watched[pid] = _Watched(pid, stat_fd)
        watched.read_cpu(now_ns())
        output_fd = os.memfd_create("py-spy-trace")
        error_fd = os.memfd_create("py-spy-messages")
        command = [
            *(*self._launcher, str(self._py_spy), "record", "--pid", str(pid)),
            *(*self._pauses, "--threads", "--format", "chrometrace"),
            *("--rate", str(rate_per_s), "--output", f"/proc/self/fd/{output_fd}"),
            # It ends by itself when nobody asks it to: a stray one does not live long.
            *("--duration", str(int(window_s) * 2 + 1)),
        ]
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=error_fd,
            stderr=error_fd,
            pass_fds=(output_fd,),
            start_new_session=True,
        )
        if self._target is not None and self._target.attached:
            stand_back(WATCH_NICE, child.pid)
        started_ns = self._begun_ns[pid] = now_ns()
        ends_ns = started_ns + int(window_s * NS_PER_S)
        window = Window(pid, rate_per_s, child, output_fd, error_fd, started_ns, ends_ns)
        self._windows.append(window)

    def sample(self, at_ns: int) -> None:
        """Reads CPU clocks, takes what finished windows wrote, begins the next ones."""
        for watched in self._watched.values():
            watched.read_cpu(at_ns)
        for window in list(self._windows):
            if window.asked:
                window.ask_to_write()
            elif at_ns >= window.ends_ns:
                self._open_next(window)
                window.ask_to_write()
        for pid, until_ns in list(self._resting.items()):
            if at_ns >= until_ns or not self._is_quiet:
                del self._resting[pid]
                self._open_in_turn(pid)
        self._take_ended(at_ns)

    def _rest_s(self) -> float:
        """How long nobody is sampled; longer where the recording is to stay small."""
        coarser = max(1.0, self._target.row_stretch / QUIET_STRETCH) if self._target else 1.0
        return min(LONGEST_REST_S, QUIET_REST_S * coarser)

    @property
    def _is_quiet(self) -> bool:
        target = self._target
        return target is not None and target.is_sparing and target.stretch >= QUIET_STRETCH

    def _take_ended(self, at_ns: int) -> None:
        for window in list(self._windows):
            cpu_ns = window.ended()
            if cpu_ns < 0:
                continue
            self.child_cpu_ns += cpu_ns
            self._windows.remove(window)
            self._take(window)
            if not window.asked and self._is_alive(window.pid):
                # It ended before it was asked: it failed, or the clock jumped. Try again, but not
                # for ever.
                watched = self._watched[window.pid]
                watched.failures_count += 1
                if watched.failures_count <= 2:
                    self._open(window.pid, window.rate_per_s, WINDOW_S)
        self._drop_ended()
        oldest_ns = min((window.started_ns for window in self._windows), default=at_ns)
        for watched in self._watched.values():
            keep = max(0, sum(reading[0] <= oldest_ns for reading in watched.cpu) - 1)
            del watched.cpu[:keep]

    def _take(self, window: Window) -> None:
        """Turns one window's output into rows; what cannot be read counts as lost."""
        trace, messages = window.close()
        outcome = parse_outcome(messages)
        self.late_count += outcome.behind_count
        self.lost_count += outcome.error_count
        try:
            spans = parse_trace(trace, window.started_ns)
        except (ValueError, KeyError, TypeError):
            spans = []
            outcome = parse_outcome("")
        lived_s = (now_ns() - window.started_ns) / NS_PER_S
        due_count = max(round(lived_s * window.rate_per_s), outcome.error_count)
        self.seen_count += due_count
        if outcome.sample_count < 0 and self._is_alive(window.pid):
            self.lost_count += due_count
            reason = f"py-spy {window.how_it_ended()}"
            if not window.given_up_ns:  # else it sampled on: nothing that it said is a reason
                how = window.how_it_ended()
                reason, fix = explain_failure(messages, how, ptrace_scope())
                if is_denied(messages):
                    self._refusal = ProbeUnavailableError(reason, fix=fix)
            said = messages.strip() or "no output"
            sys.stderr.write(f"py-spy on {window.pid}: {reason}; it said: {said}\n")
            self._add_note(reason, window.pid)
        self._has_read = self._has_read or outcome.sample_count > 0
        watched = self._watched[window.pid]
        billing = watched.billing.setdefault(
            window.rate_per_s, CpuBilling(NS_PER_S // window.rate_per_s)
        )
        for row in billing.rows(spans, watched.cpu):
            self.writers[0].append(
                row.at_ns, window.pid, row.thread, row.stack, row.sample_count, row.period_ns
            )

    @property
    def note(self) -> str:
        """What it could not see, for the row of its health."""
        return "; ".join(f"pid {pid}: {what}" if pid else what for what, pid in self._notes.items())

    def _add_note(self, what: str, pid: int = 0) -> None:
        """Says something in the row of its health, once, and not for every worker."""
        if what:
            self._notes.setdefault(what, pid)

    def _is_alive(self, pid: int) -> bool:
        watched = self._watched[pid]
        try:
            return stat_text.is_alive(os.pread(watched.stat_fd, 512, 0))
        except OSError:
            return False

    def request_stop(self) -> None:
        """Asks every py-spy to write now; ``stop`` takes what they wrote."""
        if not self._stop_by_ns and self._target is not None and self._target.attached:
            for window in self._windows:
                stand_back(END_NICE, window.child.pid)
        if not self._stop_by_ns:
            slowness = self._target.stop_slowness if self._target is not None else 1.0
            self._stop_by_ns = now_ns() + int(STOP_LIMIT_S * slowness * NS_PER_S)
            if self._target is not None and self._target.stop_by_ns:
                self._stop_by_ns = min(self._stop_by_ns, self._target.stop_by_ns)
        for window in self._windows:
            window.ask_to_write()

    def stop(self, at_ns: int) -> None:
        """Takes the last windows; a py-spy that does not end in time is killed.

        Raises:
            ProbeUnavailableError: It was allowed to read none of the processes.
        """
        for watched in self._watched.values():
            watched.read_cpu(at_ns)
        self.request_stop()
        self._take_ended(at_ns)
        while self._windows and now_ns() < self._stop_by_ns:
            time.sleep(0.01)
            self.request_stop()
            self._take_ended(at_ns)
        for window in self._windows:
            window.give_up()
        while self._windows:  # SIGKILL cannot be refused
            time.sleep(0.001)
            self._take_ended(at_ns)
        for watched in self._watched.values():
            os.close(watched.stat_fd)
        self._watched.clear()
        if self._refusal is not None and not self._has_read:
            raise self._refusal
