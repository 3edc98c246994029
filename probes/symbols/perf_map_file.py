"""Opens the map file of a runtime: ``/tmp/perf-PID.map`` in its process's file system.

It counts only as a regular file that belongs to the process's user or to root, as with perf itself;
links are not followed. What it says is read elsewhere (``probes.symbols.perf_map``).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from probes.rights import stranger_file


class MapRefusedError(OSError):
    """There is a file, and it does not count; ``strerror`` says why."""


def open_map(pid: int) -> int:
    """A descriptor of the map of a process.

    Raises:
        MapRefusedError: It is no regular file, or somebody else's.
        OSError, ValueError: There is none, or the process is gone.
    """
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    namespace_pids = re.search(r"^NSpid:\s*(.*)$", status, re.MULTILINE)
    inner_pid = int(namespace_pids[1].split()[-1]) if namespace_pids else pid
    path = f"tmp/perf-{inner_pid}.map"
    try:
        fd = stranger_file.open_regular(stranger_file.root_of(pid), path, follow=False)
    except stranger_file.NotRegularError as error:
        raise MapRefusedError(error.errno, error.strerror) from error
    owner = os.fstat(fd).st_uid
    users = re.search(r"^Uid:\s*(.*)$", status, re.MULTILINE)
    if owner and (users is None or str(owner) not in users[1].split()):
        os.close(fd)
        raise MapRefusedError(0, f"it belongs to user {owner}, not to the process's user or root")
    return fd
