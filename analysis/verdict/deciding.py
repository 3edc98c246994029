"""The one command that would tell more of a run that nothing explains. Pure.

What it is follows from where the attempts ended: before anybody listened, without an answer to the
SYN, at the client's own calls, closed by the server, or waiting in it.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.frames.run_view import RunView, run_directory, server_cmd
from analysis.verdict.ruled_out import Unwatched

_ROOT_PROBE = "failing_syscalls"
_PROBES_OPTION = "--probes"


@dataclass(frozen=True, slots=True)
class Deciding:
    """A command and what to look for.

    Attributes:
        command: To copy.
        effect: What its output tells.
    """

    command: str
    effect: str


def deciding(
    view: RunView, kind: str, stage: str, blind: Sequence[Unwatched], *, waits: bool, pid: int
) -> Deciding | None:
    """The command for a run.

    Args:
        view: The run.
        kind: How most attempts ended (``close_kind``), '' when none did.
        stage: Where.
        blind: Probes that did not see the run.
        waits: More connections wait in the server than ended.
        pid: The process of the server that they wait in or were ended by, 0 when not known.
    """
    if any(each.probe == _ROOT_PROBE for each in blind):
        return _watched_again(view)
    if waits:
        return _waiting(view, pid)
    if kind == "refused":
        return Deciding(
            _again(view, without=("--stall", "--retry"), more=("--stall", "30", "--retry", "10")),
            "no process listened at that moment: one that was starting or restarting comes back, "
            f"one that has ended does not ({run_directory(view.manifest)}/logs/server.log)",
        )
    if stage in ("socket", "bind"):
        return Deciding(
            "profile-doctor", "says what this host allows the clients, and what raises it"
        )
    if stage == "connect":
        return Deciding(
            "bpftrace -e 'tracepoint:skb:kfree_skb { @[args->reason] = count(); }'",
            "run beside it: for which reason the kernel drops the packets that get no answer",
        )
    return _ended_by(view, pid)


def _watched_again(view: RunView) -> Deciding:
    root = "" if view.host.get("is_root") else "sudo "
    return Deciding(
        f"{root}{_again(view, without=(_PROBES_OPTION,))}",
        "the same with every probe: failing calls of each process, fates and reasons of drops",
    )


def _again(view: RunView, *, without: Sequence[str], more: Sequence[str] = ()) -> str:
    """The run's own command, without some of its options and with others."""
    words = [str(word) for word in view.manifest.get("argv") or ["profile-run"]]
    kept = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if word not in without
        and before not in without
        and not word.startswith(tuple(f"{option}=" for option in without))
    ]
    return shlex.join([*kept, *more])


def _who(view: RunView, pid: int) -> str:
    """The process in a command: its pid, or how to find it where the next run starts another."""
    words = view.subject(pid).command.split()
    if view.server_command and words:
        return f"$(pgrep -nf {shlex.quote(words[-1].rpartition('/')[2])})"
    return str(pid) if pid else "PID"


def _waiting(view: RunView, pid: int) -> Deciding:
    who = _who(view, pid)
    if "python" in view.subject(pid).command:
        return Deciding(f"py-spy dump --pid {who}", "run while it stands: where each thread waits")
    return Deciding(
        f"head -n 1 /proc/{who}/task/*/stack /proc/{who}/task/*/syscall",
        "run as root while it stands: the call and the place in the kernel of each thread",
    )


def _ended_by(view: RunView, pid: int) -> Deciding:
    calls = "trace=accept4,accept,close,shutdown,exit_group"
    if command := server_cmd(view.manifest):
        return Deciding(
            f"strace -f -o strace.log -e {calls} {command}",
            "in place of the server's command: the last calls before each close",
        )
    return Deciding(
        f"strace -f -o strace.log -e {calls} -p {_who(view, pid)}",
        "run while it happens: the last calls before each close",
    )
