"""What a limit is to the plan, the doctor, the ladder, the verdict and the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class Bound(Enum):
    """What happens to the next connection where a limit is met."""

    STOPS = "it cannot be made"
    DELAYS = "it waits and is tried again"
    SLOWS = "all get slower"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """Where samples of a limit of the whole host are, for the ladder.

    Attributes:
        table: Of ``probes.contract.schema``.
        used: Its column with the use.
        capacity: Its column with the limit; 0 or less where it could not be read.
    """

    table: str
    used: str
    capacity: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTable:
    """A limit that the kernel keeps as one number for the whole host.

    Attributes:
        maximum: Where it is, below ``/proc/sys``.
        used: Where its use is, likewise; '' where the kernel does not say.
        per_connection_count: What a connection takes of it, both ends being on this host.
        per_process_count: What a process of the fleet takes besides.
        is_per_namespace: Only a network namespace that uses it counts, and a new one does not.
        note: What the number means, for the doctor; ``{used}`` is the use.
        sampled: Where the ladder takes capacity and use from; None where it computes them itself.
    """

    maximum: str
    used: str = ""
    per_connection_count: int
    per_process_count: int = 0
    is_per_namespace: bool = False
    note: str = ""
    sampled: Sampled | None = None

    @property
    def sysctl(self) -> str:
        """The name that ``sysctl -w`` takes."""
        return self.maximum.replace("/", ".")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One limit.

    Attributes:
        name: In plan, ladder and ``verdict.json``.
        title: As a heading.
        words: In a sentence, to be followed by "of" and its subject.
        unit: Of capacity and use: count, ports, bytes, pages or pct.
        noun: What is counted, '' where the unit says it.
        source: Where capacity and use are read.
        cost: What a connection takes of it.
        raised_by: What raises it.
        bound: What happens where it is met.
        labels: What the plan calls it, by subject: server, client, ports, listener or host.
        is_shared: Others of the host use it as well, so that its use moves without the run.
        table: How it is read and planned where it is one number of the host; None where more than
            that is to be known.
    """

    name: str
    title: str
    words: str
    unit: str
    noun: str = ""
    source: str
    cost: str
    raised_by: str
    bound: Bound
    labels: Mapping[str, str] = field(default_factory=dict)
    is_shared: bool = False
    table: HostTable | None = None
