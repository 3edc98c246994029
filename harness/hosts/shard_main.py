"""One host's supervisor in a run of several: ``python -P -m harness.hosts.shard_main FOLDER``.

Its agent starts it, says on standard input what it has to do (``harness.hosts.shard``) and when
(``harness.hosts.together``), and takes the run directory that it leaves in FOLDER.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from harness.hosts.shard import AGENT_FOLDER, Shard
from harness.hosts.together import Together, say
from harness.supervision import recording
from harness.supervision.supervisor import Interrupt, Supervisor
from probes.contract.errors import ToolkitError
from probes.contract.rundir import create_run_dir
from probes.rights.own_user import own_user
from reports.terminal.terminal import LiveView


def _remove_of_killed(folder: Path, agent_pid: int) -> None:
    """Nobody takes the run directory of an agent that is gone, nor removes that agent's folder."""
    if os.getppid() == agent_pid:
        return
    for each in (folder, folder.parent):
        if each == folder or each.name.startswith(f"{AGENT_FOLDER}{agent_pid}-"):
            shutil.rmtree(each, ignore_errors=True)


def main(argv: list[str]) -> int:
    """Records this host's part.

    Args:
        argv: The folder in which the run directory is made.
    """
    agent_pid = os.getppid()
    try:
        return _record(argv)
    finally:
        _remove_of_killed(Path(argv[0]), agent_pid)


def _record(argv: list[str]) -> int:
    told = sys.stdin.buffer
    interrupt = Interrupt()
    try:
        shard = Shard.from_json(told.readline().decode())
        with interrupt.caught():
            run = create_run_dir(Path(argv[0]), shard.host)
            say({"state": "begun", "folder": str(run.path.resolve())})
            user = own_user()
            fleet = shard.fleet._replace(
                own_uid=user.uid if user else 0, own_gid=user.gid if user else 0
            )
            result = Supervisor(
                run=run,
                plan=shard.plan,
                config=fleet,
                probes=shard.probes,
                manifest=recording.Manifest(run, shard.manifest),
                hold_s=shard.hold_s,
                interrupt=interrupt,
                view=LiveView(shard.plan.target_connections, enabled=False),
                failures_max_count=shard.failures_max_count,
                cue=Together(told, interrupt),
            ).execute()
    except ToolkitError as error:
        say({"state": "failed", "message": error.message, "fix": error.fix})
        return int(error.exit_code)
    say({"state": "recorded", "status": result.status, "notes": result.notes})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
