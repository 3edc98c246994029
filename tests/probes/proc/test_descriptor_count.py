"""Open descriptors as kernels before 6.2 tell them, against what this one and the test know."""

from __future__ import annotations

import os
import random
import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.proc import descriptor_count as counting
from probes.proc.descriptor_count import descriptor_count, estimated_count

MANY = 3_000


@pytest.fixture(params=["as the kernel says", "before 6.2"])
def kernel(request, monkeypatch):
    if request.param == "before 6.2":
        monkeypatch.setattr(counting, "kernel_counts", lambda: False)
    return request.param


@given(
    st.sampled_from([2_048, 16_384, 1 << 20]),
    st.floats(0, 1),
    st.integers(0, counting.LOWEST_COUNT - 1),
)
def test_a_table_without_holes_is_counted_exactly(size, share, first):
    taken = range(first, first + int(share * (size - first)))
    assert estimated_count(size, taken.__contains__) == len(taken)


@pytest.mark.parametrize("open_share", [0.99, 0.9, 0.5])
def test_a_table_full_of_holes_is_estimated(open_share):
    size, highest = 32_768, 20_000
    taken = set(random.Random(7).sample(range(highest), int(open_share * highest)))
    assert abs(estimated_count(size, taken.__contains__) - len(taken)) < 0.15 * highest


def test_a_large_table_is_not_walked():
    looked_at = []

    def is_open(number):
        looked_at.append(number)
        return number < 700_001

    assert estimated_count(1 << 20, is_open) == 700_001
    assert len(looked_at) < 250


def test_own_descriptors(kernel):
    before = descriptor_count(os.getpid())
    more = [os.dup(0) for _ in range(23)]
    assert descriptor_count(os.getpid()) - before == 23
    for fd in more:
        os.close(fd)
    assert descriptor_count(os.getpid()) == before


CHILD = f"""
kept = [os.dup(0) for _ in range({MANY})]
ready(); sys.stdin.readline()
for fd in kept[1000:]:
    os.close(fd)
ready(); time.sleep(60)
"""


def test_a_process_with_many_that_closes_most_of_them(kernel, python_child, monkeypatch):
    listed = []
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(path) or listdir(path))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * MANY:
        pytest.skip(f"this needs {2 * MANY} descriptors, the hard limit is {hard}")
    code = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({2 * MANY}, {hard}))"
    child, _ = python_child(code + CHILD)
    assert descriptor_count(child.pid) == len(listdir(f"/proc/{child.pid}/fd"))
    child.stdin.write("\n")
    child.stdin.flush()
    assert child.stdout.readline() == "ready\n"
    # The table of descriptors keeps its size (fs/file.c).
    assert descriptor_count(child.pid) == len(listdir(f"/proc/{child.pid}/fd"))
    assert not listed


def test_who_is_gone(kernel):
    assert descriptor_count(1 << 22) == -1


def test_whose_table_may_not_be_looked_at(monkeypatch):
    monkeypatch.setattr(counting, "kernel_counts", lambda: False)
    monkeypatch.setattr(counting, "_table_size", lambda pid: 1 << 16)

    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "open", refuse)
    assert descriptor_count(os.getpid()) == -1
