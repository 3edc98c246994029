"""Faults that a run can be given on purpose: ``--inject NAME:NUMBER[:VALUE]``.

Each makes one cause of the catalogue happen for real in one process, so that its sign can be seen
and the verdict be tested. Read by the measured processes: no dataclasses, no regular expressions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Fault(NamedTuple):
    """One fault as it was asked for.

    Attributes:
        name: Of ``KINDS``.
        number: Number of the process within its role.
        value: Its strength in the unit of its kind; the kind's default when not given.
    """

    name: str
    number: int
    value: float


class Kind(NamedTuple):
    """What a fault is.

    Attributes:
        role: ``worker`` or ``client``: whose number the fault names; ``host``: the number is how
            many processes beside the fleet (0: ``BURNERS_PER_CORE``); ``namespace``: the number is
            how many entries of a table of the run's own network namespace stay free.
        unit: Meaning of the value, '' when it takes none.
        default: Value when none is given.
        meaning: One line for people.
    """

    role: str
    unit: str
    default: float
    meaning: str


KINDS: dict[str, Kind] = {
    "hot-code": Kind("worker", "", 0.0, "application code that never yields"),
    "sleep": Kind("worker", "ms", 500.0, "sleeps MS in every loop iteration (time.sleep)"),
    "lock": Kind("worker", "ms", 500.0, "waits MS for a thread's lock in every loop iteration"),
    "disk": Kind("worker", "ms", 500.0, "writes and fsyncs a file for MS in every loop iteration"),
    "garbage": Kind("worker", "objects", 1e6, "makes garbage in cycles beside a heap of N objects"),
    "crash": Kind("worker", "connections", 1.0, "dies by SIGKILL when it holds N connections"),
    "slow-accept": Kind("worker", "per_s", 20.0, "accepts at most N connections per second"),
    "no-read": Kind("worker", "", 0.0, "stops reading from open connections"),
    "sendmsg-enobufs": Kind("worker", "writes", 0.0, "sends control data after N writes"),
    "slow-handoff": Kind("acceptor", "us", 500.0, "spends US of its own code on each connection"),
    "foreign-source": Kind("client", "", 0.0, "binds an address that is not local"),
    "connect-enobufs": Kind("client", "connects", 0.0, "connect fails after N connections"),
    "hot-client": Kind("client", "ms", 250.0, "burns CPU for MS in every loop iteration"),
    "slow-client": Kind("client", "ms", 500.0, "sleeps MS in every loop iteration"),
    "no-read-client": Kind("client", "", 0.0, "stops reading once a connection is open"),
    "mute": Kind("client", "", 0.0, "connects and never sends its opening handshake"),
    "conntrack-full": Kind("namespace", "", 0.0, "fills the connection tracking table, but for N"),
    "burn": Kind("host", "s", 30.0, "other processes burn CPU for S seconds; 0: four per core"),
}
"""Every fault by name."""


BURNERS_PER_CORE = 4
MOST_BURNERS_COUNT = 64
MOST_BURN_S = 60.0
"""A host must come back by itself, whatever becomes of the run."""


def parse(text: str) -> Fault:
    """Reads ``NAME:NUMBER[:VALUE]``.

    Raises:
        ValueError: Not that, with a line for people.
    """
    name, _, rest = text.partition(":")
    kind = KINDS.get(name)
    if kind is None:
        raise ValueError(f"{text!r} is unknown; known: {', '.join(KINDS)}")
    number, _, value = rest.partition(":")
    whose = {"host": "PROCESSES", "namespace": "ENTRIES"}.get(kind.role, kind.role.upper())
    form = f"{name}:{whose}" + (f"[:{kind.unit.upper()}]" if kind.unit else "")
    if not (number.isascii() and number.isdigit()) or (value and not kind.unit):
        raise ValueError(f"{text!r} is not {form}")
    try:
        strength = float(value) if value else kind.default
    except ValueError:
        raise ValueError(f"{text!r} is not {form}") from None
    if not 0 <= strength < 1e9:
        raise ValueError(f"{text!r}: {value} is not between 0 and 1,000,000,000")
    return Fault(name, int(number), strength)


def faults_of(inject: Iterable[str], role: str, index: int) -> list[Fault]:
    """The faults of one process.

    Args:
        inject: As given on the command line.
        role: ``worker``, ``client`` or ``host``.
        index: Its number.
    """
    faults = [parse(text) for text in inject]
    return [f for f in faults if KINDS[f.name].role == role and f.number == index]
