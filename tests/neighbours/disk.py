"""A process that writes to the disk and waits for it (fsync), in a file that is gone at the end."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from tests.neighbours.program import Life, parser

_FILE_BYTES = 64 << 20
_WRITE_BYTES = 4 << 20


def main() -> int:
    wanted = parser(__doc__)
    wanted.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    wanted.add_argument("--per-second", type=float, default=10.0)
    options = wanted.parse_args()
    life = Life(options.seconds)
    data = os.urandom(_WRITE_BYTES)
    with life.lived(), tempfile.TemporaryFile(dir=options.folder, buffering=0) as file:
        for _ in life.beats(1 / options.per_second):
            os.pwrite(file.fileno(), data, life.count * _WRITE_BYTES % _FILE_BYTES)
            os.fsync(file.fileno())
            life.count += 1
            if life.count == 1:
                life.ready()
    return 0


if __name__ == "__main__":
    sys.exit(main())
