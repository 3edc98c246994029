"""Which process of a run may do what, and for how long: the one table of it.

docs/design/0016-who-may-do-what.md shows it, and a test reads /proc/PID/status of every process of
runs and watches against it. It is of a run that root has started on a host; started with less, no
process has more than that.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.faults.cgroup_guard import GUARD_KEEPS
from harness.foreign.main import LAUNCHER_KEEPS
from harness.results.analysis_main import KEEPS_AT_MOST as ANALYSIS_KEEPS
from probes.collect.main import KEEPS as PROBES_KEEP
from probes.python_stacks.pyspy_process import PY_SPY_KEEPS
from probes.rights.privileges import CAPABILITIES

ALL = tuple(CAPABILITIES)
ROOT, OWN, CALLER = "root", "own", "caller"


@dataclass(frozen=True, slots=True)
class Rights:
    """What a process may do from a phase on.

    Attributes:
        process: What it is.
        phase: ``set-up``, or ``load`` for all that follows: ramp, hold, watch, collect, stop; or
            ``end``, when the recording is complete and understood.
        user: ``ROOT``, ``OWN`` (``probes.rights.own_user``), or ``CALLER`` (who called sudo).
        has: Permitted capabilities at most; effective are no more.
        may_gain: The bounding set at most.
        gains_nothing: no_new_privs is set.
        why: What it is needed for.
    """

    process: str
    phase: str
    user: str
    has: tuple[str, ...]
    may_gain: tuple[str, ...]
    gains_nothing: bool
    why: str


TABLE = (
    Rights("supervisor", "set-up", ROOT, ALL, ALL, False,
           "makes the namespace, starts and ends all others, analyses"),
    Rights("supervisor", "load", ROOT, ALL, ALL, False, "the same"),
    Rights("probe process", "set-up", ROOT, PROBES_KEEP, PROBES_KEEP, True,
           "eBPF, /proc of others, tables"),
    Rights("probe process", "load", ROOT, PROBES_KEEP, PROBES_KEEP, True, "the same"),
    Rights("parser of names", "set-up", ROOT, ALL, ALL, False, "until it is imported"),
    Rights("parser of names", "load", OWN, (), (), True,
           "reads programs, maps and debug files of others, by descriptors; seccomp"),
    Rights("eBPF compiler", "set-up", ROOT, PROBES_KEEP, PROBES_KEEP, True,
           "loads what it compiles; gone before the load"),
    Rights("py-spy", "load", ROOT, PY_SPY_KEEPS, PY_SPY_KEEPS, True,
           "reads memory and mapped files of others"),
    Rights("parent of servers or clients", "set-up", ROOT, ALL, (), True,
           "enters the namespace, raises limits, forks"),
    Rights("parent of servers or clients", "load", OWN, (), (), True, "waits"),
    Rights("worker, acceptor, client", "load", OWN, (), (), True, "sockets"),
    Rights("burner", "set-up", ROOT, ALL, ALL, False, "--inject burn; until it is imported"),
    Rights("burner", "load", OWN, (), (), True, "calculates"),
    Rights("guard of control groups", "load", ROOT, GUARD_KEEPS, (), True,
           "removes folders at the end, also from the root of the tree"),
    Rights("launcher of a server command", "set-up", ROOT, ALL, ALL, False,
           "enters the namespace, starts the command as another user"),
    Rights("launcher of a server command", "load", ROOT, LAUNCHER_KEEPS, (), True,
           "ends what runs as another user, removes its group"),
    Rights("analysis", "load", ROOT, ALL, (), True, "until it is imported"),
    Rights("analysis", "end", OWN, ANALYSIS_KEEPS, (), True,
           "reads the recording, by descriptors; this much where it cannot read our own files"),
    Rights("server command", "load", CALLER, (), (), True,
           "is the user's own; see --server-may-gain-privileges"),
    Rights("server command as root", "load", ROOT, ALL, ALL, True,
           "without sudo, or with --server-user root; a note says so"),
)  # fmt: skip


def rights_of(process: str, phase: str) -> Rights:
    """The row of a process.

    Raises:
        KeyError: There is none: such a process is not to be there then.
    """
    for each in TABLE:
        if (each.process, each.phase) == (process, phase):
            return each
    raise KeyError(f"{process} in {phase}")


def as_markdown() -> str:
    """The table for people."""
    lines = [
        "| process | phase | user | capabilities | bounding set | gains nothing | for |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in TABLE:
        gains = "yes" if each.gains_nothing else "no"
        row = (each.process, each.phase, each.user, _words(each.has), _words(each.may_gain))
        lines.append(f"| {' | '.join(row)} | {gains} | {each.why} |")
    return "\n".join(lines) + "\n"


def _words(names: tuple[str, ...]) -> str:
    if names == ALL:
        return "all"
    return ", ".join(sorted(names)) or "none"
