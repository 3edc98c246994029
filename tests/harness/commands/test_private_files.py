"""Whose a recording is, and who may read it: nobody but the one who called, whoever was root."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from harness.commands import matrix as cli_matrix
from harness.commands import report as cli_report
from harness.commands import run as cli_run
from probes.contract.private_file import hand_over, make_folder
from probes.contract.rundir import create_run_dir
from probes.rights import calling_user as module
from probes.rights.calling_user import CallingUser, calling_user

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to other users")
UID, GID = 54_321, 54_322
"""Nobody's numbers: what counts is what sudo says, not the list of users."""
BY_SUDO = {"SUDO_UID": str(UID), "SUDO_GID": str(GID), "SUDO_USER": "somebody"}
QUICK = ["--connections", "100", "--workers", "1", "--probes", "live_samples", "--quiet"]

SERVER = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print("listens", flush=True)
sys.stdin.read()
"""


def everything(path: Path) -> list[Path]:
    return [path, *sorted(path.rglob("*"))]


def shared(path: Path) -> dict[str, str]:
    """What of a folder another user could use."""
    found = {each: each.lstat().st_mode for each in everything(path) if not each.is_symlink()}
    return {str(each): oct(mode) for each, mode in found.items() if stat.S_IMODE(mode) & 0o077}


def others(path: Path) -> dict[str, int]:
    """What of a folder does not belong to who called sudo."""
    found = {each: each.lstat() for each in everything(path)}
    return {str(p): s.st_uid for p, s in found.items() if (s.st_uid, s.st_gid) != (UID, GID)}


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


@pytest.fixture(autouse=True)
def called_by_nobody(monkeypatch):
    """Who runs the tests by sudo stands behind none of their commands."""
    for name in ("SUDO_UID", "SUDO_GID", "SUDO_USER", "DOAS_USER", "PKEXEC_UID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def by_sudo(called_by_nobody, monkeypatch):
    for name, value in BY_SUDO.items():
        monkeypatch.setenv(name, value)


def test_nobody_else_can_read_a_run(tmp_path, call):
    before = os.umask(0)  # the widest that a user may have
    try:
        done = call(cli_run.main, *QUICK, "--hold", "0", "--output", tmp_path / "runs")
    finally:
        os.umask(before)
    assert done.returncode == 0, done.stderr
    assert shared(only(tmp_path / "runs", "2*")) == {}


@as_root
def test_a_run_belongs_to_who_called_sudo(tmp_path, call, by_sudo):
    runs = tmp_path / "new" / "runs"
    done = call(cli_run.main, *QUICK, "--hold", "0", "--output", runs)
    assert done.returncode == 0, done.stderr
    assert others(tmp_path / "new") == {}  # with the folder for it and the link to the latest
    assert shared(only(runs, "2*")) == {}
    run = only(runs, "2*")
    for pattern in ("live.bin", "report.html", "raw/*/*.arrows", "logs/*.log"):
        assert list(run.glob(pattern)), pattern


@as_root
def test_so_does_one_that_ctrl_c_ended_and_one_that_failed(tmp_path, deadline):
    arguments = [*QUICK[:-1], "--hold", "600", "--no-report", "--output", str(tmp_path)]
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "harness.commands.run", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **BY_SUDO},
    )
    try:
        deadline("the hold", lambda: '"hold"' in manifest_of(tmp_path))
        run = only(tmp_path, "2*")
        assert run.stat().st_uid == 0  # while root writes it, nobody else can
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=120)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 130, said
    assert others(run) == {}


def manifest_of(runs: Path) -> str:
    return "".join(each.read_text() for each in runs.glob("2*/manifest.json"))


@as_root
def test_a_watch_belongs_to_who_called_sudo(tmp_path):
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert server.stdout.readline() == b"listens\n"
        words = ["--pid", str(server.pid), "--duration", "0.3", "--probes", "light", "--quiet"]
        words.append("--no-report")
        done = subprocess.run(
            [
                sys.executable,
                "-P",
                "-m",
                "harness.commands.attach",
                *words,
                "--output",
                str(tmp_path),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, **BY_SUDO},
        )
    finally:
        server.communicate(timeout=60)
    assert done.returncode == 0, done.stderr
    run = only(tmp_path, "2*")
    assert others(run) == {}
    assert shared(run) == {}


@as_root
def test_a_matrix_belongs_to_who_called_sudo(tmp_path, call, by_sudo):
    arguments = ["--vary", "workers=1", "--output", tmp_path / "runs", "--quiet"]
    of_run = ["--connections", "100", "--probes", "none", "--hold", "0"]
    done = call(cli_matrix.main, *arguments, "--no-report", "--", *of_run)
    assert done.returncode == 0, done.stderr
    assert others(tmp_path / "runs") == {}
    assert shared(only(tmp_path / "runs", "2*")) == {}


@as_root
def test_what_a_report_a_bundle_and_an_export_write_belongs_to_who_called_sudo(
    tmp_path, call, monkeypatch
):
    done = call(cli_run.main, *QUICK, "--hold", "0", "--no-report", "--output", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    run = only(tmp_path / "runs", "2*")  # of a root that nobody called
    assert {each.stat().st_uid for each in everything(run)} == {0}
    for name, value in BY_SUDO.items():
        monkeypatch.setenv(name, value)
    bundle, page, tables = (tmp_path / name for name in ("run.tar.xz", "page.html", "tables"))
    unpacked = tmp_path / run.name
    for arguments in (
        [run, "--bundle", bundle],
        [run, "--output", page],
        [run, "--format", "csv", "--output", tables],
        [run],
        [bundle],
    ):
        done = call(cli_report.main, *arguments)
        assert done.returncode == 0, done.stderr
    for each in (run, bundle, page, tables, unpacked):
        assert others(each) == {}
    assert shared(run) == shared(bundle) == shared(unpacked) == {}
    assert page.stat().st_mode & 0o777 == 0o666 & ~umask()  # for others, as any file that is named


def umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


@as_root
def test_only_what_root_alone_could_write_is_given_away(tmp_path, by_sudo):
    run = create_run_dir(tmp_path / "runs", "run").path
    (run / "manifest.json").write_text("{}")
    victim, hard, open_folder = tmp_path / "victim", run / "hard", run / "raw" / "open"
    victim.write_text("precious")
    os.link(victim, hard)
    (run / "soft").symlink_to(victim)
    open_folder.mkdir()
    open_folder.chmod(0o777)
    (open_folder / "moved-here").write_text("anybody could have put it there")
    hand_over(run)
    assert victim.stat().st_uid == 0  # neither by the link nor by its second name
    assert (open_folder.stat().st_uid, (open_folder / "moved-here").stat().st_uid) == (0, 0)
    assert (run / "soft").lstat().st_uid == (run / "manifest.json").stat().st_uid == UID


@as_root
@pytest.mark.parametrize(
    ("name", "mode"), [("manifest.json", 0o755), ("matrix.json", 0o710), ("passwd", 0o700)]
)
def test_a_folder_that_is_no_run_stays_roots(tmp_path, by_sudo, name, mode):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc").chmod(mode)
    (tmp_path / "etc" / name).write_text("{}")
    hand_over(tmp_path / "etc")
    assert {each.stat().st_uid for each in everything(tmp_path / "etc")} == {0}


def test_a_private_folder_is_private_from_its_first_moment(tmp_path):
    before = os.umask(0)
    try:
        make_folder(tmp_path / "above" / "run")
    finally:
        os.umask(before)
    assert (tmp_path / "above" / "run").stat().st_mode & 0o777 == 0o700


@as_root
@pytest.mark.parametrize(
    ("environment", "user"),
    [
        ({"SUDO_UID": "1000", "SUDO_GID": "1001"}, CallingUser(1000, 1001)),
        ({"SUDO_UID": "0", "SUDO_GID": "0"}, None),
        ({"SUDO_UID": "65534"}, CallingUser(65534, 65534)),
        ({"SUDO_UID": "54321"}, None),
        ({"SUDO_UID": "-1", "SUDO_GID": "-1"}, None),
        ({"SUDO_UID": "4294967295", "SUDO_GID": "1"}, None),
        ({"SUDO_UID": "99999999999", "SUDO_GID": "1"}, None),
        ({"SUDO_UID": "1e3", "SUDO_GID": "1"}, None),
        ({"PKEXEC_UID": "65534"}, CallingUser(65534, 65534)),
        ({"DOAS_USER": "nobody"}, CallingUser(65534, 65534)),
        ({"DOAS_USER": "root"}, None),
        ({"SUDO_USER": "nobody"}, CallingUser(65534, 65534)),  # whom a server command runs as
        ({"SUDO_USER": "gone", "SUDO_UID": "1000", "SUDO_GID": "1001"}, CallingUser(1000, 1001)),
        ({"DOAS_USER": "no such user"}, None),
        ({}, None),
    ],
)
def test_who_called(environment, user):
    assert calling_user(environment) == user


def test_without_root_nobody_stands_behind(monkeypatch):
    monkeypatch.setattr(module.os, "geteuid", lambda: 1000)
    assert calling_user({"SUDO_UID": "1", "SUDO_GID": "1"}) is None
