"""``profile-doctor``: what this host can hold, and which probes run here and why not.

Each probe is started for a moment (``probes/collect/trial.py``): what is called available has run.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.commands.entry import run_command
from harness.options.parser import SHELLS, Example, Parser
from harness.options.values import count
from harness.planning.checks import DELAYING_LIMITS
from harness.planning.host import Host, read_host
from harness.planning.layout import Plan
from harness.planning.limits import HostLimit, host_limits
from harness.planning.plan import make_plan
from harness.planning.request import MAX_CONNECTIONS, PlanRequest
from harness.planning.text import amount_text, bytes_text, count_text, plan_text, wrapped
from probes.bpf_loader.kernel_features import Lack, lacks_of_kernel
from probes.collect.registry import ProbeCheck
from probes.collect.trial import check_all
from probes.contract.errors import ExitCode, HostError

_INDENT = "    "
_NAMESPACE_FIXES = {
    errno.EPERM: "docker run --security-opt seccomp=unconfined, or --privileged",
    errno.ENOSPC: "sysctl -w user.max_net_namespaces=1024",
    errno.EINVAL: "boot a kernel with CONFIG_NET_NS=y",
}

_EXAMPLES = (
    Example("profile-doctor", "limits, probes, and what to fix"),
    Example("profile-doctor --connections 120000", "the same, and a plan for that many"),
    Example("profile-doctor --hosts hosts.toml", "the same of the hosts of a run over several"),
    Example(
        'eval "$(profile-doctor --print-completion bash)"',
        "completion of all commands, for ~/.bashrc; zsh likewise",
    ),
    Example("profile-doctor --print-completion fish | source", "for config.fish"),
)
_EXIT_CODES = {0: "a run is possible here", 2: "usage", 4: "no run is possible here"}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, or 4 when no run is possible here."""
    return run_command(_doctor, argv)


def parser() -> Parser:
    """The parser of ``profile-doctor``."""
    top = Parser(
        prog="profile-doctor",
        usage="profile-doctor [options]",
        description="What this host can hold, which probes can run, and how to fix the rest.",
        examples=_EXAMPLES,
        exit_codes=_EXIT_CODES,
    )
    add = top.add_argument
    add("--connections", type=count, metavar="N", help="also plan a run of N connections")
    add("--hosts", type=Path, metavar="FILE",
        help="hosts of a run over several: what they hold, clocks, versions")  # fmt: skip
    add("--cluster", metavar="URL", help="the Dask cluster that they are in, see profile-run")
    add("--json", action="store_true", help="one JSON document on stdout")
    add("--print-completion", choices=SHELLS, metavar="SHELL",
        help="completion of all commands for bash, zsh or fish")  # fmt: skip
    return top


def _doctor(argv: Sequence[str]) -> int:
    arguments = parser().parse_args(argv)
    if arguments.print_completion is not None:
        # it needs the parsers of all commands
        from harness.commands.completion import completion_script

        print(completion_script(arguments.print_completion), end="")
        return int(ExitCode.REACHED)
    if arguments.hosts is not None:
        return _examine_hosts(arguments)
    host = read_host()
    examination = Examination(host, arguments.connections, check_all(), lacks_of_kernel())
    if arguments.json:
        print(json.dumps(examination.to_dict(), indent=2))
    else:
        print("\n".join(examination.lines()))
    return int(ExitCode.REACHED if examination.refusal is None else ExitCode.HOST_CANNOT)


def _examine_hosts(arguments: argparse.Namespace) -> int:
    from harness.hosts import run as hosts_run  # Dask comes with it
    from harness.hosts.examine import examine

    found = examine(hosts_run.hosts_of(arguments.hosts), arguments.cluster or "")
    print(found.to_json() if arguments.json else "\n".join(found.lines()))
    return int(found.exit_code)


def most_connections(host: Host) -> tuple[int, str]:
    """The most connections that a plan holds without a wall, and the wall after them.

    Slow starts (a full accept queue, TCP memory) are no walls.
    """

    def wall(connections: int) -> str:
        try:
            plan = make_plan(
                PlanRequest(
                    connections=connections, own_namespace=host.may_own_namespace, force=True
                ),
                host,
            )
        except HostError:
            return "fds_per_process"
        walls = [rung.limit for rung in plan.rungs if rung.limit not in DELAYING_LIMITS]
        return walls[0] if walls else ""

    holds, beyond, limit = 0, MAX_CONNECTIONS + 1, ""
    for each in host_limits(host, own_namespace=host.may_own_namespace):
        if each.connections is not None and each.connections < beyond - 1:
            beyond, limit = each.connections + 1, each.limit
    while beyond - holds > 1:
        middle = (holds + beyond) // 2
        if found := wall(middle):
            beyond, limit = middle, found
        else:
            holds = middle
    return holds, limit


class Examination:
    """What the doctor found.

    Args:
        host: As it was read.
        connections: Target to plan for as well, None for none.
        checks: What came of trying every probe.
        lacks: What a newer kernel tells.

    Raises:
        UsageError: The target makes no sense on any host.

    Attributes:
        limits: Of this host, in the ladder's order.
        holds_connections: Most connections of one run, by the limits that were read.
        next_limit: The limit that would be met with one more.
        plan: For ``connections``; None without a target, or when it was refused.
        refusal: Why no run (or not this one) is possible here; None when it is.
    """

    def __init__(
        self,
        host: Host,
        connections: int | None,
        checks: list[ProbeCheck],
        lacks: Sequence[Lack] = (),
    ) -> None:
        self.host = host
        self.checks = checks
        self.lacks = lacks
        self.limits = host_limits(host, own_namespace=host.may_own_namespace)
        self.holds_connections, self.next_limit = most_connections(host)
        self.plan: Plan | None = None
        self.refusal: HostError | None = None
        request = PlanRequest(
            connections=1 if connections is None else connections,
            own_namespace=host.may_own_namespace,
        )
        try:
            plan = make_plan(request, host)
        except HostError as error:
            self.refusal = error
            return
        self.plan = None if connections is None else plan
        if self.holds_connections < 1:
            self.refusal = HostError(
                f"{self.next_limit} leaves no room for a single connection",
                fix=plan.rungs[0].fix if plan.rungs else "see the limits below",
            )

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        own = self.host.may_own_namespace
        return {
            "can_run": self.refusal is None,
            "refusal": None
            if self.refusal is None
            else {"message": self.refusal.message, "fix": self.refusal.fix},
            "holds_connections": self.holds_connections,
            "next_limit": self.next_limit,
            "limits": [limit.to_dict() for limit in self.limits],
            "probes": [asdict(check) for check in self.checks],
            "kernel_lacks": [asdict(lack) for lack in self.lacks],
            "plan": None if self.plan is None else self.plan.to_dict(),
            "host": self.host.to_dict("own" if own else "host"),
        }

    def lines(self) -> Iterator[str]:
        """As text for people."""
        host = self.host
        memory = bytes_text(host.memory_total_bytes)
        model = f" ({host.cpu_model})" if host.cpu_model else ""
        yield from wrapped(
            f"Linux {host.kernel} on {host.machine}, {count_text(host.cpu_count, 'core')}{model}, "
            f"{memory} memory, Python {host.python}"
        )
        yield ""
        if self.refusal is None or self.holds_connections:
            wall = f" The first wall is {self.next_limit}." if self.next_limit else ""
            yield from wrapped(
                f"This host can hold about {_rounded(self.holds_connections):,} connections in one "
                f"run.{wall}"
            )
        if self.refusal is not None:
            yield from wrapped(f"Cannot run here: {self.refusal.message}", rest=_INDENT)
            yield from wrapped(f"fix: {self.refusal.fix}", first=_INDENT)
        yield ""
        yield from self._isolation_lines()
        yield ""
        yield f"  {'Limit':<18}{'Value':>13}{'Connections':>14}"
        for limit in self.limits:
            yield from _limit_lines(limit)
        yield ""
        yield from self._probe_lines()
        if self.lacks:
            yield ""
            yield "What this kernel does not tell, and which one does:"
        for lack in self.lacks:
            yield from wrapped(f"{lack.what}: Linux {lack.since}", first="  ", rest=_INDENT)
        if self.plan is not None:
            yield ""
            yield from plan_text(self.plan).splitlines()

    def _isolation_lines(self) -> Iterator[str]:
        if self.host.may_own_namespace:
            yield "A run gets a network namespace of its own; nothing on the host is changed."
            return
        if self.host.namespace_errno:
            yield from wrapped(
                "A run uses the host's own network and port range: network namespaces are refused "
                f"({os.strerror(self.host.namespace_errno)})."
            )
            fix = _NAMESPACE_FIXES.get(self.host.namespace_errno, "docker run --privileged")
            yield f"{_INDENT}fix: {fix}"
            return
        yield from wrapped(
            "A run uses the host's own network and port range: making a network namespace needs "
            "root (CAP_SYS_ADMIN and CAP_NET_ADMIN)."
        )
        fix = "docker run --privileged" if self.host.is_root else "sudo .venv/bin/profile-run"
        yield f"{_INDENT}fix: {fix}"

    def _probe_lines(self) -> Iterator[str]:
        ready = sum(check.state == "available" for check in self.checks)
        yield f"Probes that can run here: {ready} of {len(self.checks)}"
        for check in self.checks:
            yield f"  {check.name:<18}{check.state:<13}{', '.join(check.sets)}"
            if check.reason:
                yield from wrapped(check.reason, first=_INDENT)
            if check.fix:
                yield from wrapped(f"fix: {check.fix}", first=_INDENT, rest=_INDENT + "     ")
            for note in check.notes:
                yield from wrapped(f"note: {note}", first=_INDENT, rest=_INDENT + "      ")


def _limit_lines(limit: HostLimit) -> Iterator[str]:
    holds = "" if limit.connections is None else f"{_rounded(limit.connections):,}"
    value = amount_text(limit.value_count, limit.unit)
    yield f"  {limit.limit:<18}{value:>13}{holds:>14}".rstrip()
    yield from wrapped(limit.note, first=_INDENT)
    if limit.fix:
        yield from wrapped(f"raise it: {limit.fix}", first=_INDENT, rest=_INDENT + "          ")


def _rounded(connections: int) -> int:
    """Down to three digits: the estimates are no better."""
    step = int(10.0 ** max(0, len(str(connections)) - 3))
    return connections // step * step
