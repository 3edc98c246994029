"""The measured processes are the instrument: what they import is what they weigh."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"numpy", "pandas", "pyarrow", "matplotlib", "psutil", "rich", "jinja2", "asyncio"}


@pytest.mark.parametrize("module", ["harness.server.main", "harness.client.main"])
def test_server_and_clients_import_nothing_heavy(module):
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import {module}, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "harness" in loaded
    assert not loaded & HEAVY


def test_the_supervisor_is_lean_until_the_fleet_is_gone():
    done = subprocess.run(
        [sys.executable, "-P", "-c", "import harness.commands.run, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"pandas", "matplotlib", "numpy", "pyarrow", "jinja2"}
