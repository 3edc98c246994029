"""The process that understands a recording for root (``analysis_main``), from its side."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from harness.results.analysis_request import BUNDLE, Request
from harness.results.results import Result
from probes.contract.errors import ExitCode, RunDirError, ToolkitError
from probes.contract.rundir import RunDir, open_files
from probes.rights.own_descriptors import raise_own_limit
from probes.rights.own_process import start_module

FRAME = struct.Struct("<BIQ")
"""Kind of an answer, bytes of its name, bytes of its content."""
RESULT, FAILURE, DONE = 1, 2, 3
READY = b"ready"
MOST_FDS = 200
"""In one message; the kernel takes 253 (SCM_MAX_FD)."""
_MOST_NAME_BYTES, _MOST_RESULT_BYTES = 256, 1 << 30
_KEPT_VARIABLES = (
    *("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "HOME", "LANG", "LC_ALL", "LC_CTYPE"),
    *("TZ", "MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "PYTHONWARNINGS"),
)


class NotStartedError(Exception):
    """It ended before it was asked for anything."""


class AnalysisProcess:
    """Started at once; answers one request.

    Args:
        with_page: A page may be wanted.
        after_s: How long it waits before it imports anything.
    """

    def __init__(self, *, with_page: bool, after_s: float = 0.0) -> None:
        self._socket, theirs = socket.socketpair()
        variables = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        with theirs:
            self._child = start_module(
                "harness.results.analysis_main",
                [str(os.getpid()), str(theirs.fileno()), str(int(with_page)), f"{after_s:.3f}"],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=None,
                environment=variables,
            )

    @property
    def pid(self) -> int:
        """Of it."""
        return self._child.pid

    def answers(self, request: Request, runs: Sequence[RunDir]) -> Iterator[Result]:
        """Has recordings understood; see ``harness.results.analysis_request.answers``.

        Raises:
            NotStartedError: It ended before it was told of a recording.
            ToolkitError: What it raised, or how it ended.
        """
        try:
            if self._take(len(READY)) != READY:
                raise NotStartedError
        except (OSError, EOFError) as error:
            raise NotStartedError from error
        try:
            self._ask(request, runs)
            while True:
                kind, name_bytes, content_bytes = FRAME.unpack(self._take(FRAME.size))
                name = self._take(name_bytes, _MOST_NAME_BYTES).decode(errors="replace")
                content = self._take(content_bytes, _MOST_RESULT_BYTES)
                if kind == DONE:
                    return
                if kind == FAILURE:
                    _raise(json.loads(content))
                yield name, content
        except (OSError, EOFError) as error:
            raise self._how_it_ended(request) from error

    def _ask(self, request: Request, runs: Sequence[RunDir]) -> None:
        raise_own_limit()
        told = []
        fds: list[int] = []
        try:
            for run in runs:
                files = open_files(run.path, with_logs=request.what == BUNDLE)
                fds += files.values()
                unwritten = run.unwritten_files()
                fds += unwritten.values()
                names = [*files, *unwritten]
                told.append({
                    "path": str(run.path.resolve()),
                    "files": names,
                    "manifest": run.unwritten_manifest,
                })  # fmt: skip
            head = {**request.to_dict(), "runs": told}
            text = json.dumps(head, default=str).encode()
            self._socket.sendall(struct.pack("<I", len(text)) + text)
            for at in range(0, len(fds), MOST_FDS):
                socket.send_fds(self._socket, [b"f"], fds[at : at + MOST_FDS])
        finally:
            for fd in fds:
                os.close(fd)

    def _take(self, size_bytes: int, most_bytes: int = 1 << 10) -> bytes:
        if size_bytes > most_bytes:
            raise EOFError("it answers nonsense")
        pieces: list[bytes] = []
        while size_bytes > 0:
            piece = self._socket.recv(min(size_bytes, 1 << 20))
            if not piece:
                raise EOFError
            pieces.append(piece)
            size_bytes -= len(piece)
        return b"".join(pieces)

    def _how_it_ended(self, request: Request) -> ToolkitError:
        self._socket.close()
        try:
            code = self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            code = self._child.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        return RunDirError(
            f"the process that was to understand {request.about} {how}",
            fix=f"free -h; {request.again}",
        )

    def close(self) -> None:
        """Ends it, wherever it is."""
        self._socket.close()
        with suppress(OSError):
            self._child.kill()
        self._child.wait()


def _raise(said: dict[str, Any]) -> NoReturn:
    message, fix = str(said["message"]), str(said["fix"])
    if said["kind"] == "run_dir":
        raise RunDirError(message, fix=fix)
    if said["kind"] == "toolkit":
        raise ToolkitError(message, fix=fix, exit_code=ExitCode(int(said["exit_code"])))
    raise RuntimeError(message)
