"""Stack samples one by one and in time, for tools that draw them: any process, any window."""

from __future__ import annotations

import pandas as pd

from analysis.frames.run_view import RunView

COLUMNS = ("at_s", "pid", "role", "worker", "source", "stack", "sample_count", "period_ns")


def df_stack_samples(
    view: RunView, *, pid: int | None = None, window_s: tuple[float, float] | None = None
) -> pd.DataFrame:
    """Every row of the stack tables, in time order.

    Args:
        view: The run.
        pid: Only of this process.
        window_s: Only of this span. A row covers the interval (about a second) that ends at its
            ``at_s``, and belongs to the span in which it ends.

    Returns:
        at_s, pid, role, worker, source (python: wall time, native: CPU time with kernel frames),
        stack (root first, ';'), sample_count, period_ns (time that one sample stands for).
    """
    python, native = view.frames["python_stacks"], view.frames["cpu_stacks"]
    shared = ["at_ns", "pid", "sample_count", "period_ns"]
    user, kernel = native["user_stack"], native["kernel_stack"]
    joined = user.where(kernel == "", user + ";" + kernel).where(user != "", kernel)
    parts = [
        python[[*shared, "stack"]].assign(source="python"),
        native[shared].assign(stack=joined, source="native"),
    ]
    rows = pd.concat(parts, ignore_index=True).sort_values("at_ns", kind="stable")
    if pid is not None:
        rows = rows[rows["pid"] == pid]
    at_s = view.seconds_of(rows["at_ns"])
    rows = rows.assign(at_s=at_s)
    if window_s is not None:
        rows = rows[(at_s > window_s[0]) & (at_s <= window_s[1])]
    rows = rows[(rows["stack"] != "") & (rows["sample_count"] > 0)]
    return view.with_who(rows)[list(COLUMNS)].reset_index(drop=True)
