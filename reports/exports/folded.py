"""Folded stacks for flame graph tools (flamegraph.pl, inferno, speedscope): a line a stack."""

from __future__ import annotations

import pandas as pd

from analysis.evidence import Subject
from reports.exports.plain_text import one_line


def to_folded(samples: pd.DataFrame) -> str:
    """``root;...;leaf COUNT``, one line for each stack of each process, without a header.

    The first frame is the process, the second ``python`` or ``native``: the two are sampled in
    their own ways and do not add up.

    Args:
        samples: From ``analysis.stacks.stack_samples``.
    """
    keys = ["role", "worker", "pid", "source", "stack"]
    folded: pd.DataFrame = samples.groupby(keys, sort=True)["sample_count"].sum().reset_index()
    counts: dict[str, int] = {}
    for row in folded.to_dict("records"):
        process = process_name(row["role"], row["worker"], row["pid"])
        line = ";".join([process, str(row["source"]), *frames_of(str(row["stack"]))])
        counts[line] = counts.get(line, 0) + int(row["sample_count"])
    return "".join(f"{line} {count}\n" for line, count in counts.items())


def process_name(role: object, worker: object, pid: object) -> str:
    """The process as people read it, usable as a frame."""
    subject = Subject(str(role), int(str(pid)), int(str(worker)))
    return one_line(str(subject)).replace(";", ",")


def frames_of(stack: str) -> list[str]:
    """The frames of a recorded stack, root first, each on one line."""
    return [one_line(frame) for frame in stack.split(";") if frame.strip()]
