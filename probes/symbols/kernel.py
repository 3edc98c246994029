"""Names of the kernel's functions, from ``/proc/kallsyms``.

It is read once, at the first address, and kept as the text it is with an array of addresses beside
it (7 MB). A frame ends in ``_[k]``.
Source: proc(5).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from probes.symbols.stacks import callers_of, join_stack

KALLSYMS = Path("/proc/kallsyms")
KERNEL_SUFFIX = "_[k]"

_HEX = np.zeros(256, dtype=np.uint64)
for _value, _digit in enumerate(b"0123456789abcdef"):
    _HEX[_digit] = _value
_ADDRESS_DIGITS = 16  # kallsyms of a 64-bit kernel


class KernelSymbols:
    """Function names of the running kernel and its modules.

    Args:
        path: A file in the format of ``/proc/kallsyms``.
    """

    def __init__(self, path: Path = KALLSYMS) -> None:
        self._path = path
        self._text: bytes | None = None
        self._addresses: npt.NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)
        self._starts: npt.NDArray[np.uint32] = np.zeros(0, dtype=np.uint32)
        self._known: dict[int, str] = {}

    def load(self) -> None:
        """Reads the symbols now (50 ms) instead of at the first address."""
        if self._text is not None:
            return
        try:
            self._text = self._path.read_bytes()
        except OSError:
            self._text = b""
        raw = np.frombuffer(self._text, dtype=np.uint8)
        ends = np.flatnonzero(raw == ord("\n")).astype(np.uint32)
        starts = np.concatenate([np.zeros(1, dtype=np.uint32), ends + 1])[: len(ends)]
        kinds = raw[starts + _ADDRESS_DIGITS + 1] if len(starts) else starts
        starts = starts[np.isin(kinds, np.frombuffer(b"tTwW", dtype=np.uint8))]
        addresses = np.zeros(len(starts), dtype=np.uint64)
        for digit in range(_ADDRESS_DIGITS):
            addresses = (addresses << np.uint64(4)) | _HEX[raw[starts + digit]]
        order = np.argsort(addresses, kind="stable")
        self._addresses, self._starts = addresses[order], starts[order]
        if len(addresses) and not addresses.any():  # kptr_restrict hides them even from us
            self._addresses = self._addresses[:0]

    def name(self, address: int) -> str:
        """The function that holds an address, its number in hex when there is none."""
        known = self._known.get(address)
        if known is None:
            known = self._known[address] = self._find(address)
        return known

    def stack(self, addresses: Sequence[int]) -> str:
        """A kernel stack, leaf first, as one string."""
        return join_stack([self.name(each) + KERNEL_SUFFIX for each in callers_of(addresses)])

    def _find(self, address: int) -> str:
        self.load()
        assert self._text is not None
        at = int(np.searchsorted(self._addresses, np.uint64(address), side="right")) - 1
        if at < 0:
            return hex(address)
        start = int(self._starts[at]) + _ADDRESS_DIGITS + 3
        line = self._text[start : self._text.index(b"\n", start)]
        return line.split(b"\t")[0].decode(errors="replace")


@cache
def kernel_symbols() -> KernelSymbols:
    """The running kernel's symbols, one copy for all probes of this process."""
    return KernelSymbols()
