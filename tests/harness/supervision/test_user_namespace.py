"""A run as root of a user namespace, which is nobody's root: no other user is known there."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

_UNSHARE = ("unshare", "--user", "--map-root-user", "--mount", "--pid", "--net", "--fork")
_ASK = "from probes.rights.own_user import own_user; print(own_user() is not None)"


@cache
def why_not() -> str:
    done = subprocess.run(
        [*_UNSHARE, "--mount-proc", "true"], capture_output=True, text=True, check=False
    )
    return done.stderr.strip() if done.returncode else ""


@pytest.fixture(autouse=True)
def user_namespaces():
    if why_not():
        pytest.skip(f"no user namespaces here: {why_not()}")


def asked(*before: str) -> str:
    command = [*before, sys.executable, "-P", "-c", _ASK]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_whether_root_can_become_somebody_else_is_found_out():
    assert asked() == "True"
    assert asked(*_UNSHARE, "--mount-proc") == "False"


def test_a_run_in_it_stays_root_and_says_so(tmp_path):
    words = (
        *("--connections", "20", "--workers", "1", "--hold", "0.2", "--connect-timeout", "30"),
        *("--probes", "none", "--json", "--no-report", "--output", str(tmp_path)),
    )
    profile_run = Path(sys.executable).with_name("profile-run")
    script = 'ip link set lo up && exec "$@"'
    command = [*_UNSHARE, "--mount-proc", "sh", "-c", script, "sh", str(profile_run), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    verdict = json.loads(done.stdout)
    assert verdict["run"]["peak_connections"] == 20
    manifest = json.loads((tmp_path / verdict["run"]["id"] / "manifest.json").read_text())
    assert any("may not become another user" in note for note in manifest["notes"])
