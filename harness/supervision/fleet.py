"""The fleet as the supervisor sees it: two lean parents, slots of live.bin, ends as they come."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.fleet.config import FleetConfig
from harness.fleet.reports import ProcessEnd, Refusal
from probes.contract.errors import HostError
from probes.contract.live import Counter, Header, Live, Phase
from probes.contract.private_file import open_new
from probes.rights.own_process import start_module

_LONGEST_REPORT_BYTES = 1 << 16
_MODULES = {"server": "harness.server.main", "client": "harness.client.main"}


@dataclass(frozen=True, slots=True)
class ParentEnd:
    """One of the two lean parents ended while the run went on, and its processes with it."""

    side: str
    pid: int
    at_ns: int
    status: int
    signal: int


def write_config(config: FleetConfig) -> int:
    """The configuration for the lean parents, in memory: it has the values of ``--header``.

    Returns:
        A descriptor, close-on-exec.
    """
    fd = os.memfd_create("fleet-config", os.MFD_CLOEXEC)
    try:
        text = memoryview(config.to_json().encode())
        while text:
            text = text[os.write(fd, text) :]
    except BaseException:
        os.close(fd)
        raise
    return fd


def _told(line: bytes) -> Refusal | ProcessEnd | None:
    """What a line of the report says; None for what none of ours writes.

    Clients write to this pipe, and they read what a server sends that may be anybody's: whoever
    took one over must not end the run by half a line.
    """
    try:
        told = json.loads(line)
        if "refusal" in told:
            refusal = Refusal(**told["refusal"])
            numbers = (refusal.pid, refusal.at_ns, refusal.status)
            texts = (refusal.reason, refusal.body, refusal.event)
            is_sound = all(isinstance(text, str) and text.isprintable() for text in texts)
            return refusal if is_sound and _are_numbers(numbers) else None
        end = ProcessEnd(**told)
        words = (end.pid, end.slot, end.exited_ns, end.status, end.signal)
        return end if _are_numbers(words) else None
    except (TypeError, ValueError, RecursionError):
        return None


def _are_numbers(values: Iterable[object]) -> bool:
    """All fit a column of a table."""
    return all(type(each) is int and -(1 << 63) <= each < 1 << 63 for each in values)


class Fleet:
    """Starts, watches and stops the server's and the clients' processes.

    Args:
        config: What they are told.
        live: Shared memory, and ``live_fd`` its descriptor.
        run_path: The run directory; configuration and logs go there.
        namespace_fd: Network namespace of the run, -1 for the host's.
    """

    def __init__(
        self, config: FleetConfig, live: Live, live_fd: int, run_path: Path, namespace_fd: int
    ) -> None:
        self.config = config
        self.live = live
        self.slots = [live.slot(index) for index in range(config.slot_count)]
        self.server_slots = self.slots[: config.workers]
        self.client_slots = self.slots[config.first_client_slot() :]
        self.ends: list[ProcessEnd] = []
        self.refusals: list[Refusal] = []
        self.parent_ends: list[ParentEnd] = []
        self._run_path = run_path
        self._parents: dict[str, subprocess.Popen[bytes]] = {}
        self._gone_sides: set[str] = set()
        self._unread = b""
        self._report_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(write_fd, True)
        config_fd = write_config(config)
        inherited = [live_fd, write_fd, config_fd, *([namespace_fd] if namespace_fd >= 0 else [])]
        try:
            for side, module in _MODULES.items():
                if (side == "server" and config.is_foreign) or (
                    side == "client" and not config.clients
                ):
                    continue
                with open_new(run_path / "logs" / f"{side}.log") as log:
                    words = (os.getpid(), config_fd, live_fd, write_fd, namespace_fd)
                    self._parents[side] = start_module(
                        module,
                        [str(word) for word in words],
                        pass_fds=inherited,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                    )
        except BaseException:
            self.kill()
            raise
        finally:
            os.close(write_fd)
            os.close(config_fd)

    @property
    def parent_pids(self) -> list[int]:
        """Of the lean parents."""
        return [parent.pid for parent in self._parents.values()]

    @property
    def is_ready(self) -> bool:
        """Whether every process has reported for work.

        Raises:
            HostError: One of them could not start; the message has the end of its log.
        """
        ours = self.client_slots if self.config.is_foreign else self.slots
        if all(slot[Counter.READY_NS] for slot in ours):
            return True
        self.read_ends()
        for side, parent in self._parents.items():
            failed = [end for end in self.ends if end.is_failure]
            if parent.poll() is not None or failed:
                raise HostError(
                    f"the {side} side could not start: {self._last_log_line()}",
                    fix=f"cat -v {self._run_path / 'logs'}/*.log",
                )
        return False

    def _last_log_line(self) -> str:
        for side in self._parents:
            text = (self._run_path / "logs" / f"{side}.log").read_text(errors="replace").strip()
            if text:
                return text.splitlines()[-1]
        return "it said nothing"

    def read_ends(self) -> list[ProcessEnd]:
        """Ends reported since the last call; ``ends`` keeps all.

        A parent that is killed reports nothing of the processes that die with it.
        """
        fresh: list[ProcessEnd] = []
        gone = self._gone_parents()  # before its last words are read
        try:
            while data := os.read(self._report_fd, 65_536):
                self._unread += data
        except BlockingIOError:
            pass
        *lines, self._unread = self._unread.split(b"\n")
        if len(self._unread) > _LONGEST_REPORT_BYTES:
            self._unread = b""
        for line in lines:
            told = _told(line)
            if isinstance(told, Refusal):
                self.refusals.append(told)
            elif told is not None and 0 <= told.slot < len(self.slots):
                fresh.append(told)
        self.ends.extend(fresh)
        for parent in gone:
            orphans = self._ends_with(parent)
            if orphans or parent.signal:
                self.parent_ends.append(parent)
            self.ends.extend(orphans)
            fresh += orphans
        return fresh

    def _gone_parents(self) -> list[ParentEnd]:
        """Who ended since the last call; once the run stops they all do."""
        if self.live.header[Header.PHASE] == Phase.STOP:
            return []
        gone = []
        for side, parent in self._parents.items():
            code = parent.poll()
            if code is not None and side not in self._gone_sides:
                self._gone_sides.add(side)
                at_ns = time.monotonic_ns()
                gone.append(ParentEnd(side, parent.pid, at_ns, max(-1, code), max(0, -code)))
        return gone

    def _ends_with(self, parent: ParentEnd) -> list[ProcessEnd]:
        """Those of its processes that were there: each is killed with it (``fleet/child.py``)."""
        first, known = self.config.first_client_slot(), {end.slot for end in self.ends}
        return [
            ProcessEnd(slot[Counter.PID], index, parent.at_ns, -1, signal.SIGKILL)
            for index, slot in enumerate(self.slots)
            if (index < first) is (parent.side == "server")
            and slot[Counter.PID]
            and index not in known
        ]

    @property
    def is_side_gone(self) -> bool:
        """All servers of ours or all clients ended with their parent: there is nothing to hold."""
        return bool(self.parent_ends)

    @property
    def are_attempts_done(self) -> bool:
        """Whether no client has anything left to try, dead ones included."""
        dead = {end.slot for end in self.ends}
        first = self.config.first_client_slot()
        return all(
            slot[Counter.ATTEMPTS_DONE_NS] or first + index in dead
            for index, slot in enumerate(self.client_slots)
        )

    def total(self, counter: Counter, *, clients: bool = True) -> int:
        """One counter over all clients, or over all workers."""
        return sum(slot[counter] for slot in (self.client_slots if clients else self.server_slots))

    def set_phase(self, phase: Phase) -> int:
        """Tells everybody the phase; returns the moment in ns."""
        now_ns = time.monotonic_ns()
        word = {
            Phase.RAMP: Header.PHASE_RAMP_NS,
            Phase.HOLD: Header.PHASE_HOLD_NS,
            Phase.STOP: Header.PHASE_STOP_NS,
        }.get(phase)
        if word is not None:
            self.live.header[word] = now_ns
        self.live.header[Header.PHASE] = phase
        return now_ns

    def stop(self, deadline_s: float) -> bool:
        """Asks all to end and waits; kills what does not.

        Args:
            deadline_s: How long to wait before killing.

        Returns:
            Whether all ended by themselves.
        """
        self.set_phase(Phase.STOP)
        end_s = time.monotonic() + deadline_s
        orderly = True
        for parent in self._parents.values():
            try:
                parent.wait(max(0.05, end_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                orderly = False
        self.read_ends()
        self.kill()
        return orderly

    def kill(self) -> None:
        """Ends whatever is left; the children die with their parents (PR_SET_PDEATHSIG)."""
        for parent in self._parents.values():
            if parent.poll() is None:
                parent.send_signal(signal.SIGKILL)
            parent.wait()
