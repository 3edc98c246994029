"""``profile-attach``: watches a server that runs already, with its real clients."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.commands.end import end
from harness.commands.entry import run_command
from harness.fleet import netns
from harness.foreign import cgroup_members
from harness.foreign.attach_target import AttachTarget, find_target
from harness.foreign.secret_words import without_secrets
from harness.options import values
from harness.options.parser import Example, Parser
from harness.planning.host import Host, format_cpus, read_host, require_own_proc
from harness.supervision import recording
from harness.supervision.attach_watch import Watch
from harness.supervision.recorder import RunResult
from harness.supervision.recording_room import Room, room_at
from harness.supervision.supervisor import Interrupt
from probes.budget.own_cost import START_NICE, go_first_without_memory, stand_back
from probes.collect import registry
from probes.contract.errors import ExitCode, HostError, UsageError
from probes.contract.private_file import hand_over
from probes.contract.rundir import RunDir, create_run_dir
from probes.proc import process_tree
from probes.rights.own_descriptors import raise_own_limit
from reports.terminal.terminal import LiveView

_EXAMPLES = (
    Example("profile-attach --port 9001", "the process that listens there, until Ctrl-C"),
    Example("profile-attach --pid 4711 --duration 60", "a process and its children, for a minute"),
    Example("profile-attach --unit chat.service", "a systemd unit"),
    Example("profile-attach --container 3f2a9c", "a container, seen from the host"),
    Example("profile-attach --container 3f2a9c --port 9001", "one port of it"),
)
_EXIT_CODES = {
    0: "no limit was met while watching",
    2: "usage",
    3: "a limit was met (the report is written)",
    4: "this host cannot",
    5: "something failed",
    6: "no limit was met, but a probe that would have shown one did not see it all",
}

_NEEDED_BYTES = 256 << 20
"""This process and the probe process with what they map; the target must not lack it."""

_REDRAW_PERIOD_S = 1.0

_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]{1,255}")
_CONTAINER = re.compile(rf"[0-9a-f]{{{cgroup_members.LEAST_ID_CHARACTERS},64}}")


def _unit(text: str) -> str:
    if not _UNIT.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a systemd unit")
    return text


def _container(text: str) -> str:
    if not _CONTAINER.fullmatch(text.lower()):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no container id: at least {cgroup_members.LEAST_ID_CHARACTERS} "
            "hexadecimal digits of it (docker ps shows 12)"
        )
    return text.lower()


def parser() -> Parser:
    """The parser of this command."""
    top = Parser(
        prog="profile-attach",
        usage="profile-attach --port N|--pid PID|--unit NAME|--container ID [options]",
        description="Watch a running WebSocket server with its real clients.",
        examples=_EXAMPLES,
        exit_codes=_EXIT_CODES,
        common=("--port", "--pid", "--unit", "--container", "--duration", "--allow-pauses"),
        remarks="Ctrl-C is the usual end: the exit code is then the verdict's.",
    )
    what = top.add_argument_group("what to watch (one of them; --port also narrows another)")
    what.add_argument("--pid", type=values.pid, metavar="PID", help="a process, with its children")
    what.add_argument(
        "--port", type=values.port, metavar="PORT", help="the process that listens there"
    )
    what.add_argument("--unit", type=_unit, metavar="NAME", help="a systemd unit")
    what.add_argument("--container", type=_container, metavar="ID", help="a container's id")
    how = top.add_argument_group("how").add_argument
    how(
        "--duration",
        type=values.seconds(30 * values.DAY_S, is_zero_taken=False),
        metavar="S",
        help="default: until Ctrl-C",
    )
    how("--allow-pauses", action="store_true",
        help="py-spy may pause the target at each sample, for exact stacks")  # fmt: skip
    how("--probes", default="auto", metavar="SET", help="auto, light, full, none, or a list")
    out = top.add_argument_group("output").add_argument
    out("--output", type=Path, default=Path("runs"), metavar="DIR", help="default: runs")
    out("--name", default="attach", help="part of the run directory's name, default: attach")
    out("--json", action="store_true", help="verdict.json to stdout")
    out("--no-report", action="store_true",
        help="verdict.json alone; profile-report RUN makes the page later")  # fmt: skip
    out("--quiet", action="store_true", help="no live view")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command."""
    return run_command(profile_attach, argv)


def profile_attach(argv: Sequence[str]) -> int:
    """Finds the target, watches it, concludes.

    Returns:
        0 no limit was met, 3 one was, 6 none was but not all was seen; errors as exceptions.

    Raises:
        ToolkitError: Usage, host, or run directory.
    """
    options = parser().parse_args(list(argv))
    probes = registry.sparing() if options.probes == "auto" else registry.resolve(options.probes)
    target = _target(options)
    _require_room()
    raise_own_limit()  # one descriptor for each process that is watched
    stated = _room(options, target).check()
    interrupt = Interrupt()
    with interrupt.caught():
        run = create_run_dir(options.output, options.name)
        try:
            result = _record(options, argv, target, probes, run, interrupt, stated)
            interrupt.begin_conclusion()
            return _conclude(options, run, result)
        finally:
            hand_over(run.path)


def _target(options: argparse.Namespace) -> AttachTarget:
    given = [name for name in ("pid", "unit", "container") if getattr(options, name)]
    if len(given) > 1:
        names = " and ".join(f"--{name}" for name in given)
        one = f"profile-attach --{given[0]} {getattr(options, given[0])}"
        raise UsageError(f"{names} name two targets", fix=one)
    if not given and not options.port:
        raise UsageError(
            "nothing to watch was named",
            fix="--port PORT, --pid PID, --unit NAME or --container ID",
        )
    require_own_proc()  # else a number would be looked up among other processes
    return find_target(
        pid=options.pid or 0,
        port=options.port or 0,
        unit=options.unit or "",
        container=options.container or "",
    )


def _require_room() -> None:
    """Refuses to take the last memory from a server in service."""
    available = read_host().memory_room_bytes
    if available < _NEEDED_BYTES:
        raise HostError(
            f"{available >> 20:,} MiB of memory are free here; watching needs up to "
            f"{_NEEDED_BYTES >> 20} MiB and must not take them from the server",
            fix="free -m; make memory free, or raise the memory limit of this shell's cgroup",
        )


def _room(options: argparse.Namespace, target: AttachTarget) -> Room:
    processes = {pid for root in target.roots for pid in process_tree.tree_of(root)}
    return room_at(options.output, options.duration, len(processes), os.cpu_count() or 1)


def _read_host(target: AttachTarget) -> Host:
    """The host, with the network settings that the target has."""
    namespace_fd = target.open_namespace()
    here = read_host()
    if namespace_fd < 0:
        return here
    try:
        with netns.inside(namespace_fd):
            return read_host().with_host_limits(here)
    except OSError as error:
        raise HostError(
            f"the network namespace of pid {target.pid} cannot be entered: {error.strerror}",
            fix="run as root",
        ) from None
    finally:
        os.close(namespace_fd)


def _cpus_of(target: AttachTarget) -> str:
    """The cores that the server may use, which need not be those of this shell."""
    found: set[int] = set()
    for root in target.roots:
        for pid in process_tree.tree_of(root):
            with contextlib.suppress(OSError):  # it is gone
                found |= os.sched_getaffinity(pid)
    return format_cpus(found)


def _record(
    options: argparse.Namespace,
    argv: Sequence[str],
    target: AttachTarget,
    probes: list[str],
    run: RunDir,
    interrupt: Interrupt,
    stated: str,
) -> RunResult:
    manifest = recording.Manifest(
        run,
        {
            "name": options.name,
            "argv": ["profile-attach", *without_secrets(argv)],
            "target_connections": 0,
            "settings": _settings(options, probes),
            "plan": {},
            "host": _read_host(target).to_dict("host") | {"cpus_allowed": _cpus_of(target)},
            "server": target.to_dict(),
            "probes_asked": probes,
        },
    )
    _say(options, f"watching {target.selector}: {', '.join(target.listens_on)}; Ctrl-C ends it")
    if stated:
        _say(options, stated)
    go_first_without_memory()
    stand_back(START_NICE)  # the server's work goes first; the probe process goes further
    with LiveView(0, enabled=not options.quiet, redraw_period_s=_REDRAW_PERIOD_S) as view:
        return Watch(
            run=run,
            target=target,
            probes=probes,
            manifest=manifest,
            duration_s=options.duration,
            interrupt=interrupt,
            view=view,
            allow_pauses=options.allow_pauses,
            with_page=not options.no_report,
        ).execute()


def _settings(options: argparse.Namespace, probes: list[str]) -> dict[str, Any]:
    return {
        "accept": "foreign",
        "at_fd_limit": "foreign",
        "duration_s": options.duration,
        "allow_pauses": options.allow_pauses,
        "probes": probes,
    }


def _conclude(options: argparse.Namespace, run: RunDir, result: RunResult) -> int:
    verdict = end(
        run,
        result.notes,
        as_json=options.json,
        quiet=options.quiet,
        with_page=not options.no_report,
    )
    said = verdict["verdict"]
    if said["unseen"]:
        return ExitCode.NOT_SEEN
    return ExitCode.REACHED if said["cause"] == "no-limit-met" else ExitCode.LIMIT_MET


def _say(options: argparse.Namespace, text: str) -> None:
    if not options.quiet:
        sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
