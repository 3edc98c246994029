"""Stacks as the kernel hands them over, and as they are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def join_stack(frames: Sequence[str]) -> str:
    """One string, root first, from frames that come leaf first; ``;`` in a name becomes ``,``."""
    return ";".join(frame.replace(";", ",") for frame in reversed(frames))


def frames_of(stack: Any) -> list[int]:
    """Addresses of one value of a stack map, which ends at the first zero."""
    addresses = [int(address) for address in stack]
    return addresses[: addresses.index(0)] if 0 in addresses else addresses


def callers_of(addresses: Sequence[int]) -> list[int]:
    """Addresses by which a stack is looked up, leaf first.

    Behind a call the return address may be the first of the next function, so callers are looked up
    one byte before it.
    """
    return [address - (1 if depth else 0) for depth, address in enumerate(addresses)]
