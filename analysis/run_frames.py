"""Reads a run directory into typed frames: the only I/O of this package."""

from __future__ import annotations


class RunFrames:
    """The tables of one run (see ``load``)."""
