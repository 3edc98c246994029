"""What a verdict is made of: evidence, fixes, subjects, findings.

A finding without evidence from this run cannot be built: the constructor refuses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from analysis.causes import CAUSE_IDS, GOOD_CAUSES
from analysis.evidence_kinds import EVIDENCE_KINDS
from probes.contract.schema import SERVER_ROLES
from probes.contract.several_hosts import pid_on_host

Side = Literal["server", "client", "host"]
Severity = Literal["binding", "contributing", "warning", "info"]
Confidence = Literal["high", "medium", "low"]

SIDES: tuple[Side, ...] = ("server", "client", "host")
SEVERITIES: tuple[Severity, ...] = ("binding", "contributing", "warning", "info")
"""In the order in which a reader wants them."""


def side_of_role(role: str) -> Side:
    """The side a process is on: server and acceptor serve, client loads, the rest is the host."""
    if role in SERVER_ROLES:
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


def full_stop(text: str) -> str:
    """A clause as the end of a sentence; one that ends already stays as it is."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


def sentence_of(clauses: Sequence[str]) -> str:
    """One sentence of clauses, without those that are empty; '' of none."""
    said = "; ".join(clause for clause in clauses if clause)
    return full_stop(capitalised(said)) if said else ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One number of this run.

    Attributes:
        id: What was measured, an id of ``analysis.evidence_kinds.EVIDENCE_KINDS``.
        value: The number; finite.
        table: The table of ``probes.contract.schema`` (or ``manifest``) that it comes from.
        at_s: When, in seconds since the ramp began; None for a value of the whole run.
        of: Whose or which, where the id alone does not say it: a call, a process, a function, an
            address; '' for none. Id and this are unique in a finding.

    Raises:
        ValueError: The id is not in the catalogue, lacks a qualifier or has one too many, or the
            value is not a finite number.
    """

    id: str
    value: float
    table: str
    at_s: float | None = None
    of: str = ""

    def __post_init__(self) -> None:
        if self.id not in EVIDENCE_KINDS:
            raise ValueError(f"{self.id!r} is not in the catalogue of evidence")
        try:
            EVIDENCE_KINDS[self.id].words(self.of)
        except ValueError as error:
            raise ValueError(f"evidence {self.id!r} {error}") from error
        if not math.isfinite(self.value):
            raise ValueError(f"evidence {self.id!r} is {self.value}, which proves nothing")

    @property
    def name(self) -> str:
        """What was measured, in the field's words: for people, no code compares it."""
        return EVIDENCE_KINDS[self.id].words(self.of)

    @property
    def unit(self) -> str:
        """Unit of the value, '' for none."""
        return EVIDENCE_KINDS[self.id].unit

    def record(self) -> dict[str, str | float | None]:
        """All of it with the words for people, as ``verdict.json`` and the exports have it."""
        return {
            "id": self.id,
            "of": self.of,
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "table": self.table,
            "at_s": self.at_s,
        }


EVIDENCE_KEYS = ("id", "of", "name", "value", "unit", "table", "at_s")
"""Keys of a record, in order."""


@dataclass(frozen=True, slots=True)
class Quote:
    """A line of the server's own log: a stranger's text, in printable characters.

    Attributes:
        at_s: When it was read, in seconds since the ramp began.
        source: Name of the file, or journal.
        line: The line, the first of its kind.
        count: How many of its kind there were.
    """

    at_s: float
    source: str
    line: str
    count: int


@dataclass(frozen=True, slots=True)
class Fix:
    """A command and the effect to expect from it, in numbers."""

    command: str
    effect: str


@dataclass(frozen=True, slots=True)
class Subject:
    """The process a finding is about; the default is the host as a whole.

    Attributes:
        role: server, acceptor, client, or '' for no single process.
        pid: Its pid, 0 for no single process.
        worker: Its number within its role, -1 for none.
        command: What a process that is not ours is called, '' for ours.
        host: Of a run over several hosts which it is on, else ''.
    """

    role: str = ""
    pid: int = 0
    worker: int = -1
    command: str = ""
    host: str = ""

    @property
    def own_pid(self) -> int:
        """Its pid as its own host knows it."""
        return pid_on_host(self.pid)

    def __str__(self) -> str:
        if not self.pid:
            return "the host" if not self.role else f"the {self.role}"
        pid = f"pid {self.own_pid}" + (f" on {self.host}" if self.host else "")
        if self.worker < 0:
            return f"{self.role} ({pid})"
        name = "worker" if self.role == "server" else self.role
        called = f"{self.command}, " if self.command else ""
        return f"{name} {self.worker} ({called}{pid}, {side_of_role(self.role)})"


@dataclass(frozen=True, slots=True)
class Finding:
    """One cause, named with evidence from this run.

    Attributes:
        cause: An id of ``analysis.causes.CAUSE_IDS``.
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
        quotes: What the server's log said of it.

    Raises:
        ValueError: No evidence, or two of one id and qualifier; an unknown cause or side, or a
            time that runs backwards.
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
    quotes: tuple[Quote, ...] = ()

    def __post_init__(self) -> None:
        if not self.evidence:
            raise ValueError(f"finding {self.cause!r} has no evidence from this run")
        pairs = [(each.id, each.of) for each in self.evidence]
        if len(set(pairs)) < len(pairs):
            twice = next(pair for pair in pairs if pairs.count(pair) > 1)
            raise ValueError(f"finding {self.cause!r} has evidence {twice} twice")
        if self.cause not in CAUSE_IDS:
            raise ValueError(f"{self.cause!r} is not in the catalogue of causes")
        if self.side not in SIDES or self.severity not in SEVERITIES:
            raise ValueError(f"finding {self.cause!r}: side {self.side!r}, {self.severity!r}")
        if not (math.isfinite(self.first_s) and self.first_s <= self.last_s < math.inf):
            raise ValueError(f"finding {self.cause!r} lasts {self.first_s}..{self.last_s} s")
        if not self.fix and self.cause not in GOOD_CAUSES:
            raise ValueError(f"finding {self.cause!r} names no fix")

    def value_of(self, evidence_id: str, of: str | None = None) -> float | None:
        """A number of the evidence, None where this finding has none of that id.

        Args:
            evidence_id: An id of the catalogue.
            of: Its qualifier; None takes the first of that id.

        Raises:
            KeyError: The id is not in the catalogue.
        """
        if evidence_id not in EVIDENCE_KINDS:
            raise KeyError(evidence_id)
        found = (e.value for e in self.evidence if e.id == evidence_id and of in (None, e.of))
        return next(found, None)

    @property
    def headline(self) -> str:
        """What happened in one clause."""
        return self.sentence or self.cause

    def with_doubts(self, doubts: tuple[str, ...]) -> Finding:
        """The same finding, believed no more than medium where there is something new to doubt."""
        missing = tuple(dict.fromkeys((*self.missing, *doubts)))
        if len(missing) == len(self.missing):
            return self
        confidence: Confidence = "low" if self.confidence == "low" else "medium"
        return replace(self, missing=missing, confidence=confidence)

    def with_severity(self, severity: Severity, *, follows_from: str = "") -> Finding:
        """The same finding, ranked."""
        return replace(self, severity=severity, follows_from=follows_from or self.follows_from)
