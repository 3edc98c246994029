"""Starts the processes of a run that are ours, each in an interpreter of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO


def start_module(
    module: str,
    arguments: Sequence[str] = (),
    *,
    stdin: int | IO[bytes],
    stdout: int | IO[bytes],
    stderr: int | IO[bytes] | None,
    pass_fds: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Starts ``python -P -m MODULE``.

    With -P a folder named like one of our packages in the working directory is not imported. It has
    a session of its own: Ctrl-C is for the supervisor alone, and sched_autogroup (sched(7)) gives
    each session its share of the cores.

    Args:
        module: Its name.
        arguments: Of it.
        stdin: As of ``subprocess.Popen``, likewise ``stdout`` and ``stderr``.
        stdout: Output.
        stderr: Log, None for that of this process.
        pass_fds: Descriptors that it inherits under the same numbers.
        environment: That of this process when None.
    """
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        pass_fds=pass_fds,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        cwd="/",
        env=environment,
    )
