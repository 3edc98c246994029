"""Understands recordings without rights: ``python -P -m harness.results.analysis_main``.

Root starts it (``harness.results.analysis_process``). It imports what it needs, becomes a user of
its own and gives up all that it may do; then it gets descriptors of the recordings' files, and
answers with the content of what is asked for (``harness.results.analysis_request``). It writes
nothing itself.

Where that user cannot read our own files (an environment in root's home) it keeps
CAP_DAC_READ_SEARCH, without which no package could be imported at its first use.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import time
import traceback
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.results import analysis_request
from harness.results.analysis_process import DONE, FAILURE, FRAME, MOST_FDS, READY, RESULT
from probes.contract.errors import RunDirError, ToolkitError
from probes.contract.rundir import RunDir
from probes.rights import privileges
from probes.rights.own_descriptors import raise_own_limit
from probes.rights.own_user import OwnUser, become, own_user
from probes.rights.parent_death import die_with_parent

KEEPS_AT_MOST = ("dac_read_search",)


def main(argv: list[str]) -> int:
    """Imports, gives up, waits for a recording, answers."""
    parent_pid, asked = int(argv[0]), socket.socket(fileno=int(argv[1]))
    with_page, after_s = argv[2] == "1", float(argv[3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is its parent's
    die_with_parent(parent_pid)
    time.sleep(after_s)
    raise_own_limit()
    # Before the import: its threads inherit what this one cannot gain, and none is there at a fork.
    privileges.gain_nothing()
    privileges.bound_by()
    user = own_user()
    keeps = () if user is None or _reads_own_files(user) else KEEPS_AT_MOST
    import harness.results.pipeline  # noqa: F401 - pandas takes what is left of the time

    if with_page:
        import reports.page.page  # noqa: F401 - its import is what takes long
    if user is not None:
        become(user, keeps)
    privileges.keep_only(keeps)
    die_with_parent(parent_pid)
    asked.sendall(READY)
    try:
        runs, told = _received(asked)
        for name, content in analysis_request.answers(
            told["what"], runs, told["options"], with_page=told["with_page"]
        ):
            _answer(asked, RESULT, name, content)
        _answer(asked, DONE, "", b"")
    except EOFError:  # not wanted after all
        return 0
    except Exception as error:  # noqa: BLE001 - told to who asked
        _answer(asked, FAILURE, "", json.dumps(_told(error)).encode())
    return 0


def _received(asked: socket.socket) -> tuple[list[RunDir], dict[str, Any]]:
    (size_bytes,) = struct.unpack("<I", _take(asked, 4))
    told: dict[str, Any] = json.loads(_take(asked, size_bytes))
    fds: list[int] = []
    while len(fds) < sum(len(each["files"]) for each in told["runs"]):
        word, some, _, _ = socket.recv_fds(asked, 1, MOST_FDS)
        if not word:
            raise EOFError
        fds += some
    left = iter(fds)
    runs = []
    for each in told["runs"]:
        run = RunDir(Path(each["path"]), {name: next(left) for name in each["files"]})
        run.unwritten_manifest = each["manifest"]
        runs.append(run)
    return runs, told


def _take(asked: socket.socket, size_bytes: int) -> bytes:
    taken = asked.recv(size_bytes, socket.MSG_WAITALL)
    if len(taken) != size_bytes:
        raise EOFError
    return taken


def _answer(asked: socket.socket, kind: int, name: str, content: bytes) -> None:
    asked.sendall(FRAME.pack(kind, len(name), len(content)) + name.encode())
    asked.sendall(content)


def _told(error: Exception) -> dict[str, Any]:
    if isinstance(error, RunDirError):
        return {"kind": "run_dir", "message": error.message, "fix": error.fix}
    if isinstance(error, ToolkitError):
        code = int(error.exit_code)
        told = {"kind": "toolkit", "message": error.message, "fix": error.fix}
        return told | {"exit_code": code}
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}, line {last.lineno}"
    message = f"{type(error).__name__}: {str(error)[:200]} ({place})"
    return {"kind": "defect", "message": message, "fix": ""}


def _reads_own_files(user: OwnUser) -> bool:
    """Whether that user can read our packages, and those of others that we import."""
    found = find_spec("numpy")  # where it is, without its import
    theirs = Path(found.origin) if found is not None and found.origin else Path(__file__)
    ours = [Path(__file__).parent, theirs.parent, Path(os.__file__).parent]
    pid = os.fork()
    if pid == 0:
        try:
            become(user)
            for folder in ours:
                next(os.scandir(folder))
        except (OSError, StopIteration):
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    return status == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
