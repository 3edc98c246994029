"""noisy.py COMMAND...: the command, and a log full of errors that harm nobody, on its stderr.

What other parts of a service say all day: an upstream of somebody else's, a cache, a client that
went away.
"""

import ctypes
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG = 1
PERIOD_S = 0.05
LINES = (
    "ERROR metrics: push to gateway failed: timeout",
    "WARN cache: could not refresh key session:42, keeping the old value",
    "ERROR mail: relay answered 451, will try again",
    "error: favicon.ico not found",
    "CRITICAL audit: disk quota of tenant 7 is nearly used up",
)


def dies_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def main(command):
    child = subprocess.Popen(command, preexec_fn=dies_with_parent)  # noqa: PLW1509 - one thread
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    said = 0
    while child.poll() is None:
        print(LINES[said % len(LINES)], file=sys.stderr, flush=True)
        said += 1
        time.sleep(PERIOD_S)
    return abs(child.returncode)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
