"""A process that calculates: all of a core, or a part of the time."""

from __future__ import annotations

import sys
import time

from tests.neighbours.program import Life, parser

_PERIOD_S = 0.3


def main() -> int:
    wanted = parser(__doc__)
    wanted.add_argument("--share", type=float, default=1.0, help="of the time, 0 to 1")
    options = wanted.parse_args()
    busy_s = _PERIOD_S * min(1.0, max(0.0, options.share))
    life = Life(options.seconds)
    with life.lived():
        for _ in life.beats(_PERIOD_S - busy_s):
            until_s = time.monotonic() + busy_s
            while time.monotonic() < until_s:
                pass
            life.count += 1
            if life.count == 1:
                life.ready()
    return 0


if __name__ == "__main__":
    sys.exit(main())
