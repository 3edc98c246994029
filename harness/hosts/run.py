"""``profile-run --hosts`` and ``--cluster``: plans, runs and records over several hosts."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.foreign.secret_words import without_secrets
from harness.hosts import whole_manifest
from harness.hosts.clocks import ClockLine
from harness.hosts.cluster import Cluster
from harness.hosts.conductor import Conductor, Member
from harness.hosts.hosts_file import HostsFile, read_hosts
from harness.hosts.layout import HostsPlan, lay_out
from harness.hosts.plan_text import hosts_plan_json, hosts_plan_text, wall_lines
from harness.hosts.shards import shards
from harness.options import run as run_options
from harness.planning.host import Host
from harness.supervision import recording
from harness.supervision.recorder import RunResult
from harness.supervision.supervisor import Interrupt
from probes.contract.errors import HostError, UsageError
from probes.contract.rundir import HOSTS, MANIFEST, RunDir
from probes.contract.several_hosts import PIDS_PER_HOST
from reports.terminal.terminal import LiveView

_NOT_OVER_HOSTS = (
    *("server_cmd", "target", "server_pid", "sysctl", "memory_max", "tcp_memory_max"),
    "metrics",
)


def check(options: argparse.Namespace) -> HostsFile:
    """Reads the hosts, and refuses what a run over several cannot do.

    Raises:
        UsageError: Options that do not go together.
        HostError: The extra is not installed.
    """
    for name in _NOT_OVER_HOSTS:
        if getattr(options, name):
            word = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{word} is for a run on one host, and --hosts is for several",
                fix=f"leave {word} away, or run it on one host",
            )
    if options.hosts is None:
        raise UsageError(
            "--cluster needs to know what each host does",
            fix=f"--hosts hosts.toml --cluster {options.cluster}",
        )
    return hosts_of(options.hosts)


def hosts_of(path: Path) -> HostsFile:
    """Reads the hosts, where the extra is installed.

    Raises:
        UsageError: The file makes no sense.
        HostError: The extra is not installed.
    """
    try:
        import cryptography  # noqa: F401 - an extra
        import distributed  # noqa: F401 - an extra
    except ImportError as error:
        raise HostError(
            f"--hosts needs the package {error.name}, which is not installed",
            fix="pip install 'connscope[cluster]', on each host",
        ) from None
    return read_hosts(path)


def plan_only(options: argparse.Namespace, hosts: HostsFile, interrupt: Interrupt) -> str:
    """The layout as text or JSON; agents are started for it, nothing else."""

    async def made() -> HostsPlan:
        cluster = Cluster(hosts, options.cluster or "", None)
        try:
            await cluster.open(lambda: bool(interrupt.signal_name))
            conductor = Conductor(cluster, hosts, "plan", lambda: bool(interrupt.signal_name))
            facts = await conductor.meet()
            await conductor.end()
            return _laid_out(options, hosts, facts)
        finally:
            await cluster.close()

    plan = asyncio.run(made())
    return hosts_plan_json(plan) if options.json else hosts_plan_text(plan)


def _laid_out(options: argparse.Namespace, hosts: HostsFile, facts: dict[str, Host]) -> HostsPlan:
    request = run_options.plan_request(options, own_namespace=False)
    plan = lay_out(request, hosts, facts)
    clients = plan.loads[0].plan.clients  # those of the first client host may be told to fail
    run_options.check_faults(options, replace(plan.server.plan, clients=clients))
    return plan


def record(
    options: argparse.Namespace,
    argv: Sequence[str],
    hosts: HostsFile,
    probes: list[str],
    run: RunDir,
    interrupt: Interrupt,
) -> RunResult:
    """Makes the run.

    Raises:
        ToolkitError: It could not start; what was recorded until then stays.
    """
    return asyncio.run(_record(options, argv, hosts, probes, run, interrupt))


async def _record(
    options: argparse.Namespace,
    argv: Sequence[str],
    hosts: HostsFile,
    probes: list[str],
    run: RunDir,
    interrupt: Interrupt,
) -> RunResult:
    def is_interrupted() -> bool:
        return bool(interrupt.signal_name)

    said = ["profile-run", *without_secrets(argv)]
    cluster = Cluster(hosts, options.cluster or "", run.path / "logs")
    result = RunResult("failed")
    try:
        await cluster.open(is_interrupted)
        if is_interrupted():
            raise KeyboardInterrupt
        conductor = Conductor(
            cluster, hosts, run.run_id, is_interrupted, with_page=not options.no_report
        )
        plan = _laid_out(options, hosts, await conductor.meet())
        manifest = recording.Manifest(run, _begun(options, said, plan, probes))
        remarks = [f"plan: {wall}" for wall in wall_lines(plan)]
        parts = shards(options, plan, run.run_id, probes, said)
        try:
            with LiveView(plan.target_connections, not options.quiet, remarks=remarks) as view:
                result.status = await conductor.record(plan, parts, view)
            await conductor.collect(run)
            result.notes += conductor.notes
        finally:
            await conductor.end()
            _finish(manifest, conductor, plan, run, result)
    finally:
        await cluster.close()
    return result


def _begun(
    options: argparse.Namespace, argv: list[str], plan: HostsPlan, probes: list[str]
) -> dict[str, Any]:
    server = plan.server
    return {
        "name": options.name,
        "argv": argv,
        "target_connections": plan.target_connections,
        "settings": run_options.settings(options, probes),
        "plan": whole_manifest.whole_plan(plan),
        "host": server.host.to_dict("host"),
        "server": {
            "address": server.plan.server_address,
            "ports": list(server.plan.destination_ports),
        },
        "probes_asked": probes,
        "hosts": [
            whole_manifest.host_record(
                name=part.entry.name,
                role=part.entry.role,
                address=part.entry.address,
                share=part.share,
                clients=part.plan.clients if part.share else 0,
                index=index,
            )
            for index, part in enumerate(_server_first(plan))
        ],
    }


def _server_first(plan: HostsPlan) -> list[Any]:
    """The host that serves has the number 0, so that its pids are what they are."""
    return sorted(plan.parts, key=lambda part: not part.entry.serves)


def _finish(
    manifest: recording.Manifest,
    conductor: Conductor,
    plan: HostsPlan,
    run: RunDir,
    result: RunResult,
) -> None:
    """Writes the last manifest, of those that came from the hosts."""
    contents = manifest.contents
    lines: dict[str, ClockLine] = {}
    found: dict[str, dict[str, Any] | None] = {}
    for record_of in contents["hosts"]:
        name = record_of["name"]
        member = conductor.members.get(name)
        if member is None:
            continue
        try:
            lines[name] = conductor.line_of(name)
        except HostError:
            lines[name] = ClockLine()
        found[name] = _manifest_of(run, name) if member.fetched_bytes >= 0 else None
        clock = {
            "clock": lines[name].to_dict(),
            "has_rows": found[name] is not None,
            "ramp_ns": _ramp_ns(found[name], lines[name]),
        }
        record_of.update(_of_member(member) | clock)
    server = plan.server.entry.name
    numbers = {each["name"]: each["index"] for each in contents["hosts"]}
    first_client, count = {}, 0
    for part in plan.loads:
        first_client[part.entry.name] = count
        count += part.plan.clients
    there = {name: each for name, each in found.items() if each}
    if server in there:
        contents["stages"] = whole_manifest.stages(
            there[server]["stages"],
            {name: each["stages"] for name, each in there.items() if name != server},
            lines,
        )
        contents["clock"]["start"] = there[server]["clock"]["start"]
        contents["probes_answer"] = there[server].get("probes_answer")
    contents["attempts"] = whole_manifest.attempts(
        {
            part.entry.name: there[part.entry.name]["attempts"]
            for part in plan.loads
            if "attempts" in there.get(part.entry.name, {})
        },
        first_client,
        lines,
        {name: index * PIDS_PER_HOST for name, index in numbers.items()},
    )
    contents["notes"] = result.notes
    end = (there.get(server) or {}).get("clock", {}).get("end")
    manifest.finish(result.status)
    if end:
        contents["clock"]["end"] = end
        manifest.write()


def _of_member(member: Member) -> dict[str, Any]:
    told = member.told
    return {
        "is_lost": member.is_lost,
        "lost_ns": member.lost_ns,
        "versions": member.facts["versions"],
        "hostname": str(member.facts["hostname"])[:64],
        "fetched_bytes": member.fetched_bytes,
        "agent": {
            "rss_bytes": told.get("agent_rss_bytes"),
            "cpu_s": told.get("agent_cpu_s"),
            "hold_cpu_pct": _hold_cpu_pct(member),
        },
        "status": str(told.get("status") or told.get("state") or "")[:32],
    }


def _hold_cpu_pct(member: Member) -> float | None:
    """CPU of its agent in the hold, in percent of a core; None where there was no hold."""
    (from_s, before_s), (until_s, after_s) = member.idle_from, member.idle_until
    return 100 * (after_s - before_s) / (until_s - from_s) if until_s - from_s > 1.0 else None


def _ramp_ns(manifest: dict[str, Any] | None, line: ClockLine) -> int:
    """When its ramp began, by the reference's clock; 0 where it did not."""
    begun = [
        each["start_ns"] for each in (manifest or {}).get("stages", []) if each["stage"] == "ramp"
    ]
    return whole_manifest.reference_ns(int(begun[0]), line) if begun else 0


def _manifest_of(run: RunDir, name: str) -> dict[str, Any] | None:
    try:
        text = (Path(run.path) / HOSTS / name / MANIFEST).read_text(encoding="utf-8")
        loaded = json.loads(text)
    except (OSError, ValueError):
        return None
    return loaded if isinstance(loaded, dict) else None
