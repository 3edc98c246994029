"""What eBPF needs and a process may lack: each taken away for real, from a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from probes.bpf_loader.own_rights import in_first_user_namespace, parse_status, require_bpf

pytestmark = pytest.mark.privileged

CHECK = """
from probes.bpf_loader.program import check_bpf
from probes.contract.errors import ProbeUnavailableError
try:
    check_bpf()
except ProbeUnavailableError as error:
    print(error.message, error.fix, sep="\\n")
else:
    print("may", "", sep="\\n")
"""

# int bpf(2) -> EPERM, all else as it is: what a container's default profile does without CAP_BPF
FILTERED = (
    """
import ctypes, struct, sys
number = int(sys.argv[1])
program = b"".join(struct.pack("=HBBI", *each) for each in [
    (0x20, 0, 0, 0),              # load the number of the call
    (0x15, 0, 1, number),         # is it bpf?
    (0x06, 0, 0, 0x00050001),     # then SECCOMP_RET_ERRNO with EPERM
    (0x06, 0, 0, 0x7FFF0000),     # else SECCOMP_RET_ALLOW
])
code = ctypes.create_string_buffer(program, len(program))
filter = struct.pack("HxxxxxxQ", 4, ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.create_string_buffer(filter, len(filter)), 0, 0) == 0
"""
    + CHECK
)


def told(*before: str, code: str = CHECK, words: tuple[str, ...] = ()) -> tuple[str, str]:
    done = subprocess.run(
        [*before, sys.executable, "-P", "-c", code, *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=90,
    )
    message, fix = done.stdout.split("\n")[:2]
    return message, fix


def test_root_here_may():
    assert in_first_user_namespace()
    require_bpf()
    assert told() == ("may", "")


def test_root_of_a_user_namespace_may_not():
    message, fix = told("unshare", "--user", "--map-root-user")
    assert message == "root of a user namespace may not load eBPF"
    assert "--userns host" in fix


def test_a_root_without_capabilities_is_told_which_it_lacks():
    message, fix = told("setpriv", "--bounding-set", "-sys_admin,-bpf")
    assert message == "this root lacks CAP_BPF, which eBPF needs"
    assert "--cap-add BPF," in fix
    message, fix = told("setpriv", "--bounding-set", "-all")
    assert "CAP_BPF and CAP_PERFMON" in message
    assert "--cap-add BPF --cap-add PERFMON" in fix


def test_the_capabilities_for_ebpf_alone_suffice():
    assert told("setpriv", "--bounding-set", "-sys_admin") == ("may", "")


def test_a_filter_of_calls_is_told_apart():
    number = {"x86_64": 321}.get(platform.machine(), 280)
    message, fix = told(code=FILTERED, words=(str(number),))
    assert "a seccomp filter forbids it" in message
    assert "seccomp=unconfined" in fix


def test_a_user_is_told_to_be_root():
    message, fix = told("setpriv", "--reuid", "65534", "--clear-groups")
    assert (message, fix) == ("eBPF needs root", "run it with sudo")


def test_the_status_of_a_process_is_read_by_lines_of_the_kernel():
    found = parse_status("Name:\ta\x0cb\nCapEff:\t000001fffeffffff\nSeccomp:\t2\n")
    assert (found["CapEff"], found["Seccomp"]) == ("000001fffeffffff", "2")
