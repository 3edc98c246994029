"""profile-doctor: what it says of this host for real, and of hosts that lack something."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from harness.commands import doctor as cli_doctor
from harness.commands.doctor import Examination, most_connections
from harness.planning.host import Cgroup, read_host
from harness.planning.plan import make_plan
from harness.planning.request import PlanRequest
from probes.collect.registry import PROBES, ProbeCheck
from probes.contract.errors import UsageError

DELAYS = {"accept_queue", "tcp_mem"}

# This host, with the figures that other people's tests move while these run held still.
HOST = replace(
    read_host(),
    cpu_count=2,
    effective_capabilities=(1 << 41) - 1 & ~(1 << 24),
    nofile_hard_count=20_000,
    file_max_count=2_466_177,
    file_used_count=500,
    memory_available_bytes=24 * 10**9,
    conntrack_used_count=0,
    epoll_max_user_watches_count=5_491_511,
    cgroup=Cgroup(),
)

CHECKS = [
    ProbeCheck("live_samples", ("light", "auto", "full"), "available", "", ""),
    ProbeCheck(
        "cpu_stacks",
        ("auto", "full"),
        "unavailable",
        "eBPF needs root, and this reason is long enough that it has to go over several lines",
        "run as root: sudo .venv/bin/profile-run",
    ),
]


def doctor(*arguments, command=(sys.executable, "-P", "-c")):
    code = "import sys; from harness.commands.doctor import main; sys.exit(main())"
    return subprocess.run(
        [*command, code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def run_on(monkeypatch, capsys):
    def run(host, *arguments):
        monkeypatch.setattr(cli_doctor, "read_host", lambda: host)
        monkeypatch.setattr(cli_doctor, "check_all", lambda: CHECKS)
        return cli_doctor.main(arguments), *capsys.readouterr()

    return run


def test_this_host_for_real():
    done = doctor("--connections", "1009")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "can hold about" in done.stdout
    assert "Plan for 1,009 connections" in done.stdout
    for name in PROBES:
        assert name in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_json_is_one_document_with_the_same_facts():
    done = doctor("--json", "--connections", "120,000")
    found = json.loads(done.stdout)
    assert found["can_run"] is True
    assert found["refusal"] is None
    assert found["plan"]["target_connections"] == 120_000
    assert {probe["name"] for probe in found["probes"]} == set(PROBES)
    assert all(p["state"] == "available" or (p["reason"] and p["fix"]) for p in found["probes"])
    names = [limit["limit"] for limit in found["limits"]]
    assert {"fds_per_process", "file_max", "ephemeral_ports", "memory"} <= set(names)
    assert found["next_limit"] in names
    assert found["host"]["kernel"] == os.uname().release


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--connections", "0"], "not between"),
        (["--connections", "many"], "not a whole number"),
        (["--connections"], "expected one argument"),
        (["--conn", "5"], "unrecognized"),
        (["surprise"], "surprise"),
    ],
)
def test_nonsense_gives_two_lines_and_exit_code_2(arguments, said):
    done = doctor(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["error", "fix"]
    assert said in lines[0]


def test_a_closed_pipe_is_no_crash():
    code = "import sys; from harness.commands.doctor import main; sys.exit(main(['--json']))"
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as out:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code], stdout=out, stderr=subprocess.PIPE, check=False
        )
    assert done.stderr == b""


@pytest.mark.privileged
def test_without_root_it_says_what_is_missing_and_how_to_get_it():
    unprivileged = [
        "setpriv",
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
        "--bounding-set",
        "-all",
    ]
    done = doctor(command=(*unprivileged, sys.executable, "-P", "-c"))
    assert done.returncode == 0, done.stderr
    assert "needs root" in " ".join(done.stdout.split())
    assert "fix: sudo" in done.stdout


def test_a_probe_that_cannot_run_comes_with_reason_and_fix(run_on):
    code, out, _ = run_on(HOST)
    assert code == 0
    assert "Probes that can run here: 1 of 2" in out
    assert "over several lines" in " ".join(out.split())
    assert "    fix: run as root: sudo .venv/bin/profile-run" in out


def test_the_first_wall_of_the_reference_machine_is_file_max(run_on):
    holds, limit = most_connections(HOST)
    assert limit == "file_max"
    # 2 descriptors a connection, about 128 processes with 8 of their own
    assert 1_225_000 < holds < (2_466_177 - 500) // 2
    assert "about 1,230,000 connections" in " ".join(run_on(HOST)[1].split())


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"memory_available_bytes": 2 * 10**9},
        {"file_max_count": 50_000},
        {"epoll_max_user_watches_count": 5_000},
        {"effective_capabilities": 0, "conntrack_max_count": 65_536, "conntrack_used_count": 99},
        {"effective_capabilities": 0, "port_range": (40_000, 40_099), "cpu_count": 64},
    ],
    ids=lambda change: ",".join(change) or "as it is",
)
def test_what_it_says_the_host_holds_is_what_the_planner_plans(change):
    host = replace(HOST, **change)
    holds, limit = most_connections(host)

    def walls(connections):
        asked = PlanRequest(
            connections=connections, own_namespace=host.may_own_namespace, force=True
        )
        return [r.limit for r in make_plan(asked, host).rungs if r.limit not in DELAYS]

    assert holds > 1_000
    assert walls(holds) == []
    assert limit in walls(holds + 1)


def test_a_host_without_memory_exits_4_and_says_why(run_on):
    code, out, err = run_on(replace(HOST, memory_available_bytes=10**8))
    assert code == 4
    assert "Cannot run here" in out
    assert "memory" in out
    assert "fix:" in out
    assert err == ""


def test_a_full_file_table_exits_4(run_on):
    code, out, _ = run_on(replace(HOST, file_max_count=510), "--json")
    assert code == 4
    found = json.loads(out)
    assert found["can_run"] is False
    assert found["holds_connections"] == 0
    assert found["refusal"]["fix"].startswith("sysctl -w fs.file-max=")


def test_a_target_that_would_take_all_memory_exits_4_and_names_what_fits(run_on):
    host = replace(HOST, memory_available_bytes=3 * 10**9)
    code, out, _ = run_on(host, "--connections", "1000000")
    assert code == 4
    assert "fix: --connections " in out
    assert "Plan for" not in out


def test_a_host_without_limits_prints_within_80_columns(run_on):
    host = replace(HOST, file_max_count=2**63 - 1, memory_available_bytes=10**13)
    code, out, _ = run_on(host, "--connections", "5000000")
    assert code == 0
    assert "no limit" in out
    assert max(map(len, out.splitlines())) <= 80


def test_nonsense_targets_are_refused_before_anything_is_printed():
    with pytest.raises(UsageError):
        Examination(HOST, 0, [])
