"""What those who record a run share: its events, the answer of its probes, and its notes.

``harness.supervisor`` loads a server with a fleet, ``harness.attach_watch`` only looks at one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from harness import recording
from harness.analysis_ahead import AnalysisAhead
from harness.probe_process import ProbeProcess
from probes.rundir import RunDir

PROBE_STOP_DEADLINE_S = 4.0


@dataclass(slots=True)
class RunResult:
    """How the recording went; the verdict is the analysis's."""

    status: str = "finished"
    notes: list[str] = field(default_factory=list)


class Recorder:
    """Base of both.

    Args:
        run: An empty run directory.
        probes: Names of the probes.
        manifest: Already written with status "running".
        with_page: Its page will be wanted at the end.
    """

    def __init__(
        self,
        run: RunDir,
        probes: list[str],
        manifest: recording.Manifest,
        *,
        with_page: bool = True,
    ) -> None:
        self._run = run
        self._probe_names = probes
        self._manifest = manifest
        self._events: list[tuple[int, str, int, str]] = []
        self._stop_ns = 0
        self._analysis_ahead = AnalysisAhead(with_page=with_page)

    def _event(self, event: str, *, pid: int = 0, at_ns: int = 0, detail: str = "") -> None:
        self._events.append((at_ns or time.monotonic_ns(), event, pid, detail))

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
        self._analysis_ahead.begin()
        if not probes.stop(deadline_s):
            result.notes.append("the probe process did not end by itself; its last rows may miss")
            self._event("probes_killed", detail=result.notes[-1])
