"""Spans of time in which something held."""

from __future__ import annotations

from typing import Any

import numpy as np


def runs_of(flags: Any) -> list[tuple[int, int]]:
    """Start and end (exclusive) of every unbroken run of True."""
    padded = np.concatenate([[False], np.asarray(flags, dtype=bool), [False]])
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
