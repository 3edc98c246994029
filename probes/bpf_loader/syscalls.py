"""bpf(2) and perf_event_open(2) on descriptors that exist already: maps, links, run time.

Compiling needs LLVM and happens in another process (``probes/bpf_loader/compile.py``); what is left
here is a handful of system calls, so the probe process stays small. Maps are read in bulk, as bytes
into numpy.

Source: include/uapi/linux/bpf.h, include/uapi/linux/perf_event.h; bpf(2), perf_event_open(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import resource
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.contract.probe import never

MAP_CREATE, MAP_LOOKUP, MAP_UPDATE, MAP_DELETE, PROG_LOAD, OBJ_GET_INFO = 0, 1, 2, 3, 5, 15
PROG_TEST_RUN = 10
RAW_TRACEPOINT_OPEN, LOOKUP_BATCH, LOOKUP_AND_DELETE_BATCH = 17, 24, 25
LINK_CREATE, ITER_CREATE = 28, 33
ATTACH_TRACE_ITER = 28

_PERCPU_ARRAY = 6  # BPF_MAP_TYPE_PERCPU_ARRAY
_PERCPU_MAP_TYPES = frozenset({5, _PERCPU_ARRAY, 10})  # _PERCPU_HASH, _LRU_PERCPU_HASH
_ENOTSUPP = 524  # include/linux/errno.h; no errno of user space
_SYSCALLS = {"x86_64": (321, 298)}  # bpf, perf_event_open
_GENERIC_SYSCALLS = (280, 241)  # include/uapi/asm-generic/unistd.h: arm64, riscv64, loongarch64

_PERF_TYPE_SOFTWARE, _PERF_COUNT_SW_CPU_CLOCK = 1, 0
_PERF_ATTR_BYTES = 128
_PERF_EXCLUDE_IDLE, _PERF_FREQUENCY = 1 << 7, 1 << 10
_PERF_IOC_ENABLE, _PERF_IOC_SET_BPF = 0x2400, 0x40042408
_PERF_FLAG_FD_CLOEXEC = 8

_BATCH_COUNT = 1024


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _numbers() -> tuple[int, int]:
    return _SYSCALLS.get(platform.machine(), _GENERIC_SYSCALLS)


def bpf(command: int, attributes: ctypes.Array[ctypes.c_char]) -> int:
    """One call of the kernel's eBPF interface.

    Args:
        command: BPF_* command.
        attributes: union bpf_attr as bytes; the kernel may write to it.

    Raises:
        OSError: As the kernel says.
    """
    result: int = _libc().syscall(
        _numbers()[0], command, ctypes.byref(attributes), ctypes.sizeof(attributes)
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _attributes(layout: str, *values: int) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(struct.pack("=" + layout, *values), struct.calcsize(layout))


@cache
def possible_cpu_count() -> int:
    """CPUs that the kernel keeps a per-CPU value for (may be more than are online)."""
    last = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii").strip()
    return int(last.replace(",", "-").split("-")[-1]) + 1


def online_cpus() -> list[int]:
    """Numbers of the CPUs that are online."""
    cpus: list[int] = []
    text = Path("/sys/devices/system/cpu/online").read_text(encoding="ascii").strip()
    for part in text.split(","):
        low, _, high = part.partition("-")
        cpus.extend(range(int(low), int(high or low) + 1))
    return cpus


def _info(fd: int, size_bytes: int) -> bytes:
    buffer = ctypes.create_string_buffer(size_bytes)
    bpf(OBJ_GET_INFO, _attributes("IIQ", fd, size_bytes, ctypes.addressof(buffer)))
    return buffer.raw


_NAME_BYTES = 15  # BPF_OBJ_NAME_LEN less its end


def map_layout(fd: int) -> list[int]:
    """Type, bytes of a key, bytes of a value, entries and flags of a map, as ``create_map`` takes.

    Raises:
        OSError: As the kernel says.
    """
    map_type, _, *layout = struct.unpack_from("=6I", _info(fd, 80))
    return [map_type, *layout]


def create_map(
    name: str, map_type: int, key_bytes: int, value_bytes: int, max_entries: int, flags: int
) -> int:
    """A new map; its descriptor is the caller's.

    Raises:
        OSError: As the kernel says.
    """
    raw = name.encode()[:_NAME_BYTES]
    values = (map_type, key_bytes, value_bytes, max_entries, flags, 0, 0)
    packed = struct.pack("=7I16s", *values, raw)
    try:
        return bpf(MAP_CREATE, ctypes.create_string_buffer(packed, len(packed)))
    except PermissionError:
        # Before Linux 5.11 maps count as locked memory (kernel/bpf/syscall.c, bpf_charge_memlock).
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        if resource.getrlimit(resource.RLIMIT_MEMLOCK) == unlimited:
            raise
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, unlimited)
        return bpf(MAP_CREATE, ctypes.create_string_buffer(packed, len(packed)))


def load_program(
    name: str, program_type: int, code: bytes, licence: str, attach_type: int, attach_btf_id: int
) -> int:
    """Has the kernel verify a program; its descriptor is the caller's.

    Args:
        name: Shown by ``bpftool prog``.
        program_type: BPF_PROG_TYPE_*.
        code: Instructions (struct bpf_insn).
        licence: Some helpers are for GPL programs only.
        attach_type: BPF_* where the type wants one, else 0.
        attach_btf_id: The kernel function of a tracing program, else 0.

    Raises:
        OSError: The kernel refuses it.
    """
    instructions = ctypes.create_string_buffer(code, len(code))
    words = ctypes.create_string_buffer(licence.encode())
    addresses = ctypes.addressof(instructions), ctypes.addressof(words)
    raw = name.encode()[:_NAME_BYTES]
    packed = struct.pack(
        "=IIQQIIQII16sII",
        *(program_type, len(code) // 8, *addresses, 0, 0, 0, 0, 0, raw, 0, attach_type),
    )
    if attach_btf_id:  # the kernel refuses what is longer than it knows
        packed += struct.pack("=IIQIIQII", 0, 0, 0, 0, 0, 0, 0, attach_btf_id)
    return bpf(PROG_LOAD, ctypes.create_string_buffer(packed, len(packed)))


class BpfMap:
    """One map, by its descriptor, which this object owns.

    Keys and values are numpy structured types, so that a whole map becomes two arrays.

    Args:
        fd: Descriptor of the map.
        key: Type of a key.
        value: Type of a value (of one CPU).

    Raises:
        ValueError: The sizes are not those of the map.
    """

    def __init__(self, fd: int, key: npt.DTypeLike, value: npt.DTypeLike) -> None:
        self.fd = fd
        self.key, self.value = np.dtype(key), np.dtype(value)
        self.type, _, key_bytes, value_bytes, self.max_entries = struct.unpack_from(
            "=5I", _info(fd, 80)
        )
        if (self.key.itemsize, self.value.itemsize) != (key_bytes, value_bytes):
            raise ValueError(
                f"map has keys of {key_bytes} and values of {value_bytes} bytes, not "
                f"{self.key.itemsize} and {self.value.itemsize}"
            )
        per_cpu = self.type in _PERCPU_MAP_TYPES
        self._copies = possible_cpu_count() if per_cpu else 1
        # per-CPU values are laid out at multiples of 8 bytes
        self._stride = (value_bytes + 7) & ~7 if per_cpu else value_bytes

    def close(self) -> None:
        """Closes the descriptor; programs that use the map keep it alive."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def get(self, key: Any) -> npt.NDArray[Any] | None:
        """One value as an array with one element per CPU (one for a shared map), or None."""
        wanted = np.array([key], dtype=self.key)
        found = np.zeros(self._copies * self._stride, dtype=np.uint8)
        try:
            bpf(MAP_LOOKUP, _attributes("IIQQQ", self.fd, 0, _at(wanted), _at(found), 0))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return self._values(found)

    def put(self, key: Any, value: Any) -> None:
        """Writes one value, the same for every CPU.

        Raises:
            OSError: The map is full (E2BIG).
        """
        wanted = np.array([key], dtype=self.key)
        one = np.zeros(self._stride, dtype=np.uint8)
        one[: self.value.itemsize] = np.array([value], dtype=self.value).view(np.uint8)
        values = np.tile(one, self._copies)
        bpf(MAP_UPDATE, _attributes("IIQQQ", self.fd, 0, _at(wanted), _at(values), 0))

    def delete(self, key: Any) -> bool:
        """Deletes one key; False when it was not there."""
        wanted = np.array([key], dtype=self.key)
        try:
            bpf(MAP_DELETE, _attributes("IIQ", self.fd, 0, _at(wanted)))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def items(self, *, delete: bool = False) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """All keys, and values as (keys, CPUs), by few system calls.

        Hashes and arrays have batches since Linux 5.6, per-CPU arrays since 5.13: before it each
        element is looked up.

        Args:
            delete: Takes the entries out of the map in the same step.
        """
        command = LOOKUP_AND_DELETE_BATCH if delete else LOOKUP_BATCH
        token = np.zeros(max(8, self.key.itemsize), dtype=np.uint8)
        keys_read: list[npt.NDArray[Any]] = []
        values_read: list[npt.NDArray[Any]] = []
        started, wanted = False, min(_BATCH_COUNT, self.max_entries)
        while True:
            keys = np.zeros(wanted, dtype=self.key)
            values = np.zeros(wanted * self._copies * self._stride, dtype=np.uint8)
            first = _at(token) if started else 0
            attributes = _attributes(
                "QQQQIIQQ", first, _at(token), _at(keys), _at(values), wanted, self.fd, 0, 0
            )
            try:
                bpf(command, attributes)
                done = False
            except OSError as error:
                if error.errno == errno.ENOSPC and wanted < self.max_entries:
                    wanted = min(2 * wanted, self.max_entries)  # a bucket that did not fit
                    continue
                if error.errno == _ENOTSUPP and self.type == _PERCPU_ARRAY:
                    return self._elements()
                if error.errno != errno.ENOENT:
                    raise
                done = True
            count = struct.unpack_from("=I", attributes, 32)[0]
            started = True
            keys_read.append(keys[:count])
            values_read.append(self._values(values)[: count * self._copies])
            if done:
                every = np.concatenate(values_read).reshape(-1, self._copies)
                return np.concatenate(keys_read), every

    def _elements(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        keys = np.arange(self.max_entries).astype(self.key)
        found = [self.get(key) for key in keys]
        return keys, np.stack([each for each in found if each is not None])

    def _values(self, raw: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        rows = raw.reshape(-1, self._stride)[:, : self.value.itemsize]
        return np.ascontiguousarray(rows).view(self.value).reshape(-1)


def _at(values: npt.NDArray[Any]) -> int:
    return int(values.ctypes.data)


def run_raw_tracepoint(program_fd: int) -> None:
    """Runs a raw tracepoint program once, in the context of this thread, without its event.

    Source: net/bpf/test_run.c, bpf_prog_test_run_raw_tp (Linux 5.10).

    Raises:
        OSError: The kernel cannot, or refuses.
    """
    bpf(PROG_TEST_RUN, _attributes("IIIIQQIIIIQQIII", program_fd, *(0,) * 14))


def attach_raw_tracepoint(program_fd: int, event: str) -> int:
    """Attaches; the program runs until the returned descriptor is closed.

    Raises:
        OSError: The kernel has no such tracepoint or refuses the program.
    """
    name = ctypes.create_string_buffer(event.encode())
    return bpf(RAW_TRACEPOINT_OPEN, _attributes("QIIQ", ctypes.addressof(name), program_fd, 0, 0))


def attach_cpu_clock(program_fd: int, frequency_hz: int, cpu: int) -> int:
    """Runs a perf-event program at a fixed rate on one core, whatever runs there.

    Returns:
        A descriptor; closing it ends the sampling.

    Raises:
        OSError: perf events are not there or not allowed.
    """
    attributes = bytearray(_PERF_ATTR_BYTES)
    head = (_PERF_TYPE_SOFTWARE, _PERF_ATTR_BYTES, _PERF_COUNT_SW_CPU_CLOCK, frequency_hz)
    struct.pack_into("=IIQQ", attributes, 0, *head)
    struct.pack_into("=Q", attributes, 40, _PERF_EXCLUDE_IDLE | _PERF_FREQUENCY)
    raw = ctypes.create_string_buffer(bytes(attributes), _PERF_ATTR_BYTES)
    libc = _libc()
    fd: int = libc.syscall(
        _numbers()[1], ctypes.byref(raw), -1, cpu, -1, ctypes.c_ulong(_PERF_FLAG_FD_CLOEXEC)
    )
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    for request, argument in ((_PERF_IOC_SET_BPF, program_fd), (_PERF_IOC_ENABLE, 0)):
        if libc.ioctl(fd, ctypes.c_ulong(request), argument) < 0:
            code = ctypes.get_errno()
            os.close(fd)
            raise OSError(code, os.strerror(code))
    return fd


def attach_iterator(program_fd: int) -> int:
    """Makes a link to an iterator program, for ``open_iterator``.

    Raises:
        OSError: The kernel has no such iterator.
    """
    return bpf(
        LINK_CREATE, _attributes("IIIIQIIQ", program_fd, 0, ATTACH_TRACE_ITER, 0, 0, 0, 0, 0)
    )


def read_iterator(
    link_fd: int, record_bytes: int, is_enough: Callable[[], bool] = never
) -> bytes | None:
    """Runs the iterator over everything once and returns what its program wrote.

    Args:
        link_fd: Of ``attach_iterator``.
        record_bytes: Asked for at a time: read(2) returns, and the core may be given away, once the
            program has written so much (kernel/bpf/bpf_iter.c, bpf_seq_read).
        is_enough: Asked each time; the walk ends when it says so.

    Returns:
        None when it ended before everything was seen.

    Raises:
        OSError: As read(2).
    """
    fd = bpf(ITER_CREATE, _attributes("II", link_fd, 0))
    parts: list[bytes] = []
    try:
        while not is_enough():
            try:
                part = os.read(fd, record_bytes)
            except BlockingIOError:
                continue  # a million objects without output: the kernel takes a breath
            if not part:
                return b"".join(parts)
            parts.append(part)
        return None
    finally:
        os.close(fd)


def counts_run_time() -> bool:
    """Whether the kernel adds up the CPU time of programs."""
    try:
        enabled = Path("/proc/sys/kernel/bpf_stats_enabled").read_text(encoding="ascii").strip()
    except OSError:
        return False
    return enabled != "0"


def program_count(program_fd: int, offset_bytes: int) -> int:
    """One 64-bit number of what the kernel tells about a program.

    Args:
        program_fd: The program.
        offset_bytes: Where it is in this kernel's ``struct bpf_prog_info``.
    """
    return int(struct.unpack_from("=Q", _info(program_fd, offset_bytes + 16), offset_bytes)[0])
