"""The eBPF loader: C from ``probes/bpf/`` in, attached programs and readable maps out.

``BpfObject.load`` composes one text from one or more sources (common part, generated kernel
structs, the sources), has it compiled and loaded by ``probes/bpf_loader/compile.py`` and takes over
the descriptors, unless ``probes/bpf_loader/cache.py`` has it from an earlier run. Everything is
validated against the running kernel's BTF before that: a source is built from a ``Btf`` and raises
``MissingTypeError`` for what this kernel lacks.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from probes.bpf_loader import cache as bpf_cache
from probes.bpf_loader import own_rights
from probes.bpf_loader import syscalls as bpf_kernel
from probes.bpf_loader.bcc_import import find_bcc, package_directories
from probes.bpf_loader.btf import VMLINUX_BTF, Btf, MissingTypeError
from probes.bpf_loader.compile import CFLAGS
from probes.bpf_loader.kernel_features import LOCKDOWN, is_locked_down, perf_paranoid, what_has
from probes.bpf_loader.kernel_tree import struct_source
from probes.bpf_loader.syscalls import BpfMap
from probes.contract.errors import ProbeUnavailableError

PERF_EVENT, RAW_TRACEPOINT, TRACING = 7, 17, 26  # BPF_PROG_TYPE_*

MACHINES = ("x86_64", "aarch64", "riscv64", "loongarch64")
"""Where system calls, ioctls and bit-fields have the numbers and places that are used here."""

_C_DIRECTORY = Path(__file__).parents[1] / "bpf"
_COMPILE_TIMEOUT_S = 300  # 2 s as a rule, minutes under emulation
_MAX_DESCRIPTORS = 250  # SCM_MAX_FD of include/net/scm.h is 253
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Fields = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class MapType:
    """Types of a map's keys and values, as the C declares them."""

    key: npt.DTypeLike
    value: npt.DTypeLike


@dataclass(frozen=True, slots=True)
class BpfSource:
    """One C file and what it needs.

    Attributes:
        file: Name below ``probes/bpf/``.
        structs: Kernel structs by name, each with its fields (see ``struct_source``).
        constants: Passed as ``-D``.
        programs: Functions by name with their BPF_PROG_TYPE_*.
        maps: By name.
        attach_types: BPF_* attach type of programs that the kernel wants it of when they load.
    """

    file: str
    structs: Mapping[str, Fields]
    constants: Mapping[str, int]
    programs: Mapping[str, int]
    maps: Mapping[str, MapType]
    attach_types: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Parts:
    structs: dict[str, dict[str, Sequence[str]]] = field(default_factory=dict)
    constants: dict[str, int] = field(default_factory=dict)
    programs: dict[str, int] = field(default_factory=dict)
    maps: dict[str, MapType] = field(default_factory=dict)
    attach_types: dict[str, int] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)


def compose(btf: Btf, sources: Iterable[BpfSource]) -> tuple[str, _Parts]:
    """Joins sources into one text; a struct that several name gets the fields of all.

    Raises:
        MissingTypeError: This kernel lacks a field.
        ValueError: A constant or name that is no C, or given twice with another meaning.
    """
    parts = _Parts()
    for source in sources:
        for name, fields in source.structs.items():
            parts.structs.setdefault(name, {}).update(fields)
        for name, value in source.constants.items():
            if not _NAME.fullmatch(name) or parts.constants.setdefault(name, value) != value:
                raise ValueError(f"constant {name}={value} is no C or contradicts another source")
        parts.programs.update(source.programs)
        parts.maps.update(source.maps)
        parts.attach_types.update(source.attach_types)
        path = _C_DIRECTORY / source.file
        parts.texts.append(path.read_text(encoding="utf-8"))
    structs = [struct_source(btf, name, fields) for name, fields in parts.structs.items()]
    return "\n".join(structs + parts.texts), parts


def request_of(text: str, parts: _Parts) -> dict[str, Any]:
    """What ``probes.bpf_loader.compile`` is asked for, of what ``compose`` made."""
    return {
        "text": text,
        "flags": CFLAGS,
        "constants": parts.constants,
        "programs": parts.programs,
        "attach_types": parts.attach_types,
        "maps": list(parts.maps),
    }


def check_bpf() -> None:
    """Says whether eBPF can be compiled and loaded here: rights, BTF and bcc.

    Raises:
        ProbeUnavailableError: With the command that would change it.
    """
    machine = platform.machine()
    if machine not in MACHINES or ctypes.sizeof(ctypes.c_void_p) != 8:
        raise ProbeUnavailableError(
            f"eBPF is not supported on {machine} ({8 * ctypes.sizeof(ctypes.c_void_p)} bits)",
            fix=f"run it on one of: {', '.join(MACHINES)}",
        )
    own_rights.require_bpf()
    if is_locked_down():
        raise ProbeUnavailableError(
            "lockdown forbids eBPF to read the kernel's memory (confidentiality)",
            fix=f"boot with lockdown=integrity or without it; see: cat {LOCKDOWN}",
        )
    if not VMLINUX_BTF.exists():
        raise ProbeUnavailableError(
            f"the kernel has no type information ({VMLINUX_BTF})",
            fix="boot a kernel with CONFIG_DEBUG_INFO_BTF=y (Debian 11, Ubuntu 20.10 or newer)",
        )
    find_bcc(package_directories())


class BpfObject:
    """Loaded programs and their maps. Closing it detaches and frees everything.

    Use ``load``; the attributes are for the probes.

    Attributes:
        maps: Readable maps by name.
        programs: Descriptors by function name.
        refused: Why a program did not load, by function name.
    """

    def __init__(
        self, maps: dict[str, BpfMap], programs: dict[str, int], refused: dict[str, str]
    ) -> None:
        self.maps = maps
        self.programs = programs
        self.refused = refused
        self._info_offsets: dict[str, int] = {}

    @classmethod
    def load(cls, btf: Btf, sources: Sequence[BpfSource]) -> BpfObject:
        """Compiles and loads, without attaching.

        Raises:
            ProbeUnavailableError: No bcc, a field that this kernel lacks, or the compiler's words.
                A single program that the kernel refuses is noted in ``refused`` instead.
        """
        try:
            text, parts = compose(btf, sources)
        except MissingTypeError as error:
            raise ProbeUnavailableError(str(error), fix=what_has(error.name)) from error
        request = request_of(text, parts)
        path = bpf_cache.path_of(request)
        kept = bpf_cache.load(path, btf, request)
        if kept is not None:
            return cls._of(btf, parts, *kept, {})
        answer, fds, log = _ask_compiler(request | {"keep": str(path)})
        if "error" in answer:
            for fd in fds:
                os.close(fd)
            raise ProbeUnavailableError(
                _with_log(answer["error"], log),
                fix=answer["fix"]
                or "report it with the output of: uname -r; apt list python3-bpfcc",
            )
        map_count = len(answer["maps"])
        maps = dict(zip(answer["maps"], fds[:map_count], strict=True))
        programs = dict(zip(answer["programs"], fds[map_count:], strict=True))
        return cls._of(btf, parts, maps, programs, answer["refused"])

    @classmethod
    def _of(
        cls,
        btf: Btf,
        parts: _Parts,
        map_fds: Mapping[str, int],
        programs: dict[str, int],
        refused: dict[str, str],
    ) -> BpfObject:
        try:
            maps = {
                name: BpfMap(fd, parts.maps[name].key, parts.maps[name].value)
                for name, fd in map_fds.items()
            }
        except ValueError:
            for fd in (*map_fds.values(), *programs.values()):
                os.close(fd)
            raise
        loaded = cls(maps, programs, refused)
        for name in ("run_time_ns", "recursion_misses"):
            with contextlib.suppress(MissingTypeError):
                loaded._info_offsets[name] = btf.field("bpf_prog_info", name).offset_bytes
        return loaded

    def program(self, name: str) -> int:
        """Descriptor of a program.

        Raises:
            ProbeUnavailableError: The kernel refused it.
        """
        if name not in self.programs:
            raise ProbeUnavailableError(
                f"the kernel refused the program {name}: {self.refused.get(name, 'not loaded')}",
                fix="run a newer kernel, or leave the probe out with --probes",
            )
        return self.programs[name]

    def attach_raw_tracepoint(self, name: str, event: str) -> int:
        """Attaches a program to a raw tracepoint; closing the descriptor detaches.

        Raises:
            ProbeUnavailableError: The kernel refused.
        """
        fd = self.program(name)
        try:
            return bpf_kernel.attach_raw_tracepoint(fd, event)
        except OSError as error:
            raise _no_attach(f"raw tracepoint {event}", error) from error

    def attach_cpu_clock(self, name: str, frequency_hz: int) -> list[int]:
        """Samples on every online core; closing the descriptors ends it.

        Raises:
            ProbeUnavailableError: The kernel refused.
        """
        fd, links = self.program(name), []
        try:
            for cpu in bpf_kernel.online_cpus():
                links.append(bpf_kernel.attach_cpu_clock(fd, frequency_hz, cpu))  # noqa: PERF401  # on an error the ones before are closed
        except OSError as error:
            for link in links:
                os.close(link)
            raise _no_attach("the perf event cpu-clock", error) from error
        return links

    def attach_iterator(self, name: str) -> int:
        """Links an iterator program for ``bpf_kernel.read_iterator``.

        Raises:
            ProbeUnavailableError: The kernel refused.
        """
        fd = self.program(name)
        try:
            return bpf_kernel.attach_iterator(fd)
        except OSError as error:
            raise _no_attach("the iterator", error) from error

    def run_time_ns(self, names: Iterable[str]) -> int:
        """CPU time in these programs, -1 unless kernel.bpf_stats_enabled is on."""
        return self._sum("run_time_ns", names) if bpf_kernel.counts_run_time() else -1

    def missed_count(self, names: Iterable[str]) -> int:
        """Events that came while the same program ran on that core, so that it was skipped.

        Source: ``recursion_misses`` of struct bpf_prog_info (Linux 5.12, of raw tracepoints 6.2).
        """
        return max(0, self._sum("recursion_misses", names))

    def _sum(self, field: str, names: Iterable[str]) -> int:
        """Of all that are loaded; -1 where the kernel has no such field or none is."""
        fds = [self.programs[name] for name in names if name in self.programs]
        if not fds or field not in self._info_offsets:
            return -1
        return sum(bpf_kernel.program_count(fd, self._info_offsets[field]) for fd in fds)

    def close(self) -> None:
        """Closes every descriptor; may be called twice."""
        for fd in self.programs.values():
            os.close(fd)
        for each in self.maps.values():
            each.close()
        self.programs, self.maps = {}, {}


def _ask_compiler(request: dict[str, Any]) -> tuple[dict[str, Any], list[int], str]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        command = [sys.executable, "-P", "-m", "probes.bpf_loader.compile", str(theirs.fileno())]
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        try:
            _, log = child.communicate(json.dumps(request).encode(), timeout=_COMPILE_TIMEOUT_S)
        except BaseException as error:
            child.kill()
            child.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise ProbeUnavailableError(
                f"compiling eBPF took more than {_COMPILE_TIMEOUT_S} s",
                fix="run again when the machine is less loaded",
            ) from error
        message, fds, _, _ = socket.recv_fds(ours, 1 << 16, _MAX_DESCRIPTORS)
    text = log.decode(errors="replace")
    if not message:
        return {"error": f"the eBPF compiler ended with {child.returncode}", "fix": ""}, fds, text
    return json.loads(message), fds, text


def _with_log(message: str, log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower()] or lines[-3:]
    return "; ".join([message, *telling[:3]])


def _no_attach(what: str, error: OSError) -> ProbeUnavailableError:
    fix = "run it on a kernel with CONFIG_BPF_EVENTS=y and CONFIG_PERF_EVENTS=y"
    if error.errno in (errno.EACCES, errno.EPERM):
        fix = "give it CAP_PERFMON and CAP_BPF (docker run --privileged)"
        if "perf event" in what and perf_paranoid() > 2:
            fix += f", or sysctl -w kernel.perf_event_paranoid=2 (it is {perf_paranoid()})"
    return ProbeUnavailableError(f"cannot attach to {what}: {error.strerror}", fix=fix)
