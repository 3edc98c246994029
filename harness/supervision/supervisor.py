"""One run from the first process to the last: set-up, ramp, hold, stop, record.

The supervisor stays lean while the fleet runs (no numpy, pyarrow or pandas); it reads shared
memory ten times a second and writes what it saw when the fleet is gone.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from harness.faults import kinds as faults
from harness.faults.burners import Burners
from harness.faults.cgroups import RunCgroups
from harness.fleet import netns
from harness.fleet.config import FleetConfig
from harness.foreign.secret_words import without_query_values
from harness.foreign.server import ForeignRequest, ForeignServer
from harness.planning.layout import Plan
from harness.results import conclusion
from harness.supervision import live_status, recording
from harness.supervision.attempts import StopReason, attempts_record
from harness.supervision.cue import Cue
from harness.supervision.fleet import Fleet
from harness.supervision.foreign_notes import foreign_notes
from harness.supervision.probe_process import ProbeProcess
from harness.supervision.recorder import Recorder, RunResult
from probes.contract.errors import HostError, ToolkitError
from probes.contract.live import Counter, Header, Live, Phase, Role
from probes.contract.live_file import LiveFile
from probes.contract.rundir import RunDir
from reports.terminal.terminal import LiveView, Status

_TICK_S = 0.05
_FLEET_START_DEADLINE_S = 120.0
_FLEET_STOP_DEADLINE_S = 10.0
_INTERRUPTED_PROBE_STOP_S = 1.5
_INTERRUPTED_FLEET_STOP_S = 1.5
_STALL_MARGIN_S = 5.0


_AGAIN_S = 1.0


class Interrupt:
    """Ctrl-C, SIGTERM and SIGHUP as a flag that the phases look at.

    One ends the recording, and its verdict is still made. Who sends another one meanwhile wants to
    have the terminal back.
    """

    def __init__(self) -> None:
        self.signal_name = ""
        self._is_concluding = False
        self._signalled_s = 0.0

    def begin_conclusion(self) -> None:
        """The recording is kept: from now on a second signal ends the command at once."""
        self._is_concluding = True

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        now_s = time.monotonic()
        # One Ctrl-C can come twice, from the terminal and from who started this.
        if self._is_concluding and self.signal_name and now_s - self._signalled_s > _AGAIN_S:
            raise KeyboardInterrupt
        if not self.signal_name:
            self._signalled_s = now_s
        self.signal_name = signal.Signals(number).name

    @contextmanager
    def caught(self) -> Iterator[Interrupt]:
        """Takes the signals over while the block runs."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Supervisor(Recorder):
    """Runs one plan and records it.

    Args:
        run: An empty run directory.
        plan: The layout.
        config: What the fleet is told.
        probes: Names of the probes.
        manifest: Already written with status "running".
        hold_s: How long to hold the connections.
        interrupt: Set by signals; every phase ends early when it is.
        view: Where progress is shown.
        foreign: The server where it is not ours.
        failures_max_count: The ramp ends after so many failed attempts, 0: after any number.
        with_page: Its page will be wanted at the end.
        cue: Who decides when phases begin; the supervisor alone when None.
    """

    def __init__(
        self,
        *,
        run: RunDir,
        plan: Plan,
        config: FleetConfig,
        probes: list[str],
        manifest: recording.Manifest,
        hold_s: float,
        interrupt: Interrupt,
        view: LiveView,
        foreign: ForeignRequest | None = None,
        failures_max_count: int = 0,
        with_page: bool = True,
        cue: Cue | None = None,
    ) -> None:
        self._cue = cue or Cue()
        super().__init__(run, probes, manifest, with_page=with_page, concludes=self._cue.concludes)
        self._failures_max_count = failures_max_count
        self._stopped = (StopReason.NONE, 0)
        self._plan = plan
        self._config = config
        self._hold_s = hold_s
        self._interrupt = interrupt
        self._view = view
        self._foreign_request = foreign
        self._foreign: ForeignServer | None = None
        self._told_refusals_count = 0
        self._told_parents_count = 0
        self._is_launcher_told = False
        self._burners = Burners(config.inject)
        self._cgroups = RunCgroups(config, run.path / "logs" / "cgroups.log")

    def execute(self) -> RunResult:
        """Makes the run.

        Raises:
            ToolkitError: It could not start, or the recording could not be written; what was
                recorded until then stays.
        """
        result = RunResult("finished")
        if os.geteuid() == 0 and not self._config.own_uid:
            result.notes.append(
                "server and clients run as root: here it may not become another user (a user "
                "namespace, or a container without CAP_SETUID and CAP_SETGID)"
            )
        if self._foreign_request is not None and self._foreign_request.is_root:
            result.notes.append(
                "the server command runs as root, since no sudo, doas or pkexec names another: "
                "--server-user NAME starts it as another user"
            )
        self._manifest.begin_stage("setup")
        try:
            shared = LiveFile(
                self._run,
                self._config.slot_count,
                self._plan.target_connections,
                self._config.timed_clients,
            )
        except ToolkitError:
            self._manifest.finish("failed")
            raise
        self._live_file = shared
        live = Live(shared.fd)
        self._announce_slots(live)
        namespace_fd = -1
        fleet: Fleet | None = None
        probes: ProbeProcess | None = None
        try:
            if self._plan.own_namespace:
                namespace_fd = netns.create(self._plan.sysctls)
                self._fill_tables(namespace_fd)
            if self._foreign_request is not None:
                self._foreign = ForeignServer(self._foreign_request, self._run.path, live)
                if namespace_fd < 0:
                    namespace_fd = self._foreign.open_namespace()
                if not self._begin_foreign(self._foreign, namespace_fd):
                    result.status = "interrupted"
                    self._event("interrupted", detail=self._interrupt.signal_name)
                    return result
            self._config = self._cgroups.start()
            self._spare(self._cgroups.pid)
            probes = ProbeProcess(
                self._run.path,
                self._probe_names,
                shared.fd,
                namespace_fd,
                self._plan.destination_ports,
            )
            self._spare(probes.pid)
            fleet = Fleet(self._config, live, shared.fd, self._run.path, namespace_fd)
            self._spare(*fleet.parent_pids)
            self._run_phases(fleet, probes, result)
        except BaseException:
            result.status = "failed"
            raise
        finally:
            self._burners.stop()
            if fleet is not None:
                fleet.kill()
            if probes is not None:
                probes.stop(0.2)
            if self._foreign is not None:
                self._foreign.kill()
            self._cgroups.stop()
            if namespace_fd >= 0:
                os.close(namespace_fd)
            self._record(live, fleet, result)
            shared.close()
        return result

    def _fill_tables(self, namespace_fd: int) -> None:
        """What ``--inject conntrack-full`` asks for; the check of options keeps it off the host."""
        wanted = [f for f in map(faults.parse, self._config.inject) if f.name == "conntrack-full"]
        if not wanted:
            return
        from harness.faults import conntrack_fill  # no other run needs it

        with netns.inside(namespace_fd):
            count = conntrack_fill.fill(wanted[0].number)
        self._event("conntrack_filled", detail=f"{count} entries")

    def _announce_slots(self, live: Live) -> None:
        """Tells readers of live.bin who will come, before anybody has."""
        config = self._config
        for index in range(config.slot_count):
            slot = live.slot(index)
            if config.is_foreign and index < config.workers:
                continue  # taken by the server's processes as they are found
            if index < config.workers:
                slot[Counter.ROLE] = Role.SERVER
            elif index < config.first_client_slot():
                slot[Counter.ROLE] = Role.ACCEPTOR
            else:
                slot[Counter.ROLE] = Role.CLIENT

    def _begin_foreign(self, foreign: ForeignServer, namespace_fd: int) -> bool:
        """Starts the server, or finds it; False when somebody stopped the run meanwhile."""
        foreign.start(namespace_fd)
        url = without_query_values(foreign.request.endpoint.url)
        self._view.update(live_status.waiting(f"waiting for the server at {url}"))
        if not foreign.wait_until_listening(lambda: bool(self._interrupt.signal_name)):
            return False
        self._event("server_listens", pid=foreign.pid, detail=url)
        self._follow_foreign()
        return True

    def _follow_foreign(self) -> None:
        """Looks after a server that is not ours; does nothing for our own."""
        foreign = self._foreign
        if foreign is None:
            return
        news = foreign.follow()
        end = foreign.launcher_end
        if end is not None and not self._is_launcher_told:
            self._is_launcher_told = True
            self._event("server_launcher_ended", pid=end.pid, at_ns=end.at_ns, detail=str(end))
        for event, pid, detail in news:
            self._event(event, pid=pid, detail=detail)
        self._note_processes(foreign.processes)

    def _spare(self, *pids: int) -> None:
        """Processes of ours that nobody may take for the server's when its launcher is killed."""
        if self._foreign is not None:
            self._foreign.spare(*pids)

    def _is_side_gone(self, fleet: Fleet) -> bool:
        """All of one side ended with who started it, from outside: there is nothing to hold."""
        return fleet.is_side_gone or (
            self._foreign is not None and self._foreign.launcher_end is not None
        )

    def _run_phases(self, fleet: Fleet, probes: ProbeProcess, result: RunResult) -> None:
        status = live_status.LiveStatus(fleet, self._plan)
        self._view.update(status.read("setup", note="starting processes and probes"))
        started = self._wait_until_ready(fleet, probes, result)
        started = started and self._cue.wait_for_ramp(lambda: bool(self._interrupt.signal_name))
        if started and not self._interrupt.signal_name:
            self._ramp(fleet, status, result)
        if started and not self._interrupt.signal_name:
            self._hold(fleet, status)
        if self._interrupt.signal_name:
            result.status = "interrupted"
            self._event("interrupted", detail=self._interrupt.signal_name)
        self._stop(fleet, probes, status, result)

    def _wait_until_ready(self, fleet: Fleet, probes: ProbeProcess, result: RunResult) -> bool:
        begun_s = time.monotonic()
        while not self._interrupt.signal_name:
            self._follow_foreign()
            fleet_ready = fleet.is_ready
            if fleet_ready and probes.is_ready:
                self._note_probes(probes, result)
                return True
            waited_s = time.monotonic() - begun_s
            if not fleet_ready and waited_s > _FLEET_START_DEADLINE_S:
                raise HostError(
                    f"the fleet was not ready within {_FLEET_START_DEADLINE_S:.0f} s",
                    fix=f"cat -v {self._run.path / 'logs'}/*.log",
                )
            if fleet_ready and probes.is_late:
                self._note_late_probes(result)
                return True
            # often at first; where it takes long, what starts needs the core
            time.sleep(min(_TICK_S, max(0.005, waited_s / 100)))
        return False

    def _ramp(self, fleet: Fleet, status: live_status.LiveStatus, result: RunResult) -> None:
        self._burners.start()
        self._spare(*self._burners.pids)
        if self._foreign is not None:
            self._foreign.begin_load()
        at_ns = fleet.set_phase(Phase.RAMP)
        self._manifest.begin_stage("ramp", at_ns)
        self._event("phase_ramp", at_ns=at_ns)
        longest_s = max(self._config.connect_timeout_s, self._config.stall_s)
        stall_s = longest_s + _STALL_MARGIN_S
        best, best_at_s = 0, time.monotonic()
        while not self._interrupt.signal_name:
            self._note_ends(fleet)
            is_done = fleet.are_attempts_done
            if self._is_side_gone(fleet) or self._cue.is_ramp_over(is_done=is_done):
                return
            established = fleet.total(Counter.ESTABLISHED_TOTAL)
            now_s = time.monotonic()
            if established > best or is_done:  # who is done waits for other hosts
                best, best_at_s = established, now_s
            elif now_s - best_at_s > max(stall_s, 2 * self._pace_s()):
                note = f"no connection was established for {stall_s:.0f} s"
                result.notes.append(note)
                self._end_attempts(fleet, StopReason.NO_SUCCESS, note)
                return
            failed_count = fleet.total(Counter.FAILED_TOTAL)
            if 0 < self._failures_max_count <= failed_count:
                self._end_attempts(fleet, StopReason.FAILURES, f"{failed_count} attempts failed")
                return
            left_s = status.ramp_left_s(self._hold_s)
            self._show(status.read("ramp", time_left_s=left_s, note=status.wall_note()))
            time.sleep(_TICK_S)

    def _show(self, status: Status) -> None:
        self._view.update(status)
        self._cue.tell(status)

    def _end_attempts(self, fleet: Fleet, reason: StopReason, detail: str) -> None:
        """No client begins another connection."""
        at_ns = time.monotonic_ns()
        self._stopped = (reason, at_ns)
        fleet.live.header[Header.STOP_REASON] = reason
        self._event(
            "stalled" if reason is StopReason.NO_SUCCESS else "failures_max_reached",
            at_ns=at_ns,
            detail=detail,
        )

    def _pace_s(self) -> float:
        """Time between two connects at the asked-for rate."""
        return 1 / self._config.ramp_per_s if self._config.ramp_per_s else 0.0

    def _hold(self, fleet: Fleet, status: live_status.LiveStatus) -> None:
        at_ns = fleet.set_phase(Phase.HOLD)
        self._manifest.begin_stage("hold", at_ns)
        self._event("phase_hold", at_ns=at_ns)
        end_s = self._cue.hold_end_s(self._hold_s)
        while not self._interrupt.signal_name and (left_s := end_s - time.monotonic()) > 0:
            self._note_ends(fleet)
            if self._is_side_gone(fleet):
                return
            self._show(status.read("hold", time_left_s=left_s))
            time.sleep(min(2 * _TICK_S, left_s))

    def _stop(
        self,
        fleet: Fleet,
        probes: ProbeProcess,
        status: live_status.LiveStatus,
        result: RunResult,
    ) -> None:
        # The probes take their last samples while the connections still stand.
        self._note_ends(fleet)
        self._manifest.begin_stage("collect")
        self._view.update(status.read("collect"))
        hurried = bool(self._interrupt.signal_name)
        deadline_s = _INTERRUPTED_PROBE_STOP_S if hurried else probes.stop_deadline_s
        self._stop_probes(probes, deadline_s, result)
        self._spare(*conclusion.pids())
        self._burners.stop()
        self._cue.wait_for_stop(lambda: bool(self._interrupt.signal_name))
        self._note_ends(fleet)
        at_ns = time.monotonic_ns()
        self._manifest.begin_stage("stop", at_ns)
        self._view.update(status.read("stop"))
        self._stop_ns = at_ns
        self._event("phase_stop", at_ns=at_ns)
        if "live_samples" not in self._probe_names:
            recording.write_last_counters(self._run, fleet.live, at_ns)
        if not fleet.stop(_INTERRUPTED_FLEET_STOP_S if hurried else _FLEET_STOP_DEADLINE_S):
            self._event("fleet_killed", detail="some process did not end by itself")
        if self._foreign is not None:
            self._stop_foreign(self._foreign, fleet, result, hurried=hurried)

    def _stop_foreign(
        self, foreign: ForeignServer, fleet: Fleet, result: RunResult, *, hurried: bool
    ) -> None:
        result.notes += foreign_notes(foreign, fleet, echoes=self._config.server_mode == "echo")
        if not foreign.stop(hurried=hurried):
            result.notes.append("the server did not end at SIGTERM and was killed")
            self._event("server_killed", pid=foreign.pid, detail=result.notes[-1])

    def _note_ends(self, fleet: Fleet) -> None:
        self._keep_live()
        self._follow_foreign()
        ends = fleet.read_ends()
        for refusal in fleet.refusals[self._told_refusals_count :]:
            self._event(refusal.event, pid=refusal.pid, at_ns=refusal.at_ns, detail=str(refusal))
        self._told_refusals_count = len(fleet.refusals)
        for parent in fleet.parent_ends[self._told_parents_count :]:
            how = f"signal {parent.signal}" if parent.signal else f"status {parent.status}"
            name = f"{parent.side}_parent_ended"
            self._event(name, pid=parent.pid, at_ns=parent.at_ns, detail=how)
        self._told_parents_count = len(fleet.parent_ends)
        for end in ends:
            how = f"signal {end.signal}" if end.signal else f"status {end.status}"
            held = fleet.slots[end.slot][Counter.OPEN_COUNT]
            self._event(
                "process_exited",
                pid=end.pid,
                at_ns=end.exited_ns,
                detail=f"slot {end.slot}, {how}, held {held} connections",
            )

    def _record(self, live: Live, fleet: Fleet | None, result: RunResult) -> None:
        """Turns shared memory into tables; never hides the error that ended the run."""
        self._analysis_ahead.wait()
        if self._foreign is not None:
            self._note_processes(self._foreign.processes, is_last=True)
        self._manifest.release_room()
        self._note_left_out(result)
        self._manifest.contents["notes"] = result.notes
        if fleet is not None:
            reason, stopped_ns = self._stopped
            self._manifest.contents["attempts"] = attempts_record(
                self._config,
                fleet.client_slots,
                failures_max_count=self._failures_max_count,
                reason=reason,
                stopped_ns=stopped_ns,
            )
        try:
            recording.write_connections(self._run, live)
            ends = list(fleet.ends) if fleet is not None else []
            if self._foreign is not None:
                ends += self._foreign.processes.ends
            stop_ns = self._stop_ns or live.header[Header.PHASE_STOP_NS]
            recording.write_processes(self._run, live, ends, stop_ns, self._departed)
            recording.write_events(self._run, self._events)
            self._note_unwritten(result)
            self._manifest.finish(result.status)
        except ToolkitError:
            if result.status != "failed":
                raise
