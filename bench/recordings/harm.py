"""What users saw of a run, counted from the records of the connections alone.

Nothing here knows of causes or findings: it says whether the harm that a hard row is to do was
done, apart from what the verdict makes of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from probes.contract.clock import NS_PER_S
from probes.contract.rundir import RunDir

SLOW_NS = NS_PER_S // 2
"""A person waits for a page that takes so long."""

KINDS = ("missing", "failed", "lost", "slow")


def harm_of_connections(run: RunDir, target_count: int) -> dict[str, int]:
    """What became of the attempts of a run.

    Args:
        run: Recorded.
        target_count: Connections that were wanted.

    Returns:
        ``missing``: of the target never established. ``failed``: attempts that ended before they
        were. ``lost``: established and ended by others before the run did. ``slow``: established
        after half a second or more. ``errno.N`` and ``end.KIND``: ends of the failed and the lost.
    """
    table = run.read_table("connections").table
    columns: dict[str, npt.NDArray[np.int64]] = {
        name: table.column(name).to_numpy()
        for name in ("start_ns", "established_ns", "closed_ns", "errno")
    }
    kinds = table.column("close_kind").to_numpy(zero_copy_only=False)
    is_established = columns["established_ns"] > 0
    is_over = columns["closed_ns"] > 0
    is_failed = ~is_established & is_over
    is_lost = is_established & is_over & (kinds != "local")
    took_ns = columns["established_ns"] - columns["start_ns"]
    harm = {
        "missing": max(0, target_count - int(is_established.sum())),
        "failed": int(is_failed.sum()),
        "lost": int(is_lost.sum()),
        "slow": int((is_established & (took_ns >= SLOW_NS)).sum()),
    }
    bad = is_failed | is_lost
    for code in np.unique(columns["errno"][bad]):
        if code:
            harm[f"errno.{code}"] = int((columns["errno"][bad] == code).sum())
    for kind in sorted({str(kind) for kind in kinds[bad]}):
        harm[f"end.{kind}"] = int((kinds[bad] == kind).sum())
    return harm


def lacking(wanted: Mapping[str, int], harm: Mapping[str, int]) -> list[str]:
    """Which harm of a row did not appear, for people; empty when all of it did.

    Args:
        wanted: The least of each kind; ``a|b`` stands for both together.
        harm: ``harm_of_connections``.
    """
    lines = []
    for kind, least in wanted.items():
        count = sum(harm.get(each, 0) for each in kind.split("|"))
        if count < least:
            lines.append(f"{kind}: {count:,} of {least:,}")
    return lines
