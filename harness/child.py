"""What every child process of a run does first: dies with its parent, gives up root, is limited."""

from __future__ import annotations

import ctypes
import os
import pwd
import resource
import signal

from probes import privileges

_PR_SET_PDEATHSIG = 1  # prctl(2)
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent_pid: int) -> None:
    """Asks the kernel for SIGKILL when the parent dies, and exits at once if it already has.

    Must come after every change of credentials: those clear the setting (prctl(2)). And the signal
    is the parent's own: one that has become ``nobody`` cannot send it to a child that is still
    root, which finds out here.

    Args:
        parent_pid: Who the parent was when this process was started, as that parent knew it:
            os.getppid(2) may be whoever adopted this process since.
    """
    if _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl: {os.strerror(number)}")
    if os.getppid() != parent_pid:
        os._exit(1)


def join_cgroup(procs_path: str) -> None:
    """Moves this process into a control group (cgroups(7)); needs root, so it comes before.

    Args:
        procs_path: The group's ``cgroup.procs``.
    """
    with open(procs_path, "w", encoding="ascii") as stream:  # noqa: PTH123 - no pathlib in the measured processes
        stream.write("0")


def gain_nothing() -> None:
    """This process and all that it starts can never gain a right; see ``probes.privileges``.

    What it has it keeps until ``give_up_root``.
    """
    privileges.gain_nothing()
    privileges.bound_by()


def give_up_all(*, to_nobody: bool) -> None:
    """Keeps no capability, and becomes ``nobody`` too where that is wanted and possible.

    ``die_with_parent`` must follow.
    """
    if to_nobody:
        give_up_root()
    privileges.keep_only()


def give_up_root() -> None:
    """Becomes ``nobody`` for good when this process is root; else does nothing."""
    if os.geteuid() != 0:
        return
    nobody = pwd.getpwnam("nobody")
    os.setgroups([])
    os.setresgid(nobody.pw_gid, nobody.pw_gid, nobody.pw_gid)
    os.setresuid(nobody.pw_uid, nobody.pw_uid, nobody.pw_uid)


def can_give_up_root() -> bool:
    """Whether ``give_up_root`` works here, found out by a child that ends at once.

    It does not without CAP_SETUID and CAP_SETGID, nor in a user namespace that has no number for
    ``nobody`` (user_namespaces(7)), nor where no such user is known.
    """
    pid = os.fork()
    if pid == 0:
        try:
            give_up_root()
        except (OSError, KeyError):
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    return status == 0


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
