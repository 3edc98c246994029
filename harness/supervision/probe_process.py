"""Starts and stops the probe process; only it keeps root, where there is."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from pathlib import Path
from typing import Any

from harness.supervision.start_patience import StartPatience, wanted_cpu_ns
from probes.collect.driven import LONGEST_STOP_S, USUAL_STOP_S
from probes.collect.fair_deadline import FairDeadline
from probes.contract.private_file import open_new
from probes.proc import process_tree
from probes.rights.own_process import start_module

_LOOK_PERIOD_S = 1.0


class ProbeProcess:
    """The collector as a child process.

    Args:
        run_path: The run directory.
        probes: Names of the probes to run; none are started for an empty list.
        live_fd: Descriptor of live.bin.
        namespace_fd: Network namespace of the run, -1 for the host's.
        ports: The server's ports.
        attached: The target is watched with its real clients.
        allow_pauses: Probes may stop it for a moment.
    """

    def __init__(
        self,
        run_path: Path,
        probes: list[str],
        live_fd: int,
        namespace_fd: int,
        ports: tuple[int, ...],
        *,
        attached: bool = False,
        allow_pauses: bool = False,
    ) -> None:
        self.answer: dict[str, Any] = {}
        self._begun_s = time.monotonic()
        self._start_s = 0.0
        self._patience = StartPatience(self._begun_s)
        self._looked_s = self._begun_s
        self._is_late = False
        self._child: subprocess.Popen[bytes] | None = None
        self._ready_fd = -1
        self._unread = b""
        if not probes:
            return
        self._ready_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        arguments = [
            *("--run-dir", str(run_path.resolve()), "--probes", ",".join(probes)),
            *("--live-fd", str(live_fd), "--ready-fd", str(write_fd)),
            *("--server-ports", ",".join(map(str, ports))),
        ]
        arguments += ["--attached"] if attached else []
        arguments += ["--allow-pauses"] if allow_pauses else []
        inherited = [live_fd, write_fd]
        if namespace_fd >= 0:
            arguments += ["--netns-fd", str(namespace_fd)]
            inherited.append(namespace_fd)
        try:
            with open_new(run_path / "logs" / "probes.log") as log:
                self._child = start_module(
                    "probes.collect.main",
                    arguments,
                    pass_fds=inherited,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                )
        finally:
            os.close(write_fd)

    @property
    def pid(self) -> int:
        """Its pid, 0 when there is none."""
        return self._child.pid if self._child else 0

    @property
    def is_ready(self) -> bool:
        """Whether it watches, or never will; ``answer`` then says which probes run."""
        if self._child is None or self.answer:
            return True
        waiting = select.poll()  # not select(2): the descriptor may be beyond 1,023
        waiting.register(self._ready_fd, select.POLLIN)
        if not waiting.poll(0):
            return False
        data = os.read(self._ready_fd, 65_536)
        self._unread += data
        if self._unread.endswith(b"\n"):
            self.answer = json.loads(self._unread)
            self._start_s = time.monotonic() - self._begun_s
        elif not data:
            self.answer = {"ready": [], "unavailable": [], "error": "the probe process ended"}
        return bool(self.answer)

    @property
    def is_late(self) -> bool:
        """Whether it is not ready and does not work towards it any more (looks once a second)."""
        now_s = time.monotonic()
        if not self.is_ready and not self._is_late and now_s - self._looked_s >= _LOOK_PERIOD_S:
            self._looked_s = now_s
            wanted_ns = {pid: wanted_cpu_ns(pid) for pid in process_tree.tree_of(self.pid)}
            self._is_late = self._patience.is_exhausted(now_s, wanted_ns)
        return self._is_late

    @property
    def stop_deadline_s(self) -> float:
        """How long its stop may take: longer on a host where its start took long, too.

        An emulated or crowded host needs twenty times as long for the same work, and a probe
        process that is killed in it leaves no health rows.
        """
        return min(LONGEST_STOP_S, max(USUAL_STOP_S, self._start_s))

    def _request_stop(self, deadline_s: float) -> None:
        """Asks it to take the last samples, and says how long it may take; once is enough."""
        if self._child is None or self._child.stdin is None or self._child.stdin.closed:
            return
        try:
            self._child.stdin.write(f"stop {deadline_s:.2f}\n".encode())
            self._child.stdin.close()
        except BrokenPipeError:
            pass  # it is gone already; its health rows, or their absence, say so

    def stop(self, deadline_s: float) -> bool:
        """Waits for its end and kills it when it is late.

        What it waits for a core does not count, unless it is to hurry.

        Args:
            deadline_s: How long it may take.

        Returns:
            Whether it ended by itself and well.
        """
        if self._child is None:
            return True
        self._request_stop(deadline_s)
        longest_s = LONGEST_STOP_S if deadline_s >= USUAL_STOP_S else deadline_s
        deadline = FairDeadline(deadline_s, longest_s, self._child.pid)
        while True:
            try:
                return self._child.wait(max(0.05, deadline.left_s())) == 0
            except subprocess.TimeoutExpired:
                if deadline.left_s() > 0:
                    continue
                self._child.kill()
                self._child.wait()
                return False
