"""Drives every probe of a run in one thread, by deadlines.

A probe that cannot run or that breaks becomes its row in ``probe_health``; the others go on. Rows
are flushed once a second, so that a killed probe process loses at most about that. A server in
service is watched within a budget (``probes/budget/pace.py``): then the periods are longer.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import select
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from probes.budget import pace as attached_pace
from probes.budget import row_budget
from probes.budget.governor import aligned_ns
from probes.budget.hot_worker import HotWorkerWatch
from probes.budget.own_cost import WATCH_NICE, stand_back
from probes.budget.pace import AttachedPace
from probes.collect import registry
from probes.collect.driven import (
    STOP_LIMIT_S,
    Driven,
    ProbeHangs,
    longest_stop_s,
    next_due_ns,
    stop_limit_s,
    time_limit,
)
from probes.collect.fair_deadline import FairDeadline
from probes.collect.fleet_slots import FollowedSlots, fleet_is_ready, has_free_slots, processes_of
from probes.contract.clock import NS_PER_MS, NS_PER_S, now_ns
from probes.contract.errors import ProbeUnavailableError
from probes.contract.live import Header, Live, Phase
from probes.contract.probe import AcceptFailures, Probe, Target
from probes.contract.rundir import RunDir
from probes.contract.schema import SERVER_ROLES
from probes.contract.table_writer import TableWriter
from probes.proc.process_tree import is_python
from probes.symbols.symbols import user_symbols

READY_LIMIT_S = 120.0
PROBE_STOP_LIMIT_S = 1.8
"""Of one probe, unless it says itself that it may take longer (``stop_limit_s``)."""
_HEALTH_S = 0.15
"""So long before its end the probe process begins to write what it has."""
_STOP = re.compile(rb"stop (\d{1,3}\.\d\d)\n")
FLUSH_NS = NS_PER_S
HOT_NS = NS_PER_S
PHASE_NS = 50 * NS_PER_MS
FOLLOW_NS = 250 * NS_PER_MS
MERGE_NS = 3_600 * NS_PER_S


@dataclass(slots=True)
class Collector:
    """Makes, starts, samples and stops the probes of one run.

    Attributes:
        run: Where tables go.
        names: The probes asked for.
        live: The fleet's shared memory.
        server_ports: Ports of the server.
        stdin_fd: End of file or ``stop SECONDS`` on it ends the run.
        attached: See ``Target``.
        allow_pauses: Likewise.
        clock_ns: CLOCK_MONOTONIC.
    """

    run: RunDir
    names: Sequence[str]
    live: Live
    server_ports: frozenset[int]
    stdin_fd: int
    attached: bool = False
    allow_pauses: bool = False
    clock_ns: Callable[[], int] = now_ns
    driven: list[Driven] = field(default_factory=list)
    _health: Any = None
    _events: Any = None
    _hot: HotWorkerWatch | None = None
    _target: Target | None = None
    _followed: FollowedSlots | None = None
    _pace: AttachedPace | None = None
    _nice: int = WATCH_NICE
    _phase: int = Phase.START
    _unmerged: list[TableWriter] = field(default_factory=list)
    _merge_due_ns: int = 0
    _flush_due_ns: int = 0
    _hot_due_ns: int = 0
    _follow_due_ns: int = 0
    _stop_limit_s: float = field(default_factory=lambda: STOP_LIMIT_S)
    _stop_lock: threading.Lock = field(default_factory=threading.Lock)

    def prepare(self) -> None:
        """Makes and checks every probe: imports and compilers run before the fleet is ready."""
        self._health = self.run.writer("probe_health", "collect")
        self._events = self.run.writer("events", "collect")
        for name in self.names:
            entry = Driven(name)
            self.driven.append(entry)
            with self._guarded(entry):
                entry.probe = registry.make(name)
                entry.probe.check()
                entry.probe.prepare()
                entry.running = True

    def wait_for_fleet(self) -> bool:
        """Waits until all processes are known.

        Returns:
            False when the supervisor asked to stop meanwhile.
        """
        deadline_ns = now_ns() + int(READY_LIMIT_S * NS_PER_S)
        while not fleet_is_ready(self.live) and now_ns() < deadline_ns:
            if self.stop_is_asked(timeout_s=0.005):
                return False
        return True

    def start(self) -> None:
        """Starts every probe that can run; failures become health rows at once."""
        if has_free_slots(self.live) or self.attached:
            self._followed = FollowedSlots(self.live)
        processes = processes_of(self.live)
        if self._followed is not None:  # the servers are not ours, and may be anything
            for pid, ref in processes.items():
                if ref.role in SERVER_ROLES:
                    processes[pid] = replace(ref, is_python=is_python(pid))
        target = self._target = Target(
            self.run,
            processes,
            self.server_ports,
            self.live,
            attached=self.attached,
            is_foreign=self._followed is not None,
            is_sparing=self.attached and set(self.names) <= set(registry.sparing()),
            allow_pauses=self.allow_pauses,
            is_stop_asked=self._stop_waits,
        )
        for entry in self.driven:
            if entry.running and entry.probe is not None:
                entry.running = False
                with self._guarded(entry):
                    entry.probe.start(target)
                    entry.running = True
                for note in target.notes:
                    _log(f"{entry.name}: {note}")
                target.notes.clear()
        if registry.every_call_is_counted(list(self.names)):
            self._watch_syscalls(set(target.processes))
        self._hot = HotWorkerWatch(target.processes, self.live, self._accept_failures)
        if target.is_sparing:
            cores = os.cpu_count() or 1
            rate = row_budget.bytes_per_s(len(processes), cores)
            self._pace = AttachedPace(self.live, rows=row_budget.RowBudget(rate))
        for entry in self.driven:
            if entry.state != "ran":
                self._report(entry)
        at_ns = self._hot_due_ns = self._follow_due_ns = self.clock_ns()
        self._phase = self.live.phase
        for entry in self.driven:
            entry.due_ns = at_ns
        self._flush()
        self._flush_due_ns = at_ns + FLUSH_NS
        if self.attached:  # nobody waits with the load: a change needs what it is counted from
            self.turn()
        self.live.header[Header.PROBES_READY_NS] = now_ns()

    def _follow(self) -> None:
        """Tells the probes of processes that came since the last look."""
        if self._target is None or self._followed is None:
            return
        for ref, slot in self._followed.take_new():
            known = self._target.processes.get(ref.pid)
            if known is not None and known.worker == ref.worker:
                continue  # it came while the probes started
            if known is not None:  # another process had this number
                self._end_processes({ref.pid})
            self._target.processes[ref.pid] = ref
            for entry, probe in self._running():
                with self._guarded(entry):
                    probe.add_process(ref)
            if self._hot is not None:
                self._hot.add(ref, slot)
            if registry.every_call_is_counted(list(self.names)):
                self._watch_syscalls(set(self._target.processes))

    def _end_processes(self, pids: Collection[int]) -> None:
        """Tells the probes of processes that ended: their numbers are free for anybody."""
        if self._target is None:
            return
        for entry, probe in self._running():
            with self._guarded(entry):
                probe.remove_processes(pids)
        user_symbols().remove(pids)
        for pid in pids:
            self._target.processes.pop(pid, None)
            if self._hot is not None:
                self._hot.remove(pid)

    def ready_message(self) -> dict[str, Any]:
        """What the supervisor is told."""
        return {
            "ready": [entry.name for entry in self.driven if entry.running],
            "unavailable": [
                {"name": entry.name, "reason": entry.reason, "fix": entry.fix}
                for entry in self.driven
                if not entry.running
            ],
        }

    def loop(self) -> None:
        """Samples by deadlines until the supervisor asks to stop."""
        while True:
            due_ns = self.turn()
            if self.stop_is_asked(timeout_s=max(0, due_ns - self.clock_ns()) / NS_PER_S):
                return

    def turn(self) -> int:
        """Does everything that is due.

        Returns:
            When something is due next.
        """
        at_ns = self.clock_ns()
        if self.live.phase != self._phase:
            self._phase = self.live.phase
            if self._phase == Phase.HOLD:
                for entry, probe in self._running():
                    if probe.is_sampled_at_hold:
                        entry.due_ns = self.clock_ns()
                        self._sample(entry)
        for entry in self.driven:
            if entry.running and self.clock_ns() >= entry.due_ns:
                self._sample(entry)
                if self._stop_waits():
                    break
        if self._followed is not None and at_ns >= self._follow_due_ns:
            self._follow_due_ns = at_ns + FOLLOW_NS
            self._follow()
            if self._pace is not None and self._hot is not None and self._target is not None:
                self._look(at_ns, is_hot=self._hot.pid > 0)
                self._follow_due_ns = self._pace.look_due_ns(at_ns)
        if at_ns >= self._hot_due_ns:
            self._hot_due_ns = at_ns + HOT_NS
            if self._pace is not None:  # together with all else
                self._hot_due_ns = aligned_ns(at_ns, HOT_NS)
            self._look_for_hot_worker(at_ns)
        if at_ns >= self._flush_due_ns:
            self._flush_due_ns = at_ns + FLUSH_NS
            if self._pace is not None:
                self._flush_due_ns = self._pace.flush_due_ns(at_ns)
            self._flush()
        due_ns = [self._hot_due_ns, self._flush_due_ns]
        due_ns += [entry.due_ns for entry in self.driven if entry.running]
        if self._phase < Phase.HOLD:
            due_ns.append(at_ns + PHASE_NS)
        if self._followed is not None:
            due_ns.append(self._follow_due_ns)
        return min(due_ns)

    def _stop_waits(self) -> bool:
        """The supervisor has said its word, which ``stop_is_asked`` takes."""
        return bool(select.select([self.stdin_fd], [], [], 0)[0])

    def stop_is_asked(self, timeout_s: float) -> bool:
        """Waits at most so long for the supervisor's word."""
        readable, _, _ = select.select([self.stdin_fd], [], [], timeout_s)
        if not readable:
            return False
        word = os.read(self.stdin_fd, 64)
        if told := _STOP.match(word):
            self._stop_limit_s = stop_limit_s(float(told[1]))
        return word == b"" or b"stop" in word

    def stop(self) -> None:
        """Takes the last samples, stops every probe, writes their health and ends all streams."""
        deadline = self._deadline(self._stop_limit_s)
        is_done = threading.Event()
        arguments = (deadline, is_done)
        threading.Thread(target=self._give_up_late, args=arguments, daemon=True).start()
        if self._target is not None:
            stop_ns = int((self._stop_limit_s - _HEALTH_S) * NS_PER_S)
            self._target.stop_by_ns = self.clock_ns() + stop_ns
            self._target.stop_slowness = self._stop_slowness
        for entry, probe in self._running():
            with self._guarded(entry):
                probe.request_stop()
        made = [(entry, entry.probe) for entry in self.driven if entry.probe is not None]
        for entry, probe in sorted(made, key=lambda each: each[1].stop_order):
            self._stop_one(entry, probe)
        with self._stop_lock:
            self._finish()
        is_done.set()

    def _deadline(self, limit_s: float) -> FairDeadline:
        return FairDeadline(limit_s, longest_stop_s(self._stop_limit_s))

    def _give_up_late(self, deadline: FairDeadline, is_done: threading.Event) -> None:
        """Waits in a thread of its own for whichever comes first."""
        while (left_s := deadline.left_s()) > 0:
            if is_done.wait(left_s):
                return
        self._give_up()

    def _running(self) -> list[tuple[Driven, Probe]]:
        return [(entry, entry.probe) for entry in self.driven if entry.running and entry.probe]

    def _stop_one(self, entry: Driven, probe: Probe) -> None:
        with self._guarded(entry), time_limit(self._deadline(self._stop_limit_s_of(entry))):
            probe.stop(self.clock_ns())
        entry.running = False
        with self._stop_lock:
            self._report(entry)
            self._health.flush()  # who waits for this process may kill it

    def _stop_limit_s_of(self, entry: Driven) -> float:
        own_s = None if entry.probe is None else entry.probe.stop_limit_s
        return (PROBE_STOP_LIMIT_S if own_s is None else own_s) * self._stop_slowness

    @property
    def _stop_slowness(self) -> float:
        return max(1.0, self._stop_limit_s / STOP_LIMIT_S)

    def _give_up(self) -> None:
        """Runs in a thread of its own: a probe hangs in code that no signal reaches."""
        with self._stop_lock:
            faulthandler.dump_traceback(all_threads=True)
            for entry in self.driven:
                if not entry.reported and entry.state == "ran":
                    entry.fail(now_ns())
                    entry.state = "failed"
                    entry.reason = f"did not stop within {self._stop_limit_s:g} s"
            self._finish()
            os._exit(0)

    def _finish(self) -> None:
        for entry in self.driven:
            self._report(entry)
        for name in registry.PROBES:
            if name not in self.names:
                counts = (0, 0, 0, 0, -1, 0, 0, 0, -1, 0)
                self._health.append(now_ns(), name, False, "not_asked", "", "", *counts)
        self._health.close()
        self._events.close()
        for entry in self.driven:
            for writer in entry.probe.writers if entry.probe is not None else []:
                writer.close()

    def _report(self, entry: Driven) -> None:
        """Writes the health row of one probe, once."""
        if entry.reported:
            return
        entry.reported = True
        probe = entry.probe or Probe()
        writers = probe.writers
        with self._guarded(entry):
            for writer in writers:
                writer.flush()
        lost_rows_count = sum(writer.lost_rows_count for writer in writers)
        reason, fix = entry.reason, entry.fix
        if lost_rows_count and not reason:
            error = next((writer.last_error for writer in writers if writer.last_error), "")
            reason = f"{lost_rows_count} rows could not be written: {error}"
            fix = f"df -h {self.run.path}; choose another place with --output DIR"
        reason = reason or attached_pace.notes(probe.note, entry.put_off_count)
        self._health.append(
            now_ns(),
            entry.name,
            True,
            entry.state,
            reason,
            fix,
            sum(writer.row_count for writer in writers),
            probe.lost_count + lost_rows_count,
            probe.late_count + entry.late_count,
            entry.cpu_ns + probe.child_cpu_ns,
            probe.bpf_run_ns,
            self._seen_count(probe, lost_rows_count),
            entry.failed_ns,
            probe.missed_count,
            probe.run_count,
            probe.unwatched_ns,
        )

    @staticmethod
    def _seen_count(probe: Probe, lost_rows_count: int) -> int:
        """What it lost is a part of this; where whole rows were lost, of the rows."""
        if probe.seen_count >= 0 and not lost_rows_count:
            return probe.seen_count
        row_count = sum(writer.row_count for writer in probe.writers)
        return row_count + lost_rows_count + probe.lost_count

    def _sample(self, entry: Driven) -> None:
        probe = entry.probe
        assert probe is not None
        at_ns = self.clock_ns()
        period_ns = int(probe.period_s * NS_PER_S)
        if self._pace is None:
            entry.due_ns, is_late = next_due_ns(entry.due_ns, at_ns, period_ns)
        else:
            is_late = at_ns - entry.due_ns > period_ns
            entry.due_ns, put_off_count = self._pace.next_due_ns(
                at_ns, period_ns, probe.is_self_paced, writes_rows=probe.writes_rows
            )
            entry.put_off_count += put_off_count
        entry.late_count += is_late
        with self._guarded(entry):
            probe.sample(at_ns)
        if self._pace is not None and probe.is_alarmed:
            self._pace.alert(at_ns)

    def _look_for_hot_worker(self, at_ns: int) -> None:
        if self._hot is None:
            return
        has_changed = self._hot.sample(at_ns)
        if ended := set(self._hot.take_ended()):
            self._end_processes(ended)
        if not has_changed:
            return
        pid, use = self._hot.pid, self._hot.use
        if pid and use is not None:
            detail = (
                f"{use.cpu_share:.0%} of a core in the last second, "
                f"wanted one {min(1.0, use.demand_share):.0%} of the time"
            )
            if use.is_spinning:
                detail += f", {use.failing_accepts_per_s:,.0f} accepts failed"
            self._events.append(at_ns, "hot_worker", pid, detail)
            if not registry.every_call_is_counted(list(self.names)):
                self._watch_syscalls({pid, *self._hot.siblings})
        else:
            self._events.append(at_ns, "hot_worker_cooled", 0, "no process is hot any more")
        self._look(at_ns, is_hot=pid > 0)
        for entry, probe in self._running():
            with self._guarded(entry):
                probe.focus(pid)

    def _look(self, at_ns: int, *, is_hot: bool) -> None:
        """Sets the pace; when it quickens, what was put off comes sooner."""
        if self._pace is None or self._target is None:
            return
        target = self._target
        before = target.stretch, target.row_stretch
        target.stretch = self._pace.look(at_ns, is_hot=is_hot)
        target.row_stretch, target.is_coarse = self._pace.row_stretch, self._pace.is_coarse
        nice = self._pace.nice(at_ns)
        if nice != self._nice:
            self._nice = nice
            if os.geteuid() == 0:  # without root there is no way back: it never stood so far back
                stand_back(self._nice)
        quickens = target.stretch < before[0] or target.row_stretch < before[1]
        for entry, probe in self._running() if quickens else ():
            period_ns = int(probe.period_s * NS_PER_S)
            due_ns, _ = self._pace.next_due_ns(
                at_ns, period_ns, False, writes_rows=probe.writes_rows
            )
            entry.due_ns = min(entry.due_ns, due_ns)

    def _accept_failures(self) -> AcceptFailures | None:
        counted = (probe.accept_failures() for _, probe in self._running())
        return next((each for each in counted if each is not None), None)

    def _watch_syscalls(self, pids: set[int]) -> None:
        for entry, probe in self._running():
            with self._guarded(entry):
                probe.watch(pids)

    def _flush(self) -> None:
        for entry in self.driven:
            if entry.probe is not None:
                with self._guarded(entry):
                    for writer in entry.probe.writers:
                        writer.flush()
        self._health.flush()
        self._events.flush()
        if self._pace is not None:
            self._keep_small(self.clock_ns())

    def _keep_small(self, at_ns: int) -> None:
        """Tells the budget how much is written, and merges batches: one table at a time."""
        writers = [w for e in self.driven if e.probe is not None for w in e.probe.writers]
        writers += [self._health, self._events]
        assert self._pace is not None
        self._pace.wrote(at_ns, sum(writer.size_bytes for writer in writers))
        if not self._unmerged and at_ns >= self._merge_due_ns:
            if self._merge_due_ns:
                self._unmerged = writers
            self._merge_due_ns = at_ns + MERGE_NS
        if self._unmerged:
            self._unmerged.pop().merge()

    @contextlib.contextmanager
    def _guarded(self, entry: Driven) -> Iterator[None]:
        """Bills the CPU time to the probe and turns what it raises into its health row."""
        started_ns = time.thread_time_ns()
        try:
            yield
        except ProbeUnavailableError as error:
            entry.fail(now_ns())
            entry.state, entry.reason, entry.fix = "unavailable", error.message, error.fix
            _log(f"{entry.name}: {error.message}")
        except Exception as error:  # noqa: BLE001  # one probe must not take the others with it
            entry.fail(now_ns())
            if entry.state == "ran":  # the first failure is the one that explains
                entry.state = "failed"
                entry.reason = f"{type(error).__name__}: {error}"
                if isinstance(error, ProbeHangs):
                    entry.reason = f"did not stop within {self._stop_limit_s_of(entry):g} s"
                entry.fix = f"see {self.run.path / 'logs'}; run again with --probes without it"
            _log(f"{entry.name} failed:\n{traceback.format_exc()}")
        finally:
            entry.cpu_ns += time.thread_time_ns() - started_ns


def _log(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
