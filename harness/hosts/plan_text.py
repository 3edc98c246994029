"""A layout over hosts as text for people, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator

from harness.hosts.layout import HostPlan, HostsPlan
from harness.planning.text import count_text, rung_text, wrapped


def hosts_plan_json(plan: HostsPlan) -> str:
    """As an indented JSON document."""
    return json.dumps(
        {
            "target_connections": plan.target_connections,
            "hosts": [
                {
                    "name": part.entry.name,
                    "role": part.entry.role,
                    "address": part.entry.address,
                    "connections": part.share,
                    "plan": part.plan.to_dict(),
                }
                for part in plan.parts
            ],
        },
        indent=2,
    )


def hosts_plan_text(plan: HostsPlan) -> str:
    """For a person; ends in a newline."""
    count = len(plan.parts)
    lines = [f"Plan for {plan.target_connections:,} connections on {count_text(count, 'host')}", ""]
    lines += [line for part in plan.parts for line in _rows(part)]
    walls = wall_lines(plan)
    if walls:
        lines += ["", "Limits that this run will meet below its target, by host:"]
        for wall in walls:
            lines += wrapped(wall, first="  - ", rest="    ")
    else:
        lines += ["", "No limit that was read is met below the target on any host."]
    return "\n".join(lines) + "\n"


def wall_lines(plan: HostsPlan) -> list[str]:
    """One sentence for each wall, with its host."""
    return [f"{part.entry.name}: {rung_text(rung)}" for part in plan.parts for rung in part.rungs]


def _rows(part: HostPlan) -> Iterator[str]:
    entry, plan = part.entry, part.plan
    yield f"  {entry.name} ({entry.role}, {entry.address})"
    if entry.serves:
        ports = plan.destination_ports
        span = str(ports[0]) if len(ports) == 1 else f"{ports[0]} to {ports[-1]}"
        yield from wrapped(
            f"{count_text(plan.workers, 'worker')} ({plan.accept}) on "
            f"{count_text(len(ports), 'port')}, {span}; one can hold "
            f"{plan.worker_capacity_count:,}; backlog {plan.backlog_count:,}",
            first="    ",
        )
    if part.share:
        sources = plan.source_addresses
        span = sources[0] if len(sources) == 1 else f"{sources[0]} to {sources[-1]}"
        yield from wrapped(
            f"{part.share:,} connections by {count_text(plan.clients, 'client process')} from "
            f"{span}; one process can hold {plan.client_capacity_count:,}, one source address and "
            f"port {plan.group_capacity_count:,}",
            first="    ",
        )
