"""The limit of the watching processes, in processes of their own whose limits are known."""

import os
import resource
import subprocess
import sys

import pytest

from harness.planning.host import CAP_SYS_RESOURCE, read_host
from probes.ebpf import sources as bpf_sources
from probes.rights.own_descriptors import WANTED_COUNT, needed_count

CODE = """
import os, resource, sys
from probes.rights.own_descriptors import raise_own_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
if len(sys.argv) > 3:
    os.setgid(65534), os.setuid(65534)
print(raise_own_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def limits_after(*words: int) -> list[int]:
    command = [sys.executable, "-c", CODE, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def may_raise_hard_limits() -> bool:
    capabilities = read_host().effective_capabilities
    return bool(capabilities >> CAP_SYS_RESOURCE & 1)


def test_a_soft_limit_is_raised_to_the_hard_one():
    hard_count = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    found = limits_after(64, hard_count)
    assert found == [found[0]] * 3
    assert found[0] >= hard_count


def test_a_low_hard_limit_is_raised_too_by_who_may():
    wanted = WANTED_COUNT if may_raise_hard_limits() else 1_009
    assert limits_after(64, 1_009) == [wanted] * 3


@pytest.mark.privileged
def test_who_may_not_raise_the_hard_limit_takes_what_it_allows():
    assert os.geteuid() == 0
    assert limits_after(64, 1_009, 1) == [1_009] * 3


def test_a_host_of_128_cores_and_256_workers_fits():
    assert 1_024 < needed_count(256, 256, 128) < WANTED_COUNT / 10


@pytest.mark.parametrize(
    ("cores", "wanted"),
    [
        (1, (8_192, 16_384)),
        (2, (8_192, 16_384)),
        (64, (65_536, 32_768)),
        (128, (131_072, 65_536)),
        (4_096, (262_144, 65_536)),
    ],
)
def test_the_maps_of_cpu_samples_grow_with_the_cores(cores: int, wanted: tuple[int, int]):
    samples, traces = bpf_sources.cpu_map_entries(cores)
    assert (samples, traces) == wanted
    if cores <= 128:  # every sample of 20 s has room, if no two are alike
        assert samples >= cores * bpf_sources.CPU_FREQUENCY_HZ * 20
