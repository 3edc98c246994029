"""The probe process: ``python -P -m probes.collect.main``, started by the supervisor.

It keeps root while the fleet drops it, with the capabilities of ``KEEPS`` alone, and speaks with
the supervisor so:

* ``--ready-fd`` gets one line of JSON, ``{"ready": [name], "unavailable": [{name, reason, fix}]}``,
  when every probe runs, after ``PROBES_READY_NS`` was written to the shared memory.
* End of file or ``stop`` on stdin asks it to take the last samples and exit, within 3 s even when
  a probe hangs. Stdin also ends when the supervisor is killed.
* It dies with its parent (PR_SET_PDEATHSIG) and ignores SIGINT: Ctrl-C is the supervisor's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from probes.budget.own_cost import (
    END_NICE,
    START_NICE,
    WATCH_NICE,
    go_first_without_memory,
    stand_back,
)
from probes.collect import registry
from probes.contract.errors import ToolkitError, UsageError
from probes.contract.live import Live
from probes.contract.rundir import RunDir
from probes.rights import network_namespace, privileges
from probes.rights.own_descriptors import raise_own_limit
from probes.rights.parent_death import die_with_parent
from probes.symbols.name_parser_process import name_parser

KEEPS = (
    *("bpf", "perfmon", "sys_admin"),  # eBPF, perf events; before Linux 5.8 the last, and setns
    *("sys_resource", "ipc_lock"),  # maps and limits of its own
    *("sys_ptrace", "dac_read_search", "checkpoint_restore"),  # /proc of others, what they map
    *("net_admin", "syslog", "sys_module"),  # sock_diag, kernel addresses, modules of both
    *("dac_override", "chown"),  # tables in a folder of who called sudo
    *("sys_nice", "kill", "setpcap"),  # stands back and comes back; py-spy with less than this
)
"""Capabilities of this process, as in ``probes.rights.privileges``; what it starts has no more."""


def enter_network_namespace(fd: int) -> None:
    """setns(2), so that /proc/net, iter/tcp and port ranges are the run's.

    Raises:
        ToolkitError: The kernel refused.
    """
    try:
        network_namespace.enter(fd)
    except OSError as error:
        raise ToolkitError(
            "the probe process cannot enter the run's network namespace: "
            f"{os.strerror(error.errno or 0)}",
            fix="run as root, or with --probes none",
        ) from error


def parse_ports(text: str) -> frozenset[int]:
    """Port numbers joined by commas; '' for none.

    Raises:
        UsageError: Something else.
    """
    words = [word for word in text.split(",") if word]
    if not all(word.isdigit() and 0 < int(word) < 65_536 for word in words):
        raise UsageError(f"--server-ports {text!r} are no ports", fix="use for example 9001,9002")
    return frozenset(map(int, words))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="probes.collect.main", description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--probes", required=True)
    parser.add_argument("--live-fd", type=int, required=True)
    parser.add_argument("--netns-fd", type=int)
    parser.add_argument("--server-ports", default="")
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--attached", action="store_true")
    parser.add_argument("--allow-pauses", action="store_true")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the probe process; returns its exit code."""
    parent_pid = os.getppid()
    arguments = _arguments(argv)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    go_first_without_memory()
    with contextlib.suppress(ToolkitError):  # a name that is none is told below
        if registry.read_strangers(registry.resolve(arguments.probes)):
            name_parser().start()  # now, while it may become another user
    privileges.gain_nothing()
    kept = privileges.kept_by_reader(KEEPS)
    privileges.bound_by(kept)
    privileges.keep_only(kept)
    die_with_parent(parent_pid)
    raise_own_limit()
    if arguments.attached:
        stand_back(START_NICE)
    # Only now: the threads that numpy starts would have kept what this one has given up.
    from probes.collect.collector import Collector

    try:
        if arguments.netns_fd is not None:
            enter_network_namespace(arguments.netns_fd)
        collector = Collector(
            RunDir(arguments.run_dir),
            registry.resolve(arguments.probes),
            Live(arguments.live_fd),
            parse_ports(arguments.server_ports),
            stdin_fd=0,
            attached=arguments.attached,
            allow_pauses=arguments.allow_pauses,
        )
        collector.prepare()
        if collector.wait_for_fleet():
            collector.start()
            line = json.dumps(collector.ready_message()) + "\n"
            with contextlib.suppress(BrokenPipeError):
                os.write(arguments.ready_fd, line.encode())
            os.close(arguments.ready_fd)
            if arguments.attached:
                # Without root there is no way back, and the end has a deadline.
                stand_back(WATCH_NICE if os.geteuid() == 0 else START_NICE)
            collector.loop()
            if arguments.attached:
                stand_back(END_NICE)
        collector.stop()
    except ToolkitError as error:
        sys.stderr.write(f"error: {error.message}\nfix: {error.fix}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
