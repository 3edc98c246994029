"""The heap that a server's runtime was told to keep to: V8, JVM, Go, PHP, .NET, BEAM.

Measures:
    Of each server process whose runtime has a limit of its own: how many bytes, and the option that
    says so (table ``runtime_limits``), once, when it is first seen.
Hook:
    Command line, and of the environment the few variables in which runtimes look for options:
    /proc/PID/cmdline and environ (proc(5)). Their values are not kept, only the sizes in them.
Cost:
    50 us a process, once.
Misses:
    A limit in a file (php.ini, vm.args, .jvmopts), or that the program sets itself. V8's own
    default, which depends on version and host; the JVM's is worked out as a quarter of the memory.
Checked against:
    Command lines of each runtime, and a node with one of each spelling
    (tests/probes/samplers/test_runtime_limits.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from probes.contract.clock import now_ns
from probes.contract.probe import Probe, ProcessRef, Target
from probes.contract.schema import SERVER_ROLES

_READ_BYTES = 256 << 10
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}

NODE_VARIABLES = ("NODE_OPTIONS",)
JAVA_VARIABLES = ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS")
VARIABLES = (
    *NODE_VARIABLES,
    *JAVA_VARIABLES,
    "GOMEMLIMIT",
    "DOTNET_GCHeapHardLimit",
    "COMPlus_GCHeapHardLimit",
    "ERL_FLAGS",
    "ERL_AFLAGS",
    "ERL_ZFLAGS",
    "ELIXIR_ERL_OPTIONS",
)
"""All that is looked at of a process's environment."""

_V8 = re.compile(r"--max[-_]old[-_]space[-_]size[= ](\d{1,7})(?!\d)")
_XMX = re.compile(r"-(?:Xmx|XX:MaxHeapSize=)(\d{1,15})([kmgtKMGT]?)(?![\w])")
_DIRECT = re.compile(r"-XX:MaxDirectMemorySize=(\d{1,15})([kmgtKMGT]?)(?![\w])")
_RAM_PERCENT = re.compile(r"-XX:MaxRAMPercentage=(\d{1,3}(?:\.\d{1,6})?)(?![\w.])")
_PHP = re.compile(r"memory_limit=(\d{1,15})([kmgKMG]?)(?!\w)")
_GO = re.compile(r"(\d{1,18})(B|KiB|MiB|GiB|TiB)?")
_BEAM = re.compile(r"\+hmax (\d{1,15})(?!\d)")
_JVM_DEFAULT_SHARE = 0.25
_WORD_BYTES = 8

_NODES = ("node", "nodejs", "deno", "electron")


class HeapLimit(NamedTuple):
    """What a runtime was told: which heap, by which option, and its size."""

    limit: str
    option: str
    size_bytes: int


def heap_limits(
    program: str, words: Sequence[str], variables: Mapping[str, str], memory_bytes: int
) -> list[HeapLimit]:
    """What a runtime was told.

    Args:
        program: Name of the executable.
        words: Of its command line, the program first.
        variables: Those of ``VARIABLES`` that are set.
        memory_bytes: Of the host, 0 when not known.

    Returns:
        One a heap.
    """
    line = " ".join(words)
    if program.startswith(_NODES):
        return _of_v8(line, variables)
    if program == "java" or program.startswith("java"):
        return _of_jvm(line, variables, memory_bytes)
    if program.startswith("php"):
        return _told("php_memory", _PHP, [("memory_limit", line)])
    if program.startswith("beam"):
        texts = [("+hmax", line)]
        texts += [(f"+hmax of {name}", value) for name, value in variables.items() if "ER" in name]
        found = [(label, _BEAM.search(text)) for label, text in texts]
        sizes = [(label, int(hit[1]) * _WORD_BYTES) for label, hit in found if hit]
        return [HeapLimit("beam_process", *_last(sizes))] if sizes else []
    return _of_variables(variables)


def _of_v8(line: str, variables: Mapping[str, str]) -> list[HeapLimit]:
    option = "--max-old-space-size"
    texts = [(f"{option} of {name}", variables.get(name, "")) for name in NODE_VARIABLES]
    texts.append((option, line))  # which goes before the environment
    sizes = [(label, int(hit[1]) << 20) for label, text in texts for hit in _V8.finditer(text)]
    return [HeapLimit("v8_old_space", *_last(sizes))] if sizes else []


def _of_jvm(line: str, variables: Mapping[str, str], memory_bytes: int) -> list[HeapLimit]:
    texts = [(f"of {name}", variables.get(name, "")) for name in JAVA_VARIABLES]
    texts.append(("", line))
    labelled = [(f"-Xmx {label}".strip(), text) for label, text in texts]
    found = _told("jvm_heap", _XMX, labelled)
    if not found and memory_bytes:
        shares = [
            (f"-XX:MaxRAMPercentage {label}".strip(), int(float(hit[1]) / 100 * memory_bytes))
            for label, text in texts
            for hit in _RAM_PERCENT.finditer(text)
        ]
        default = [("the JVM's default", int(_JVM_DEFAULT_SHARE * memory_bytes))]
        found = [HeapLimit("jvm_heap", *_last(shares or default))]
    labelled = [(f"-XX:MaxDirectMemorySize {label}".strip(), text) for label, text in texts]
    return found + _told("jvm_direct_memory", _DIRECT, labelled)


def _told(
    limit: str, pattern: re.Pattern[str], texts: Sequence[tuple[str, str]]
) -> list[HeapLimit]:
    sizes = [
        (label, int(hit[1]) << _UNITS[hit[2].lower()])
        for label, text in texts
        for hit in pattern.finditer(text)
    ]
    return [HeapLimit(limit, *_last(sizes))] if sizes else []


def _of_variables(variables: Mapping[str, str]) -> list[HeapLimit]:
    found = []
    go = _GO.fullmatch(variables.get("GOMEMLIMIT", ""))
    if go:
        shift = _UNITS[(go[2] or "B")[0].lower().replace("b", "")]
        found.append(HeapLimit("go_memory", "GOMEMLIMIT", int(go[1]) << shift))
    for name in ("DOTNET_GCHeapHardLimit", "COMPlus_GCHeapHardLimit"):
        value = variables.get(name, "").lower().removeprefix("0x")
        if re.fullmatch(r"[0-9a-f]{1,15}", value):
            found.append(HeapLimit("dotnet_heap", name, int(value, 16)))
            break
    return found


def _last(sizes: Sequence[tuple[str, int]]) -> tuple[str, int]:
    """Of several the last one holds: option and size."""
    return sizes[-1]


class RuntimeLimitsProbe(Probe):
    """Appends rows to ``runtime_limits``, once a process."""

    name = "runtime_limits"
    period_s = 60.0

    def check(self) -> None:
        """Always possible; of another user's process root alone may read the environment."""

    def start(self, target: Target) -> None:
        """Reads what is known of each server process."""
        self.writers = [target.run.writer("runtime_limits", self.name)]
        for ref in target.processes.values():
            self.add_process(ref)

    def add_process(self, ref: ProcessRef) -> None:
        """Reads what is known of one that came later."""
        if ref.role not in SERVER_ROLES:
            return
        for told in limits_of(ref.pid):
            self.writers[0].append(now_ns(), ref.pid, *told)

    def sample(self, at_ns: int) -> None:
        """Nothing: a command line does not change."""

    def stop(self, at_ns: int) -> None:
        """Nothing is open."""


def limits_of(pid: int) -> list[HeapLimit]:
    """Of a process that runs; none of one that is gone."""
    words = _strings(f"/proc/{pid}/cmdline")
    try:
        program = os.path.basename(os.readlink(f"/proc/{pid}/exe"))  # noqa: PTH115, PTH119 - procfs
    except OSError:
        return []
    variables = {}
    for entry in _strings(f"/proc/{pid}/environ"):
        name, _, value = entry.partition("=")
        if name in VARIABLES:
            variables[name] = value
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return heap_limits(program, words, variables, memory_bytes)


def _strings(path: str) -> list[str]:
    """Strings of a file of procfs that end in a zero byte, the first 256 KiB of them."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        return os.read(fd, _READ_BYTES).decode("utf-8", "replace").split("\0")
    except OSError:
        return []
    finally:
        os.close(fd)
