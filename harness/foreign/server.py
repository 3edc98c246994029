"""A server that is not ours: started by a command, or running already; found, followed, stopped.

The command runs as the user who called, not as ``nobody`` as our own workers do: it is that user's
program, and reads their files (sources in a home folder, keys of mode 600). Under sudo that is the
user who called sudo. It inherits the caller's environment, folder and limits, with ``PORT`` set
beside the ``{port}`` of the command line.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.foreign.attach_target import check_tree, roots_with
from harness.foreign.endpoint import Endpoint
from harness.foreign.launcher import STOP_GRACE_S, LauncherEnd, ServerLauncher
from harness.foreign.listen_failure import addresses, never_listened
from harness.foreign.main import Launch
from harness.foreign.processes import ForeignProcesses
from harness.foreign.secret_words import without_query_values
from harness.foreign.server_command import cannot_start
from harness.foreign.server_output import telling_lines
from probes.contract.errors import HostError, ToolkitError, UsageError
from probes.contract.live import Live
from probes.netlink import socket_owners
from probes.netlink.socket_owners import Listener
from probes.proc import process_tree

SLOTS_COUNT = 256
"""Processes of one server that can be followed at the same time."""

LOG = "server.log"
_POLL_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignRequest:
    """What the user said of the server.

    Attributes:
        endpoint: Where it is, or will be.
        command: Words of the command that starts it; empty for one that runs already.
        pid: The running server's process; 0 when a command starts it.
        roots: Processes whose descendants are the running server; empty for that process alone.
        user: Whom the command runs as, '' for the user of this process.
        may_gain: Programs with setuid bits or file capabilities give the command what they have.
        nofile: RLIMIT_NOFILE of the command, 0 to inherit it.
        timeout_s: How long it may take until it listens.
    """

    endpoint: Endpoint
    command: tuple[str, ...] = ()
    pid: int = 0
    roots: tuple[int, ...] = ()
    user: str = ""
    may_gain: bool = False
    nofile: int = 0
    timeout_s: float = 30.0

    @property
    def is_root(self) -> bool:
        """A command that starts with all that this process may do, and nobody said so."""
        return bool(self.command) and not self.user and os.geteuid() == 0

    def to_dict(self) -> dict[str, Any]:
        """The manifest's ``server``."""
        return {
            "foreign": True,
            "url": without_query_values(self.endpoint.url),
            "address": self.endpoint.address,
            "ports": [self.endpoint.port],
            "command": list(self.command),
            "pid": self.pid,
            "user": self.user,
            "processes": [],
        }


def check_running(request: ForeignRequest) -> ForeignRequest:
    """Makes sure that a running server is there before anything is started, and finds its pid.

    Raises:
        UsageError: There is no such process, or no process listens there.
        HostError: It is another user's, and this process may not look at it.
    """
    endpoint = request.endpoint
    option = f"--server-pid {request.pid}"
    tree = check_tree(request.pid, option) if request.pid else []
    namespace: int | str = request.pid or "self"
    if not socket_owners.is_local_address(namespace, endpoint.address):
        raise UsageError(
            f"{endpoint.address} is no address of this host, and a server is watched where it runs",
            fix="run this on the server's host, with its address there, or start one here with "
            "--server-cmd CMD",
        )
    try:
        found = socket_owners.listeners(namespace, endpoint.port)
    except OSError as error:
        raise HostError(
            f"{option}: its sockets cannot be read: {error.strerror}",
            fix="run as root",
        ) from None
    reached = [each for each in found if each.takes(endpoint.address)]
    if not reached:
        where = f" in the network namespace of pid {request.pid}" if request.pid else ""
        elsewhere = f"; a process listens on {addresses(found)}" if found else ""
        raise UsageError(
            f"no process listens on {endpoint.address}:{endpoint.port}{where}{elsewhere}",
            fix="ss -ltnp shows who listens where; --server-cmd CMD starts a server",
        )
    inodes = {each.inode for each in reached}
    if _holders(inodes, tree):
        return request
    owners = _holders(inodes, socket_owners.all_pids())
    if request.pid:
        who = _eldest(owners) if owners else 0
        raise UsageError(
            f"{option} ({process_tree.command_name(request.pid)}) and its children do not listen "
            f"on {endpoint.address}:{endpoint.port}"
            + (f"; pid {who} ({process_tree.command_name(who)}) does" if who else ""),
            fix=f"--server-pid {who}" if who else "ss -ltnp shows who listens where",
        )
    if not owners:
        raise HostError(
            f"cannot see which process listens on port {endpoint.port}",
            fix="--server-pid PID, or run as root",
        )
    pid = _eldest(owners)
    return replace(request, pid=pid, roots=tuple(roots_with(pid, inodes)))


def _eldest(pids: list[int]) -> int:
    """The one that none of the others is an ancestor of: workers inherit a listener."""
    members = set(pids)
    for pid in pids:
        stat = process_tree.read_stat(pid)
        if stat is not None and stat.ppid not in members:
            return pid
    return pids[0]


def _holders(inodes: set[int], pids: list[int]) -> list[int]:
    """Those that have one of the listeners among their first descriptors."""
    return [pid for pid in pids if inodes.intersection(socket_owners.early_socket_inodes(pid))]


class ForeignServer:
    """One server for the time of a run.

    Args:
        request: What the user said; checked with ``check_running`` where it runs already.
        run_path: The run directory; the command's output goes to ``logs/server.log``.
        live: Shared memory with ``SLOTS_COUNT`` slots before those of the clients.
    """

    def __init__(self, request: ForeignRequest, run_path: Path, live: Live) -> None:
        self.request = request
        self.processes = ForeignProcesses(live, SLOTS_COUNT, request.endpoint.port)
        self.log_path = run_path / "logs" / LOG
        self.pid = request.pid
        self._launcher: ServerLauncher | None = None
        self._end: dict[str, int] | None = None
        self._failure = ""

    def open_namespace(self) -> int:
        """The network namespace of a running server where it is not ours, -1 where it is.

        Raises:
            HostError: It may not be entered.
        """
        pid = self.request.pid
        theirs = socket_owners.network_namespace(pid) if pid else 0
        if not theirs or theirs == socket_owners.network_namespace("self"):
            return -1
        try:
            return os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(
                f"pid {pid} is in another network namespace, which cannot be entered: "
                f"{error.strerror}",
                fix="run as root",
            ) from None

    def start(self, namespace_fd: int) -> None:
        """Starts the command, or begins to watch what runs already.

        Args:
            namespace_fd: Network namespace of the run, -1 for this process's.
        """
        if not self.request.command:
            self.processes.watch_tree(list(self.request.roots or (self.request.pid,)))
            self.processes.follow()
            return
        request = self.request
        launch = Launch(
            supervisor_pid=os.getpid(),
            report_fd=-1,
            namespace_fd=namespace_fd,
            user=request.user,
            may_gain=request.may_gain,
            nofile=request.nofile,
            grace_s=STOP_GRACE_S,
            folder=os.getcwd(),  # noqa: PTH109 - a word of the command line
            environment={**os.environ, "PORT": str(request.endpoint.port)},
            command=list(request.command),
        )
        self._launcher = ServerLauncher(launch, self.log_path)
        self.processes.watch_tree([self._launcher.pid], without=self._launcher.pid)

    def spare(self, *pids: int) -> None:
        """Names children of this process that are not the server's; 0 is nobody."""
        if self._launcher is not None:
            self._launcher.spare(*pids)

    def wait_until_listening(self, is_interrupted: Callable[[], bool]) -> bool:
        """Waits until the server listens and its owner is known.

        Args:
            is_interrupted: Asked meanwhile.

        Returns:
            False when it was interrupted.

        Raises:
            ToolkitError: The command failed, ended, or does not listen in time.
        """
        end_s = time.monotonic() + self.request.timeout_s
        while not is_interrupted():
            self._read_report()
            self._raise_if_over()
            self.processes.follow()
            if self._reached() and self.processes.pids:
                return True
            if time.monotonic() > end_s:
                raise self._never_listened()
            time.sleep(_POLL_S)
        return False

    def _reached(self) -> list[Listener]:
        return [each for each in self._listeners() if each.takes(self.request.endpoint.address)]

    def _listeners(self, port: int | None = 0) -> list[Listener]:
        if not self.pid:
            return []
        # Its parent is in the same namespace, and is there also when the command went to the
        # background.
        member = self._launcher.pid if self._launcher else self.pid
        try:
            wanted = self.request.endpoint.port if port == 0 else port
            return socket_owners.listeners(member, wanted)
        except OSError:
            return []

    def _raise_if_over(self) -> None:
        if self._failure:
            raise cannot_start(self._failure, self.request.command)
        if self.launcher_end is not None:
            raise ToolkitError(
                f"the process that started the server command (pid {self.launcher_end.pid}) was "
                f"ended from outside ({self.launcher_end}) before the server listened on port "
                f"{self.request.endpoint.port}",
                fix="run it again; journalctl -k -n 40 shows whether the kernel had no memory",
            )
        if self._end is not None and not self._is_there():
            raise ToolkitError(
                f"the server command ended with {self.how_it_ended()} before it listened on port "
                f"{self.request.endpoint.port}{self._said()}",
                fix=f"cat -v {self.log_path}",
            )
        roots = self.request.roots or (self.request.pid,)
        if not self.request.command and not any(map(process_tree.tree_of, roots)):
            raise ToolkitError(
                f"the server (pid {self.request.pid}) is gone",
                fix="start it again, or --server-cmd",
            )

    def _is_there(self) -> bool:
        """Whether anything of the command lives; it may have gone to the background."""
        return self._launcher is not None and self._launcher.has_processes

    @property
    def launcher_end(self) -> LauncherEnd | None:
        """Somebody else ended what started the command, and all of the server ended with it."""
        return self._launcher.end if self._launcher is not None else None

    @property
    def has_ended(self) -> bool:
        """The command ended by itself, and nothing of it is left."""
        return self._end is not None and not self._is_there()

    def how_it_ended(self) -> str:
        """``status 1`` or ``signal SIGSEGV``."""
        assert self._end is not None
        number = self._end["signal"]
        return (
            f"signal {signal.Signals(number).name}" if number else f"status {self._end['status']}"
        )

    def _never_listened(self) -> ToolkitError:
        parent_pid = self._launcher.pid if self._launcher else self.pid
        mine: set[int] = set()
        for pid in process_tree.tree_of(parent_pid):
            mine.update(socket_owners.socket_inodes(pid))
        unix = socket_owners.unix_listeners(parent_pid)
        return never_listened(
            self.request.endpoint,
            self.request.timeout_s,
            tcp=[each for each in self._listeners(None) if each.inode in mine],
            unix=[path for path, inode in unix if inode in mine],
            said=self._said(),
            log_path=self.log_path,
        )

    def _said(self) -> str:
        """Its last lines, for a message."""
        lines = self.last_lines()
        return ", and said: " + " | ".join(lines) if lines else "; it printed nothing"

    def last_lines(self) -> list[str]:
        """What the command printed of its end, without control characters."""
        try:
            text = self.log_path.read_bytes()[-16_384:].decode("utf-8", "replace")
        except OSError:
            return []
        return telling_lines(text)

    # -- while it runs ---------------------------------------------------------------------------

    def begin_load(self) -> None:
        """The first connection comes next."""
        self.processes.begin_load()

    def follow(self) -> list[tuple[str, int, str]]:
        """What happened to the server since the last call, as (event, pid, detail)."""
        had_ended, was_launched = self._end is not None, self.launcher_end is None
        self._read_report()
        news = self.processes.follow()
        if self._end is not None and not had_ended:
            news.append(("server_command_ended", self.pid, self.how_it_ended() + self._said()))
        if was_launched and self.launcher_end is not None:
            news += self.processes.end_together(self.launcher_end.alive_ns, self.launcher_end.at_ns)
        return news

    def _read_report(self) -> None:
        if self._launcher is None:
            return
        for told in self._launcher.read_report():
            if "started" in told:
                self.pid = told["started"]
            elif "failed" in told:
                self._failure = told["failed"]
            else:
                self.processes.known[told["pid"]] = told["status"], told["signal"]
                if told["pid"] == self.pid:
                    self._end = told

    def stop(self, *, hurried: bool = False) -> bool:
        """Asks what the command started to end, and kills what does not.

        A server that ran before is left alone.

        Args:
            hurried: Give it less time.

        Returns:
            Whether all of it ended by itself.
        """
        return self._launcher is None or self._launcher.stop(hurried=hurried)

    def kill(self) -> None:
        """Kills whatever is left of the command, its descendants included."""
        if self._launcher is not None:
            self._launcher.kill()
            self._read_report()
            self._launcher.close()
        self.processes.close()
