"""A tiny kernel source tree for bcc, and structs with exactly the fields that a probe reads.

bcc compiles against kernel headers and fails where they are missing, or reads wrong offsets where
they are of another version. Here ``BCC_KERNEL_SOURCE`` points to a private directory with the few
headers that bcc itself includes, and every kernel struct is generated from the running kernel's
BTF: packed, explicit byte padding up to each field, the offset asserted again by the compiler.
Nothing is left to layout rules (LLVM 14 misplaces members behind anonymous bit-fields).

The whole ``vmlinux.h`` is no alternative: besides that misplacement, bcc names helper functions
that older kernels' types lack, and compiling it takes three times as long.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from probes.bpf_loader.btf import Btf, Field

_PREFIX = "connscope-tree-"
_LEFT_AFTER_S = 600.0
"""A compiler is given a minute."""

_TYPES_H = """\
#ifndef CONNSCOPE_LINUX_TYPES_H
#define CONNSCOPE_LINUX_TYPES_H
typedef signed char __s8;
typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;
typedef __s8 s8;
typedef __u8 u8;
typedef __s16 s16;
typedef __u16 u16;
typedef __s32 s32;
typedef __u32 u32;
typedef __s64 s64;
typedef __u64 u64;
typedef __u16 __le16, __be16, __sum16;
typedef __u32 __le32, __be32, __wsum;
typedef __u64 __le64, __be64;
typedef _Bool bool;
typedef unsigned long size_t;
typedef long ssize_t;
typedef int pid_t;
typedef unsigned long uintptr_t;
#define NULL ((void *)0)
#define true 1
#define false 0
#define __always_inline inline __attribute__((always_inline))
#define __aligned_u64 __u64 __attribute__((aligned(8)))
#endif
"""

_ARCHITECTURE_CONFIG = {
    "x86_64": "CONFIG_X86_64",
    "aarch64": "CONFIG_ARM64",
    "ppc64le": "CONFIG_PPC64",
    "s390x": "CONFIG_S390",
    "riscv64": "CONFIG_RISCV",
}

_LOG2_H = """\
#ifndef CONNSCOPE_LINUX_LOG2_H
#define CONNSCOPE_LINUX_LOG2_H
#define roundup_pow_of_two(n) ((n) <= 1 ? 1 : 1ULL << (64 - __builtin_clzll((n) - 1)))
#endif
"""

_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_INTEGER_BYTES = (1, 2, 4, 8)


def version_code(release: str) -> int:
    """LINUX_VERSION_CODE of a release string such as ``6.1.0-56-cloud-amd64``.

    The patch level has one byte, as in the kernel's own Makefile since 4.4.256.
    """
    numbers = [int(n) for n in re.findall(r"\d+", release.partition("-")[0])[:3]]
    major, minor, patch = (*numbers, 0, 0, 0)[:3]
    return major << 16 | minor << 8 | min(patch, 255)


def header_files(machine: str, release: str, page_size_bytes: int) -> dict[str, str]:
    """The tree's files by path below it.

    Args:
        machine: As ``uname -m``.
        release: As ``uname -r``.
        page_size_bytes: Of the running kernel.
    """
    config = _ARCHITECTURE_CONFIG.get(machine)
    kconfig = "#define CONFIG_BPF_SYSCALL 1\n" + (f"#define {config} 1\n" if config else "")
    files = {
        "linux/types.h": _TYPES_H,
        "linux/kconfig.h": kconfig,
        "linux/log2.h": _LOG2_H,
        "asm/page.h": f"#define PAGE_SIZE {page_size_bytes}UL\n",
        "linux/version.h": (
            f"#define LINUX_VERSION_CODE {version_code(release)}\n"
            "#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))\n"
        ),
        "uapi/linux/bpf.h": "#include <linux/bpf.h>\n",
    }
    # bcc includes these by name but brings the definitions itself
    for empty in ("linux/bpf_common.h", "linux/bpf.h"):
        files[empty] = ""
    for empty in ("if_packet.h", "if_ether.h", "ptrace.h"):
        files[f"uapi/linux/{empty}"] = ""
    return {f"include/{path}": text for path, text in files.items()}


@contextmanager
def kernel_tree() -> Iterator[Path]:
    """Makes the tree in a directory that only this user can enter; gone after the ``with``."""
    uname = platform.uname()
    _remove_left_ones()
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name:
        root = Path(name)
        files = header_files(uname.machine, uname.release, os.sysconf("SC_PAGE_SIZE"))
        for path, text in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="ascii")
        yield root


def _remove_left_ones() -> None:
    """Trees of compilers that were killed: no process can take its own away then."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            found = left.lstat()
            is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
            if is_ours and found.st_mtime < time.time() - _LEFT_AFTER_S:
                shutil.rmtree(left)


def struct_source(btf: Btf, struct: str, fields: Mapping[str, Sequence[str]]) -> str:
    """C for one kernel struct that holds only the fields named.

    Args:
        btf: The kernel's types.
        struct: Name of the kernel's struct, also the name in C.
        fields: Name in C by the spellings to try in the kernel, first found wins:
            ``{"skc_num": ["__sk_common.skc_num"], "state": ["__state", "state"]}``.

    Returns:
        The definition and its static assertions.

    Raises:
        probes.bpf_loader.btf.MissingTypeError: This kernel lacks the struct or one of the fields.
        ValueError: Two fields share bytes, a name is no C, or a field is a bit-field or struct.
    """
    found = [(name, btf.first_field(struct, *paths)) for name, paths in fields.items()]
    found.sort(key=lambda pair: pair[1].offset_bytes)
    lines, asserts, at = [f"struct {struct} {{"], [], 0
    for name, field in found:
        if not _FIELD_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no C name")
        gap = field.offset_bytes - at
        if gap < 0:
            raise ValueError(f"struct {struct}: {name} shares bytes with the field before it")
        if gap:
            lines.append(f"  unsigned char _until_{name}[{gap}];")
        lines.append(f"  {_declaration(struct, name, field)};")
        offset = f"__builtin_offsetof(struct {struct}, {name}) == {field.offset_bytes}"
        asserts.append(f'_Static_assert({offset}, "{struct}.{name}");')
        size = f"sizeof(((struct {struct} *)0)->{name}) == {field.size_bytes}"
        asserts.append(f'_Static_assert({size}, "size of {struct}.{name}");')
        at = field.offset_bytes + field.size_bytes
    # aligned(8): without it LLVM reads packed members byte by byte, which the verifier refuses for
    # context fields. Every kernel object behind these structs is at least so aligned.
    lines.append("} __attribute__((packed, aligned(8)));")
    return "\n".join(lines + asserts) + "\n"


def _declaration(struct: str, name: str, field: Field) -> str:
    if field.kind == "pointer":
        return f"void *{name}"
    if field.kind == "struct" or field.element_size_bytes not in _INTEGER_BYTES:
        raise ValueError(f"{struct}.{field.path} is no integer, pointer or array of integers")
    sign = "s" if field.signed else "u"
    base = f"{sign}{8 * field.element_size_bytes}"
    if field.kind == "array":
        return f"{base} {name}[{field.size_bytes // field.element_size_bytes}]"
    return f"{base} {name}"
