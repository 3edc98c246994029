"""``several.py N COMMAND...``: N processes of one command, all of which end with SIGTERM.

For servers that are one process each and share a port by SO_REUSEPORT.
"""

import os
import signal
import subprocess
import sys


def main(argv: list[str]) -> int:
    """Starts them and waits; 0 when all were asked to end."""
    count, command = int(argv[0]), argv[1:]
    if count == 1:
        os.execvp(command[0], command)
    children = [subprocess.Popen(command) for _ in range(count)]
    asked: list[int] = []

    def end(number: int, _frame: object) -> None:
        asked.append(number)
        for child in children:
            child.terminate()

    signal.signal(signal.SIGTERM, end)
    statuses = [child.wait() for child in children]
    return 0 if asked else max(map(abs, statuses))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
