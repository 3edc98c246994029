"""Runs over network namespaces as hosts: a server and three clients, as in the log of 2016."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from probes.contract.rundir import RunDir
from tests.hosts.lab import lab

pytestmark = [pytest.mark.privileged, pytest.mark.alone]


def profile_run(hosts, output, *words, extra=None):
    """(exit code, verdict.json, manifest, stderr) of a run over the hosts of a laboratory."""
    done = subprocess.run(
        hosts.command(
            *("profile-run", "--hosts", str(hosts.hosts_file(extra)), "--output", str(output)),
            *("--json", "--quiet", *words),
        ),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    verdict = json.loads(done.stdout) if done.stdout.startswith("{") else {}
    run = RunDir(Path(output) / "latest")
    manifest = run.read_manifest() if (run.path / "manifest.json").exists() else {}
    return done.returncode, verdict, manifest, done.stderr


def require_nothing_left(hosts):
    for name in hosts.names:
        assert hosts.pids(name) == []
        assert list((hosts.folder / name).iterdir()) == []


def test_twelve_thousand_over_three_clients(tmp_path):
    with lab(3) as hosts:
        code, verdict, manifest, said = profile_run(
            hosts, tmp_path, "--connections", "12000", "--hold", "2"
        )
        require_nothing_left(hosts)
    assert code == 0, said
    assert verdict["verdict"]["cause"] == "reached"
    assert verdict["run"]["held_connections"] == 12_000
    told = {each["name"]: each for each in manifest["hosts"]}
    assert [told[name]["connections"] for name in hosts.names] == [0, 4_000, 4_000, 4_000]
    assert all(each["has_rows"] for each in told.values())
    assert not verdict["run"]["failed_connections"]
    subjects = {rung["subject"] for rung in verdict["ladder"]}
    assert {"host server", "host client1", "host client2", "host client3"} <= subjects
    page = (Path(tmp_path) / "latest" / "report.html").read_text()
    assert "client3" in page


def test_a_client_host_with_few_descriptors_is_named(tmp_path):
    few = {"client2": ["connections = 400", "clients = 1", "nofile = 300"]}
    with lab(2) as hosts:
        code, verdict, _, said = profile_run(
            *(hosts, tmp_path, "--connections", "800", "--hold", "1", "--no-report"), extra=few
        )
        require_nothing_left(hosts)
    assert code == 3, said
    found = verdict["verdict"]
    assert (found["cause"], found["side"]) == ("fd-limit-process", "client")
    assert found["host"] == "client2"
    binding = verdict["findings"][0]
    assert binding["subject"]["host"] == "client2"
    assert binding["subject"]["role"] == "client"
    assert f"pid {binding['subject']['pid']} on client2" in found["sentence"]


def test_one_host_imports_nothing_of_it():
    loaded = subprocess.run(
        [
            *(sys.executable, "-P", "-c"),
            "import sys, harness.commands.run; "
            "print([n for n in sys.modules if n.split('.')[0] in ('dask', 'distributed')"
            " or n.startswith('harness.hosts')])",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert loaded.strip() == "[]"


def test_the_doctor_reads_all_hosts():
    with lab(1) as hosts:
        done = subprocess.run(
            hosts.command("profile-doctor", "--json", "--hosts", str(hosts.hosts_file())),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        require_nothing_left(hosts)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [each["name"] for each in told["hosts"]] == ["server", "client1"]
    assert told["hosts"][1]["mtu_bytes"] == 1_500
    assert 0 < told["hosts"][1]["clock"]["bound_ns"] < 5_000_000
    assert told["next_host"]
    assert told["holds_connections"] > 10_000
