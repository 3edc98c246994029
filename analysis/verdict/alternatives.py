"""Which other findings explain the same connections, and what would decide between them. Pure.

A binding finding is the earliest of those that explain something. Where another one that does not
follow from it began as early as the tables can tell, time does not decide; where the binding one
is believed little, time is not enough. Then the verdict names both, and the measurement that
would tell them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.evidence import Finding, Side

_EXACT_S = 0.001
_PERIOD_S = {
    "failing_syscalls": _EXACT_S,
    "connections": _EXACT_S,
    "events": _EXACT_S,
    "processes": _EXACT_S,
    "tcp_resets": _EXACT_S,
    "live_samples": 0.25,
    "process_samples": 0.5,
    "host_cpu": 0.5,
    "sockstat": 0.5,
}
"""How late a table can see what began: tables of events know the moment, samples their period."""
_LONGEST_PERIOD_S = 0.6


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another explanation that this run cannot rule out.

    Attributes:
        cause: Its id.
        side: Whose limit it is.
        why: Why it cannot be ruled out, one clause with numbers.
        decide: The measurement or command that would decide.
    """

    cause: str
    side: Side
    why: str
    decide: str


def alternatives(findings: Sequence[Finding]) -> tuple[Alternative, ...]:
    """The explanations beside the binding one, the likeliest first.

    Args:
        findings: Ranked.
    """
    binding = next((f for f in findings if f.severity == "binding"), None)
    if binding is None or binding.cause == "reached":
        return ()
    rivals = [
        finding
        for finding in findings
        if finding is not binding
        and finding.explained_count > 0
        and not finding.follows_from
        and (finding.cause, finding.side) != (binding.cause, binding.side)
        and (binding.confidence == "low" or _is_as_early(finding, binding))
    ]
    rivals.sort(key=lambda f: (-f.explained_count, f.first_s, f.cause))
    return tuple(
        Alternative(f.cause, f.side, _why(f, binding), how_to_decide(binding.cause, f.cause))
        for f in rivals
    )


def tolerance_s(finding: Finding) -> float:
    """How much earlier than ``first_s`` it may have begun, by the table that saw it begin."""
    seen = [
        _PERIOD_S.get(evidence.table, _LONGEST_PERIOD_S)
        for evidence in finding.evidence
        if evidence.at_s == finding.first_s
    ]
    return min(seen, default=_LONGEST_PERIOD_S)


def _is_as_early(rival: Finding, binding: Finding) -> bool:
    return rival.first_s - binding.first_s <= max(tolerance_s(rival), tolerance_s(binding))


def _why(rival: Finding, binding: Finding) -> str:
    explained = f"it explains {rival.explained_count:,} connections"
    if _is_as_early(rival, binding):
        apart_s = abs(rival.first_s - binding.first_s)
        limit_s = max(tolerance_s(rival), tolerance_s(binding))
        return f"{explained} and began {apart_s:.3f} s apart, where {limit_s:g} s can be told apart"
    return f"{explained}, and the confidence in {binding.cause} is low"


def how_to_decide(one: str, other: str) -> str:
    """What tells two causes apart: of the pair, else of either."""
    pair = _OF_PAIR.get(frozenset((one, other)))
    return pair or _OF_CAUSE.get(other) or _OF_CAUSE.get(one) or _REPEAT


_REPEAT = "repeat the run with the first fix alone: what then stops it is the other one"

_OF_PAIR: dict[frozenset[str], str] = {
    frozenset(("fd-limit-process", "fd-limit-system")): (
        "profile-run with twice the --nofile: EMFILE goes away, ENFILE stays"
    ),
    frozenset(("fd-limit-process", "hot-worker-code")): (
        "profile-run with twice the --nofile: a full worker then accepts, a hot one still does not"
    ),
    frozenset(("fd-limit-process", "worker-blocked")): (
        "profile-run with twice the --nofile: a full worker then accepts, a blocked one does not"
    ),
    frozenset(("fd-limit-process", "accept-queue-overflow")): (
        "profile-run with twice the --nofile: overflows that stay are those of a slow accept"
    ),
    frozenset(("accept-queue-overflow", "syn-backlog-overflow")): (
        "nstat -az TcpExtListenOverflows TcpExtTCPReqQFullDrop: which of them grows"
    ),
    frozenset(("accept-queue-overflow", "conntrack-full")): (
        "nstat -az TcpExtListenOverflows; conntrack -S: which of the two counts the lost SYNs"
    ),
    frozenset(("tcp-memory-pressure", "receive-buffer-full")): (
        "cat /proc/net/sockstat against net.ipv4.tcp_mem: below its second value it is one socket"
    ),
    frozenset(("ephemeral-ports-exhausted", "bind-ports-exhausted")): (
        "profile-run --bind late: EADDRINUSE at bind goes away, EADDRNOTAVAIL at connect stays"
    ),
    frozenset(("host-cpu-saturated", "hot-worker-code")): (
        "profile-run --probes full: run-queue latency is high for all, or CPU for one alone"
    ),
    frozenset(("host-cpu-saturated", "client-is-the-limit")): (
        "profile-run --probes full: a client that waits for a core has run-queue latency"
    ),
    frozenset(("hot-worker-code", "worker-blocked")): (
        "py-spy dump --pid PID of the worker, twice: running or waiting in the same place"
    ),
}

_OF_CAUSE: dict[str, str] = {
    "fd-limit-process": "profile-run with twice the --nofile: what is left is not that limit",
    "fd-limit-system": "cat /proc/sys/fs/file-nr while it fails: at fs.file-max or below",
    "ephemeral-ports-exhausted": (
        "profile-run with twice the --source-addresses: what is left is not ports"
    ),
    "bind-ports-exhausted": "profile-run --bind late: what is left is not the ports of bind",
    "source-address-missing": "ip -brief address: is the address there",
    "enobufs": "profile-run --probes full: which allocation fails, by the stack of the call",
    "tcp-memory-pressure": "cat /proc/net/sockstat while it stalls: mem against net.ipv4.tcp_mem",
    "memory-exhausted": "dmesg | grep -i oom, and memory.events of the cgroup",
    "accept-queue-overflow": "nstat -az TcpExtListenOverflows: does it grow with the failures",
    "syn-backlog-overflow": "nstat -az TcpExtTCPReqQFullDrop: does it grow with the failures",
    "conntrack-full": "conntrack -C against net.netfilter.nf_conntrack_max while SYNs are lost",
    "neighbour-table-full": "ip -s ntable show: does table_fulls grow while connects wait",
    "softnet-drops": "cat /proc/net/softnet_stat, twice: which core's second column grows",
    "orphans-or-time-wait": "nstat -az TcpExtTCPAbortOnMemory; cat /proc/net/sockstat: orphan",
    "keepalive-storm": "profile-run --keepalive off: what is left is not keep-alives",
    "hot-worker-code": "py-spy top --pid PID of the worker: which function holds the core",
    "worker-blocked": "cat /proc/PID/wchan of the worker while its loop stands still",
    "garbage-collection": "profile-run --gc off: what is left is not the collector",
    "hot-acceptor": "profile-run --accept reuseport: what is left is not the acceptor",
    "cpu-quota": "cat cpu.stat of its control group while it stalls: does nr_throttled grow",
    "task-limit": "cat pids.events of its control group, and ulimit -u of its user: which is met",
    "mapping-limit": "wc -l /proc/PID/maps of the worker against vm.max_map_count",
    "runtime-heap-limit": "the run again with twice the heap: what is left is not the heap",
    "worker-replaced": "the run again without a reload: what is left is not the replacement",
    "handshake-cost": "profile-run --ramp at the rate that it makes: what is left is another limit",
    "worker-crash": "the worker's exit status and log: did it die before or after the failures",
    "host-cpu-saturated": "the same run on more cores, or with clients on another machine",
    "client-is-the-limit": "profile-run with twice the --clients: what is left is the server",
}
