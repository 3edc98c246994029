"""The command line of ``profile-run``: options, their checks, and what the fleet is told."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.client.retries import JITTER_SHARE
from harness.faults import kinds as faults
from harness.fleet.config import FleetConfig, GroupShare
from harness.options import foreign as foreign_options
from harness.options import values
from harness.options.parser import Example, Parser
from harness.planning.layout import Plan
from harness.planning.request import ACCEPT_MODES, PlanRequest
from probes.contract.errors import UsageError
from probes.rights.own_user import OwnUser

if TYPE_CHECKING:
    from harness.planning.host import Host

AT_FD_LIMIT = ("pause", "spin", "reset", "crash")
LEAST_CGROUP_BYTES = 65_536
MESSAGE_LIMIT_BYTES = 1_048_576
RETRY_LIMIT_COUNT = 1_000
STALL_S = 2.0
"""``--stall`` where it is not said."""
_EXAMPLES = (
    Example("profile-run --connections 120000", "the main job"),
    Example("profile-run --connections 120000 --plan", "the layout; what would bind"),
    Example(
        "profile-run --connections 5000 --server-cmd 'node server.js --port {port}'",
        "your own server",
    ),
    Example(
        "profile-run --connections 5000 --workers 2 --nofile 2000 --at-fd-limit spin",
        "a naive server at its descriptor limit",
    ),
    Example(
        "profile-run --connections 40000 --source-addresses 1 --port-range 32768-60999",
        "one address: the ports run out at 28,232",
    ),
)
_EXIT_CODES = {
    0: "reached",
    2: "usage",
    3: "a limit was met (report written)",
    4: "this host cannot",
    5: "failed",
    130: "interrupted (report written)",
}
_COMMON = (
    "--connections", "--workers", "--nofile", "--hold", "--server-cmd", "--target", "--probes",
    "--plan",
)  # fmt: skip


_seconds = values.seconds()


def _bytes(text: str) -> int:
    """As the kernel writes sizes: k, m and g are powers of 1,024."""
    match = re.fullmatch(r"(\d+)([kmg]?)", text.strip().lower())
    if (
        match is None
        or not LEAST_CGROUP_BYTES
        <= (size := int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2]])
        < 1 << 50
    ):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size from 64k up, e.g. 100m")
    return size


def _auto(text: str) -> int | None:
    return None if text == "auto" else values.count(text)


def _retry_count(text: str) -> int:
    value = values.count(text)
    if value > RETRY_LIMIT_COUNT:
        raise argparse.ArgumentTypeError(f"{value:,} is over the limit of {RETRY_LIMIT_COUNT:,}")
    return value


def _retry_wait(text: str) -> tuple[float, float]:
    first, dash, longest = text.partition("-")
    if not dash:
        raise argparse.ArgumentTypeError(f"{text!r} is not a range of seconds, e.g. 0.5-5")
    first_s, longest_s = _seconds(first), _seconds(longest)
    if not 0.01 <= first_s <= longest_s:
        raise argparse.ArgumentTypeError(f"{text!r} is not a range of seconds from 0.01 up")
    return first_s, longest_s


def _keepalive(text: str) -> float:
    if text == "off":
        return 0.0
    value = _seconds(text)
    if value < 0.01:
        raise argparse.ArgumentTypeError(f"{text!r} is less than 0.01 s; use off for none")
    return value


def _rate(text: str) -> float:
    if text == "max":
        return 0.0
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a rate per second nor max") from None
    if not 0.01 <= value <= 10_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0.01 and 10,000,000 per second")
    return value


def _message_rate(text: str) -> float:
    return 0.0 if text in ("0", "off") else _rate(text)


def _port_range(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})-(\d{1,5})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a range LO-HI")
    return int(match[1]), int(match[2])


def _payload(text: str) -> int:
    value = values.count(text)
    if value > MESSAGE_LIMIT_BYTES:
        raise argparse.ArgumentTypeError(f"{value:,} is over the limit of {MESSAGE_LIMIT_BYTES:,}")
    return value


def _inject(text: str) -> str:
    try:
        faults.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _weights(text: str) -> tuple[int, ...]:
    if re.fullmatch(r"\d{1,6}(,\d{1,6}){0,4095}", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not N,N with one number for each worker")
    return tuple(map(int, text.split(",")))


def _sysctl(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or re.fullmatch(r"net(\.[A-Za-z0-9_-]+)+", name) is None or not value.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not net.NAME=VALUE")
    return name, value.strip()


def _metrics(text: str) -> tuple[str, int]:
    from harness.supervision.metrics_endpoint import parse_address  # http.server comes with it

    return parse_address(text)


def parser() -> Parser:
    """The parser of ``profile-run``."""
    top = Parser(
        prog="profile-run",
        usage="profile-run --connections N [options]",
        description="Put a WebSocket server under connections, watch it, and say what limited it.",
        examples=_EXAMPLES,
        exit_codes=_EXIT_CODES,
        common=_COMMON,
    )
    add = top.add_argument
    add(
        "--connections",
        type=values.count,
        required=True,
        metavar="N",
        help="target, e.g. 120000 or 120k",
    )
    plan = top.add_argument_group("layout (auto: from the host's limits)").add_argument
    plan("--workers", type=_auto, metavar="N|auto", help="server processes")
    plan("--clients", type=_auto, metavar="N|auto", help="client processes")
    plan("--nofile", type=values.count, metavar="N", help="RLIMIT_NOFILE of the workers")
    plan("--source-addresses", type=_auto, metavar="N|auto", help="client addresses in 127/8")
    plan(
        "--destination-ports",
        type=values.count,
        metavar="N",
        help="ports that the server listens on",
    )
    plan(
        "--bind",
        choices=("late", "early"),
        default="late",
        metavar="WHEN",
        help="early: local port at bind, for all destinations (default: late, at connect)",
    )
    plan("--port-range", type=_port_range, metavar="LO-HI", help="local ports of the clients")
    plan("--backlog", type=values.count, metavar="N", help="backlog passed to listen(2)")
    plan("--sysctl", type=_sysctl, action="append", default=[], metavar="NAME=VALUE",
         help="net.* setting of the run's own network namespace")  # fmt: skip
    plan("--host-network", action="store_true", help="run in the host's network namespace")
    plan("--force", action="store_true", help="run even if it does not fit in memory")
    plan("--memory-max", type=_bytes, default=0, metavar="BYTES",
         help="memory limit of the cgroup that the fleet runs in, e.g. 100m")  # fmt: skip
    plan("--tcp-memory-max", type=_bytes, default=0, metavar="BYTES",
         help="limit of that cgroup for TCP's buffers alone (cgroup version 1)")  # fmt: skip
    server = top.add_argument_group("server").add_argument
    server("--accept", choices=ACCEPT_MODES, default="reuseport",
           help="how workers get connections (default: reuseport)")  # fmt: skip
    server("--accept-weights", type=_weights, default=(), metavar="N,N",
           help="shares of a shared listener, by worker (default: first come)")  # fmt: skip
    server("--at-fd-limit", choices=AT_FD_LIMIT, default="pause",
           help="what a full worker does (default: pause)")  # fmt: skip
    server("--server-mode", choices=("echo", "silent"), default="echo",
           help="echo: answer each message (default); silent: only read")  # fmt: skip
    server("--keepalive", type=_keepalive, default=0.0, metavar="S|off",
           help="interval of the server's pings (default: off)")  # fmt: skip
    server("--gc", choices=("on", "off"), default="on", help="garbage collection in the workers")
    server("--inject", type=_inject, action="append", default=[], metavar="NAME:NUMBER[:VALUE]",
           help="inject a fault: " + ", ".join(faults.KINDS))  # fmt: skip
    load = top.add_argument_group("load").add_argument
    load("--ramp", type=_rate, default=0.0, metavar="RATE|max",
         help="connects per second of all clients (default: max)")  # fmt: skip
    load("--hold", type=_seconds, default=10.0, metavar="S",
         help="how long to hold the connections (default: 10)")  # fmt: skip
    load("--connect-timeout", type=_seconds, default=10.0, metavar="S",
         help="timeout of one connection attempt (default: 10)")  # fmt: skip
    load("--stall", type=_seconds, default=None, metavar="S",
         help="a client stops once every attempt has failed for S (default: 2; with --retry "
              "at least its longest wait)")  # fmt: skip
    load("--failures-max", type=values.count, default=0, metavar="N",
         help="stop after N failed attempts (default: no limit)")  # fmt: skip
    load("--retry", type=_retry_count, default=0, metavar="N",
         help="retry each failed or lost connection up to N times (default: 0)")  # fmt: skip
    load("--retry-wait", type=_retry_wait, default=(1.0, 10.0), metavar="S-S",
         help="first and longest wait before a retry; doubles each time, with ±50 %% jitter "
              "(default: 1-10)")  # fmt: skip
    load("--payload", type=_payload, default=64, metavar="BYTES", help="message size, default 64")
    load("--message-rate", type=_message_rate, default=0.0, metavar="RATE",
         help="messages per second of the whole fleet, default 0")  # fmt: skip
    foreign_options.add_options(top)
    hosts = top.add_argument_group("several hosts (pip install 'connscope[cluster]')").add_argument
    hosts("--hosts", type=Path, metavar="FILE", help="TOML file that names the hosts of the run")
    hosts("--cluster", metavar="URL",
          help="running Dask cluster, tcp://192.0.2.1:8786 (default: start agents)")  # fmt: skip
    out = top.add_argument_group("watching and output").add_argument
    out("--probes", default="auto", metavar="SET", help="auto, light, full, none, or a list")
    out("--output", type=Path, default=Path("runs"), metavar="DIR", help="default: runs")
    out("--name", default="run", help="part of the run directory's name")
    out("--plan", action="store_true", help="print the plan and stop")
    out("--metrics", type=_metrics, metavar="[ADDR:]PORT",
        help="live OpenMetrics over HTTP, on 127.0.0.1 when no address is given")  # fmt: skip
    out("--json", action="store_true", help="verdict (or plan) as JSON on stdout")
    out("--no-report", action="store_true",
        help="verdict.json alone; profile-report RUN makes the page later")  # fmt: skip
    out("--quiet", action="store_true", help="no progress")
    return top


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses and checks what belongs together.

    Raises:
        UsageError: A value makes no sense.
    """
    options = parser().parse_args(argv)
    if options.connect_timeout < 0.1:
        raise UsageError(
            f"--connect-timeout {options.connect_timeout:g} is less than 0.1 s",
            fix="--connect-timeout 10",
        )
    options.stall_asked = options.stall
    if options.stall is None:
        longest_s = options.retry_wait[1] * (1 + JITTER_SHARE) if options.retry else 0.0
        options.stall = STALL_S + longest_s
    options.speech = foreign_options.speech_of(options)
    options.foreign = None
    return options


def plan_request(options: argparse.Namespace, *, own_namespace: bool) -> PlanRequest:
    """What the planner is asked.

    Raises:
        UsageError: A value is out of its range.
    """
    return PlanRequest(
        connections=options.connections,
        workers=len(options.accept_weights) or None if options.workers is None else options.workers,
        clients=options.clients,
        nofile=options.nofile,
        accept=options.accept,
        accept_weights=options.accept_weights,
        source_addresses=options.source_addresses,
        destination_ports=options.destination_ports,
        port_range=options.port_range,
        bind=options.bind,
        backlog=options.backlog,
        sysctls=tuple(options.sysctl),
        own_namespace=own_namespace,
        force=options.force,
    )


def limited(host: Host, options: argparse.Namespace) -> Host:
    """The host as the fleet will find it: with the memory limit of its own cgroup."""
    limit, room = options.memory_max, host.memory_room_bytes
    if not 0 < limit < room:
        return host
    used = host.cgroup.memory_used_bytes or 0
    return replace(
        host,
        cgroup=replace(host.cgroup, memory_limit_bytes=limit + used, memory_used_bytes=used),
    )


def check_faults(options: argparse.Namespace, plan: Plan) -> None:
    """Faults must name a process of the plan.

    Raises:
        UsageError: One does not.
    """
    for text in options.inject:
        fault = faults.parse(text)
        role = faults.KINDS[fault.name].role
        if role == "host":
            _check_burners(text, fault)
            continue
        if role == "namespace":
            _check_namespace(text, plan)
            continue
        acceptors = 1 if plan.accept == "handoff" else 0
        count = {"worker": plan.workers, "acceptor": acceptors, "client": plan.clients}[role]
        if fault.number >= count:
            raise UsageError(
                f"--inject {text}: there is no {role} {fault.number}",
                fix=f"--inject {fault.name}:{count - 1}, or --{role}s {fault.number + 1}"
                if count
                else "an acceptor is there with --accept handoff alone",
            )


def _check_namespace(text: str, plan: Plan) -> None:
    if not plan.own_namespace:  # it would fill the table of the whole host
        raise UsageError(
            f"--inject {text} needs a network namespace of the run's own",
            fix="run as root, without --host-network",
        )


def _check_burners(text: str, fault: faults.Fault) -> None:
    most = faults.MOST_BURNERS_COUNT
    if not fault.number <= most or not 0 < fault.value <= faults.MOST_BURN_S:
        raise UsageError(
            f"--inject {text}: at most {most} processes, for at most {faults.MOST_BURN_S:.0f} s",
            fix=f"--inject {fault.name}:4:10",
        )


def settings(options: argparse.Namespace, probes: list[str]) -> dict[str, Any]:
    """The manifest's ``settings``."""
    return {
        "accept": options.accept,
        "accept_weights": list(options.accept_weights) or None,
        "at_fd_limit": options.at_fd_limit,
        "server_mode": options.server_mode,
        "nofile": options.nofile,
        "keepalive_s": options.keepalive or None,
        "payload_bytes": options.payload,
        "message_rate_per_s": options.message_rate,
        "gc": options.gc == "on",
        "ramp_per_s": options.ramp or None,
        "hold_s": options.hold,
        "connect_timeout_s": options.connect_timeout,
        "stall_s": options.stall_asked,
        "failures_max": options.failures_max or None,
        "retry": options.retry or None,
        "retry_wait_s": list(options.retry_wait) if options.retry else None,
        "probes": probes,
        "inject": options.inject,
        "memory_max_bytes": options.memory_max or None,
        "tcp_memory_max_bytes": options.tcp_memory_max or None,
        "sysctls": dict(options.sysctl),
        "bind": options.bind,
        **foreign_options.settings(options.speech, options.foreign),
    }


def fleet_config(options: argparse.Namespace, plan: Plan, user: OwnUser | None) -> FleetConfig:
    """What the fleet is told."""
    config = FleetConfig(
        server_address=plan.server_address,
        destination_ports=list(plan.destination_ports),
        accept=plan.accept,
        at_fd_limit=options.at_fd_limit,
        server_mode=options.server_mode,
        backlog_count=plan.backlog_count,
        workers=plan.workers,
        worker_nofile_count=plan.worker_nofile_count,
        clients=plan.clients,
        client_nofile_count=plan.client_nofile_count,
        client_groups=[
            [GroupShare(*_plain(group)) for group in plan.client_groups(index)]
            for index in range(plan.clients)
        ],
        keepalive_s=options.keepalive,
        payload_bytes=options.payload,
        message_rate_per_s=options.message_rate,
        ramp_per_s=options.ramp,
        socket_port_range=list(plan.port_range) if plan.port_range_by == "socket" else [],
        in_flight_max_count=plan.client_in_flight_count,
        connect_timeout_s=options.connect_timeout,
        stall_s=options.stall,
        retry_count=options.retry,
        retry_first_s=options.retry_wait[0],
        retry_longest_s=options.retry_wait[1],
        gc=options.gc == "on",
        inject=options.inject,
        memory_max_bytes=options.memory_max,
        tcp_memory_max_bytes=options.tcp_memory_max,
        own_uid=user.uid if user else 0,
        own_gid=user.gid if user else 0,
        bind=options.bind,
        accept_weights=list(plan.accept_weights),
    )
    fields = foreign_options.fleet_fields(options, options.speech, options.foreign)
    return config._replace(**fields)


def _plain(group: Any) -> tuple[str, int, int]:
    return group.source_address, group.destination_port, group.count
