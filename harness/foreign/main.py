"""The parent of a server that is not ours: ``python -P -m harness.foreign.main``.

It starts the command in a session of its own, in a control group of its own where the supervisor
made one, and adopts whatever it leaves behind (PR_SET_CHILD_SUBREAPER), so that nothing of it
outlives the run: SIGTERM, from the supervisor or from the kernel when the supervisor died, ends the
command's whole process group, and after a grace time every descendant there still is. When this
process is killed itself, the supervisor does that (``harness.foreign.launcher``).

Reports JSON lines on a pipe: ``{"started": pid}`` or ``{"failed": "why"}``, then one for each
process that it reaps: ``{"pid", "status", "signal", "exited_ns"}``, and ``{"asked": signal}`` when
it is asked to end it.
"""

from __future__ import annotations

import json
import os
import pwd
import resource
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn

from harness.foreign import descendants
from harness.foreign.server_group import ServerGroup
from probes.proc.process_tree import children_of
from probes.rights import network_namespace, privileges
from probes.rights.parent_death import die_with_parent

_POLL_S = 0.02
LAUNCHER_KEEPS = ("kill", "dac_override")
"""What this process may do once the command runs: it ends what runs as another user.

And it removes the control group, also from the root of the tree, where even root may write by that
capability alone (its mode is 0555).
"""


class Launch(NamedTuple):
    """What to start and how.

    ``nofile`` 0 leaves the limit, ``user`` '' the user.

    ``may_gain``: setuid bits and file capabilities of what it executes count.
    ``group`` is the folder of the control group that it starts in, '' for this process's.
    """

    supervisor_pid: int
    report_fd: int
    namespace_fd: int
    user: str
    nofile: int
    grace_s: float
    folder: str
    environment: dict[str, str]
    command: list[str]
    group: str = ""
    may_gain: bool = False


def main() -> int:
    """Starts the command, reports, and waits until all of it is gone.

    Standard input has the JSON array of a ``Launch``; the command's is ``/dev/null``.
    """
    launch = Launch(*json.loads(sys.stdin.buffer.read()))
    os.set_inheritable(launch.report_fd, False)  # what it says is not the command's to say
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - no Path in lean parents
        os.dup2(nothing.fileno(), 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asked: list[int] = []

    def ask(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGTERM, ask)
    descendants.adopt_orphans()
    die_with_parent(launch.supervisor_pid, signal.SIGTERM)
    if launch.namespace_fd >= 0:
        network_namespace.enter(launch.namespace_fd)
        os.close(launch.namespace_fd)
    pid = _start(launch)
    if not pid:
        return 1
    privileges.gain_nothing()
    privileges.bound_by()
    privileges.keep_only(LAUNCHER_KEEPS)
    _report(launch, {"started": pid})
    group = ServerGroup(Path(launch.group)) if launch.group else None
    kill_at_s = float("inf")
    while True:
        if asked and kill_at_s == float("inf"):
            kill_at_s = time.monotonic() + launch.grace_s
            _report(launch, {"asked": asked[0]})
            _ask(pid)
        if time.monotonic() >= kill_at_s:
            if group is not None:
                group.kill()
            descendants.signal_below(os.getpid(), signal.SIGKILL)
        try:
            if not _reap(launch):
                time.sleep(_POLL_S)
        except ChildProcessError:
            if group is not None:
                group.remove()
            return 0


def _reap(launch: Launch) -> bool:
    pid, status = os.waitpid(-1, os.WNOHANG)
    if not pid:
        return False
    _report(
        launch,
        {
            "pid": pid,
            "status": os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1,
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
            "exited_ns": time.monotonic_ns(),
        },
    )
    return True


def _ask(group: int) -> None:
    """SIGTERM to the command's process group, and to what it left in the background.

    Those are children of this process in a session of their own: nobody else tells them.
    """
    adopted = set(children_of(os.getpid()))
    descendants.signal_below(
        os.getpid(),
        signal.SIGTERM,
        wanted=lambda pid: pid in adopted or _group_of(pid) == group,
    )


def _group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def _start(launch: Launch) -> int:
    """Forks and executes the command; 0 when that failed, which is reported."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    parent_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(read_fd)
        _become(launch, parent_pid, write_fd)
    os.close(write_fd)
    with os.fdopen(read_fd, encoding="utf-8") as stream:
        why = stream.read()
    if not why:
        return pid
    os.waitpid(pid, 0)
    _report(launch, {"failed": why})
    return 0


def _become(launch: Launch, parent_pid: int, write_fd: int) -> NoReturn:
    what = "start it"
    try:
        os.setsid()
        if launch.group:
            ServerGroup(Path(launch.group)).join()  # while this is still root
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if launch.nofile:
            what = f"set RLIMIT_NOFILE to {launch.nofile}"
            # Both, as ``ulimit -n`` does: Node, Java and Go raise the soft one to the hard one.
            resource.setrlimit(resource.RLIMIT_NOFILE, (launch.nofile, launch.nofile))
        environment = dict(launch.environment)
        if not launch.may_gain:
            privileges.gain_nothing()
        if launch.user:
            what = f"become {launch.user}"
            environment |= _become_user(launch.user, may_gain=launch.may_gain)
        # After the change of user, which clears the setting (prctl(2)).
        die_with_parent(parent_pid)
        what = f"enter {launch.folder}"
        os.chdir(launch.folder)
        what = f"execute {launch.command[0]}"
        os.execvpe(launch.command[0], launch.command, environment)  # noqa: S606 - the user's own command
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        os.write(write_fd, f"cannot {what}: {reason}".encode())
    os._exit(127)


def _become_user(name: str, *, may_gain: bool) -> dict[str, str]:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise ValueError("there is no such user") from None
    if entry.pw_uid == os.geteuid():
        return {}
    if not may_gain:
        privileges.bound_by()
    os.initgroups(name, entry.pw_gid)
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    return {"HOME": entry.pw_dir, "USER": name, "LOGNAME": name}


def _report(launch: Launch, line: dict[str, object]) -> None:
    with suppress(BrokenPipeError):
        os.write(launch.report_fd, json.dumps(line).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
