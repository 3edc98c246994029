"""Lays out the clients of a run against a server that is not ours. Pure, but for its limits.

Of the server only what can be seen before the load is planned with: the soft limit and the number
of the processes that listen, for one that runs already. For a command that is not started yet its
rungs are left out: its processes and their limits are found when they are there, and the ladder of
the report is made of them.
"""

from __future__ import annotations

from dataclasses import replace

from harness.foreign.server import ForeignRequest
from harness.planning.host import Host
from harness.planning.layout import Plan
from harness.planning.notes import plan_notes
from harness.planning.plan import make_plan
from harness.planning.request import PlanRequest

IN_FLIGHT_COUNT = 100
"""Connects under way of all clients together. The server's backlog is not known; this is the
smallest that a runtime in use passes to listen (asyncio; Node has 511), so that a queue which
overflows says something about the server and not about us."""

_OF_THE_SERVER = frozenset({"server", "listener"})


def make_foreign_plan(request: PlanRequest, host: Host, server: ForeignRequest) -> Plan:
    """The layout of the clients; ``workers`` is 1 and its limits are those of this process.

    Raises:
        HostError: The clients cannot be started here.
    """
    endpoint = server.endpoint
    nofile = server.nofile or None
    request = replace(request, workers=1, nofile=nofile, accept="shared")
    plan = make_plan(request, host)
    sources = plan.source_addresses
    if not endpoint.is_loopback:
        sources = (endpoint.source_address,)
    notes = list(plan_notes(plan, request, host, starts_server=False))
    if not endpoint.is_loopback and len(plan.source_addresses) > 1:
        notes.append(
            f"{endpoint.address} is no loopback address: all clients share one source address, "
            f"so {plan.group_capacity_count:,} connections use up its local ports."
        )
    return replace(
        plan,
        server_address=endpoint.address,
        destination_ports=(endpoint.port,),
        source_addresses=sources,
        accept="foreign",
        client_in_flight_count=max(1, IN_FLIGHT_COUNT // plan.clients),
        constraints=tuple(c for c in plan.constraints if c.subject not in _OF_THE_SERVER),
        rungs=tuple(r for r in plan.rungs if r.subject not in _OF_THE_SERVER),
        notes=tuple(notes),
    )
