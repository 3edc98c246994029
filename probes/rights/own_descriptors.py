"""How many descriptors the processes that watch may open themselves.

The probe process keeps a few open for each process that it watches and one for each core, so on a
large host it needs more than the 1,024 that a shell, sudo and systemd give as the soft limit. A
soft limit that low only protects programs that call select(2) with large descriptors; these use
poll(2) (systemd.exec(5), LimitNOFILE).
"""

from __future__ import annotations

import resource
from pathlib import Path

WANTED_COUNT = 65_536
"""Enough for some 1,000 watched processes on some 1,000 cores, by ``needed_count``."""

_EACH_SERVER, _EACH_CLIENT = 9, 4
"""Two of process_samples, two of the watch for a hot worker; of a server five of python_stacks, in
the moment in which two windows of it overlap."""
_OTHERS_COUNT = 128
"""Tables, maps, programs, files of /proc [counted: 85 with every probe]."""

_NR_OPEN = Path("/proc/sys/fs/nr_open")


def needed_count(servers: int, clients: int, cores: int) -> int:
    """Most descriptors that the probe process has open for so many processes and cores."""
    return servers * _EACH_SERVER + clients * _EACH_CLIENT + cores + _OTHERS_COUNT


def raise_own_limit(wanted_count: int = WANTED_COUNT) -> int:
    """Raises RLIMIT_NOFILE of this process to its hard limit, and that too where it may.

    Args:
        wanted_count: A hard limit below this is raised, which needs CAP_SYS_RESOURCE; one above it
            is left alone.

    Returns:
        The soft limit from now on.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted_count:
        most = _largest_allowed(wanted_count)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        except (OSError, ValueError):  # not allowed to: the hard limit stays
            pass
        else:
            return most
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _largest_allowed(wanted_count: int) -> int:
    """What nobody may pass, fs.nr_open, where that is less than what is wanted."""
    try:
        return min(wanted_count, int(_NR_OPEN.read_text(encoding="ascii")))
    except (OSError, ValueError):
        return wanted_count
