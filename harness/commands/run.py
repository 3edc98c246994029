"""``profile-run``: the main job, from the plan to the report."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness.commands.end import end
from harness.commands.entry import run_command
from harness.foreign.secret_words import without_secrets
from harness.foreign.server_settings import settings_of_command
from harness.options import foreign as foreign_options
from harness.options import run as run_options
from harness.planning.foreign import make_foreign_plan
from harness.planning.host import read_host
from harness.planning.layout import Plan
from harness.planning.plan import make_plan
from harness.planning.text import plan_json, plan_text, rung_text
from harness.supervision import recording
from harness.supervision.recorder import RunResult
from harness.supervision.supervisor import Interrupt, Supervisor
from probes.collect import registry
from probes.contract.errors import ExitCode
from probes.contract.private_file import hand_over
from probes.contract.rundir import RunDir, create_run_dir
from probes.rights.own_user import own_user
from reports.terminal.terminal import LiveView

if TYPE_CHECKING:
    import argparse

    from harness.foreign.server import ForeignRequest
    from harness.planning.host import Host


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command."""
    return run_command(profile_run, argv)


def profile_run(argv: Sequence[str]) -> int:
    """Plans, runs, concludes.

    Returns:
        0 reached, 3 a limit was met, 130 interrupted; errors as exceptions.

    Raises:
        ToolkitError: Usage, host, or run directory.
    """
    options = run_options.parse(argv)
    probes = registry.resolve(options.probes)
    if options.hosts is not None or options.cluster is not None:
        return _over_hosts(options, argv, probes)
    host = run_options.limited(read_host(), options)
    own_namespace = host.may_own_namespace and not options.host_network
    options.foreign = foreign = foreign_options.foreign_request(
        options, own_namespace=own_namespace, taken=host.listening_ports
    )
    if foreign is not None and foreign.pid:
        own_namespace = False  # the clients go where the server is
    request = run_options.plan_request(options, own_namespace=own_namespace)
    plan = make_plan(request, host) if not foreign else make_foreign_plan(request, host, foreign)
    run_options.check_faults(options, plan)
    if options.plan:
        print(plan_json(plan) if options.json else plan_text(plan))
        return ExitCode.REACHED
    interrupt = Interrupt()
    with interrupt.caught():
        run = create_run_dir(options.output, options.name)
        try:
            result = _record(options, argv, host, plan, probes, run, interrupt)
            interrupt.begin_conclusion()
            return _conclude(options, run, result, interrupt)
        finally:
            hand_over(run.path)


def _over_hosts(options: argparse.Namespace, argv: Sequence[str], probes: list[str]) -> int:
    from harness.hosts import run as hosts_run  # Dask comes with it

    hosts = hosts_run.check(options)
    interrupt = Interrupt()
    with interrupt.caught():
        if options.plan:
            print(hosts_run.plan_only(options, hosts, interrupt))
            return ExitCode.REACHED
        run = create_run_dir(options.output, options.name)
        try:
            result = hosts_run.record(options, argv, hosts, probes, run, interrupt)
            interrupt.begin_conclusion()
            return _conclude(options, run, result, interrupt)
        finally:
            hand_over(run.path)


def _record(
    options: argparse.Namespace,
    argv: Sequence[str],
    host: Host,
    plan: Plan,
    probes: list[str],
    run: RunDir,
    interrupt: Interrupt,
) -> RunResult:
    manifest = recording.Manifest(
        run,
        {
            "name": options.name,
            "argv": ["profile-run", *without_secrets(argv)],
            "target_connections": plan.target_connections,
            "settings": run_options.settings(options, probes),
            "plan": plan.to_dict(),
            "host": host.to_dict("own" if plan.own_namespace else "host"),
            "server": {"address": plan.server_address, "ports": list(plan.destination_ports)}
            | (_of_stranger(options.foreign) if options.foreign else {}),
            "probes_asked": probes,
        },
    )
    remarks = [f"plan: {rung_text(rung)}" for rung in plan.rungs]
    with (
        _metrics(options, run, plan, remarks),
        LiveView(plan.target_connections, not options.quiet, remarks=remarks) as view,
    ):
        return Supervisor(
            run=run,
            plan=plan,
            config=run_options.fleet_config(options, plan, own_user()),
            probes=probes,
            manifest=manifest,
            hold_s=options.hold,
            interrupt=interrupt,
            view=view,
            foreign=options.foreign,
            failures_max_count=options.failures_max,
            with_page=not options.no_report,
        ).execute()


def _of_stranger(request: ForeignRequest) -> dict[str, Any]:
    """What is known of a server that is not ours before it starts."""
    folder = os.getcwd()  # noqa: PTH109 - where the command's own words begin at
    return request.to_dict() | {"settings": settings_of_command(request.command, folder)}


@contextmanager
def _metrics(
    options: argparse.Namespace, run: RunDir, plan: Plan, remarks: list[str]
) -> Iterator[None]:
    if options.metrics is None:
        yield
        return
    # http.server only when it is asked for
    from harness.supervision.metrics_endpoint import serving

    with serving(options.metrics, run, plan.target_connections) as url:
        remarks.append(f"metrics: {url}")
        yield


def _conclude(
    options: argparse.Namespace, run: RunDir, result: RunResult, interrupt: Interrupt
) -> int:
    verdict = end(
        run,
        result.notes,
        as_json=options.json,
        quiet=options.quiet,
        with_page=not options.no_report,
    )
    if result.status == "interrupted" or interrupt.signal_name:
        return ExitCode.INTERRUPTED
    return ExitCode.REACHED if verdict["verdict"]["cause"] == "reached" else ExitCode.LIMIT_MET


if __name__ == "__main__":
    sys.exit(main())
