"""What the terminal shows while a running server is watched, from shared memory and /proc."""

from __future__ import annotations

import time

from harness.supervision.live_status import CpuUse, ProcessLabels
from probes.contract.live import Counter, Header, Live
from reports.terminal.terminal import Status

_COUNTERS_PERIOD_S = 1.0
_RATE_PERIOD_S = 1.0
_OVERFLOWS = ("ListenOverflows", "TCPReqQFullDrop")


class AttachStatus:
    """Builds a Status from the slots of the watched processes.

    Args:
        live: Shared memory, filled by who follows the processes.
        pid: A process in the target's network namespace.
    """

    def __init__(self, live: Live, pid: int) -> None:
        self._live = live
        self._pid = pid
        self._cpu = CpuUse()
        self._since_s = time.monotonic()
        self._rate_from: tuple[float, int] | None = None
        self._rate_per_s = 0.0
        self._labels = ProcessLabels()
        self._overflows_from = -1
        self._overflows_count = 0
        self._overflows_due_s = 0.0

    def begin(self) -> None:
        """Time counts from now."""
        self._since_s = time.monotonic()

    def read(self, phase: str, *, time_left_s: float | None = None, note: str = "") -> Status:
        """The state of now."""
        now_s = time.monotonic()
        held = list(self._live.followed_slots())
        alive = [slot for slot in held if not slot[Counter.STOPPED_NS]]
        self._cpu.read([slot[Counter.PID] for slot in alive], now_s)
        header = self._live.header
        taken = sum(slot[Counter.ESTABLISHED_TOTAL] for slot in held)
        taken += header[Header.ENDED_ESTABLISHED_TOTAL]
        if self._rate_from is None:
            self._rate_from = now_s, taken
        since_s, before = self._rate_from
        if now_s - since_s >= _RATE_PERIOD_S:
            self._rate_per_s = (taken - before) / (now_s - since_s)
            self._rate_from = now_s, taken
        self._read_overflows(now_s)
        emfile = sum(slot[Counter.ACCEPT_EMFILE_TOTAL] for slot in held)
        emfile += header[Header.ENDED_EMFILE_TOTAL]
        ended = len(held) - len(alive) + header[Header.ENDED_COUNT]
        errors = [
            ("server", "EMFILE", emfile),
            ("host", "handshakes dropped", self._overflows_count),
            ("server", "processes ended", ended),
        ]
        return Status(
            elapsed_s=now_s - self._since_s,
            phase=phase,
            established=taken,
            open_count=sum(slot[Counter.OPEN_COUNT] for slot in alive),
            rate_per_s=self._rate_per_s,
            failed=emfile + self._overflows_count,
            errors=[error for error in errors if error[2]],
            workers=[
                (
                    self._labels.of(slot[Counter.PID]),
                    slot[Counter.OPEN_COUNT],
                    slot[Counter.TARGET_COUNT],
                    self._cpu.pct.get(slot[Counter.PID], -1.0),
                )
                for slot in alive
            ],
            time_left_s=time_left_s,
            note=note,
        )

    def _read_overflows(self, now_s: float) -> None:
        if now_s < self._overflows_due_s:
            return
        self._overflows_due_s = now_s + _COUNTERS_PERIOD_S
        total = dropped_handshakes(self._pid)
        if total < 0:
            return
        if self._overflows_from < 0:
            self._overflows_from = total
        self._overflows_count = total - self._overflows_from


def dropped_handshakes(pid: int) -> int:
    """Handshakes that full queues dropped in the network namespace of a process; -1 unknown.

    Source: ``/proc/PID/net/netstat`` (net/ipv4/proc.c), lines of names and values in turn.
    """
    try:
        with open(f"/proc/{pid}/net/netstat", encoding="ascii") as stream:  # noqa: PTH123 - once a second
            names, values = stream.readline().split(), stream.readline().split()
    except OSError:
        return -1
    found = dict(zip(names, values, strict=False))
    return sum(int(found.get(name, 0)) for name in _OVERFLOWS)
