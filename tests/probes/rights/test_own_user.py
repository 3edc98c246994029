"""Whom our processes become: a user that nobody else is, so that nobody else may touch them."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys

import pytest

from probes.rights import own_user
from probes.rights.own_user import FIRST_ID, LAST_ID, OwnUser

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users: needs root")

BECOMES = """
import os, sys
from probes.rights.own_user import OwnUser, become
become(OwnUser(*map(int, sys.argv[1:])))
print(os.getresuid(), os.getresgid(), os.getgroups(), flush=True)
sys.stdin.read()
"""
TOUCHES = """
import ctypes, os, sys
from probes.rights.own_user import OwnUser, become
pid = int(sys.argv[1])
become(OwnUser(*map(int, sys.argv[2:])))
try:
    os.kill(pid, 0)
    print("signals")
except PermissionError:
    print("may not signal")
libc = ctypes.CDLL(None, use_errno=True)
PTRACE_SEIZE = 0x4206
print("traces" if libc.ptrace(PTRACE_SEIZE, pid, 0, 0) == 0 else "may not trace")
"""


@pytest.fixture
def somebody():
    """``somebody(user)``: a process that has become that user, and what it says of itself."""
    children = []

    def start(user: OwnUser) -> tuple[int, str]:
        words = [sys.executable, "-P", "-c", BECOMES, str(user.uid), str(user.gid)]
        child = subprocess.Popen(words, stdin=-1, stdout=-1, text=True)
        children.append(child)
        return child.pid, child.stdout.readline()

    yield start
    for child in children:
        child.kill()
        child.communicate()


def touched_by(user: OwnUser, pid: int) -> list[str]:
    words = [sys.executable, "-P", "-c", TOUCHES, str(pid), str(user.uid), str(user.gid)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_it_is_a_number_without_a_name_that_no_process_has():
    user = own_user.own_user()
    assert FIRST_ID <= user.uid == user.gid <= LAST_ID
    with pytest.raises(KeyError):
        pwd.getpwuid(user.uid)
    assert user.uid not in own_user.ids_in_use()


def test_it_is_that_user_alone_and_stays_it(somebody):
    user = own_user.own_user()
    pid, said = somebody(user)
    ids = (user.uid,) * 3
    assert said == f"{ids} {ids} []\n"
    assert user.uid in own_user.ids_in_use()  # also of one that may not be dumped
    os.kill(pid, 0)


def test_a_daemon_that_runs_as_nobody_cannot_touch_it(somebody):
    entry = pwd.getpwnam("nobody")
    nobody = OwnUser(entry.pw_uid, entry.pw_gid)
    ours, _ = somebody(own_user.own_user())
    theirs, _ = somebody(nobody)
    assert touched_by(nobody, theirs)[0] == "signals"  # what sharing a user would let it do
    assert touched_by(nobody, ours) == ["may not signal", "may not trace"]
    os.kill(ours, signal.SIGKILL)


def test_a_number_that_a_process_has_is_not_taken(somebody, monkeypatch):
    user = own_user.own_user()
    somebody(user)
    monkeypatch.setattr(own_user, "FIRST_ID", user.uid)
    monkeypatch.setattr(own_user, "LAST_ID", user.uid)
    assert own_user.own_user().uid == pwd.getpwnam("nobody").pw_uid


@pytest.mark.parametrize("reason", ["all are taken", "all have names", "there are none here"])
def test_where_there_is_no_free_number_it_is_nobody(monkeypatch, reason):
    nobody = pwd.getpwnam("nobody").pw_uid
    if reason == "all are taken":
        found = own_user.own_user(range(FIRST_ID, LAST_ID + 1))
    elif reason == "all have names":
        monkeypatch.setattr(own_user, "_has_name", lambda _: True)
        found = own_user.own_user()
    else:
        monkeypatch.setattr(own_user, "can_become", lambda user: user.uid == nobody)
        found = own_user.own_user()
    assert found.uid == nobody


def test_who_is_not_root_becomes_nobody_else(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert own_user.own_user() is None


ALL = b"         0          0 4294967295\n"
TWO = b"0 1000 1\n1 100000 65535\n"


@pytest.mark.parametrize(
    ("id_map", "number", "is_there"),
    [
        (ALL, 61_184, True),
        (b"0 1000 1\n", 61_184, False),
        (TWO, 0, True),
        (TWO, 65_535, True),
        (TWO, 65_536, False),
        (b"", 0, False),
    ],
)
def test_which_numbers_a_user_namespace_has(id_map, number, is_there):
    assert own_user.has_number(id_map, number) is is_there


CANNOT = """
import os, sys
from probes.rights import own_user
from probes.rights import privileges
keeps = [name for name in ("setuid", "setgid") if name != sys.argv[1]]
privileges.keep_only(keeps)
said = own_user.can_become(own_user.OwnUser(61_184, 61_184))
try:
    own_user.become(own_user.OwnUser(61_184, 61_184))
    print(said, True)
except OSError:
    print(said, False)
"""


@pytest.mark.parametrize("lacks", ["setuid", "setgid", "nothing"])
def test_what_it_says_is_what_becomes_of_it(lacks):
    words = [sys.executable, "-P", "-c", CANNOT, lacks]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(lacks == "nothing")] * 2


THREADED = """
import os, threading
def forbidden():
    raise SystemExit("it forks")
os.fork = forbidden
wait = threading.Event()
threading.Thread(target=wait.wait).start()
from probes.rights.own_user import own_user
print(own_user().uid)
wait.set()
"""


def test_a_process_with_threads_does_not_fork_for_it():
    words = [sys.executable, "-P", "-W", "error", "-c", THREADED]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert FIRST_ID <= int(done.stdout) <= LAST_ID
