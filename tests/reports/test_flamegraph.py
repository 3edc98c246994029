"""Widths stay true whatever is merged, and the size stays bounded."""

from __future__ import annotations

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from reports.elements.flamegraph import (
    MAX_FRAMES_PAGE,
    build_tree,
    flame_data,
    merge_narrow,
    self_counts,
    to_lists,
)

_frames = st.sampled_from(["main", "run", "accept", "read", "f_[k]", "g_[k]", ""])
_stacks = st.lists(
    st.tuples(
        st.lists(_frames, min_size=1, max_size=7).map(";".join),
        st.integers(1, 1000),
        st.booleans(),
    ),
    max_size=60,
)


def _check_widths(node):
    below = sum(child.total_count for child in node.children.values())
    assert below <= node.total_count
    assert sum(child.window_count for child in node.children.values()) <= node.window_count
    for child in node.children.values():
        _check_widths(child)


def _size(node):
    return 1 + sum(_size(child) for child in node.children.values())


@given(_stacks, st.integers(1, 30))
def test_merging_keeps_every_sample_and_bounds_the_frames(stacks, max_frames):
    root = build_tree(stacks, "all")
    merged = merge_narrow(root, max_frames)
    assert root.total_count == merged.total_count == sum(count for _, count, _ in stacks)
    assert merged.window_count == sum(count for _, count, in_window in stacks if in_window)
    _check_widths(merged)
    assert _size(merged) <= max(max_frames, 2)


@given(_stacks)
def test_lists_are_a_walk_from_the_root(stacks):
    names: dict[str, int] = {}
    lists = to_lists(build_tree(stacks, "all"), names)
    assert len({len(column) for column in lists.values()}) == 1
    assert lists["depth"][0] == 0
    for above, below in zip(lists["depth"], lists["depth"][1:], strict=False):
        assert 1 <= below <= above + 1
    assert all(index < len(names) for index in lists["name"])


@given(_stacks)
def test_self_counts_add_up(stacks):
    counts = self_counts(build_tree(stacks, "all"))
    named = sum(count for stack, count, _ in stacks if stack.strip(";"))
    assert sum(own for own, _ in counts.values()) == named
    assert all(0 <= own <= total <= named for own, total in counts.values())


def test_recursion_is_counted_once_and_cut_when_runaway():
    counts = self_counts(build_tree([("f;f;f", 5, False)], "all"))
    assert counts == {"f": (5, 5)}
    deep = build_tree([(";".join(["f"] * 50_000), 1, False)], "all")
    assert len(to_lists(deep, {})["depth"]) == 201


def _frame(process_count, stack_count):
    rows = [
        (1000 + p, "server", p, "python", f"main;run;f{s};g{s}", 1 + s, p == 3, s % 2 == 0)
        for p in range(process_count)
        for s in range(stack_count)
    ]
    columns = ["pid", "role", "worker", "source", "stack", "sample_count"]
    columns += ["is_hot", "in_failure_window"]
    return pd.DataFrame(rows, columns=columns)


def test_the_hot_worker_comes_first_and_the_page_stays_small():
    data = flame_data(_frame(64, 400), lambda role, worker, pid: f"{role} {worker}")
    assert data is not None
    assert data["processes"][0]["label"] == "server 3"
    assert data["processes"][0]["hot"]
    assert data["processes"][0]["samples"] == 400 * 401 // 2
    frames = sum(len(p["python"]["depth"]) for p in data["processes"])
    assert frames <= MAX_FRAMES_PAGE + 2500
    assert len(data["processes"]) + data["left_out"] == 64


def test_nothing_sampled_is_none():
    assert flame_data(_frame(0, 0), lambda role, worker, pid: "") is None
