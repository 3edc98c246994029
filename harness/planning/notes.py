"""What a person should know about a plan beside its numbers: one sentence each."""

from __future__ import annotations

from collections.abc import Iterator

from harness.planning.host import Host
from harness.planning.layout import Plan
from harness.planning.request import PlanRequest


def plan_notes(
    plan: Plan, request: PlanRequest, host: Host, *, starts_server: bool = True
) -> Iterator[str]:
    """Sentences for people, the most useful first.

    Args:
        plan: What was laid out.
        request: What was asked for.
        host: Where.
        starts_server: The run starts the server's processes; else nothing is said of them.
    """
    broken = {constraint.name for constraint in plan.constraints if not constraint.holds}
    processes = plan.workers if request.workers is None else 0
    processes = max(processes, plan.clients if request.clients is None else 0)
    if processes > host.cpu_count:
        yield (
            f"More processes than the {host.cpu_count} cores, because one process may open only "
            f"{plan.worker_nofile_count:,} descriptors."
        )
    nofile_of = {"server": plan.worker_nofile_count} if starts_server else {}
    nofile_of["client"] = plan.client_nofile_count
    for role, nofile in nofile_of.items():
        if nofile > host.nofile_hard_count:
            yield (
                f"The {role} processes get RLIMIT_NOFILE {nofile:,}, above the hard limit "
                f"{host.nofile_hard_count:,} of this shell (CAP_SYS_RESOURCE)."
            )
    if (
        plan.accept.startswith("shared")
        and plan.workers > 1
        and not plan.accept_weights
        and plan.target_connections > plan.worker_capacity_count
    ):
        yield (
            f"A {plan.accept} listener fills its workers unevenly: one may be full from "
            f"{plan.worker_capacity_count:,} connections on. With --at-fd-limit pause its "
            "siblings take over; with the other ways the first failures come then."
        )
    if (
        plan.accept == "reuseport"
        and plan.workers > 1
        and any(rung.limit == "fds_per_process" and rung.subject == "server" for rung in plan.rungs)
    ):
        yield (
            "SO_REUSEPORT spreads connections at random, and those hashed to a full worker wait "
            "in its queue although a sibling may have room."
        )
    if "port_search" in broken and "ephemeral_ports" not in broken:
        yield (
            f"More than {plan.group_limit_count:,} connections share one source address and "
            "destination port: they fit, but connect gets slow (it scans half the range first)."
        )
    if "port_range" in broken:
        yield (
            f"Outside a network namespace of its own the run can only narrow the host's port "
            f"range: it uses {plan.port_range[0]}-{plan.port_range[1]}."
        )
    elif request.port_range is not None and request.port_range != plan.port_range:
        yield (
            "A narrower port range needs IP_LOCAL_PORT_RANGE (Linux 6.3) or root: the run uses "
            f"the host's {plan.port_range[0]}-{plan.port_range[1]}."
        )
    if "backlog" in broken:
        yield f"The kernel cuts the backlog to somaxconn, {host.somaxconn_count:,}."
    if "file_max" in broken:
        yield (
            "file-max is the whole host's: when it is met, other unprivileged processes cannot "
            "open files either."
        )
    idle = sum(1 for share in plan.client_shares if not share)
    if idle:
        yield f"{idle} of the {plan.clients} clients have no connection to make."
