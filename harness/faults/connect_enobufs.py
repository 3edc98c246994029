"""Makes connect(2) fail with a real ENOBUFS in one cgroup: ``--inject connect-enobufs``.

A ``cgroup/connect4`` program (``harness/faults/bpf/connect_enobufs.c``) on a cgroup of version 2,
into which only the clients that shall fail are moved. The program is held by a link: it is gone
with its descriptor, so with the process that holds it, however that ends.

Source: include/uapi/linux/bpf.h (BPF_LINK_CREATE, BPF_CGROUP_INET4_CONNECT), net/ipv4/af_inet.c.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path

from probes.bpf_loader import syscalls as bpf_kernel
from probes.bpf_loader.btf import Btf
from probes.bpf_loader.program import BpfObject, BpfSource, MapType
from probes.contract.errors import HostError, ProbeUnavailableError

_CGROUP_SOCK_ADDR = 18  # BPF_PROG_TYPE_CGROUP_SOCK_ADDR
_INET4_CONNECT = 10  # BPF_CGROUP_INET4_CONNECT
_PROGRAM = "connect_enobufs"
_SOURCE = Path(__file__).parent / "bpf" / "connect_enobufs.c"


def attach(folder: Path, after_count: int) -> int:
    """Compiles, loads and attaches the program.

    Args:
        folder: The cgroup, of version 2.
        after_count: Connects of the cgroup that still succeed.

    Returns:
        The link; closing it detaches.

    Raises:
        HostError: eBPF cannot do it here.
    """
    source = BpfSource(
        file=str(_SOURCE),  # absolute: it is no probe
        structs={},
        constants={"AFTER_COUNT": after_count, "ERRNO_ENOBUFS": errno.ENOBUFS},
        programs={_PROGRAM: _CGROUP_SOCK_ADDR},
        maps={"connects": MapType("<i4", "<u8")},
        attach_types={_PROGRAM: _INET4_CONNECT},
    )
    try:
        loaded = BpfObject.load(Btf.of_kernel(), [source])
        program_fd = loaded.program(_PROGRAM)
    except ProbeUnavailableError as error:
        raise HostError(error.message, fix=error.fix) from error
    folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        attributes = struct.pack("=4I48x", program_fd, folder_fd, _INET4_CONNECT, 0)
        return bpf_kernel.bpf(
            bpf_kernel.LINK_CREATE, ctypes.create_string_buffer(attributes, len(attributes))
        )
    except OSError as error:
        raise HostError(
            f"cannot attach a cgroup/connect4 program to {folder}: {error.strerror}",
            fix="leave out --inject connect-enobufs, or run as root on Linux 5.18 or newer",
        ) from error
    finally:
        os.close(folder_fd)
        loaded.close()  # the link keeps the program and its map
