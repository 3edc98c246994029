"""How long Python's collector stops a process: its own clock, kept in shared memory.

``gc.callbacks`` (CPython's gc module) are called before and after each collection, with the world
standing still in between. Costs about 0.5 us a collection, and an event loop that keeps no objects
for a connection hardly has any.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from typing import Any

from probes.contract.live import Counter

_NS = int(Counter.GC_NS_TOTAL)
_COLLECTIONS = int(Counter.GC_COLLECTIONS_TOTAL)
_LONGEST = int(Counter.GC_MAX_PAUSE_NS)


def watch(slot: memoryview) -> None:
    """Counts every collection of this process from now on.

    Args:
        slot: The process's counters.
    """
    began_ns = 0

    def note(phase: str, _info: Mapping[str, Any]) -> None:
        nonlocal began_ns
        if phase == "start":
            began_ns = time.monotonic_ns()
            return
        pause_ns = time.monotonic_ns() - began_ns
        slot[_NS] += pause_ns
        slot[_COLLECTIONS] += 1
        slot[_LONGEST] = max(slot[_LONGEST], pause_ns)

    gc.callbacks.append(note)
