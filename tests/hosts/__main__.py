"""One run over namespaces as hosts: ``python -m tests.hosts --clients 3 -- profile-run ...``."""

from __future__ import annotations

import argparse
import subprocess
import sys

from tests.hosts.lab import lab


def main() -> int:
    """Makes the hosts, runs the command with ``--hosts`` as the controller, removes them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    with lab(options.clients) as hosts:
        words = [*options.command, "--hosts", str(hosts.hosts_file())]
        return subprocess.run(hosts.command(*words), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
