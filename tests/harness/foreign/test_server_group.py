"""What a server command started is ended as a group, and nobody else is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from harness.faults.cgroup_folders import remove_stale
from harness.foreign import descendants, server_group
from harness.foreign.server_group import ServerGroup
from probes.proc.process_tree import read_stat
from tests.control_groups import control_group

FORKS = """
import os, time
for number in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
        break
os.write(1, b"up\\n")  # in one piece
time.sleep(600)
"""


@pytest.fixture
def group() -> Iterator[ServerGroup]:
    made = ServerGroup.make()
    if made is None:
        pytest.skip("no control group of version 2 can be made here: it needs a writable tree")
    try:
        yield made
    finally:
        made.kill()
        made.remove()
        assert not made.folder.exists()


@contextmanager
def started_in(group: ServerGroup) -> Iterator[subprocess.Popen[bytes]]:
    """Seven processes of as many sessions, in the group."""
    words = ["sh", "-c", f'echo 0 > {group.folder}/cgroup.procs && exec "$@"', "sh"]
    with subprocess.Popen([*words, sys.executable, "-c", FORKS], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            for _ in range(7):
                assert child.stdout.readline() == b"up\n"
            yield child
        finally:
            for pid in (child.pid, *descendants.below(child.pid)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("has_cgroup_kill", [True, False])
def test_all_that_is_in_a_group_ends_and_nobody_else(group, monkeypatch, has_cgroup_kill):
    if not has_cgroup_kill:  # Linux before 5.14
        write = server_group._write

        def refuses(path: Path, text: str) -> None:
            if path.name == "cgroup.kill":
                raise FileNotFoundError(path)
            write(path, text)

        monkeypatch.setattr(server_group, "_write", refuses)
    with (
        subprocess.Popen(["sleep", "600"], start_new_session=True) as beside,
        started_in(group) as child,
    ):
        try:
            pids = [int(word) for word in (group.folder / "cgroup.procs").read_text().split()]
            assert len(pids) == 7
            group.kill()
            assert child.wait(30) == -signal.SIGKILL
            assert (group.folder / "cgroup.procs").read_text() == ""
            assert not any(stat.is_alive for pid in pids if (stat := read_stat(pid)))
            assert beside.poll() is None
        finally:
            beside.kill()


def test_what_limits_this_process_limits_the_group(group):
    """It is a child of this process's group, and no controller begins anew in it."""
    own = Path("/proc/self/cgroup").read_text().splitlines()[-1].rpartition(":")[2]
    assert str(group.folder.parent).endswith(own.rstrip("/"))
    assert not any((group.folder / name).exists() for name in ("memory.max", "cpu.max"))


LIMITED = """
import os, sys, time
from harness.foreign.server_group import ServerGroup
with open(sys.argv[1] + "/cgroup.procs", "w") as procs:
    procs.write("0")
made = ServerGroup.make()
pid = os.fork()
if pid == 0:
    made.join()
    inside = made.folder.name in open("/proc/self/cgroup").read()
    count = 0
    try:
        while count < 20:
            if os.fork() == 0:
                time.sleep(600)
            count += 1
    except BlockingIOError:
        pass
    print(inside, count, flush=True)
    time.sleep(600)
try:
    while "populated 0" in (made.folder / "cgroup.events").read_text():
        time.sleep(0.01)
    sys.stdin.read()
finally:
    made.kill()
    os.waitpid(pid, 0)
    made.remove()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a control group with a limit: needs root")
def test_a_limit_of_the_group_that_it_was_started_in_goes_on_to_apply(group):
    del group  # one can be made
    with (
        control_group("pids", {"pids.max": "7"}) as limit,
        subprocess.Popen(
            [sys.executable, "-c", LIMITED, str(limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as child,
    ):
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "True 5\n"  # and the two that were there
        finally:
            child.communicate(timeout=30)
    assert child.returncode == 0


def test_a_group_of_a_run_that_is_gone_is_removed_and_one_in_use_is_not(group, tmp_path):
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    stale = group.folder.parent / f"connscope-{gone.pid}-server-0123abcd"
    stale.mkdir()
    (stale / "of-the-server").mkdir()
    remove_stale(group.folder.parent)
    assert not stale.exists()
    assert group.folder.exists()


def test_a_number_that_is_somebody_else_s_by_now_gets_no_signal():
    with subprocess.Popen(["sleep", "600"]) as stranger:
        try:
            descendants.send(stranger.pid, signal.SIGKILL, lambda pid: False)
            assert stranger.poll() is None
            descendants.send(stranger.pid, signal.SIGKILL, lambda pid: pid == stranger.pid)
            assert stranger.wait(30) == -signal.SIGKILL
        finally:
            stranger.kill()


def test_spared_children_and_all_below_them_get_no_signal():
    words = ["sh", "-c", "sleep 600 & echo up; wait"]
    with (
        subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True) as ended,
        subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True) as spared,
    ):
        assert ended.stdout is not None
        assert spared.stdout is not None
        try:
            for each in (ended, spared):
                assert each.stdout.readline() == b"up\n"
            mine = set(descendants.below(os.getpid())) - set(descendants.below(ended.pid))
            mine.discard(ended.pid)
            descendants.signal_below(os.getpid(), signal.SIGKILL, spared=mine)
            assert ended.wait(30) == -signal.SIGKILL
            assert spared.poll() is None
            assert len(descendants.below(spared.pid)) == 1
        finally:
            for each in (ended, spared):  # also what lost its parent first, and was nobody's then
                with suppress(ProcessLookupError):
                    os.killpg(each.pid, signal.SIGKILL)
