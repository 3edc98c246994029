"""What those who record a run share: its events, the answer of its probes, and its notes.

``harness.supervision.supervisor`` loads a server with a fleet, ``harness.supervision.attach_watch``
only looks at one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from harness.foreign.processes import ForeignProcesses
from harness.results.ahead import AnalysisAhead
from harness.supervision import recording
from harness.supervision.probe_process import ProbeProcess
from probes.contract.live_file import LiveFile
from probes.contract.rundir import RunDir

_MANIFEST_PERIOD_S = 5.0
"""Of a server that replaces its workers all the time, the manifest is written so often at most."""


@dataclass(slots=True)
class RunResult:
    """How the recording went; the verdict is the analysis's."""

    status: str = "finished"
    notes: list[str] = field(default_factory=list)


Event = tuple[int, str, int, str]
"""When, what, process, detail: a row of ``events``."""


class EventLog:
    """The events of a run, in order. Of a watch of days the first and the last ``MOST`` of them."""

    MOST = 20_000

    def __init__(self) -> None:
        self._first: list[Event] = []
        self._last: deque[Event] = deque(maxlen=self.MOST)
        self._count = 0

    def append(self, event: Event) -> None:
        """Adds one."""
        self._count += 1
        (self._first if len(self._first) < self.MOST else self._last).append(event)

    def __iter__(self) -> Iterator[Event]:
        """All that are kept; where some are not, a row in their place says how many."""
        yield from self._first
        left_out_count = self._count - len(self._first) - len(self._last)
        if left_out_count:
            yield self._last[0][0], "events_left_out", 0, f"{left_out_count} events"
        yield from self._last


class Recorder:
    """Base of both.

    Args:
        run: An empty run directory.
        probes: Names of the probes.
        manifest: Already written with status "running".
        with_page: Its page will be wanted at the end.
        concludes: This process understands the recording when it is over.
    """

    def __init__(
        self,
        run: RunDir,
        probes: list[str],
        manifest: recording.Manifest,
        *,
        with_page: bool = True,
        concludes: bool = True,
    ) -> None:
        self._run = run
        self._probe_names = probes
        self._manifest = manifest
        self._events = EventLog()
        self._departed = recording.ProcessRows()
        self._noted_revision = 0
        self._noted_s = 0.0
        self._stop_ns = 0
        self._live_file: LiveFile | None = None
        self._analysis_ahead = AnalysisAhead(with_page=with_page, is_wanted=concludes)

    def _keep_live(self) -> None:
        if self._live_file is not None:
            self._live_file.keep_now_and_then()

    def _event(self, event: str, *, pid: int = 0, at_ns: int = 0, detail: str = "") -> None:
        self._events.append((at_ns or time.monotonic_ns(), event, pid, detail))

    def _note_processes(self, processes: ForeignProcesses, *, is_last: bool = False) -> None:
        """Keeps who came and went: in the manifest, and for the table of processes.

        Args:
            processes: Of a server that is not ours.
            is_last: The manifest is written next by who calls.
        """
        for departed, end in processes.take_departed():
            self._departed.add(departed.words, departed.slot, end)
        now_s = time.monotonic()
        is_due = not self._noted_s or now_s - self._noted_s >= _MANIFEST_PERIOD_S
        if processes.revision == self._noted_revision or not (is_due or is_last):
            return
        self._noted_revision, self._noted_s = processes.revision, now_s
        self._manifest.contents["server"]["processes"] = processes.describe()
        if not is_last:
            self._manifest.write()

    def _note_left_out(self, result: RunResult) -> None:
        """Says what of the processes that came and went is not in their table."""
        if self._departed.left_out_count:
            result.notes.append(
                f"{self._departed.left_out_count:,} processes of the server came and went beyond "
                f"the {self._departed.MOST:,} that the table of processes holds"
            )

    def _note_unwritten(self, result: RunResult) -> None:
        """Says what a disk without room, or that became read-only, did not take."""
        manifest = self._manifest
        if manifest.unwritten_count:
            result.notes.append(
                f"{manifest.unwritten_count} changes of the manifest could not be written when "
                f"they were made: {manifest.last_error}"
            )
        unwritten = self._run.unwritten_batches
        if names := [name for name, batches in unwritten.items() if batches]:
            result.notes.append(
                f"the disk did not take the rows of {' and '.join(names)}: this verdict has them, "
                "and one that is made later has not"
            )

    def _note_probes(self, probes: ProbeProcess, result: RunResult) -> None:
        """Which probes run, as the probe process answered."""
        self._manifest.contents["probes_answer"] = probes.answer
        if error := probes.answer.get("error"):
            result.notes.append(f"{error}; see {self._run.path / 'logs' / 'probes.log'}")
        self._event("probes_ready", detail=",".join(probes.answer.get("ready", [])))

    def _note_late_probes(self, result: RunResult) -> None:
        """They were not ready in time, and the run goes on without them."""
        result.notes.append("the probe process was not ready in time: no probes")
        self._event("probes_late", detail=result.notes[-1])

    def _stop_probes(self, probes: ProbeProcess, deadline_s: float, result: RunResult) -> None:
        """Lets them take their last samples; says so when they do not end."""
        self._manifest.release_room()
        self._analysis_ahead.begin()
        if not probes.stop(deadline_s):
            result.notes.append(
                "the probe process did not end by itself; its last rows may be missing"
            )
            self._event("probes_killed", detail=result.notes[-1])
