"""Becomes profile-run, with the limits of its row and bound to the life of profile-matrix.

``python -P -m harness.matrix.launch PARENT_PID NOFILE ARGUMENT...``; NOFILE 0 leaves the limit. A
process of its own instead of a ``preexec_fn``: profile-matrix has threads once it has read a run.
"""

from __future__ import annotations

import os
import resource
import sys

from probes.rights.parent_death import die_with_parent


def main(argv: list[str]) -> None:
    """Does not return."""
    parent_pid, nofile, *words = argv
    die_with_parent(int(parent_pid))  # kept over execve (prctl(2))
    if int(nofile):
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(nofile), int(nofile)))
    command = [sys.executable, "-P", "-m", "harness.commands.run", *words]
    os.execv(sys.executable, command)  # noqa: S606 - an argument list, no shell


if __name__ == "__main__":
    main(sys.argv[1:])
