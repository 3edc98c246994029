"""in_group.py CONTROLLER FILE=VALUE COMMAND...: the command in a control group with that limit.

FILE is named as in version 2 (cpu.max, pids.max). The group goes when the command has ended, or
SIGTERM has ended both.
"""

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.control_groups import control_group

PR_SET_PDEATHSIG = 1


def main(controller, limit, command):
    name, _, value = limit.partition("=")
    libc = ctypes.CDLL(None)
    with control_group(controller, {name: value}) as group:

        def enter():
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            (group / "cgroup.procs").write_text(str(os.getpid()))

        child = subprocess.Popen(command, preexec_fn=enter)  # noqa: PLW1509 - it has one thread
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: child.kill())
        return abs(child.wait())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
