r"""Executable mappings of a process, from the text of ``/proc/PID/maps``.

The kernel escapes \n alone in a path: whatever else splits lines is part of a name.
Source: proc(5).
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field

_NO_FILES = (b"/memfd:", b"/dev/zero", b"/anon_hugepage", b"/SYSV", b"/dev/shm/")


@dataclass(frozen=True, slots=True)
class Mapping:
    """One executable mapping: its place in memory, in its file, and that file.

    Attributes:
        start: First address.
        end: Address after the last one.
        file_offset: Of the first byte.
        path: As the process sees it; ``[anon]`` without a file.
        file: Device and inode: what the path meant to that process.
        line_at: Where its line begins in the text.
    """

    start: int
    end: int
    file_offset: int
    path: bytes
    file: tuple[bytes, bytes]
    line_at: int

    @property
    def is_file(self) -> bool:
        """It can be opened by its path."""
        return self.path.startswith(b"/") and not self.path.startswith(_NO_FILES)


@dataclass(slots=True)
class Mappings:
    """The executable mappings of one process, sorted by start."""

    starts: list[int] = field(default_factory=list)
    rows: list[Mapping] = field(default_factory=list)

    def at(self, address: int) -> Mapping | None:
        """The mapping that holds an address."""
        index = bisect.bisect_right(self.starts, address) - 1
        return self.rows[index] if index >= 0 and address < self.rows[index].end else None


def parse_maps(text: bytes) -> Mappings:
    """Those of a text.

    Raises:
        ValueError: It is none of the kernel's.
    """
    mappings = Mappings()
    line_at = 0
    for line in text.split(b"\n"):
        mapping = parse_mapping(line, line_at)
        line_at += len(line) + 1
        if mapping is not None:
            mappings.starts.append(mapping.start)
            mappings.rows.append(mapping)
    return mappings


def parse_mapping(line: bytes, line_at: int = 0) -> Mapping | None:
    """One line; None when it is not executable.

    Raises:
        ValueError: It is none of the kernel's.
    """
    parts = line.split(b" ", 5)
    if len(parts) < 5 or b"x" not in parts[1]:
        return None
    path = parts[5].lstrip(b" ").removesuffix(b" (deleted)") if len(parts) > 5 else b""
    low, _, high = parts[0].partition(b"-")
    place = int(low, 16), int(high, 16), int(parts[2], 16)
    return Mapping(*place, path or b"[anon]", (parts[3], parts[4]), line_at)
