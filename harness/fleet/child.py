"""What every child process of a run does first: gives up root, joins its group, is limited."""

from __future__ import annotations

import os
import resource
import signal

from probes.rights import privileges


def join_cgroup(procs_path: str) -> None:
    """Moves this process into a control group (cgroups(7)); needs root, so it comes before.

    Args:
        procs_path: The group's ``cgroup.procs``.
    """
    with open(procs_path, "w", encoding="ascii") as stream:  # noqa: PTH123 - no pathlib in the measured processes
        stream.write("0")


def gain_nothing() -> None:
    """This process and all that it starts can never gain a right; see ``probes.rights.privileges``.

    What it has it keeps until ``give_up_root``.
    """
    privileges.gain_nothing()
    privileges.bound_by()


def give_up_all(uid: int, gid: int) -> None:
    """Keeps no capability, and becomes another user too; see ``give_up_root``.

    ``probes.rights.parent_death`` must follow.
    """
    give_up_root(uid, gid)
    privileges.keep_only()


def give_up_root(uid: int, gid: int) -> None:
    """Becomes a user for good when this process is root; else does nothing.

    ``probes.rights.own_user`` chooses one; it is not imported here, since it is large.

    Args:
        uid: Of whom, 0 to stay who it is.
        gid: Its only group.
    """
    if not uid or os.geteuid() != 0:
        return
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def limit_descriptors(soft_count: int) -> None:
    """Sets the soft RLIMIT_NOFILE, raising the hard one where that is needed and permitted.

    Raises:
        ValueError: Over the hard limit, and this process may not raise it.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted_hard = hard if hard == resource.RLIM_INFINITY else max(hard, soft_count)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft_count, wanted_hard))


def own_descriptors_count() -> int:
    """How many descriptors this process has open; only for small tables, it walks them."""
    return len(os.listdir("/proc/self/fd")) - 1  # without the one that lists  # noqa: PTH208 - no Path import in the lean children


def leave_terminal() -> None:
    """Ignores Ctrl-C: the supervisor decides when the run ends, and how."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
