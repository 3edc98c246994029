"""Watches a server that runs already, with its real clients, and records what it sees.

Nothing is started in the target and nothing of it is changed: its processes are read through
/proc, its sockets through the kernel's iterator, its calls through tracepoints. What watches is
this process and the probe process; both are outside of the target's control group. When this
process dies, however it dies, the probe process gets SIGKILL from the kernel, and the kernel takes
the eBPF programs and perf events away with the descriptors that held them.
"""

from __future__ import annotations

import os
import time

from harness.foreign.attach_target import AttachTarget
from harness.foreign.processes import ForeignProcesses
from harness.supervision import recording
from harness.supervision.attach_status import AttachStatus
from harness.supervision.probe_process import ProbeProcess
from harness.supervision.recorder import Recorder, RunResult
from harness.supervision.supervisor import Interrupt
from probes.contract.errors import HostError, ToolkitError
from probes.contract.live import Header, Live, Phase
from probes.contract.live_file import LiveFile
from probes.contract.rundir import RunDir
from probes.proc import process_tree
from reports.terminal.terminal import LiveView

SLOTS_COUNT = 1_024
"""Processes that can be followed at the same time: 1 kB each."""

_SETUP_TICK_S = 0.1
_TICK_S, _CALM_TICK_S = 0.2, 0.5
"""How often it looks at the processes: close while connections come or go, or processes."""

_LOOK_AGAIN_PERIOD_S = 1.0
_REPLACEMENT_WAIT_S = 3.0
"""A service manager that starts a dead server again does so within this."""


class Watch(Recorder):
    """Watches one target and records it.

    Args:
        run: An empty run directory.
        target: What to watch.
        probes: Names of the probes.
        manifest: Already written with status "running".
        duration_s: How long, None for ever.
        interrupt: Set by signals: the usual end.
        view: Where progress is shown.
        allow_pauses: Probes may stop the target for a moment.
        with_page: Its page will be wanted at the end.
    """

    def __init__(
        self,
        *,
        run: RunDir,
        target: AttachTarget,
        probes: list[str],
        manifest: recording.Manifest,
        duration_s: float | None,
        interrupt: Interrupt,
        view: LiveView,
        allow_pauses: bool = False,
        with_page: bool = True,
    ) -> None:
        super().__init__(run, probes, manifest, with_page=with_page)
        self._target = target
        self._duration_s = duration_s
        self._interrupt = interrupt
        self._view = view
        self._allow_pauses = allow_pauses
        self._roots = list(target.roots)
        self._look_due_s = 0.0
        self._gone_since_s = 0.0

    def execute(self) -> RunResult:
        """Watches until the end.

        Raises:
            ToolkitError: It could not begin, or the recording could not be written; what was
                recorded until then stays.
        """
        result = RunResult(notes=list(self._target.notes))
        self._manifest.begin_stage("setup")
        namespace_fd = -1
        probes: ProbeProcess | None = None
        processes: ForeignProcesses | None = None
        try:
            self._live_file = LiveFile(self._run, SLOTS_COUNT, 1)
            live = Live(self._live_file.fd)
            namespace_fd = self._target.open_namespace()
            processes = ForeignProcesses(live, SLOTS_COUNT, *self._target.ports)
            self._find_processes(processes)
            probes = ProbeProcess(
                self._run.path,
                self._probe_names,
                self._live_file.fd,
                namespace_fd,
                self._target.ports,
                attached=True,
                allow_pauses=self._allow_pauses,
            )
            self._watch(live, processes, probes, result)
        except BaseException:
            result.status = "failed"
            raise
        finally:
            if probes is not None:
                probes.stop(0.2)
            if namespace_fd >= 0:
                os.close(namespace_fd)
            self._record(processes, result)
            if processes is not None:
                processes.close()
            if self._live_file is not None:
                self._live_file.close()
        return result

    def _find_processes(self, processes: ForeignProcesses) -> None:
        processes.watch_tree(self._roots)
        self._take(processes, processes.begin_watch())
        if processes.pids:
            return
        if not any(process_tree.tree_of(root) for root in self._roots):
            raise self._target.ended()
        raise HostError(
            f"{self._target.selector}: none of its processes could be seen to hold its listener",
            fix="run as root" if os.geteuid() != 0 else "--pid PID of the process that does",
        )

    def _watch(
        self,
        live: Live,
        processes: ForeignProcesses,
        probes: ProbeProcess,
        result: RunResult,
    ) -> None:
        status = AttachStatus(live, self._target.pid)
        while not probes.is_ready and not self._is_over(processes):
            self._follow(processes)
            if self._view.is_due("setup"):
                self._view.update(status.read("setup", note="starting probes"))
            if probes.is_late:
                self._note_late_probes(result)
                break
            time.sleep(_SETUP_TICK_S)
        else:
            self._note_probes(probes, result)
        at_ns = time.monotonic_ns()
        live.header[Header.PHASE_HOLD_NS] = at_ns
        live.header[Header.PHASE] = Phase.HOLD
        self._manifest.begin_stage("watch", at_ns)
        self._event("phase_watch", at_ns=at_ns)
        status.begin()
        end_s = time.monotonic() + self._duration_s if self._duration_s else None
        while not self._is_over(processes):
            self._follow(processes)
            left_s = end_s - time.monotonic() if end_s is not None else None
            if left_s is not None and left_s <= 0:
                break
            if self._view.is_due("watch"):
                self._view.update(status.read("watch", time_left_s=left_s))
            tick_s = _TICK_S if processes.are_moving else _CALM_TICK_S
            processes.wait(tick_s if left_s is None else min(tick_s, left_s))
        self._stop(live, processes, probes, status, result)

    def _is_over(self, processes: ForeignProcesses) -> bool:
        """Somebody wants it to end, or nothing of the target is left."""
        if self._interrupt.signal_name:
            return True
        # The watched are told by their ends, which come with how they ended. Who is alive and had
        # no slot gets one at the next look, now that there is one.
        if processes.pids or processes.are_left_out:
            self._gone_since_s = 0.0
            return False
        if not self._target.look_again:  # a pid: its parent may start workers again
            return not any(process_tree.tree_of(root) for root in self._roots)
        now_s = time.monotonic()
        self._gone_since_s = self._gone_since_s or now_s
        return now_s - self._gone_since_s >= _REPLACEMENT_WAIT_S

    def _follow(self, processes: ForeignProcesses) -> None:
        self._keep_live()
        now_s = time.monotonic()
        if self._target.look_again and now_s >= self._look_due_s and not processes.pids:
            self._look_due_s = now_s + _LOOK_AGAIN_PERIOD_S
            self._take_roots(processes)
        self._take(processes, processes.follow())

    def _take_roots(self, processes: ForeignProcesses) -> None:
        assert self._target.look_again is not None
        found = self._target.look_again()
        if found and found != self._roots:
            self._roots = found
            processes.watch_tree(found)

    def _take(self, processes: ForeignProcesses, news: list[tuple[str, int, str]]) -> None:
        for event, pid, detail in news:
            self._event(event, pid=pid, detail=detail)
        self._note_processes(processes)

    def _note_probes(self, probes: ProbeProcess, result: RunResult) -> None:
        super()._note_probes(probes, result)
        result.notes += [
            f"{each['name']} does not run: {each['reason']}; {each['fix']}"
            for each in probes.answer.get("unavailable", [])
        ]

    def _stop(
        self,
        live: Live,
        processes: ForeignProcesses,
        probes: ProbeProcess,
        status: AttachStatus,
        result: RunResult,
    ) -> None:
        if self._interrupt.signal_name:
            self._event("stop_asked", detail=self._interrupt.signal_name)
        elif not processes.pids:
            self._event("target_ended", pid=self._target.pid, detail="nothing of it is left")
            result.notes.append("the server ended while it was watched; what was seen is kept")
        self._manifest.begin_stage("collect")
        self._view.update(status.read("collect"))
        self._stop_probes(probes, probes.stop_deadline_s, result)
        self._follow(processes)
        self._stop_ns = time.monotonic_ns()
        live.header[Header.PHASE_STOP_NS] = self._stop_ns
        live.header[Header.PHASE] = Phase.STOP
        self._manifest.begin_stage("stop", self._stop_ns)
        self._event("phase_stop", at_ns=self._stop_ns)
        self._view.update(status.read("stop"))

    def _record(self, processes: ForeignProcesses | None, result: RunResult) -> None:
        """Turns shared memory into tables; never hides the error that ended the watch."""
        self._analysis_ahead.wait()
        if processes is not None:
            self._note_processes(processes, is_last=True)
        self._manifest.release_room()
        self._note_left_out(result)
        self._manifest.contents["notes"] = result.notes
        try:
            if self._live_file is not None:
                live = Live(self._live_file.fd)
                ends = processes.ends if processes is not None else []
                recording.write_processes(self._run, live, ends, self._stop_ns, self._departed)
                recording.write_events(self._run, self._events)
            self._note_unwritten(result)
            self._manifest.finish(result.status)
        except ToolkitError:
            if result.status != "failed":
                raise
