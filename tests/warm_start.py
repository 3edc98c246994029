"""Commands of ours without the CPU second that their imports take.

A process that has imported what they need forks one for each command (``fork_commands``, the main
function of this module); there the recording is understood, too, so that no process for it imports
pandas anew. ``tests/harness/commands/test_cli_run.py``, ``test_conclusion.py`` and the tests of the
documentation start the commands as their users do.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from documentation.warm import command_mains

ROOT = Path(__file__).parents[1]
PREFIX = [sys.executable, "-P", "-m"]
COMMANDS = ("harness.commands.run", "harness.commands.attach")
_START_S = 60.0
_POLL_S = 0.01


_OPTIONS = {"env", "cwd", "start_new_session", "stdout", "stderr", "text"}


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[str] | WarmProcess:
    """``subprocess.Popen`` with texts, of a run or a watch by ``WarmProcess``.

    Args:
        command: ``python -P -m`` with the one or the other is forked, all else is executed.
        options: Of Popen. Others than output, environment, folder and session are for what is
            executed alone.
    """
    can_be_forked = list(command[:3]) == PREFIX and command[3] in COMMANDS
    if not can_be_forked or options.keys() - _OPTIONS:
        return subprocess.Popen(command, **{"text": True, **options})
    return WarmProcess(NURSERY, command, **{k: v for k, v in options.items() if k != "text"})


def run(command: Sequence[str], *, timeout: float, **options: Any) -> Any:
    """``subprocess.run`` of ``start`` that captures output and errors."""
    child = start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    try:
        stdout, stderr = child.communicate(timeout=timeout)
    except BaseException:
        child.kill()
        child.communicate()
        raise
    return subprocess.CompletedProcess(command, child.returncode, stdout, stderr)


class WarmProcess:
    """A command that was forked; what tests use of ``subprocess.Popen``, with pipes and texts.

    Attributes:
        pid: Its process.
        args: Its words.
        returncode: As Popen has it; None while it runs.
        stdout: Its output, where it is a pipe.
        stderr: Likewise.
        stdin: None; it is /dev/null.
    """

    def __init__(
        self,
        nursery: Nursery,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        start_new_session: bool = False,
        stdout: Any = None,
        stderr: Any = None,
    ) -> None:
        self.args = [str(word) for word in command]
        self.returncode: int | None = None
        self.stdin = None
        out, out_there = _place_of(stdout, 1)
        err, err_there = _place_of(stderr, 2)
        status, status_there = os.pipe()
        request = {
            "module": self.args[3],
            "words": self.args[4:],
            "env": dict(os.environ if env is None else env),
            "cwd": os.fspath(cwd) if cwd else os.getcwd(),
            "is_session": start_new_session,
        }
        try:
            self.pid = nursery.fork(request, [out_there, err_there, status_there])
        finally:
            for fd in (out_there, err_there, status_there):
                os.close(fd)
        self.stdout = open(out, encoding="utf-8") if out >= 0 else None  # noqa: SIM115 - who reads closes it
        self.stderr = open(err, encoding="utf-8") if err >= 0 else None  # noqa: SIM115
        self._status = status
        os.set_blocking(status, False)

    def __enter__(self) -> WarmProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()

    def poll(self) -> int | None:
        """How it ended, None while it has not."""
        if self.returncode is None:
            with suppress(BlockingIOError):
                word = os.read(self._status, 4)
                # without a word the nursery itself has ended
                self.returncode = int.from_bytes(word, "little", signed=True) if word else -9
                os.close(self._status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end.

        Raises:
            subprocess.TimeoutExpired: It did not come in so many seconds.
        """
        end_s = time.monotonic() + (timeout if timeout is not None else 3600.0)
        while (code := self.poll()) is None:
            if time.monotonic() >= end_s:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(_POLL_S)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Its output from now on, when it has ended."""
        end_s = time.monotonic() + (timeout if timeout is not None else 3600.0)
        streams = [each for each in (self.stdout, self.stderr) if each is not None]
        parts: dict[Any, list[bytes]] = {each: [] for each in streams}
        with selectors.DefaultSelector() as waiting:
            for stream in parts:
                if not stream.closed:
                    waiting.register(stream, selectors.EVENT_READ)
            while waiting.get_map():
                if time.monotonic() >= end_s:
                    raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
                for key, _ in waiting.select(0.2):
                    chunk = os.read(key.fd, 1 << 16)
                    parts[key.fileobj].append(chunk)
                    if not chunk:
                        waiting.unregister(key.fileobj)
        self.wait(max(0.0, end_s - time.monotonic()))
        for stream in streams:
            stream.close()
        texts = {stream: b"".join(chunks).decode() for stream, chunks in parts.items()}
        return texts.get(self.stdout, ""), texts.get(self.stderr, "")

    def send_signal(self, number: int) -> None:
        """Sends it, unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


def _place_of(stream: Any, own_fd: int) -> tuple[int, int]:
    """Where a test reads, -1 for nowhere, and where the command writes."""
    if stream == subprocess.PIPE:
        return os.pipe()
    if stream == subprocess.DEVNULL:
        return -1, os.open(os.devnull, os.O_WRONLY)
    return -1, os.dup(own_fd if stream is None else stream.fileno())


class Nursery:
    """The process that forks, from its first use until ``close``."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def fork(self, request: Mapping[str, Any], fds: list[int]) -> int:
        """Has a command begun.

        Args:
            request: Of ``WarmProcess``.
            fds: Its output, its errors, and where the status of its end is told.

        Returns:
            Its pid.
        """
        if self._socket is None:
            self._begin()
        assert self._socket is not None
        with os.fdopen(os.memfd_create("request"), "wb") as stream:  # no message is that large
            stream.write(json.dumps(request).encode())
            stream.flush()
            socket.send_fds(self._socket, [b"r"], [*fds, stream.fileno()])
        answer = self._socket.recv(64)
        assert answer, "the process that forks commands has ended"
        return int(answer)

    def close(self) -> None:
        """Ends it; what it forked and still runs ends by SIGKILL."""
        if self._child is not None and self._socket is not None:
            self._socket.close()
            self._child.wait(timeout=30)
            self._child = self._socket = None

    def _begin(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "tests.warm_start", str(theirs.fileno())],
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        ours.settimeout(_START_S)
        self._socket = ours


NURSERY = Nursery()
"""Of this test process; ``tests/conftest.py`` closes it."""


def fork_commands(connection: socket.socket) -> None:
    """Forks a command for each request, and tells how each ended, until nobody asks any more.

    Returns in each command that it forks, too, when that has ended in good order.
    """
    mains = {main.__module__: main for main in command_mains().values()}
    ends: dict[int, int] = {}
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    with selectors.DefaultSelector() as waiting:
        waiting.register(connection, selectors.EVENT_READ)
        waiting.register(read_fd, selectors.EVENT_READ)
        while True:
            for key, _ in waiting.select():
                if key.fileobj is not connection:
                    os.read(read_fd, 4096)
                    _tell_ends(ends)
                    continue
                message, fds, _, _ = socket.recv_fds(connection, 1, 4)
                if not message:
                    for pid in ends:
                        os.kill(pid, signal.SIGKILL)
                    return
                with os.fdopen(fds.pop(), "rb") as stream:
                    stream.seek(0)
                    request = json.loads(stream.read())
                pid = os.fork()
                if not pid:
                    if request["is_session"]:
                        os.setsid()
                    connection.send(str(os.getpid()).encode())
                    waiting.close()
                    for fd in (connection.detach(), read_fd, write_fd, *ends.values(), fds[2]):
                        os.close(fd)
                    _become(mains[request["module"]], request, fds)
                os.close(fds[0])
                os.close(fds[1])
                ends[pid] = fds[2]


def _tell_ends(ends: dict[int, int]) -> None:
    for pid in list(ends):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            with suppress(BrokenPipeError), open(ends.pop(pid), "wb") as stream:
                stream.write(code.to_bytes(4, "little", signed=True))


def _become(
    main: Callable[[list[str]], int], request: Mapping[str, Any], fds: Sequence[int]
) -> NoReturn:
    """The command, as ``python -P -m`` would start it."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for fd, place in zip(fds[:2], (1, 2), strict=True):
        os.dup2(fd, place)
        os.close(fd)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - until the end
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = [request["module"], *request["words"]]
    sys.exit(main(request["words"]))


if __name__ == "__main__":
    fork_commands(socket.socket(fileno=int(sys.argv[1])))
