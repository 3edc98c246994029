"""Keeps pandas and matplotlib imported for the commands that read a run, and for small runs.

``warm.py SOCKET`` answers each connection with a fork of itself that is the command: the
documentation has fifty such commands, and each would import the same for a second or two. For the
same reason the fork understands the recording itself, as a user's command does; root's would start
another process for it (``harness.results.conclusion``), which imports all of it once more.
``smaller.py`` is the other end. That these commands start by themselves, and root's process, is
what their own tests look at (``tests/harness/commands/test_cli_run.py``, ``test_cli_compare.py``,
``test_conclusion.py``, ``tests/reports/test_cli_report.py``).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable

_MOST_BYTES = 65_536


def command_mains() -> dict[str, Callable[[list[str]], int]]:
    """Commands by name, with all that they import; here they understand what they record."""
    import harness.commands.attach
    import harness.commands.compare
    import harness.commands.report
    import harness.commands.run
    import harness.results.export
    import harness.results.pipeline
    import reports.comparison.page
    import reports.page.page  # noqa: F401 - they are here to be in memory
    from harness.results import conclusion

    conclusion.is_apart = lambda: False  # as for anybody but root
    return {
        "profile-run": harness.commands.run.main,
        "profile-attach": harness.commands.attach.main,
        "profile-report": harness.commands.report.main,
        "profile-compare": harness.commands.compare.main,
    }


def serve(path: str) -> None:
    """Answers until it is killed; says on stdout when it is ready."""
    mains = command_mains()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen(64)
        print("ready", flush=True)
        while True:
            client, _ = listener.accept()
            if os.fork() == 0:
                break
            client.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, fds, _, _ = socket.recv_fds(client, _MOST_BYTES, 3)
    for target, fd in enumerate(fds):
        os.dup2(fd, target)
        os.close(fd)
    command, folder, *words = json.loads(request)
    os.chdir(folder)
    code = mains[command](words)
    sys.stdout.flush()
    sys.stderr.flush()
    client.send(str(code).encode())


if __name__ == "__main__":
    serve(sys.argv[1])
