"""Flame graphs: folded stacks in, small trees out; ``assets/flamegraph.js`` draws them.

A tree is four flat lists in the order of a walk from the root (parents before children, children
widest first): depth, index of the name, samples of the whole run, samples around the first failure.
Frames too narrow to see are merged into one per parent, so the size of the page is bounded whatever
was sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

SOURCES = ("python", "native")
MAX_FRAMES_HOT = 2500
MAX_FRAMES_OTHER = 500
MAX_FRAMES_PAGE = 16_000
MAX_NAME_CHARACTERS = 200
MAX_DEPTH = 200  # runaway recursion is cut here; the walks below recurse


@dataclass(slots=True)
class Node:
    """One frame in one place: samples below it in the whole run and around the failure."""

    name: str
    total_count: int = 0
    window_count: int = 0
    children: dict[str, Node] = field(default_factory=dict)


def build_tree(stacks: Iterable[tuple[str, int, bool]], root_name: str) -> Node:
    """Adds up folded stacks.

    Args:
        stacks: (frames joined by ';' root first, samples, whether around the first failure).
        root_name: Name of the frame that holds all.
    """
    root = Node(root_name)
    for stack, sample_count, in_window in stacks:
        node = root
        node.total_count += sample_count
        node.window_count += sample_count if in_window else 0
        for name in stack.split(";")[:MAX_DEPTH]:
            if not name:
                continue
            child = node.children.get(name)
            if child is None:
                child = node.children[name] = Node(name)
            child.total_count += sample_count
            child.window_count += sample_count if in_window else 0
            node = child
    return root


def merge_narrow(root: Node, max_frames: int) -> Node:
    """Merges the narrowest frames of each parent until the tree has at most ``max_frames``.

    The samples of the merged frames stay in it, so every width stays true.
    """
    smallest_count = 0
    while True:
        merged = _merged(root, smallest_count)
        if _frame_count(merged) <= max_frames:
            return merged
        smallest_count = max(smallest_count * 2, root.total_count // 4096, 1)
        if smallest_count > root.total_count:
            return _merged(root, smallest_count)


def _merged(node: Node, smallest_count: int) -> Node:
    copy = Node(node.name, node.total_count, node.window_count)
    narrow = [c for c in node.children.values() if c.total_count < smallest_count]
    for child in node.children.values():
        if child.total_count >= smallest_count:
            copy.children[child.name] = _merged(child, smallest_count)
    if len(narrow) == 1 and not narrow[0].children:
        copy.children[narrow[0].name] = narrow[0]
    elif narrow:
        name = f"({len(narrow)} narrow frame{'s' if len(narrow) > 1 else ''})"
        copy.children[name] = Node(
            name, sum(c.total_count for c in narrow), sum(c.window_count for c in narrow)
        )
    return copy


def _frame_count(node: Node) -> int:
    return 1 + sum(_frame_count(child) for child in node.children.values())


def to_lists(root: Node, names: dict[str, int]) -> dict[str, list[int]]:
    """The tree as flat lists; ``names`` collects the names of all trees of the page."""
    lists: dict[str, list[int]] = {"depth": [], "name": [], "total": [], "window": []}

    def walk(node: Node, depth: int) -> None:
        name = node.name
        if len(name) > MAX_NAME_CHARACTERS:
            name = name[: MAX_NAME_CHARACTERS - 1] + "…"
        lists["depth"].append(depth)
        lists["name"].append(names.setdefault(name, len(names)))
        lists["total"].append(node.total_count)
        lists["window"].append(node.window_count)
        for child in sorted(node.children.values(), key=lambda c: (-c.total_count, c.name)):
            walk(child, depth + 1)

    walk(root, 0)
    return lists


def self_counts(root: Node) -> dict[str, tuple[int, int]]:
    """Samples by function: (in the function itself, in it or below it, recursion counted once)."""
    counts: dict[str, list[int]] = {}

    def walk(node: Node, above: frozenset[str]) -> None:
        for child in node.children.values():
            entry = counts.setdefault(child.name, [0, 0])
            below = sum(c.total_count for c in child.children.values())
            entry[0] += child.total_count - below
            if child.name not in above:
                entry[1] += child.total_count
            walk(child, above | {child.name})

    walk(root, frozenset())
    return {name: (own, total) for name, (own, total) in counts.items()}


def flame_data(
    flame_stacks: pd.DataFrame, process_name: Callable[[str, int, int], str]
) -> dict[str, Any] | None:
    """All flame graphs of a page as plain lists for JSON, None when nothing was sampled.

    Args:
        flame_stacks: ``Summary.flame_stacks``.
        process_name: (role, worker, pid) to the name that people read.

    Returns:
        ``names``: all frame names; ``processes``: hot worker first, then servers, then by
        samples, each with pid, label, hot, samples and per source a tree (see ``to_lists``);
        ``left_out``: how many processes are not shown because the page would grow too big.
    """
    if flame_stacks.empty:
        return None
    names: dict[str, int] = {}
    processes: list[dict[str, Any]] = []
    groups = flame_stacks.groupby(["pid", "source"]).groups
    rows_of: dict[Any, pd.DataFrame] = {
        key: flame_stacks.loc[index] for key, index in groups.items()
    }
    per_process = (
        flame_stacks.groupby(["pid", "role", "worker"])
        .agg(sample_count=("sample_count", "sum"), is_hot=("is_hot", "max"))
        .reset_index()
        .assign(is_server=lambda f: f["role"] == "server")
        .sort_values(["is_hot", "is_server", "sample_count"], ascending=False)
    )
    frames_left = MAX_FRAMES_PAGE
    left_out = 0
    rows: list[dict[str, Any]] = per_process.to_dict("records")  # type: ignore[assignment]  # column names are text
    for process in rows:
        pid = int(process["pid"])
        label = process_name(str(process["role"]), int(process["worker"]), pid)
        budget = MAX_FRAMES_HOT if process["is_hot"] or not processes else MAX_FRAMES_OTHER
        entry: dict[str, Any] = {
            "pid": pid,
            "label": label,
            "hot": bool(process["is_hot"]),
            "samples": int(process["sample_count"]),
        }
        if frames_left <= 0:
            left_out += 1
            continue
        for source in SOURCES:
            part = rows_of.get((pid, source))
            if part is None:
                continue
            stacks = zip(
                part["stack"], part["sample_count"], part["in_failure_window"], strict=True
            )
            tree = merge_narrow(
                build_tree(((str(s), int(n), bool(w)) for s, n, w in stacks), label), budget
            )
            entry[source] = to_lists(tree, names)
            frames_left -= len(entry[source]["depth"])
        processes.append(entry)
    return {"names": list(names), "processes": processes, "left_out": left_out}
