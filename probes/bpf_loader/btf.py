"""The running kernel's types, read from ``/sys/kernel/btf/vmlinux`` in pure Python.

Field offsets, sizes, enum values and the argument types of raw tracepoints differ between kernel
versions and configurations; the kernel carries its own. A probe asks here before anything is
compiled, so a field that this kernel lacks becomes a line in ``probe_health`` and not a wrong
number.

Format: Documentation/bpf/btf.rst; include/uapi/linux/btf.h. Checked against ``bpftool btf dump``.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from probes.contract.errors import ProbeUnavailableError

VMLINUX_BTF = Path("/sys/kernel/btf/vmlinux")

_MAGIC = 0xEB9F
_HEADER = struct.Struct("=HBBIIIII")

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF = 1, 2, 3, 4, 5, 6, 7, 8
VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC = 9, 10, 11, 12, 13, 14, 15
FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = 16, 17, 18, 19

_MODIFIERS = frozenset({TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG})
_POINTER_BYTES = struct.calcsize("P")

# 32-bit words behind the three of struct btf_type: a fixed part, and one part per member
_FIXED_WORDS = {INT: 1, ARRAY: 3, VAR: 1, DECL_TAG: 1}
_MEMBER_WORDS = {STRUCT: 3, UNION: 3, ENUM: 2, FUNC_PROTO: 2, DATASEC: 3, ENUM64: 3}


class MissingTypeError(LookupError):
    """This kernel has no such struct, field, enum or tracepoint.

    Args:
        name: What is missing, ``struct sock``; ``probes/bpf_loader/kernel_features.py`` knows who
            has it.
        message: For people; made of the name when empty.
    """

    def __init__(self, name: str, message: str = "") -> None:
        super().__init__(message or f"this kernel has no {name}")
        self.name = name


@dataclass(frozen=True, slots=True)
class Field:
    """Where a field is and what it is.

    Attributes:
        path: As asked for, dots between nested members.
        offset_bytes: From the start of the outermost struct.
        size_bytes: Of the field; of the whole array for an array.
        kind: int, pointer, enum, array or struct (a union counts as struct).
        signed: Only for integers and enums.
        element_size_bytes: Of one element for an array, else ``size_bytes``.
        type_id: BTF id of the type behind typedefs and qualifiers.
    """

    path: str
    offset_bytes: int
    size_bytes: int
    kind: str
    signed: bool
    element_size_bytes: int
    type_id: int


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    type_id: int
    offset_bits: int
    width_bits: int


class Btf:
    """One BTF blob.

    Args:
        blob: The whole file.

    Raises:
        ProbeUnavailableError: Not BTF, or cut short, or of a kind this reader does not know.
    """

    def __init__(self, blob: bytes) -> None:
        if len(blob) < _HEADER.size or _HEADER.unpack_from(blob)[0] != _MAGIC:
            raise _unreadable("it has no BTF header")
        header = _HEADER.unpack_from(blob)
        header_bytes, types_at, types_bytes, names_at, names_bytes = header[3:]
        if header_bytes + max(types_at + types_bytes, names_at + names_bytes) > len(blob):
            raise _unreadable(f"it is cut short at {len(blob)} bytes")
        start = header_bytes + types_at
        self._words = memoryview(blob[start : start + types_bytes]).cast("I")
        start = header_bytes + names_at
        self._names = blob[start : start + names_bytes]
        self._starts = _index(self._words)
        self._structs: dict[str, int] = {}  # by name, 0 for one that is not there
        starts = np.frombuffer(self._starts, dtype=np.uint32)[1:]
        words = np.frombuffer(self._words, dtype=np.uint32)
        self._name_offsets: npt.NDArray[np.uint32] = words[starts]
        self._kinds: npt.NDArray[np.uint32] = (words[starts + 1] >> np.uint32(24)) & np.uint32(0x1F)

    @classmethod
    def of_kernel(cls, path: Path = VMLINUX_BTF) -> Btf:
        """Reads the running kernel's types.

        Raises:
            ProbeUnavailableError: The kernel was built without CONFIG_DEBUG_INFO_BTF.
        """
        try:
            return cls(path.read_bytes())
        except OSError as error:
            raise ProbeUnavailableError(
                f"no kernel type information: {path}: {error.strerror}",
                fix="boot a kernel with CONFIG_DEBUG_INFO_BTF=y (Debian 11, Ubuntu 20.10 or newer)",
            ) from error

    # -- lookup by name ------------------------------------------------------------------------

    def _find(self, name: str, kinds: Collection[int]) -> Iterator[int]:
        wanted = name.encode() + b"\0"
        offsets, at = [], self._names.find(wanted)
        while at >= 0:
            offsets.append(at)
            at = self._names.find(wanted, at + 1)
        # kind: the other way sorts, which numpy does with AVX2, which QEMU 7 emulates wrongly
        hits = np.isin(self._name_offsets, np.array(offsets, dtype=np.uint32), kind="table")
        for index in np.flatnonzero(hits):
            if self._kinds[index] in kinds:
                yield int(index) + 1

    def struct_id(self, name: str) -> int:
        """The BTF id of a struct or union.

        Raises:
            MissingTypeError: This kernel has none of that name.
        """
        known = self._structs.get(name)
        if known is None:
            known = self._structs[name] = next(self._find(name, (STRUCT, UNION)), 0)
        if known:
            return known
        raise MissingTypeError(f"struct {name}")

    def size_bytes(self, struct_name: str) -> int:
        """The size of a struct or union.

        Raises:
            MissingTypeError: This kernel has none of that name.
        """
        return self._size_bytes(self.struct_id(struct_name))

    def field(self, struct_name: str, path: str) -> Field:
        """Finds a field by its path, ``__sk_common.skc_num``, also in anonymous members.

        Raises:
            MissingTypeError: This kernel lacks the struct or the field.
            ValueError: The field is a bit-field, which has no byte address.
        """
        type_id, bits = self.struct_id(struct_name), 0
        for part in path.split("."):
            found = self._member(self._resolve(type_id), part)
            if found is None:
                raise MissingTypeError(f"field {struct_name}.{path}")
            if found.width_bits:
                raise ValueError(f"{struct_name}.{path} is a bit-field of {found.width_bits} bits")
            type_id, bits = found.type_id, bits + found.offset_bits
        return self._describe(path, self._resolve(type_id), bits // 8)

    def first_field(self, struct_name: str, *paths: str) -> Field:
        """The first of several spellings that this kernel has (fields get renamed).

        Raises:
            MissingTypeError: It has none of them.
        """
        for path in paths:
            try:
                return self.field(struct_name, path)
            except MissingTypeError:
                continue
        raise MissingTypeError(f"field {struct_name}.{' or '.join(paths)}")

    def has_field(self, struct_name: str, path: str) -> bool:
        """Whether this kernel has the struct and the field in it."""
        try:
            self.field(struct_name, path)
        except MissingTypeError:
            return False
        return True

    def function_id(self, name: str) -> int:
        """The BTF id of a kernel function.

        Raises:
            MissingTypeError: This kernel has none of that name.
        """
        for type_id in self._find(name, (FUNC,)):
            return type_id
        raise MissingTypeError(f"function {name}")

    def enum(self, name: str) -> dict[str, int]:
        """Values of an enum by enumerator.

        Raises:
            MissingTypeError: This kernel has no such enum.
        """
        for type_id in self._find(name, (ENUM, ENUM64)):
            return self._enumerators(type_id)
        raise MissingTypeError(f"enum {name}")

    def tracepoint_arguments(self, event: str) -> list[str]:
        """Type names of a raw tracepoint's arguments, without the data pointer before them.

        A pointer to a struct is the struct's name, an enum the enum's; ``args[i]`` in a program is
        entry ``i``. Source: the ``btf_trace_<event>`` typedefs of include/trace/bpf_probe.h.

        Raises:
            MissingTypeError: This kernel has no such tracepoint.
        """
        for type_id in self._find(f"btf_trace_{event}", (TYPEDEF,)):
            proto = self._resolve(self._word(self._resolve(type_id), 2))
            if self._kind(proto) == FUNC_PROTO:
                count = self._word(proto, 1) & 0xFFFF
                return [
                    self._spelling(self._word(proto, 3 + 2 * index + 1))
                    for index in range(1, count)
                ]
        raise MissingTypeError(f"tracepoint {event}")

    # -- one type ------------------------------------------------------------------------------

    def _word(self, type_id: int, index: int) -> int:
        return self._words[self._starts[type_id] + index]

    def _kind(self, type_id: int) -> int:
        return int(self._kinds[type_id - 1]) if type_id else 0

    def _text(self, offset: int) -> str:
        return self._names[offset : self._names.index(b"\0", offset)].decode()

    def _resolve(self, type_id: int) -> int:
        while self._kind(type_id) in _MODIFIERS:
            type_id = self._word(type_id, 2)
        return type_id

    def _spelling(self, type_id: int) -> str:
        while self._kind(type_id) in _MODIFIERS or self._kind(type_id) == PTR:
            type_id = self._word(type_id, 2)
        return self._text(self._word(type_id, 0)) if type_id else "void"

    def _size_bytes(self, type_id: int) -> int:
        type_id = self._resolve(type_id)
        kind = self._kind(type_id)
        if kind == PTR:
            return _POINTER_BYTES
        if kind == ARRAY:
            return self._word(type_id, 5) * self._size_bytes(self._word(type_id, 3))
        if kind in (INT, STRUCT, UNION, ENUM, ENUM64, FLOAT):
            return self._word(type_id, 2)
        raise MissingTypeError(
            f"size of BTF type {type_id}", f"BTF type {type_id} of kind {kind} has no size"
        )

    def _members(self, type_id: int) -> Iterator[_Member]:
        info = self._word(type_id, 1)
        for index in range(info & 0xFFFF):
            name, member_type, offset = (
                self._word(type_id, 3 + 3 * index + word) for word in range(3)
            )
            width = 0
            if info >> 31:  # kind_flag: the offset word carries a bit-field's width above it
                offset, width = offset & 0xFFFFFF, offset >> 24
            yield _Member(self._text(name), member_type, offset, width)

    def _member(self, type_id: int, name: str) -> _Member | None:
        if self._kind(type_id) not in (STRUCT, UNION):
            return None
        for member in self._members(type_id):
            if member.name == name:
                return member
            if not member.name:
                inner = self._member(self._resolve(member.type_id), name)
                if inner is not None:
                    return _Member(
                        name,
                        inner.type_id,
                        member.offset_bits + inner.offset_bits,
                        inner.width_bits,
                    )
        return None

    def _enumerators(self, type_id: int) -> dict[str, int]:
        info = self._word(type_id, 1)
        signed, wide = info >> 31, self._kind(type_id) == ENUM64
        stride, width = (3, 64) if wide else (2, 32)
        values: dict[str, int] = {}
        for index in range(info & 0xFFFF):
            at = 3 + stride * index
            value = self._word(type_id, at + 1)
            if wide:
                value |= self._word(type_id, at + 2) << 32
            if signed and value >> (width - 1):
                value -= 1 << width
            values[self._text(self._word(type_id, at))] = value
        return values

    def _describe(self, path: str, type_id: int, offset_bytes: int) -> Field:
        kind, size = self._kind(type_id), self._size_bytes(type_id)
        element, signed, named = size, False, "struct"
        if kind == INT:
            named, signed = "int", bool((self._word(type_id, 3) >> 24) & 1)
        elif kind in (ENUM, ENUM64):
            named, signed = "enum", bool(self._word(type_id, 1) >> 31)
        elif kind == PTR:
            named = "pointer"
        elif kind == ARRAY:
            named, element = "array", self._size_bytes(self._word(type_id, 3))
        return Field(path, offset_bytes, size, named, signed, element, type_id)


def _index(words: memoryview[int]) -> array[int]:
    """Word offset of every type by id; id 0 is void. One pass, the only loop over all types."""
    fixed = [3 + _FIXED_WORDS.get(kind, 0) for kind in range(32)]
    per_member = [_MEMBER_WORDS.get(kind, 0) for kind in range(32)]
    starts, at, end = array("I", [0]), 0, len(words)
    append = starts.append
    while at < end:
        append(at)
        info = words[at + 1]
        kind = (info >> 24) & 0x1F
        if not 1 <= kind <= ENUM64:
            raise ProbeUnavailableError(
                f"the BTF of Linux {os.uname().release} has types of kind {kind}, which are newer "
                f"than this version of connscope (it knows 1 to {ENUM64})",
                fix="take a newer connscope, or leave eBPF out: --probes "
                "live_samples,process_samples,host_counters",
            )
        at += fixed[kind] + per_member[kind] * (info & 0xFFFF)
    if at != end:
        raise _unreadable("its last type is cut short")
    return starts


def _unreadable(why: str) -> ProbeUnavailableError:
    return ProbeUnavailableError(
        f"cannot read the kernel's BTF: {why}",
        fix=f"check with: bpftool btf dump file {VMLINUX_BTF} format raw | head",
    )
