"""Rows of the log of 2016 over a server and three client hosts: cause, side and host."""

import pytest

from tests.hosts.lab import lab
from tests.hosts.test_runs import profile_run, require_nothing_left

pytestmark = [pytest.mark.privileged, pytest.mark.alone]

FEW_PORTS = {"client2": ["connections = 400"]}
ROWS = {
    "S5-ports-of-one-client-host": (
        ("--connections", "1200", "--destination-ports", "1"),
        {"client2": ("net.ipv4.ip_local_port_range=40000 40199",)},
        FEW_PORTS,
        ("ephemeral-ports-exhausted", "client", "client2"),
    ),
    "S2-one-worker-at-its-limit": (
        ("--connections", "1200", "--workers", "1", "--nofile", "900"),
        {},
        {},
        ("fd-limit-process", "server", "server"),
    ),
    "S8-a-full-worker-beside-one-with-room": (
        (
            *("--connections", "2000", "--workers", "2", "--nofile", "1056"),
            *("--accept", "shared-exclusive", "--at-fd-limit", "reset", "--ramp", "1500"),
        ),
        {},
        {},
        ("full-worker-on-shared-listener", "server", "server"),
    ),
    "S10-a-worker-that-dies-of-a-failed-accept": (
        (
            *("--connections", "1200", "--workers", "2", "--nofile", "300"),
            *("--at-fd-limit", "crash", "--accept", "shared"),
        ),
        {},
        {},
        ("fd-limit-process", "server", "server"),
    ),
    "one-client-that-sleeps": (
        (
            *("--connections", "3000", "--clients", "2", "--connect-timeout", "1"),
            *("--inject", "slow-client:1:9000"),
        ),
        {},
        {},
        ("client-is-the-limit", "client", "client1"),
    ),
    "a-worker-that-accepts-late": (
        (
            *("--connections", "600", "--workers", "2", "--backlog", "64", "--ramp", "300"),
            *("--connect-timeout", "2", "--inject", "slow-accept:1:20"),
        ),
        {},
        {},
        ("accept-queue-overflow", "server", "server"),
    ),
}


@pytest.mark.parametrize("row", [pytest.param(row, marks=pytest.mark.variant) for row in ROWS])
def test_the_verdict_names_cause_side_and_host(tmp_path, row):
    words, sysctls, extra, wanted = ROWS[row]
    with lab(3) as hosts:
        for name, values in sysctls.items():
            for value in values:
                hosts.inside(name, "sysctl", "-qw", value)
        _, verdict, _, said = profile_run(
            *(hosts, tmp_path, "--hold", "2", "--no-report", *words), extra=extra
        )
        require_nothing_left(hosts)
    assert verdict, said
    found = verdict["verdict"]
    assert (found["cause"], found["side"], found["host"]) == wanted, found["sentence"]
