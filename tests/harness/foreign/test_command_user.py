"""Who called, by what sudo, doas and pkexec leave in the environment."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys

import pytest

from harness.foreign.command_user import user_behind
from probes.contract.errors import UsageError

NOBODY = pwd.getpwnam("nobody")


@pytest.mark.parametrize(
    ("environment", "user"),
    [
        ({"SUDO_USER": "nobody"}, "nobody"),
        ({"DOAS_USER": "nobody"}, "nobody"),
        ({"PKEXEC_UID": str(NOBODY.pw_uid)}, "nobody"),
        ({"SUDO_USER": "root"}, ""),
        ({"DOAS_USER": "root", "PKEXEC_UID": "0"}, ""),
        ({"PKEXEC_UID": "0"}, ""),
        ({"SUDO_UID": str(NOBODY.pw_uid)}, "nobody"),
        ({"SUDO_UID": "0", "SUDO_USER": "root"}, ""),
        ({"SUDO_UID": str(NOBODY.pw_uid), "SUDO_USER": "nobody", "PKEXEC_UID": "0"}, "nobody"),
        ({"USER": "nobody"}, ""),
        ({}, ""),
    ],
)
def test_the_user_behind_root_is_found(environment, user):
    assert user_behind(environment, 0) == user
    assert user_behind(environment, 1000) == ""


@pytest.mark.parametrize(
    "environment",
    [
        {"SUDO_USER": "no-such-user"},
        {"SUDO_UID": "4123456789", "SUDO_GID": "1"},
        {"DOAS_USER": "a\nb"},
        {"PKEXEC_UID": "4123456789"},
        {"PKEXEC_UID": "x"},
        {"PKEXEC_UID": "9" * 40},
        {"SUDO_USER": "nul\0byte"},
    ],
)
def test_a_user_that_is_gone_is_said_with_the_way_out(environment):
    with pytest.raises(UsageError, match="no such user") as error:
        user_behind(environment, 0)
    assert "\n" not in error.value.message
    assert error.value.fix.startswith("--server-user NAME")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has somebody behind it: needs root")
def test_a_caller_that_is_gone_is_two_lines_and_no_run(tmp_path):
    words = ["--connections", "5", "--server-cmd", "sleep 9", "--output", str(tmp_path / "runs")]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "harness.commands.run", *words],
        env={**os.environ, "SUDO_USER": "no-such-user"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 2, done.stderr
    assert "SUDO_USER='no-such-user'" in done.stderr
    assert not (tmp_path / "runs").exists()
