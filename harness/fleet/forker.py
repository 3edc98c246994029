"""The lean parent: forks the processes of one side and reports their ends.

One interpreter is started for each side; its children share its memory (copy on write). Ends are
reported as JSON lines on a pipe: ``{"pid", "slot", "exited_ns", "status", "signal"}``.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable

from harness.fleet import child
from harness.fleet.config import FleetConfig
from probes.contract.live import Live
from probes.rights import network_namespace
from probes.rights.parent_death import die_with_parent

Job = tuple[int, Callable[[], None]]  # slot, and what the process does


def begin_parent(argv: list[str]) -> tuple[FleetConfig, Live, int]:
    """What both parents do first: die with the supervisor, enter the namespace, map live.bin.

    Args:
        argv: The supervisor's pid, and the descriptors of the configuration, of live.bin, of the
            report pipe and of the network namespace (-1: stay in the host's).

    Returns:
        The configuration, the shared memory, the descriptor for the reports.
    """
    supervisor_pid, config_fd, live_fd, report_fd, namespace_fd = map(int, argv[:5])
    child.leave_terminal()
    die_with_parent(supervisor_pid)
    # Both parents have the same open file: neither may move its offset.
    text = os.pread(config_fd, os.fstat(config_fd).st_size, 0)
    os.close(config_fd)
    config = FleetConfig.from_json(text.decode())._replace(parent_pid=os.getpid())
    if namespace_fd >= 0:
        network_namespace.enter(namespace_fd)
        os.close(namespace_fd)
    child.gain_nothing()
    live = Live(live_fd)
    os.close(live_fd)
    return config, live, report_fd


def fork_all(jobs: list[Job], config: FleetConfig) -> dict[int, int]:
    """Forks one process for each job.

    Args:
        jobs: Slot number and what the process does; a job that returns ends its process with 0,
            one that raises with 1 and a traceback on stderr (the log of that side).
        config: Says which control groups they join; this parent stays outside, so that whatever a
            limit does to them is reported.

    Returns:
        Slot by pid.
    """
    gc.freeze()  # what the children share must not be touched by their collectors
    parent_pid = os.getpid()
    slots: dict[int, int] = {}
    for slot, job in jobs:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                die_with_parent(parent_pid)
                for path in config.cgroups_of(slot):
                    child.join_cgroup(path)
                job()
                status = 0
            except BaseException:  # noqa: BLE001 - the edge of the process: reported, then its end
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        slots[pid] = slot
    return slots


def stay_without_rights(config: FleetConfig, supervisor_pid: int) -> None:
    """After the last fork a parent only waits: it gives up all that it may do, and root.

    Args:
        config: Says whom it becomes.
        supervisor_pid: Whom it goes on to die with.
    """
    child.give_up_all(config.own_uid, config.own_gid)
    die_with_parent(supervisor_pid)


def report_ends(slots: dict[int, int], report_fd: int) -> None:
    """Waits for all children and writes a line for each as it ends."""
    left = dict(slots)
    while left:
        pid, status = os.wait()
        slot = left.pop(pid, -1)
        line = {
            "pid": pid,
            "slot": slot,
            "exited_ns": time.monotonic_ns(),
            "status": os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1,
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
        }
        os.write(report_fd, json.dumps(line).encode() + b"\n")
