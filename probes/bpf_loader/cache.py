"""Compiled eBPF, kept from run to run: clang needs 0.4 s of a core to say the same again.

``probes/bpf_loader/compile.py`` keeps here what it compiled and the kernel took: the maps, and the
instructions with the names of the maps in place of descriptors. The next run of the same text on
the same kernel makes the maps and loads the instructions by bpf(2) itself, and starts no compiler.
The kernel verifies them anew each time. Whatever does not fit (another text, kernel or bcc, a file
that cannot be read, a program that the kernel refuses) is compiled as if nothing were kept.

Whoever writes here has code loaded into the kernel by root: the folder is root's alone, and a file
that is not is passed over. Deleting it costs the next run its compiler, nothing else.

Source: include/uapi/linux/bpf.h (struct bpf_insn, BPF_PSEUDO_MAP_FD).
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import stat
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probes.bpf_loader import syscalls as bpf_kernel
from probes.bpf_loader.bcc_import import find_bcc, package_directories
from probes.bpf_loader.btf import Btf, MissingTypeError
from probes.bpf_loader.kernel_tree import header_files

FOLDER = Path("/var/cache/connscope")
MOST_FILES = 40
"""An object has 40 kB; there is one for each set of probes and kernel. The oldest go first."""

_LEFT_AFTER_S = 600
_FORMAT = 1
_LOAD_64, _CALL = 0x18, 0x85  # BPF_LD | BPF_DW | BPF_IMM, BPF_JMP | BPF_CALL
_PSEUDO_MAP_FD = 1
_ITERATOR = "bpf_iter__"
_TRACING = 26  # BPF_PROG_TYPE_TRACING

Request = Mapping[str, Any]


class _CannotBeKeptError(ValueError):
    """An instruction refers to something that is neither a map nor a constant."""


def path_of(request: Request) -> Path:
    """Where the object of a request is kept.

    Args:
        request: As ``compile.compile_and_load`` takes it. Its text has the offsets of this
            kernel's structs; headers, kernel and bcc are what else the compiler is given.
    """
    uname = platform.uname()
    bcc = find_bcc(package_directories()) / "libbcc.py"
    at = bcc.stat()
    told = [
        _FORMAT,
        dict(request),  # with the flags of the compiler
        header_files(uname.machine, uname.release, os.sysconf("SC_PAGE_SIZE")),
        [uname.release, uname.version, uname.machine],
        [str(bcc), at.st_size, at.st_mtime_ns],
    ]
    return FOLDER / f"{hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()}.json"


def load(path: Path, btf: Btf, request: Request) -> tuple[dict[str, int], dict[str, int]] | None:
    """Loads what is kept for a request.

    Args:
        path: As ``path_of`` said.
        btf: The kernel's types.
        request: What is wanted.

    Returns:
        Descriptors of the maps that the request names and of its programs; None when nothing is
        kept, or the kernel does not take it.
    """
    opened: list[int] = []
    try:
        kept = _read(path)
        maps: dict[str, int] = {}
        for each in kept["maps"]:
            fd = bpf_kernel.create_map(each["name"], *each["layout"])
            opened.append(fd)
            maps[each["name"]] = fd
        programs: dict[str, int] = {}
        for each in kept["programs"]:
            fd = bpf_kernel.load_program(
                each["name"],
                each["type"],
                _linked(bytes.fromhex(each["code"]), each["maps"], maps),
                kept["license"],
                *_attach_point(btf, each["name"], each["type"], request),
            )
            opened.append(fd)
            programs[each["name"]] = fd
        named = {name: maps[name] for name in request["maps"]}
    except (OSError, ValueError, LookupError, TypeError, struct.error):
        for fd in opened:
            os.close(fd)
        return None
    for name, fd in maps.items():
        if name not in named:
            os.close(fd)  # the programs keep it
    return named, programs


def keep(path: Path, lib: Any, module: Any, request: Request) -> None:
    """Keeps a compiled module; does nothing where that is not possible.

    Args:
        path: As ``path_of`` said.
        lib: ``bcc.libbcc.lib``.
        module: Of ``bcc.BPF``, with every program of the request loaded.
        request: What was compiled.
    """
    try:
        text = json.dumps(_described(lib, module, request))
        folder = path.parent
        folder.mkdir(mode=0o700, exist_ok=True)
        _require_private(folder.lstat(), stat.S_ISDIR)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "w") as stream:
            stream.write(text)
        temporary.replace(path)
        for left in folder.glob(".*.json.*"):  # by one that was killed meanwhile
            if left.lstat().st_mtime < time.time() - _LEFT_AFTER_S:
                left.unlink(missing_ok=True)
        by_age = sorted(folder.glob("*.json"), key=lambda each: each.stat().st_mtime_ns)
        for old in by_age[:-MOST_FILES]:
            old.unlink(missing_ok=True)
    except (OSError, ValueError):
        return


def _described(lib: Any, module: Any, request: Request) -> dict[str, Any]:
    lib.bpf_table_name.restype = ctypes.c_char_p
    lib.bpf_table_name.argtypes = lib.bpf_table_fd_id.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    lib.bpf_num_tables.argtypes = [ctypes.c_void_p]
    names: dict[int, str] = {}
    for index in range(lib.bpf_num_tables(module)):
        names[lib.bpf_table_fd_id(module, index)] = lib.bpf_table_name(module, index).decode()
    programs = []
    for name, program_type in request["programs"].items():
        start = lib.bpf_function_start(module, name.encode())
        code = ctypes.string_at(start, lib.bpf_function_size(module, name.encode()))
        references = _map_references(code, names)
        programs.append(
            {"name": name, "type": program_type, "code": code.hex(), "maps": references}
        )
    return {
        "maps": [{"name": name, "layout": bpf_kernel.map_layout(fd)} for fd, name in names.items()],
        "programs": programs,
        "license": lib.bpf_module_license(module).decode(),
    }


def _map_references(code: bytes, names: Mapping[int, str]) -> list[tuple[int, str]]:
    """(offset of the instruction in bytes, name of the map) of each use of a map."""
    found, at = [], 0
    while at < len(code):
        opcode, registers, _, value = struct.unpack_from("=BBhi", code, at)
        kind = registers >> 4
        if opcode == _LOAD_64:
            if kind == _PSEUDO_MAP_FD:
                found.append((at, names[value]))
            elif kind:
                raise _CannotBeKeptError(f"a reference of kind {kind}")
            at += 8  # it has two slots
        elif opcode == _CALL and kind:
            raise _CannotBeKeptError(f"a call of kind {kind}")
        at += 8
    return found


def _linked(code: bytes, references: list[tuple[int, str]], maps: Mapping[str, int]) -> bytes:
    linked = bytearray(code)
    for at, name in references:
        struct.pack_into("=i", linked, at + 4, maps[name])
    return bytes(linked)


def _attach_point(btf: Btf, name: str, program_type: int, request: Request) -> tuple[int, int]:
    """What the kernel wants to know of a program when it loads: attach type and BTF id."""
    if program_type == _TRACING:
        if not name.startswith(_ITERATOR):
            raise MissingTypeError(f"iterator {name}")
        target = f"bpf_iter_{name.removeprefix(_ITERATOR)}"
        return bpf_kernel.ATTACH_TRACE_ITER, btf.function_id(target)
    return request["attach_types"].get(name, 0), 0


def _read(path: Path) -> dict[str, Any]:
    _require_private(path.parent.lstat(), stat.S_ISDIR)
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd) as stream:
        _require_private(os.fstat(fd), stat.S_ISREG)
        kept: dict[str, Any] = json.load(stream)
    return kept


def _require_private(at: os.stat_result, is_kind: Any) -> None:
    if not is_kind(at.st_mode) or at.st_uid != 0 or at.st_mode & 0o022:
        raise PermissionError("not root's alone")
