"""Other ways to have hosts: a Dask cluster that runs already, one host that does both, messages."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.hosts.lab import lab
from tests.hosts.test_runs import profile_run, require_nothing_left

pytestmark = [pytest.mark.privileged, pytest.mark.shared, pytest.mark.variant]

DASK = [sys.executable, "-P", "-m", "dask"]
PORT = 8_786


def test_a_dask_cluster_that_runs_already(tmp_path):
    with lab(2) as hosts:
        address = f"tcp://{hosts.address('controller')}:{PORT}"
        scheduler = [*DASK, "scheduler", "--host", hosts.address("controller"), "--port", str(PORT)]
        started = [subprocess.Popen([*hosts.prefix("controller"), *scheduler, "--no-dashboard"])]
        time.sleep(1)  # workers try again for a minute
        for name in hosts.names:
            words = ["worker", address, "--name", name, "--host", hosts.address(name)]
            words += ["--no-nanny", "--memory-limit", "0", "--no-dashboard"]
            words += ["--local-directory", str(tmp_path / name), "--death-timeout", "60"]
            started.append(subprocess.Popen([*hosts.prefix(name), *DASK, *words]))
        try:
            code, verdict, manifest, said = profile_run(
                *(hosts, tmp_path, "--cluster", address, "--connections", "600"),
                *("--hold", "1", "--no-report"),
            )
        finally:
            for each in reversed(started):  # a worker waits for a scheduler that is gone
                each.kill()
                each.wait(30)
        require_nothing_left(hosts)
    assert code == 0, said
    assert verdict["run"]["held_connections"] == 600
    assert all(each["has_rows"] for each in manifest["hosts"])


def test_the_host_that_serves_may_load_as_well(tmp_path):
    with lab(1) as hosts:
        path = hosts.hosts_file()
        path.write_text(path.read_text().replace('role = "server"', 'role = "both"'))
        done = subprocess.run(
            hosts.command(
                *("profile-run", "--hosts", str(path), "--connections", "601", "--hold", "1"),
                *("--output", str(tmp_path), "--quiet", "--no-report", "--json"),
                *("--message-rate", "300"),
            ),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        require_nothing_left(hosts)
    assert done.returncode == 0, done.stderr
    assert '"held_connections": 601' in done.stdout
    from analysis.frames.run_frames import load
    from probes.contract.rundir import RunDir

    frames = load(RunDir(Path(tmp_path) / "latest"))
    assert frames["connections"].groupby("client").size().to_dict() == {0: 301, 1: 300}
    assert frames["live_samples"]["rx_messages_total"].max() > 0
