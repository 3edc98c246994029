"""Processes beside the fleet that calculate: what ``--inject burn:PROCESSES[:S]`` puts on the host.

With 0 processes there are four for each core: a crowd on any host.

They stand for whatever else a machine has to do. They end by themselves after their time, and with
the supervisor when that dies.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable

from harness.faults.kinds import BURNERS_PER_CORE, faults_of, parse
from harness.fleet.child import gain_nothing, give_up_all
from probes.rights.own_process import start_module
from probes.rights.own_user import own_user
from probes.rights.parent_death import die_with_parent


class Burners:
    """The burning processes of one run; none when nothing asks for them.

    Args:
        inject: As given on the command line.
    """

    def __init__(self, inject: Iterable[str]) -> None:
        self._wanted = [
            fault
            for number in {parse(text).number for text in inject}
            for fault in faults_of(inject, "host", number)
        ]
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Starts them all."""
        for fault in self._wanted:
            count = fault.number or BURNERS_PER_CORE * len(os.sched_getaffinity(0))
            for _ in range(count):
                self._processes.append(
                    start_module(
                        "harness.faults.burners",
                        [str(os.getpid()), str(fault.value)],
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=None,
                    )
                )

    @property
    def pids(self) -> list[int]:
        """Of those that were started."""
        return [process.pid for process in self._processes]

    def stop(self) -> None:
        """Ends those that still burn."""
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes.clear()


def main(argv: list[str]) -> int:
    """Burns.

    Args:
        argv: Pid of the supervisor, seconds.
    """
    gain_nothing()
    user = own_user()
    give_up_all(user.uid if user else 0, user.gid if user else 0)
    die_with_parent(int(argv[0]))
    until_s = time.monotonic() + float(argv[1])
    while time.monotonic() < until_s:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
