"""The neighbours do what they say, and leave nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from probes.proc.cgroup_memory import mounts
from tests.neighbours.program import beside

pytestmark = pytest.mark.privileged

PROGRAMS = [
    ("oom",),
    ("conntrack",),
    ("burner", "--share", "0.1"),
    ("disk",),
    ("listener",),
    ("listener", "--queue", "half-open"),
    ("files",),
    ("tcp_memory",),
    ("tcp_memory", "--limit", "2000000"),
    ("drops",),
    ("time_wait",),
]


def groups() -> list[Path]:
    found = mounts(Path("/proc/mounts").read_text())
    return sorted(found.get("memory", found.get("")).glob("neighbour-*"))


@pytest.mark.parametrize("words", PROGRAMS, ids=" ".join)
def test_a_neighbour_has_its_effect_and_takes_back_what_it_made(words):
    with beside(*words) as neighbour:
        assert Path(f"/proc/{neighbour.pid}").exists()
        made = [folder for folder in groups() if folder.name == f"neighbour-{neighbour.pid}"]
        assert len(made) == (words[0] == "oom" or "--limit" in words)
    assert neighbour.count > 0
    assert not [folder for folder in made if folder.exists()]
