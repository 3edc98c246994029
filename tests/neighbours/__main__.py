"""``python -m tests.neighbours COMMAND...`` runs a command beside the noisy neighbours."""

from __future__ import annotations

import subprocess
import sys

from tests.neighbours.program import beside_noisy


def main() -> int:
    with beside_noisy() as neighbours:
        try:
            code = subprocess.run(sys.argv[1:]).returncode
        except KeyboardInterrupt:
            code = 130
    for each in neighbours:
        print(f"neighbour {each.name} had its effect {each.count:,} times", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
