"""What each host is told, made of the layout and the command line. Pure."""

from __future__ import annotations

import argparse
from typing import Any

from harness.faults import kinds as faults
from harness.fleet.config import FleetConfig
from harness.hosts.layout import HostPlan, HostsPlan
from harness.hosts.shard import Shard
from harness.options import run as run_options


def shards(
    options: argparse.Namespace, plan: HostsPlan, run_id: str, probes: list[str], argv: list[str]
) -> dict[str, Shard]:
    """One for each host of the layout, by name."""
    return {
        part.entry.name: Shard(
            run_id=run_id,
            host=part.entry.name,
            role=part.entry.role,
            plan=part.plan,
            fleet=_fleet(options, plan, part),
            probes=probes,
            hold_s=options.hold,
            failures_max_count=options.failures_max,
            manifest=_manifest(options, part, probes, argv),
        )
        for part in plan.parts
    }


def _fleet(options: argparse.Namespace, plan: HostsPlan, part: HostPlan) -> FleetConfig:
    config = run_options.fleet_config(options, part.plan, None)
    share = part.share / plan.target_connections
    first = plan.loads[0].entry.name == part.entry.name
    config = config._replace(
        ramp_per_s=options.ramp * share,
        message_rate_per_s=options.message_rate * share,
        inject=[text for text in options.inject if _is_here(text, part, is_first=first)],
    )
    if not part.entry.serves:
        return config._replace(workers=0, accept="foreign")
    if not part.share:
        return config._replace(clients=0, client_groups=[], message_rate_per_s=options.message_rate)
    return config


def _is_here(text: str, part: HostPlan, *, is_first: bool) -> bool:
    """A client that is to fail is one of the first client host; all else is the server's."""
    is_of_client = faults.KINDS[faults.parse(text).name].role == "client"
    return is_first if is_of_client else part.entry.serves


def _manifest(
    options: argparse.Namespace, part: HostPlan, probes: list[str], argv: list[str]
) -> dict[str, Any]:
    plan = part.plan
    return {
        "name": options.name,
        "argv": argv,
        "target_connections": plan.target_connections if part.entry.serves else part.share,
        "settings": run_options.settings(options, probes),
        "plan": plan.to_dict(),
        "host": part.host.to_dict("host"),
        "server": {"address": plan.server_address, "ports": list(plan.destination_ports)},
        "probes_asked": probes,
    }
