"""What was given up stays so, as the kernel says in /proc/self/status."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from probes.bpf_loader.own_rights import parse_status
from probes.rights import privileges
from probes.rights.privileges import bits_of, names_of, would_gain

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="has nothing to give up: needs root")


def rights_after(code: str) -> dict[str, str]:
    """/proc/self/status of a process that has run some code."""
    told = "print(open('/proc/self/status').read())"
    script = f"from probes.rights import privileges as p\n{code}\n{told}"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return parse_status(done.stdout)


def test_names_and_bits_are_those_of_the_kernel_header():
    header = Path("/usr/include/linux/capability.h")
    if not header.exists():
        pytest.skip("the kernel's headers for user space are missing (linux-libc-dev)")
    for line in header.read_text().splitlines():
        words = line.split()
        if len(words) == 3 and words[0] == "#define" and words[2].isdigit():
            name = words[1].removeprefix("CAP_").lower()
            if words[1].startswith("CAP_"):
                assert privileges.CAPABILITIES[int(words[2])] == name
    assert names_of(bits_of({"kill", "bpf"}) | 1 << 60) == ["kill", "bpf", "60"]


def test_nothing_is_gained_any_more():
    assert rights_after("")["NoNewPrivs"] == "0"
    assert rights_after("p.gain_nothing()")["NoNewPrivs"] == "1"


@needs_root
def test_a_set_is_kept_and_the_rest_is_gone_for_good():
    had = int(rights_after("")["CapPrm"], 16)
    wanted = bits_of({"kill", "sys_ptrace"}) & had
    said = rights_after("assert p.bound_by({'kill'}); p.keep_only({'kill', 'sys_ptrace'})")
    assert int(said["CapBnd"], 16) == bits_of({"kill"}) & int(rights_after("")["CapBnd"], 16)
    for name in ("CapPrm", "CapEff"):
        assert int(said[name], 16) == wanted
    for name in ("CapInh", "CapAmb"):
        assert int(said[name], 16) == 0
    nothing = rights_after("p.bound_by(); p.keep_only(); assert not p.permitted()")
    assert [int(nothing[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")] == [0, 0, 0]


@needs_root
def test_root_gains_nothing_back_by_executing_a_program():
    code = (
        "import os; p.gain_nothing(); p.keep_only({'kill'});"
        "os.execvp('cat', ['cat', '/proc/self/status'])"
    )
    assert int(rights_after(code)["CapEff"], 16) == bits_of({"kill"})


def test_a_process_without_rights_gives_up_what_it_can():
    said = rights_after("import os\nif not os.geteuid(): os.setuid(65534)\np.bound_by();"
                        "p.keep_only(); p.gain_nothing()")  # fmt: skip
    assert (said["CapEff"], said["NoNewPrivs"]) == ("0" * 16, "1")


@needs_root
def test_what_a_user_would_gain_by_a_program(tmp_path):
    program = tmp_path / "server"
    shutil.copy("/bin/true", program)
    assert would_gain(program, 1000, 1000) == ""
    program.chmod(0o4755)
    assert would_gain(program, 1000, 1000) == "is setuid"
    assert would_gain(program, 0, 0) == ""
    program.chmod(0o2755)
    assert would_gain(program, 1000, 1000) == "is setgid"
    program.chmod(0o755)
    value = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service=ep
    try:
        os.setxattr(program, "security.capability", value)
    except OSError:
        pytest.skip("this file system keeps no file capabilities, or CAP_SETFCAP is missing")
    assert would_gain(program, 1000, 1000) == "has file capabilities"
    assert would_gain(program, 0, 0) == ""
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o4755)
    assert would_gain(script, 1000, 1000) == ""
    assert would_gain(tmp_path / "gone", 1000, 1000) == ""
