"""The run's own network namespace: private loopback, ports, counters and network sysctls.

The namespace has no name: it lives as long as a descriptor or a process refers to it, so nothing
has to be put back, also after SIGKILL. See namespaces(7), network_namespaces(7), setns(2).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from probes.contract.errors import HostError
from probes.rights.network_namespace import CLONE_NEWNET, enter

_SIOCSIFFLAGS = 0x8914  # include/uapi/linux/sockios.h
_IFF_UP = 0x1
_NAMESPACE_OF_THREAD = "/proc/thread-self/ns/net"

_PLANNED = ("net/ipv4/ip_local_port_range", "net/core/somaxconn")
"""What every plan asks for: a kernel that has them for the whole host alone goes on with those."""

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def inside(namespace_fd: int) -> Iterator[None]:
    """The calling thread is in that namespace while the block runs.

    Raises:
        OSError: Not permitted, or not a namespace.
    """
    home_fd = os.open(_NAMESPACE_OF_THREAD, os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(namespace_fd)
        try:
            yield
        finally:
            enter(home_fd)
    finally:
        os.close(home_fd)


def refusal() -> int:
    """Why this process may not make a network namespace although it has the capabilities.

    A thread tries, whose namespace ends with it.

    Returns:
        An errno: EPERM of a filter of calls (seccomp(2)), ENOSPC of user.max_net_namespaces, EINVAL
        without CONFIG_NET_NS (unshare(2)); 0 when it may.
    """
    found: list[int] = []

    def attempt() -> None:
        found.append(ctypes.get_errno() if _libc.unshare(CLONE_NEWNET) != 0 else 0)

    thread = threading.Thread(target=attempt, name="namespace")
    thread.start()
    thread.join()
    return found[0]


def create(sysctls: Mapping[str, str]) -> int:
    """Makes a namespace with its loopback up and the given sysctls, and stays outside of it.

    Args:
        sysctls: Values by path below /proc/sys, for example ``net/ipv4/ip_local_port_range``.

    Returns:
        A descriptor that keeps the namespace alive (close-on-exec).

    Raises:
        HostError: Not permitted here, the kernel refused a value, or a namespace of its own has no
            setting of that name.
    """
    home_fd = os.open(_NAMESPACE_OF_THREAD, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.unshare(CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise HostError(
                f"cannot make a network namespace: {os.strerror(number)}",
                fix="run as root with CAP_SYS_ADMIN, or use the host's own with --host-network",
            )
        try:
            namespace_fd = os.open(_NAMESPACE_OF_THREAD, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _loopback_up()
                for name, value in sysctls.items():
                    _write_sysctl(name, value)
            except BaseException:
                os.close(namespace_fd)
                raise
        finally:
            enter(home_fd)
    finally:
        os.close(home_fd)
    return namespace_fd


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


def _write_sysctl(name: str, value: str) -> None:
    try:
        with open(f"/proc/sys/{name.replace('.', '/')}", "w", encoding="ascii") as stream:  # noqa: PTH123 - no pathlib in the measured processes
            stream.write(value)
    except OSError as error:
        dotted = name.replace("/", ".")
        if error.errno == errno.ENOENT:
            if name.replace(".", "/") in _PLANNED:
                return
            raise HostError(
                f"a network namespace of its own has no setting {dotted} on this kernel",
                fix=f"check the name; what is of the whole host: sysctl -w {dotted}='{value}'",
            ) from error
        raise HostError(
            f"the kernel refused {dotted} = {value!r} in the run's namespace: {error.strerror}",
            fix=f"choose another value; this host has: sysctl {dotted}",
        ) from error
