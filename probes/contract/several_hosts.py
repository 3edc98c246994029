"""A run over several hosts on the disk: ``hosts/NAME/`` holds what each host recorded, unchanged.

The manifest's ``hosts`` says which there are and how their clocks run beside the reference's, the
host with the number 0. A process is named by its pid and its host's number in one integer, so that
the key of every table is host and pid: ``number * PIDS_PER_HOST + pid``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HOST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,30}")

PIDS_PER_HOST = 10_000_000
"""More than PID_MAX_LIMIT, 4,194,304 (include/linux/threads.h), and readable in decimal."""


def host_number(pid: int) -> int:
    """Which host's process that is."""
    return pid // PIDS_PER_HOST


def pid_on_host(pid: int) -> int:
    """What it is called there."""
    return pid % PIDS_PER_HOST


def hosts_of(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Hosts of a run in the order of their numbers, empty for a run of one host."""
    found = manifest.get("hosts")
    if not isinstance(found, list):
        return []
    return sorted(
        (each for each in found if isinstance(each, dict)), key=lambda each: int(each["index"])
    )
