"""Compiled objects aimed at a target, and the one object that the default probes share.

The default probes share one compiled object (``acquire``), so that the compiler starts once and
the processes and ports to watch are written once. A probe whose source this kernel cannot satisfy
is left out of it and told why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from probes.bpf_loader import pid_namespace
from probes.bpf_loader import syscalls as bpf_kernel
from probes.bpf_loader.btf import Btf, MissingTypeError
from probes.bpf_loader.kernel_features import what_has
from probes.bpf_loader.program import BpfObject, check_bpf, compose
from probes.contract.errors import ProbeUnavailableError
from probes.contract.probe import Target
from probes.ebpf import sources as bpf_sources
from probes.ebpf.sources import CONFIG, LOSSES, SourceBuilder

_DEFAULT: tuple[SourceBuilder, ...] = (
    bpf_sources.failing_syscalls,
    bpf_sources.tcp_events,
    bpf_sources.cpu_stacks,
    bpf_sources.tcp_snapshot,
    bpf_sources.syscall_mix,
    bpf_sources.oom_kills,
    bpf_sources.connection_fates,
)


def watch_pids(loaded: BpfObject, pids: Iterable[int]) -> None:
    """Adds processes to those whose calls and samples count."""
    for pid in pids:
        loaded.maps["watched_pids"].put(pid, 1)


def unwatch_pids(loaded: BpfObject, pids: Iterable[int]) -> None:
    """Takes processes out again: once they have ended, their numbers are anybody's."""
    for pid in pids:
        loaded.maps["watched_pids"].delete(pid)


def delete_of_pids(loaded: BpfObject, name: str, pids: Collection[int]) -> None:
    """Deletes the entries of processes that ended, so that the map has room for others.

    Args:
        loaded: The object.
        name: A map whose keys have a field ``pid``, or one ``key`` that has it.
        pids: The processes.
    """
    keys, _ = loaded.maps[name].items()
    own = keys["pid"] if "pid" in (keys.dtype.names or ()) else keys["key"]["pid"]
    for key in keys[np.isin(own, list(pids))]:
        loaded.maps[name].delete(key)


def run_config(target: Target, *, paused: bool = False) -> npt.NDArray[np.void]:
    """The configuration of the programs: the caller's network namespace and the server's ports."""
    configs: npt.NDArray[np.void] = np.zeros(1, dtype=CONFIG)
    config = configs[0]
    config["netns_inum"] = Path("/proc/self/ns/net").stat().st_ino & 0xFFFFFFFF
    config["paused"] = paused
    for port in target.server_ports:
        config["server_ports"][port >> 3] |= 1 << (port & 7)
    return configs


def load(builders: Iterable[SourceBuilder], btf: Btf | None = None) -> BpfObject:
    """Compiles the sources into an object of their own; not yet pointed at a target.

    Args:
        builders: The sources.
        btf: The kernel's types when they are read already.

    Raises:
        ProbeUnavailableError: This kernel or machine cannot.
    """
    check_bpf()
    btf = btf or Btf.of_kernel()
    try:
        sources = [build(btf) for build in (bpf_sources.common, *builders)]
    except MissingTypeError as error:
        raise ProbeUnavailableError(str(error), fix=what_has(error.name)) from error
    return BpfObject.load(btf, sources)


def aim(loaded: BpfObject, target: Target, pids: Iterable[int]) -> None:
    """Points the programs of an object at a target.

    Raises:
        ProbeUnavailableError: In a container, the kernel does not tell whose numbers these are.
    """
    loaded.maps["config"].put(0, run_config(target)[0])
    if not pid_namespace.is_first():
        _learn_pid_namespace(loaded)
    watch_pids(loaded, pids)


def _learn_pid_namespace(loaded: BpfObject) -> None:
    """Has a program look in which pid namespace this process is."""
    with contextlib.suppress(OSError):  # then nothing is learned
        bpf_kernel.run_raw_tracepoint(loaded.program(bpf_sources.LEARN_PID_NAMESPACE))
    own = loaded.maps["own_namespace"].get(0)
    if own is None or not own["ns"][0]:
        raise ProbeUnavailableError(
            "this is another pid namespace than the kernel's first, and eBPF cannot tell its "
            "processes from others (Linux 5.10 can)",
            fix="run it in the host's pid namespace (docker run --pid host)",
        )


class _Shared:
    """The object of the default probes, and who uses it."""

    def __init__(self) -> None:
        self.loaded: BpfObject | None = None
        self.target: Target | None = None
        self.users: list[object] = []
        self.missing: dict[SourceBuilder, MissingTypeError] = {}


_shared = _Shared()


def prepare() -> BpfObject:
    """Compiles the object of the default probes unless it is there.

    What this kernel cannot satisfy is left out of it and kept for ``acquire`` to tell.

    Raises:
        ProbeUnavailableError: Nothing can be compiled here.
    """
    if _shared.loaded is None:
        check_bpf()
        btf = Btf.of_kernel()
        usable: list[SourceBuilder] = []
        _shared.missing.clear()
        for build in _DEFAULT:
            try:
                compose(btf, [build(btf)])
                usable.append(build)
            except MissingTypeError as error:
                _shared.missing[build] = error
        _shared.loaded = load(usable, btf)
    return _shared.loaded


def acquire(user: object, target: Target, build: SourceBuilder) -> BpfObject:
    """The shared object of the default probes, aimed at the target.

    Args:
        user: The probe; gives it back with ``release``.
        target: What to watch.
        build: The source that the probe needs in it.

    Raises:
        ProbeUnavailableError: The kernel lacks what this source needs, or nothing compiles.
    """
    if _shared.users and _shared.target is not target:  # two targets in one process
        loaded = load([build])
        aim(loaded, target, target.processes)
        return loaded
    loaded = prepare()
    if build in _shared.missing:
        error = _shared.missing[build]
        raise ProbeUnavailableError(str(error), fix=what_has(error.name))
    if not _shared.users:
        aim(loaded, target, target.processes)
        _shared.target = target
    _shared.users.append(user)
    return loaded


def release(user: object, loaded: BpfObject) -> None:
    """Gives an object back; the last user closes it."""
    if loaded is not _shared.loaded:
        loaded.close()
        return
    _shared.users = [each for each in _shared.users if each is not user]
    if not _shared.users:
        loaded.close()
        _shared.loaded = _shared.target = None


def lost(loaded: BpfObject, *kinds: str) -> int:
    """Events that the programs saw and could not record, of the kinds named."""
    _, values = loaded.maps["losses"].items()
    totals = values.sum(axis=1)
    return int(sum(totals[LOSSES.index(kind)] for kind in kinds))
