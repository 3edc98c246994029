"""Which probes there are, which sets they belong to, and whether they can run here.

A probe's module is imported when the probe is made, so that listing costs nothing and a missing
library (bcc, psutil) is a reason in a health row and not a crash.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import cast

from probes.contract.errors import ProbeUnavailableError, UsageError
from probes.contract.probe import Probe

SETS = ("light", "auto", "full")


@dataclass(frozen=True, slots=True)
class ProbeEntry:
    """One probe of the registry.

    Attributes:
        name: What ``--probes`` and ``probe_health`` call it.
        factory: ``module:class``, called without arguments.
        sets: The sets that contain it.
        costs_every_call: It costs time in every call of the processes that it counts for.
        reads_strangers: It needs the parser of names (``probes.symbols.name_parser_process``).
    """

    name: str
    factory: str
    sets: tuple[str, ...]
    reads_strangers: bool = False
    costs_every_call: bool = False


@dataclass(frozen=True, slots=True)
class ProbeCheck:
    """What ``profile-doctor`` says about one probe.

    Attributes:
        name: The probe.
        sets: The sets that contain it.
        state: ``available``, ``unavailable`` or ``failed`` (its check itself broke).
        reason: Why not, '' when available.
        fix: What would help, '' when available.
        notes: What it sees less of than it would on another kernel or host.
    """

    name: str
    sets: tuple[str, ...]
    state: str
    reason: str
    fix: str
    notes: tuple[str, ...] = ()


# The order is the order of start: what costs least and tells most comes first.
_ENTRIES: tuple[ProbeEntry, ...] = (
    # First, so that the start of its processes is over before the ramp begins.
    ProbeEntry(
        "python_stacks", "probes.python_stacks.python_stacks:PythonStacksProbe", ("auto", "full")
    ),
    ProbeEntry(
        "live_samples", "probes.samplers.live_samples:LiveSamplesProbe", ("light", "auto", "full")
    ),
    ProbeEntry(
        "blocked_samples",
        "probes.samplers.blocked_samples:BlockedSamplesProbe",
        ("light", "auto", "full"),
        reads_strangers=True,
    ),
    ProbeEntry(
        "process_samples",
        "probes.samplers.process_samples:ProcessSamplesProbe",
        ("light", "auto", "full"),
    ),
    ProbeEntry(
        "host_counters",
        "probes.samplers.host_counters:HostCountersProbe",
        ("light", "auto", "full"),
    ),
    ProbeEntry(
        "tcp_snapshot", "probes.ebpf.tcp_snapshot:TcpSnapshotProbe", ("light", "auto", "full")
    ),
    ProbeEntry(
        "failing_syscalls",
        "probes.ebpf.failing_syscalls:FailingSyscallsProbe",
        ("light", "auto", "full"),
        reads_strangers=True,
    ),
    ProbeEntry("oom_kills", "probes.ebpf.oom_kills:OomKillsProbe", ("light", "auto", "full")),
    ProbeEntry(
        "open_fates", "probes.samplers.open_fates:OpenFatesProbe", ("light", "auto", "full")
    ),
    ProbeEntry(
        "send_queues", "probes.samplers.send_queues:SendQueuesProbe", ("light", "auto", "full")
    ),
    ProbeEntry(
        "connection_fates",
        "probes.ebpf.connection_fates:ConnectionFatesProbe",
        ("light", "auto", "full"),
    ),
    ProbeEntry(
        "runtime_limits",
        "probes.samplers.runtime_limits:RuntimeLimitsProbe",
        ("light", "auto", "full"),
    ),
    ProbeEntry(
        "server_words", "probes.samplers.server_words:ServerWordsProbe", ("light", "auto", "full")
    ),
    ProbeEntry("tcp_events", "probes.ebpf.tcp_events:TcpEventsProbe", ("auto", "full")),
    ProbeEntry(
        "cpu_stacks",
        "probes.ebpf.cpu_stacks:CpuStacksProbe",
        ("auto", "full"),
        reads_strangers=True,
    ),
    ProbeEntry(
        "syscall_mix",
        "probes.ebpf.syscall_mix:SyscallMixProbe",
        ("auto", "full"),
        costs_every_call=True,
    ),
    ProbeEntry("runq_latency", "probes.ebpf.runq_latency:RunqLatencyProbe", ("full",)),
    ProbeEntry("skb_allocs", "probes.ebpf.skb_allocs:SkbAllocsProbe", ("full",)),
)

PROBES: dict[str, ProbeEntry] = {entry.name: entry for entry in _ENTRIES}


def names_of_set(name: str) -> list[str]:
    """The probes of one set, in order of start."""
    return [entry.name for entry in _ENTRIES if name in entry.sets]


def resolve(spec: str) -> list[str]:
    """Turns the value of ``--probes`` into probe names, in order of start.

    Args:
        spec: ``none``, or names of sets and probes joined by commas: ``auto``,
            ``light,cpu_stacks``.

    Raises:
        UsageError: An unknown name, or nothing at all.
    """
    words = [word.strip() for word in spec.split(",") if word.strip()]
    if not words:
        raise UsageError("--probes is empty", fix="use --probes auto, light, full, none or a list")
    if words == ["none"]:
        return []
    wanted: set[str] = set()
    for word in words:
        if word in SETS:
            wanted.update(names_of_set(word))
        elif word in PROBES:
            wanted.add(word)
        else:
            known = ", ".join((*SETS, "none (alone)", *PROBES))
            raise UsageError(f"--probes knows no {word!r}", fix=f"choose from: {known}")
    return [name for name in PROBES if name in wanted]


def read_strangers(names: list[str]) -> bool:
    """Whether one of these probes has files of others read."""
    return any(PROBES[name].reads_strangers for name in names)


def sparing() -> list[str]:
    """The default set for a server in service: ``auto`` without what costs every call of it."""
    return [name for name in names_of_set("auto") if not PROBES[name].costs_every_call]


def every_call_is_counted(names: list[str]) -> bool:
    """Whether a probe that costs every call counts for every process, or only for a hot one.

    Counting every syscall costs time in the measured processes, so the default set does it only
    where something is wrong. Every other choice that contains the probe asked for it by name.
    """
    counts = any(PROBES[name].costs_every_call for name in names)
    return counts and set(names) != set(names_of_set("auto"))


def make(name: str) -> Probe:
    """Imports the probe's module and makes the probe; nothing is attached yet.

    Raises:
        ProbeUnavailableError: Its module or a library of it cannot be imported.
        KeyError: No such probe; ``resolve`` checks names for people.
    """
    module_name, _, class_name = PROBES[name].factory.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ProbeUnavailableError(
            f"{module_name} cannot be imported: {error}",
            fix="make install",
        ) from error
    return cast("Probe", getattr(module, class_name)())
