"""Which runs are recorded, how each is started, and what it is labelled as.

The rows of every-cause and of the-2016-log, some of the former watched by profile-attach, and those
of ``others.toml``. All are small: what a row needs many connections for is made smaller with them.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.peers import catalogue as peers
from bench.recordings import label
from bench.recordings.label import Label
from harness.matrix import scenario
from harness.matrix.calibration import Calibration
from harness.matrix.rows import Scale, rows_of_file
from harness.matrix.scenario import Expectation, Row

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests" / "recordings"
OTHERS = Path(__file__).parent / "others.toml"
LOG_DESCRIPTORS = 1500
"""What stands for the log's 65,535 descriptors: its largest row has 4,100 connections then."""

SMALLER: Mapping[str, Mapping[str, Any]] = {
    "healthy-20000": {"connections": 3000, "message_rate": 1000},
    "healthy-120000": {"connections": 4000},
    "healthy": {"connections": 2000},
    # 16,384 ports of Windows, of which the row uses up all
    "r01-windows-ports": {"connections": 2125, "port_range": "49152-51199"},
    "hot-acceptor": {"connections": 2000},
    "healthy-handoff": {"connections": 2000},
    "keepalive-storm": {"connections": 3000, "keepalive": 0.01},
    "memory-exhausted": {"connections": 6000, "memory_max": "30m"},
}
"""Options of rows that are large only because the real thing is."""

ATTACHED = ("accept-spin", "accept-queue", "conntrack", "full-worker-shared", "memory-exhausted",
            "keepalive-storm")  # fmt: skip
"""Rows of every-cause that are watched from outside as well."""

LOG_CALM = ("r01", "r02", "r03", "r04", "r05", "r07", "r09", "r11", "r15")
"""Rows of the log that mostly wait: counts alone decide what their verdict is."""

LABELS: Mapping[str, Mapping[str, Any]] = {
    # It dies because it is full, by its own doing.
    "every-cause/worker-crash-at-limit": {"root": "fd-limit-process"},
}
"""What a row's label says besides, where its scenario has no word for it."""

_FOLDERS = {
    "attached": label.WATCHED,
    "foreign": label.FOREIGN,
    "lacking": label.LACKING,
    "older": label.LACKING,
}
ENDS = ("", "interrupt", "kill", "kill-probes")


@dataclass(frozen=True, slots=True)
class Recording:
    """One run to record.

    Attributes:
        id: ``folder/name`` below ``FOLDER``.
        row: What is played.
        words: Arguments of profile-run.
        client_nofile: RLIMIT_NOFILE of the command, 0 to leave it.
        calibration: What is set from a trial just before; None for nothing.
        is_watched: profile-attach watches the row's server, instead of profile-run.
        end: How it ends: one of ``ENDS``.
        at: In which stage.
        after_s: How long after that stage began.
        is_root: Else it is run as nobody.
        cut: Share of each stream's bytes that is left.
        commit: Of this repository, whose program records it; '' for what is here.
        is_refused: Of a schema that this version does not read: neither labelled nor scored.
        label: Without the harm, which only the run tells.
    """

    id: str
    row: Row
    words: tuple[str, ...]
    client_nofile: int
    label: Label
    calibration: Calibration | None = None
    is_watched: bool = False
    end: str = ""
    at: str = "hold"
    after_s: float = 0.0
    is_root: bool = True
    cut: float = 1.0
    commit: str = ""
    is_refused: bool = False

    def file(self, suffix: str) -> Path:
        """Where it is kept: its archive, its label, or what is expected of it."""
        return FOLDER / f"{self.id}{suffix}"

    @property
    def is_calm(self) -> bool:
        """It mostly waits, so that others of its kind may run beside it."""
        return bool(self.row.extra.get("calm")) and not self.is_watched


def all_recordings() -> list[Recording]:
    """Every run that is recorded, in the order to show."""
    every_cause = scenario.load("every-cause")
    watched = [every_cause.row(row_id) for row_id in ATTACHED]
    others = scenario.load(str(OTHERS)).rows
    return [
        *(_of_row("every-cause", row, label.OWN) for row in every_cause.rows),
        *_of_log(),
        *(_watched("attached", row) for row in watched),
        *(_other(row) for row in others),
    ]


def _of_row(folder: str, row: Row, group: str) -> Recording:
    smaller = replace(row, options={**row.options, **SMALLER.get(row.id, {})})
    return _recording(folder, smaller, smaller.arguments(), row.client_nofile, group)


def _of_log() -> list[Recording]:
    file = scenario.load("the-2016-log")
    rows = [
        replace(
            row,
            options={**row.options, **SMALLER.get(row.id, {})},
            extra={**row.extra, "calm": row.id.startswith(LOG_CALM)},
        )
        for row in file.rows
    ]
    scaled = rows_of_file(
        replace(file, rows=tuple(rows)),
        Scale(float(file.extra["scale"]["log"]), LOG_DESCRIPTORS),
    )
    return [
        replace(
            _recording("the-2016-log", row, list(ready.words), ready.client_nofile, label.LOG),
            calibration=ready.calibration,
        )
        for row, ready in zip(rows, scaled, strict=True)
    ]


def _recording(
    folder: str, row: Row, words: list[str], client_nofile: int, group: str
) -> Recording:
    recording = f"{folder}/{row.id}"
    row = replace(row, extra={**row.extra, "label": _labelled(recording, row)})
    shown = shlex.join(["profile-run", *words]).replace(f"{ROOT}/", "")
    if client_nofile:
        shown = f"ulimit -n {client_nofile}; {shown}"
    return Recording(
        id=recording,
        row=row,
        words=tuple(words),
        client_nofile=client_nofile,
        label=label.of_row(row, row.expect, recording=recording, group=group, provoked_by=shown),
    )


def _labelled(recording: str, row: Row) -> dict[str, Any]:
    return {**row.extra.get("label", {}), **LABELS.get(recording, {})}


def _watched(folder: str, row: Row) -> Recording:
    smaller = replace(row, options={**row.options, **SMALLER.get(row.id, {})})
    wanted: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in row.extra["attached"].items()
        if key not in ("cores", "hold", "probes", "slot")
    }
    recording = f"{folder}/{row.id}"
    words = smaller.arguments()
    return Recording(
        id=recording,
        row=smaller,
        words=tuple(words),
        client_nofile=0,
        is_watched=True,
        label=label.of_row(
            row,
            Expectation(**wanted),
            recording=recording,
            group=label.WATCHED,
            provoked_by=f"profile-attach --pid PID of {shlex.join(['profile-run', *words])}",
        ),
    )


def _other(row: Row) -> Recording:
    extra = row.extra
    folder = str(extra["folder"])
    if folder == "attached":
        return _watched(folder, row)
    made = recording_of(folder, row, _FOLDERS[folder])
    end, at = str(extra.get("end", "")), str(extra.get("at", "hold"))
    is_root, cut = extra.get("user", "root") == "root", float(extra.get("cut", 1.0))
    after_s, commit = float(extra.get("after", 0.0)), str(extra.get("commit", ""))
    done = [
        f"{end} in the {at}" + (f" after {after_s:g} s" if after_s else "") if end else "",
        "" if is_root else "as nobody",
        f"each stream cut to {cut:.0%}" if cut < 1 else "",
        f"by the program of commit {commit}" if commit else "",
    ]
    by = "; ".join([made.label.provoked_by, *filter(None, done)])
    return replace(
        made,
        end=end,
        at=at,
        after_s=after_s,
        is_root=is_root,
        cut=cut,
        commit=commit,
        is_refused=bool(extra.get("is_refused", False)),
        label=replace(made.label, provoked_by=by),
    )


def recording_of(folder: str, row: Row, group: str) -> Recording:
    """A row that is played as it is, with the server that it names."""
    words = [*_server(row.extra), *row.arguments()]
    return _recording(folder, row, words, row.client_nofile, group)


def _server(extra: Mapping[str, Any]) -> list[str]:
    if "peer" in extra:
        return ["--server-cmd", peers.BY_NAME[extra["peer"]].command(int(extra["workers"]))]
    return []
