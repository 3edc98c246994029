"""``python -m bench.kill_matrix``: SIGKILL of each process of a run or a watch, at any moment.

``--how stop`` stops it for ten seconds instead, ``--how interrupt`` is Ctrl-C one to three times,
``--how memory`` puts it into a control group without memory, where the kernel kills it.

A run of our own fleet, one against a server command and a watch of a server in service are played
again and again; each time one process of the tree, of a kind that the draw says, is killed at a
moment that the draw says. Afterwards a report is there or ``profile-report`` makes one, nothing but
what was killed is named, and nothing is left on the host. Needs root.

Results are one JSON line each in ``--output``, so that a series can be made in parts; a recording
is kept where something was wrong.

Exit code: 0 when nothing was wrong, 1 otherwise, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.command import end_on_sigterm, say
from bench.memory_group import MemoryGroup
from bench.recordings.watched import wait_until
from harness.fleet import netns
from harness.foreign.descendants import adopt_orphans
from probes.collect.fair_deadline import FairDeadline
from probes.proc import process_tree

ROOT = Path(__file__).resolve().parents[1]
FOREIGN = ROOT / "tests" / "harness" / "foreign"
WAYS = ("own", "command", "watch")
ROLES = {
    "own": (
        *("supervisor", "cgroup_guard", "probes", "name_parser", "py_spy"),
        *("server_parent", "worker", "client_parent", "client"),
    ),
    "command": (
        *("supervisor", "probes", "name_parser", "py_spy"),
        *("launcher", "server", "client_parent", "client"),
    ),
    "watch": ("supervisor", "probes", "name_parser", "py_spy"),
}
"""What there is to kill, by way."""
HEALTHY = {"reached", "no-limit-met", "not-explained"}
"""What may be the verdict where nobody of the fleet was killed, or before it began."""
MAY = {"host-cpu-saturated", "accept-imbalance"}
"""Of a host that others keep busy, and of a server's own way to share its listener."""
OF_THE_FLEET = {"server_parent", "worker", "client_parent", "client", "launcher", "server"}
"""Whose end is the run's: it is told, and may be named."""
HOW = ("kill", "stop", "interrupt", "memory")
_STOPPED_S = 10.0
_BETWEEN_CTRL_C_S = 1.5
_LATEST_S = 6.0
_END_S = 60.0
_GONE_S = 20.0
_REPORT_S = 90.0
_LOOK_S = 0.02
_PORT = 9001
_CONNECTIONS = "300"
_HOLD_S = "2"


@dataclass(frozen=True, slots=True)
class Kill:
    """One of them.

    Attributes:
        number: Its place in the series.
        way: Of ``WAYS``.
        role: That the draw said.
        at_s: After the start; later where the process came later.
        killed_pid: 0 where the run was over before there was such a process, or that met no limit.
        exit_code: Of the command.
        cause: Of the verdict, '' where none could be made.
        wrong: What was not as it should be, in words.
    """

    number: int
    way: str
    role: str
    at_s: float
    killed_pid: int
    exit_code: int
    cause: str
    wrong: tuple[str, ...]


def role_of(words: Sequence[str], parent: str) -> str:
    """What a process is to the run.

    Args:
        words: Its command line; empty for one that has ended.
        parent: The role of its parent.
    """
    modules = {
        "harness.faults.cgroup_guard": "cgroup_guard",
        "probes.collect.main": "probes",
        "harness.foreign.main": "launcher",
        "harness.server.main": "server_parent",
        "harness.client.main": "client_parent",
    }
    below = {
        "server_parent": "worker", "client_parent": "client", "launcher": "server",
        "server": "server", "probes": "py_spy",
    }  # fmt: skip
    if "probes.symbols.name_parser_main" in words:
        return "name_parser"
    if parent in below:
        return below[parent]
    return next((role for module, role in modules.items() if module in words), "other")


def roles_in(root_pid: int) -> dict[int, str]:
    """Every process of the tree and its role; the root is the supervisor."""
    found = {root_pid: "supervisor"}
    for pid in process_tree.tree_of(root_pid):
        stat = process_tree.read_stat(pid)
        if pid == root_pid or stat is None or not stat.is_alive:
            continue
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            found[pid] = role_of(words, found.get(stat.ppid, ""))
    return found


def complaints(role: str, verdict: dict[str, Any], pids: set[int], how: str = "kill") -> list[str]:
    """What a verdict says that it should not, of a run without any fault but the kill.

    Args:
        role: What was killed.
        verdict: As in verdict.json.
        pids: Of the killed process and of those that end with it.
        how: Of ``HOW``. What stood still may be named for whatever that did.
    """
    wrong = []
    for finding in verdict["findings"]:
        cause, subject = finding["cause"], finding["subject"]["pid"]
        if cause in HEALTHY or cause in MAY:
            continue
        if role in OF_THE_FLEET and cause == "worker-crash" and subject in pids:
            continue
        if how == "stop" and role in OF_THE_FLEET and subject in pids:
            continue
        wrong.append(f"{cause} of pid {subject} is named after {role} was killed")
    return wrong


class Host:
    """What may be left behind, looked at before and after."""

    def __init__(self, temporary: Path) -> None:
        self._temporary = temporary
        self._before = self._look()

    def _look(self) -> set[str]:
        found = {str(path) for path in self._temporary.iterdir()}
        found |= {str(path) for path in Path("/dev/shm").glob("*connscope*")}
        mounts = Path("/proc/self/mountinfo").read_bytes().split(b"\n")
        return found | {line.decode(errors="replace") for line in mounts if b"connscope" in line}

    def left(self, supervisor_pid: int, own: set[int]) -> list[str]:
        """What is there that was not, after waiting for it to go."""
        end_s = time.monotonic() + _GONE_S
        while found := self._found(supervisor_pid, own):
            if time.monotonic() > end_s:
                return found
            time.sleep(_LOOK_S)
        return []

    def _found(self, supervisor_pid: int, own: set[int]) -> list[str]:
        found = [f"left behind: {what}" for what in sorted(self._look() - self._before)]
        for pid in process_tree.children_of(os.getpid()):
            stat = process_tree.read_stat(pid)
            if pid in own or stat is None:
                continue
            if stat.is_alive:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
                found.append(f"process {pid} outlives it: {command.decode(errors='replace')[:120]}")
            else:
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
        groups = Path("/sys/fs/cgroup").rglob(f"connscope-{supervisor_pid}*")
        return found + [f"control group {group} is left" for group in groups]


class Player:
    """Plays one way in a folder.

    Args:
        folder: Empty.
    """

    def __init__(self, folder: Path) -> None:
        self.runs = folder / "runs"
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True)
        self.log = folder / "log"
        self.own: list[subprocess.Popen[Any]] = []
        self.groups: list[MemoryGroup] = []

    def command(self, way: str) -> list[str]:
        """Of the run or of the watch."""
        python = [sys.executable, "-P", "-m"]
        size = ["--connections", _CONNECTIONS, "--clients", "2", "--hold", _HOLD_S]
        more = ["--quiet", "--no-report", "--output", str(self.runs)]
        if way == "own":
            return [
                *python,
                "harness.commands.run",
                *size,
                "--workers",
                "2",
                "--memory-max",
                "1G",
                *more,
            ]
        server = [sys.executable, str(FOREIGN / "plain_server.py")]
        if way == "command":
            words = " ".join([*server, "{port}", "2"])
            return [*python, "harness.commands.run", *size, "--server-cmd", words, *more]
        namespace_fd = netns.create({})
        with netns.inside(namespace_fd):
            served = subprocess.Popen([*server, str(_PORT)])
            clients = subprocess.Popen(
                [sys.executable, str(FOREIGN / "plain_clients.py"), str(_PORT), "10"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        os.close(namespace_fd)
        self.own = [served, clients]
        table = Path(f"/proc/{served.pid}/net/tcp")
        wait_until(
            "the server listens", lambda: f":{_PORT:04X} 00000000:0000 0A" in table.read_text()
        )
        assert clients.stdin is not None
        assert clients.stdout is not None
        clients.stdin.write("100 /\n")
        clients.stdin.flush()
        if clients.stdout.readline().split() != ["100", "0"]:
            raise RuntimeError("the clients of the watched server were not let in")
        pid = ["--pid", str(served.pid), "--duration", "4"]
        more.remove("--quiet")
        return [*python, "harness.commands.attach", *pid, *more]

    def start(self, way: str) -> subprocess.Popen[bytes]:
        """The command, whose output goes to the log."""
        words = self.command(way)
        with self.log.open("wb") as log:
            environment = {**os.environ, "TMPDIR": str(self.temporary)}
            return subprocess.Popen(
                words, stdout=log, stderr=log, env=environment, cwd=ROOT, start_new_session=True
            )

    def harm(self) -> list[str]:
        """What happened to a watched server, which must not notice anything."""
        return [f"{each.args!r} ended" for each in self.own if each.poll() is not None]

    def close(self) -> None:
        """Ends the server that was watched."""
        for each in self.own:
            each.kill()
            each.communicate()
        self.own = []
        for group in self.groups:
            group.remove()
        self.groups = []


def kill_one(
    number: int,
    way: str,
    role: str,
    at_s: float,
    folder: Path,
    which: random.Random,
    how: str = "kill",
) -> Kill:
    """Plays it, kills, and looks at what came of it.

    Args:
        number: Its place in the series.
        way: Of ``WAYS``.
        role: Of ``ROLES[way]``.
        at_s: When to kill, after the start.
        folder: Does not exist yet.
        which: Draws among several of one role.
        how: Of ``HOW``.
    """
    player = Player(folder)
    host = Host(player.temporary)
    child = player.start(way)
    try:
        killed, ends_with_it = _kill(child, role, at_s, which, how, player)
        wrong = []
        deadline = FairDeadline(_END_S, 4 * _END_S, child.pid)
        while child.poll() is None and deadline.left_s() > 0:
            with suppress(subprocess.TimeoutExpired):
                child.wait(min(1.0, deadline.left_s()))
        if child.poll() is None:
            roles = ", ".join(f"{pid} {what}" for pid, what in roles_in(child.pid).items())
            wrong.append(f"it goes on {_END_S:g} s after {role} was killed: {roles}")
            os.killpg(child.pid, signal.SIGKILL)
        exit_code = child.wait()
        if any(group.kill_count() == 0 for group in player.groups):
            killed = 0  # it needed no more memory
        wrong += player.harm()
        wrong += host.left(child.pid, {each.pid for each in player.own})
    finally:
        with suppress(ProcessLookupError):
            child.kill()
        child.wait()
        player.close()
    said = player.log.read_text(errors="replace")
    if "Traceback" in said:
        wrong.append(f"a traceback: {said[-300:]}")
    cause = ""
    runs = [path for path in player.runs.glob("2*") if (path / "manifest.json").exists()]
    if runs:
        verdict, more = _report(runs[0])
        wrong += more
        if verdict is not None:
            cause = verdict["verdict"]["cause"]
            wrong += complaints(role, verdict, ends_with_it, how)
    elif role != "supervisor" and killed:
        wrong.append(f"no recording, though the supervisor lived: {said[-300:]}")
    if not wrong:
        shutil.rmtree(folder)
    return Kill(number, way, role, round(at_s, 2), killed, exit_code, cause, tuple(wrong))


def _kill(
    child: subprocess.Popen[bytes],
    role: str,
    at_s: float,
    which: random.Random,
    how: str,
    player: Player,
) -> tuple[int, set[int]]:
    """Kills one of that role as soon as it is time and there is one; (its pid, those below it)."""
    begin_s = time.monotonic()
    while child.poll() is None and time.monotonic() - begin_s < _END_S:
        if time.monotonic() - begin_s >= at_s:
            found = sorted(pid for pid, its in roles_in(child.pid).items() if its == role)
            if found and child.poll() is None:
                pid = which.choice(found)
                below = set(process_tree.tree_of(pid)) | {pid}
                parent = process_tree.read_stat(pid)
                with suppress(ProcessLookupError):
                    if how == "memory":
                        player.groups.append(MemoryGroup(pid))
                    else:
                        _send(pid, how, which)
                    return pid, below | ({parent.ppid} if parent else set())
        time.sleep(_LOOK_S)
    return 0, set()


def _send(pid: int, how: str, which: random.Random) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        if how == "kill":
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        elif how == "stop":
            signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
            time.sleep(_STOPPED_S)  # how long it stands still
            with suppress(ProcessLookupError):  # the run may have ended it meanwhile
                signal.pidfd_send_signal(pidfd, signal.SIGCONT)
        else:
            for _ in range(which.choice((1, 2, 3))):
                signal.pidfd_send_signal(pidfd, signal.SIGINT)
                time.sleep(which.uniform(0.0, _BETWEEN_CTRL_C_S))  # how fast a person is
    finally:
        os.close(pidfd)


def _report(run: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The verdict of a run, made now where it is not there; (it, what was wrong)."""
    words = [sys.executable, "-P", "-m", "harness.commands.report", str(run)]
    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, timeout=_REPORT_S, check=False
    )
    verdict = run / "verdict.json"
    if "Traceback" in done.stderr or not verdict.exists():
        return None, [f"profile-report ended with {done.returncode}: {done.stderr[-300:]}"]
    missing = [] if (run / "report.html").exists() else ["there is no report.html"]
    return json.loads(verdict.read_text()), missing


def draws(count: int, seed: int, only: str = "") -> Iterator[tuple[int, str, str, float]]:
    """(number, way, role, moment in s) of each kill; all roles equally often, or one alone."""
    roles = [(way, role) for way in WAYS for role in ROLES[way] if f"{way},{role}".startswith(only)]
    draw = random.Random(seed)
    for number in range(count):
        way, role = roles[number % len(roles)]
        yield number, way, role, draw.uniform(0.0, _LATEST_S)


def main(argv: Sequence[str] | None = None) -> int:
    """Kills, and says what was wrong; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.kill_matrix",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, default=2016, metavar="N")
    parser.add_argument("--only", metavar="WAY,ROLE", help="for example own,cgroup_guard")
    parser.add_argument("--how", choices=HOW, default="kill")
    parser.add_argument("--at", type=float, metavar="S", help="the moment, default: any")
    parser.add_argument("--output", type=Path, default=Path("runs/kill-matrix"), metavar="DIR")
    options = parser.parse_args(argv)
    if os.geteuid() != 0:
        sys.stderr.write(
            "error: the kill matrix needs root\nfix: sudo python -m bench.kill_matrix\n"
        )
        return 4
    end_on_sigterm()
    adopt_orphans()  # what loses its parent becomes a child of this process, where it is seen
    options.output.mkdir(parents=True, exist_ok=True)
    only = options.only or ""
    lines = options.output / f"{options.how}s-{options.seed}.jsonl"
    done = [json.loads(line) for line in lines.read_text().split("\n") if line] \
        if lines.exists() else []  # fmt: skip
    known = {each["number"] for each in done}
    try:
        with lines.open("a") as stream:
            for number, way, drawn, at_s in draws(options.kills, options.seed, only):
                if number in known:
                    continue
                folder = options.output / f"{options.seed}-{number}"
                shutil.rmtree(folder, ignore_errors=True)
                which = random.Random(f"{options.seed} {number}")
                role = "supervisor" if options.how == "interrupt" else drawn
                moment_s = at_s if options.at is None else options.at
                kill = kill_one(number, way, role, moment_s, folder, which, options.how)
                done.append(asdict(kill))
                stream.write(json.dumps(asdict(kill)) + "\n")
                stream.flush()
                what = "; ".join(kill.wrong) or "right"
                say(
                    f"{number + 1:>4} {way:<8} {role:<14} {kill.at_s:4.1f} s  "
                    f"{kill.cause:<16} {what}"
                )
    except KeyboardInterrupt:
        return 130
    wrong = [each for each in done if each["wrong"]]
    by_role = Counter(f"{each['way']} {each['role']}" for each in done if each["killed_pid"])
    for name, count in sorted(by_role.items()):
        print(f"{name:<24} {count:>4} kills")
    print(f"{sum(by_role.values())} kills, {len(done) - sum(by_role.values())} came too late, "
          f"{len(wrong)} wrong")  # fmt: skip
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
