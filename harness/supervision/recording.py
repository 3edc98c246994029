"""What the supervisor itself records: manifest, events, and live.bin as tables at the end."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from probes.contract import schema
from probes.contract.clock import Anchor
from probes.contract.errors import RunDirError
from probes.contract.live import Counter, Live, Role
from probes.contract.probe import Target
from probes.contract.rundir import RunDir

if TYPE_CHECKING:
    from harness.fleet.reports import ProcessEnd
from harness.version import tool_commit, tool_version

PRODUCER = "harness"
_ROLE_NAMES = {
    Role.SERVER: "server",
    Role.ACCEPTOR: "acceptor",
    Role.CLIENT: "client",
    Role.BACKEND: "backend",
}


class Manifest:
    """The run's manifest; every change replaces the file in one step.

    Attributes:
        contents: What it says.
        unwritten_count: Changes that could not be written when they were made. The run goes on:
            the next one that is written has them too, and who recorded it knows them all.
        last_error: Why, for people; '' when all were written.

    Raises:
        RunDirError: It cannot be written at the start.
    """

    def __init__(self, run: RunDir, contents: dict[str, Any]) -> None:
        self._run = run
        self.unwritten_count = 0
        self.last_error = ""
        self.contents: dict[str, Any] = {
            "schema_version": schema.SCHEMA_VERSION,
            "tool_version": tool_version(),
            "tool_commit": tool_commit(),
            "run_id": run.run_id,
            **contents,
            "status": "running",
            "clock": {"start": _anchor(), "end": None},
            "stages": [],
        }
        run.write_manifest(self.contents)
        run.reserve_room()

    def begin_stage(self, stage: str, at_ns: int | None = None) -> None:
        """Ends the current stage and begins the next."""
        now_ns = time.monotonic_ns() if at_ns is None else at_ns
        self._end_stage(now_ns)
        self.contents["stages"].append({"stage": stage, "start_ns": now_ns, "end_ns": None})
        self.write()

    def finish(self, status: str) -> None:
        """Ends the last stage and says how the run ended."""
        self._end_stage(time.monotonic_ns())
        self.contents["status"] = status
        self.contents["clock"]["end"] = _anchor()
        self.write()

    def write(self) -> None:
        """Writes it as it is now; a disk that does not take it is noted."""
        try:
            self._run.write_manifest(self.contents)
        except RunDirError as error:
            self._run.unwritten_manifest = self.contents
            self.unwritten_count += 1
            self.last_error = error.message

    def release_room(self) -> None:
        """What is written from now on comes last, and has room that was kept for it."""
        self._run.release_room()

    def _end_stage(self, at_ns: int) -> None:
        stages = self.contents["stages"]
        if stages and stages[-1]["end_ns"] is None:
            stages[-1]["end_ns"] = at_ns


def _anchor() -> dict[str, int]:
    anchor = Anchor.take()
    return {
        "monotonic_ns": anchor.monotonic_ns,
        "wall_ns": anchor.wall_ns,
        "uncertainty_ns": anchor.uncertainty_ns,
    }


def write_events(run: RunDir, events: Iterable[tuple[int, str, int, str]]) -> None:
    """Writes (at_ns, event, pid, detail) rows; called when the fleet is gone."""
    writer = run.writer("events", PRODUCER, keeps_unwritten=True)
    for event in events:
        writer.append(*event)
    writer.close()


def write_connections(run: RunDir, live: Live) -> None:
    """Writes ``raw/connections`` from the records of live.bin."""
    from probes.contract.live_records import read_connections

    writer = run.writer("connections", PRODUCER, keeps_unwritten=True)
    writer.write_columns(read_connections(live))
    writer.close()


def write_last_counters(run: RunDir, live: Live, at_ns: int) -> None:
    """Writes ``raw/live_samples`` as they stand now, for a run that no sampler looked at.

    Called before the connections are closed: what live.bin holds afterwards are the counters of a
    fleet that ends, in which no process is at a limit any more.
    """
    from probes.samplers.live_samples import LiveSamplesProbe

    reader = LiveSamplesProbe()
    try:
        reader.start(Target(run, processes={}, server_ports=frozenset(), live=live))
    except RunDirError:
        return  # live.bin has them too, as long as nobody counts on
    reader.stop(at_ns)
    for writer in reader.writers:
        writer.close()


class ProcessRows:
    """Rows of ``processes`` of those whose slot went to another process, as they come.

    A few numbers for each; of a server that replaces its workers for days the first ``MOST``.

    Attributes:
        left_out_count: Processes that came and went beyond those.
    """

    MOST = 50_000

    def __init__(self) -> None:
        self.left_out_count = 0
        self._values = array("q")

    def add(self, words: Sequence[int], slot: int, end: ProcessEnd | None) -> None:
        """Keeps one.

        Args:
            words: Of its slot, by ``Counter``.
            slot: Which it was.
            end: How it ended, as far as known.
        """
        if len(self._values) >= self.MOST * len(_SLOT_WORDS):
            self.left_out_count += 1
            return
        self._values.extend(_row(words, slot, end))

    def __iter__(self) -> Iterator[Sequence[int]]:
        """The rows, as ``_SLOT_WORDS`` names them."""
        size = len(_SLOT_WORDS)
        for start in range(0, len(self._values), size):
            yield self._values[start : start + size]


_SLOT_WORDS = (
    Counter.PID,
    Counter.STARTED_NS,
    Counter.ROLE,
    None,  # the slot
    Counter.WORKER,
    Counter.NOFILE_SOFT_COUNT,
    Counter.OWN_FDS_COUNT,
    None,  # when and how it ended
    None,
    None,
)
"""Columns of ``processes`` by the word of the slot that has them."""


def _row(words: Sequence[int], slot: int, end: ProcessEnd | None) -> list[int]:
    row = [0 if word is None else words[word] for word in _SLOT_WORDS]
    row[3] = slot
    row[7:] = [end.exited_ns, end.status, end.signal] if end else [0, -1, 0]
    return row


def _role_name(word: int) -> str:
    """Of a slot, which its process may write: of one that was taken over it may be anything."""
    try:
        return _ROLE_NAMES.get(Role(word), "server")
    except ValueError:
        return "other"


def write_processes(
    run: RunDir,
    live: Live,
    ends: Sequence[ProcessEnd],
    stop_ns: int,
    departed: Iterable[Sequence[int]] = (),
) -> None:
    """Writes ``raw/processes`` from the slots of live.bin and the ends that were reported.

    A process that ended before ``stop_ns`` ended by itself; later ends are the run's doing.

    Args:
        run: Where.
        live: Shared memory.
        ends: Of the processes that have a slot.
        stop_ns: When the run stopped them, 0 when not known.
        departed: Rows of those that have none any more (``ProcessRows``).
    """
    by_slot = {end.slot: end for end in ends if not stop_ns or end.exited_ns < stop_ns}
    writer = run.writer("processes", PRODUCER, keeps_unwritten=True)
    slots = ((index, live.slot(index)) for index in range(live.slot_count))
    present = (_row(slot, index, by_slot.get(index)) for index, slot in slots if slot[Counter.PID])
    for pid, start_ns, role, *rest in chain(departed, present):
        writer.append(pid, start_ns, _role_name(role), *rest)
    writer.close()
