"""A plan as plain text for people, at most 80 columns, and as JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence

from harness.planning.layout import Constraint, Plan, Rung
from probes.contract.limits import LIMITS

WIDTH = 80

_LABELS = {
    **{(limit.name, who): text for limit in LIMITS.values() for who, text in limit.labels.items()},
    ("port_search", "ports"): "ports quickly found in a group",
    ("port_range", "ports"): "size of the port range",
    ("backlog", "listener"): "backlog",
}

_SHOWN_WHEN_BROKEN = {"port_range", "backlog"}
"""What the user gets as asked for is no news."""


def plan_json(plan: Plan) -> str:
    """The plan as an indented JSON document."""
    return json.dumps(plan.to_dict(), indent=2)


def plan_text(plan: Plan) -> str:
    """The plan for a person; ends in a newline."""
    lines = [f"Plan for {plan.target_connections:,} connections", ""]
    for label, text in _layout_rows(plan):
        lines += wrapped(text, first=f"  {label:<9}", rest=" " * 11)
    lines += ["", *_constraint_table(plan.constraints)]
    lines += ["", *_wall_lines(plan)]
    for note in plan.notes:
        lines += ["", *wrapped(note)]
    return "\n".join(lines) + "\n"


def wrapped(text: str, *, first: str = "", rest: str | None = None) -> list[str]:
    """Lines of at most WIDTH columns; words longer than that (paths, commands) stay whole."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=first if rest is None else rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def bytes_text(size_bytes: int) -> str:
    """Bytes in the decimal unit that a person would choose."""
    return f"{size_bytes / 1e9:,.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:,.0f} MB"


def amount_text(amount: int, unit: str) -> str:
    """A number with its unit where it is not a count; LONG_MAX is how Linux says no limit."""
    if amount >= 1 << 60:
        return "no limit"
    return bytes_text(amount) if unit == "bytes" else f"{amount:,}"


def count_text(count: int, noun: str) -> str:
    """A count with its noun in the right number."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def _layout_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    mean = -(-plan.target_connections // plan.workers)
    about = "about " if plan.accept != "handoff" and plan.workers > 1 else ""
    each = f"{about}{mean:,} connections each"
    if plan.accept_weights:
        parts = ":".join(map(str, plan.accept_weights))
        each = f"{plan.target_connections:,} connections as {parts}"
    yield (
        "server",
        f"{count_text(plan.workers, 'worker')} ({plan.accept}), {each}; "
        f"one can hold {plan.worker_capacity_count:,}",
    )
    about = "about " if min(plan.client_shares) < max(plan.client_shares) else ""
    yield (
        "clients",
        f"{count_text(plan.clients, 'process')}, {about}{max(plan.client_shares):,} connections "
        f"each; "
        f"one can hold {plan.client_capacity_count:,}",
    )
    sources, ports = plan.source_addresses, plan.destination_ports
    span = sources[0] if len(sources) == 1 else f"{sources[0]} to {sources[-1]}"
    port_span = str(ports[0]) if len(ports) == 1 else f"{ports[0]} to {ports[-1]}"
    yield (
        "from",
        f"{count_text(len(sources), 'source address')}, {span}, local ports "
        f"{plan.port_range[0]}-{plan.port_range[1]}",
    )
    fullest = next(each.needed for each in plan.constraints if each.name == "ephemeral_ports")
    yield (
        "to",
        f"{plan.server_address}, {count_text(len(ports), 'port')}, {port_span}; at most "
        f"{fullest:,} on one source address and port, which can hold "
        f"{plan.group_capacity_count:,}",
    )
    yield (
        "ramp",
        f"backlog {plan.backlog_count:,}; each client has at most "
        f"{count_text(plan.client_in_flight_count, 'connect')} under way",
    )
    yield "memory", f"about {bytes_text(plan.memory_needed_bytes)}, with the probes"
    where = "a network namespace of its own" if plan.own_namespace else "the host's network"
    yield "network", where


def _constraint_table(constraints: Sequence[Constraint]) -> Iterator[str]:
    yield f"  {'Limit':<34}{'needed':>13}{'available':>13}{'used':>9}"
    for each in constraints:
        if each.holds and each.name in _SHOWN_WHEN_BROKEN:
            continue
        label = _LABELS.get((each.name, each.subject), each.name)
        over = "" if each.holds else "  over" if each.limit else "  note"
        yield (
            f"  {label:<34}{amount_text(each.needed, each.unit):>13}"
            f"{amount_text(each.available, each.unit):>13}"
            f"{_used_text(each.needed, each.available):>9}{over}"
        )


def _used_text(needed: int, available: int) -> str:
    if not available:
        return "-"
    ratio = needed / available
    return f"{100 * ratio:.0f} %" if ratio < 10 else f"{min(ratio, 99_999):,.0f} x"


def _wall_lines(plan: Plan) -> Iterator[str]:
    if not plan.rungs:
        yield "No limit that was read is met below the target."
        return
    yield "Limits that this run will meet below its target, soonest first:"
    for rung in plan.rungs:
        yield from wrapped(rung_text(rung), first="  - ", rest="    ")


def rung_text(rung: Rung) -> str:
    """One wall in one sentence."""
    whose = {"server": " of the workers", "client": " of the clients"}.get(rung.subject, "")
    early = ""
    if rung.earliest_connections < rung.predicted_connections:
        early = f" (the first may fail from {rung.earliest_connections:,} on)"
    each = {
        "process": f"; one process holds {rung.capacity_count:,}",
        "port_group": f"; one source address and port holds {rung.capacity_count:,}",
        "listener": f"; one listener queues {rung.capacity_count:,}",
    }.get(rung.scope, "")
    at = f"at {rung.predicted_connections:,} connections"
    if rung.limit == "accept_queue":
        at = f"with {rung.predicted_connections:,} connects at once (more stall for a second)"
    if rung.limit == "tcp_mem":
        at = f"with {rung.predicted_connections:,} handshakes at once"
    return f"{rung.limit}{whose} {at}{early}{each}. To avoid it: {rung.fix}"
