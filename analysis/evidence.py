"""What a verdict is made of: evidence, fixes, subjects, findings.

A finding without evidence from this run cannot be built: the constructor refuses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from analysis.causes import CAUSES, GOOD_CAUSES

Side = Literal["server", "client", "host"]
Severity = Literal["binding", "contributing", "warning", "info"]
Confidence = Literal["high", "medium", "low"]

SIDES: tuple[Side, ...] = ("server", "client", "host")
SEVERITIES: tuple[Severity, ...] = ("binding", "contributing", "warning", "info")
"""In the order in which a reader wants them."""


def side_of_role(role: str) -> Side:
    """The side a process is on: server and acceptor serve, client loads, the rest is the host."""
    if role in ("server", "acceptor"):
        return "server"
    return "client" if role == "client" else "host"


def connections_text(count: int) -> str:
    """1 connection, 2,000 connections."""
    return f"{count:,} connection" + ("" if count == 1 else "s")


def times(count: int) -> str:
    """A count of occurrences in words: once, 827,481 times."""
    return "once" if count == 1 else f"{count:,} times"


def capitalised(text: str) -> str:
    """A name at the beginning of a sentence: its first letter large, the others as they are."""
    return text[:1].upper() + text[1:]


@dataclass(frozen=True, slots=True)
class Evidence:
    """One number of this run.

    Attributes:
        name: What was measured, in the field's words.
        value: The number; finite.
        unit: Its unit, '' for none.
        table: The table of ``probes.schema`` (or ``manifest``) that it comes from.
        at_s: When, in seconds since the ramp began; None for a value of the whole run.

    Raises:
        ValueError: The value is not a finite number.
    """

    name: str
    value: float
    unit: str
    table: str
    at_s: float | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"evidence {self.name!r} is {self.value}, which proves nothing")


@dataclass(frozen=True, slots=True)
class Fix:
    """A command and the effect to expect from it, in numbers."""

    command: str
    effect: str


def unit_limit_command(nofile_count: int) -> str:
    """The command that gives a systemd service another RLIMIT_NOFILE (systemd.exec(5))."""
    return f"systemctl edit NAME.service  # [Service] LimitNOFILE={nofile_count}"


@dataclass(frozen=True, slots=True)
class Subject:
    """The process a finding is about; the default is the host as a whole.

    Attributes:
        role: server, acceptor, client, or '' for no single process.
        pid: Its pid, 0 for no single process.
        worker: Its number within its role, -1 for none.
        command: What a process that is not ours is called, '' for ours.
    """

    role: str = ""
    pid: int = 0
    worker: int = -1
    command: str = ""

    def __str__(self) -> str:
        if not self.pid:
            return "the host" if not self.role else f"the {self.role}"
        if self.worker < 0:
            return f"{self.role} (pid {self.pid})"
        name = "worker" if self.role == "server" else self.role
        called = f"{self.command}, " if self.command else ""
        return f"{name} {self.worker} ({called}pid {self.pid}, {side_of_role(self.role)})"


@dataclass(frozen=True, slots=True)
class Finding:
    """One cause, named with evidence from this run.

    Attributes:
        cause: An id of ``analysis.causes.CAUSES``.
        severity: binding: stopped the run; contributing: followed from or worsened it; warning:
            harmed connections but did not stop the run; info: worth knowing.
        side: Whose limit it is.
        subject: The process.
        first_s: First moment, seconds since the ramp began.
        last_s: Last moment.
        evidence: At least one number.
        explanation: Plain words for people.
        fix: Commands, best first; may be empty only for ``GOOD_CAUSES``.
        at_connections: Connections open (all clients) at ``first_s``, None when not known.
        confidence: Lower when a probe that would decide did not run or lost events.
        missing: What was not measured and would have decided, for people.
        follows_from: Cause id of the finding that this one follows from, '' for none.
        sentence: The same in one plain sentence that names side, process and number.
        explained_count: Failed, lost or waiting connections that have this cause's sign. Only a
            cause that explains some can have stopped the run.

    Raises:
        ValueError: No evidence, an unknown cause or side, or a time that runs backwards.
    """

    cause: str
    severity: Severity
    side: Side
    subject: Subject
    first_s: float
    last_s: float
    evidence: tuple[Evidence, ...]
    explanation: str
    fix: tuple[Fix, ...] = ()
    at_connections: int | None = None
    confidence: Confidence = "high"
    missing: tuple[str, ...] = ()
    follows_from: str = ""
    sentence: str = ""
    explained_count: int = 0

    def __post_init__(self) -> None:
        if not self.evidence:
            raise ValueError(f"finding {self.cause!r} has no evidence from this run")
        if self.cause not in CAUSES:
            raise ValueError(f"{self.cause!r} is not in the catalogue of causes")
        if self.side not in SIDES or self.severity not in SEVERITIES:
            raise ValueError(f"finding {self.cause!r}: side {self.side!r}, {self.severity!r}")
        if not (math.isfinite(self.first_s) and self.first_s <= self.last_s < math.inf):
            raise ValueError(f"finding {self.cause!r} lasts {self.first_s}..{self.last_s} s")
        if not self.fix and self.cause not in GOOD_CAUSES:
            raise ValueError(f"finding {self.cause!r} names no fix")

    def with_severity(self, severity: Severity, *, follows_from: str = "") -> Finding:
        """The same finding, ranked."""
        return replace(self, severity=severity, follows_from=follows_from or self.follows_from)
