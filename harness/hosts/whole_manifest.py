"""The manifest of a run over hosts, made of those that came from them. Pure.

Its times are of the reference's clock: that of the host that serves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.hosts.clocks import ClockLine
from harness.hosts.layout import HostsPlan

_SUMS = ("begun_count", "never_count", "again_count", "again_open_count")
_RAMP, _STOP = "ramp", ("collect", "stop")


def whole_plan(plan: HostsPlan) -> dict[str, Any]:
    """The server's plan with the clients of all hosts."""
    loads = [part.plan for part in plan.loads]
    first = loads[0]
    found = plan.server.plan.to_dict() | {
        "clients": sum(each.clients for each in loads),
        "client_shares": [share for each in loads for share in each.client_shares],
        "client_nofile_count": min(each.client_nofile_count for each in loads),
        "client_capacity_count": min(each.client_capacity_count for each in loads),
        "source_addresses": [address for each in loads for address in each.source_addresses],
        "port_range": list(first.port_range),
        "port_range_by": first.port_range_by,
        "group_capacity_count": min(each.group_capacity_count for each in loads),
        "group_limit_count": min(each.group_limit_count for each in loads),
    }
    found["notes"] = []
    return found


def host_record(
    *, name: str, role: str, address: str, share: int, clients: int, index: int
) -> dict[str, Any]:
    """What the manifest says of a host before anything is known of the run."""
    return {
        "name": name,
        "role": role,
        "address": address,
        "connections": share,
        "clients": clients,
        "index": index,
        "clock": ClockLine().to_dict(),
        "is_lost": False,
        "lost_ns": 0,
        "has_rows": False,
    }


def stages(
    server: Sequence[Mapping[str, Any]],
    others: Mapping[str, Sequence[Mapping[str, Any]]],
    lines: Mapping[str, ClockLine],
) -> list[dict[str, Any]]:
    """The server's stages; what ends the hold is the first host that takes its last samples.

    Args:
        server: Stages of the host that serves.
        others: Those of the other hosts, by their own clocks.
        lines: Their clocks.
    """
    found = [dict(stage) for stage in server]
    ends = [
        reference_ns(int(stage["start_ns"]), lines[name])
        for name, its in others.items()
        for stage in its
        if stage["stage"] == "collect" and any(each["stage"] == "hold" for each in its)
    ]
    for stage in found:
        if stage["stage"] == "collect" and ends:
            stage["start_ns"] = min(int(stage["start_ns"]), *ends)
    return found


def reference_ns(local_ns: int, line: ClockLine) -> int:
    """A moment of a host's clock by the reference's."""
    about_ns = local_ns - line.offset_ns
    return about_ns - round((about_ns - line.at_ns) * line.drift_ppm / 1e6)


def attempts(
    records: Mapping[str, Mapping[str, Any]],
    first_client: Mapping[str, int],
    lines: Mapping[str, ClockLine],
    pid_of: Mapping[str, int],
) -> dict[str, Any]:
    """What became of the attempts of all hosts.

    Args:
        records: ``attempts`` of each client host.
        first_client: Number of its first client in the whole run.
        lines: Its clock.
        pid_of: What is added to its pids.
    """  # fmt: skip
    if not records:
        return {}
    first = next(iter(records.values()))
    gave_up = [
        {
            **each,
            "client": each["client"] + first_client[name],
            "pid": each["pid"] + pid_of[name],
            "at_ns": reference_ns(each["at_ns"], lines[name]),
        }
        for name, record in records.items()
        for each in record.get("gave_up", [])
    ]
    after: dict[str, int] = {}
    for record in records.values():
        for kind, count in (record.get("again_after") or {}).items():
            after[kind] = after.get(kind, 0) + count
    stopped = [
        (reference_ns(record["stopped_ns"], lines[name]), record["stopped_by"])
        for name, record in records.items()
        if record.get("stopped_by")
    ]
    stopped_ns, stopped_by = min(stopped, default=(0, None))
    return {
        **{key: first[key] for key in ("stall_s", "failures_max_count", "retry_count")},
        **{key: sum(int(record[key]) for record in records.values()) for key in _SUMS},
        "again_after": after,
        "stopped_by": stopped_by,
        "stopped_ns": stopped_ns,
        "gave_up": gave_up,
    }
