"""``python -m documentation.screenshots [FOLDER]``: pictures of the pages of fresh runs.

Runs a server that spins at its descriptor limit, a matrix of two rows and a comparison of both, and
takes their pages wide and narrow, light and dark. The first screen of the report becomes
``docs/report.png``, the picture of the README.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs/report.png"
MAX_BYTES = 200_000
DEADLINE_S = 120
RUN = (
    *("--connections", "1800", "--workers", "3", "--nofile", "450", "--at-fd-limit", "spin"),
    *("--ramp", "300", "--connect-timeout", "2", "--hold", "5"),
)
MATRIX = (
    *("--vary", "at-fd-limit=pause,spin"),
    *("--", "--connections", "1500", "--workers", "2", "--nofile", "400", "--hold", "2"),
    *("--connect-timeout", "1"),
)


def main(arguments: list[str]) -> int:
    """Makes the runs, takes the pictures, says what it wrote."""
    folder = Path(arguments[0] if arguments else "screenshots").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="screenshots-") as scratch:
        pages = _pages(Path(scratch))
        script = Path(__file__).with_suffix(".cjs")
        subprocess.run(
            ["node", script, folder, *(f"{name}={path}" for name, path in pages.items())],
            check=True,
            timeout=DEADLINE_S,
        )
    first_screen = folder / "report-first-screen.png"
    size = first_screen.stat().st_size
    assert size < MAX_BYTES, f"{first_screen} has {size:,} bytes, too many for the README"
    shutil.copyfile(first_screen, PICTURE)
    print(PICTURE)
    return 0


def _pages(scratch: Path) -> dict[str, Path]:
    """Records and reports; the name of each page and where it is."""
    _run("profile-run", *RUN, "--quiet", "--output", str(scratch / "run"))
    _run("profile-matrix", "--output", str(scratch / "matrix"), *MATRIX)
    matrix = next(scratch.glob("matrix/*/matrix.html"))
    rows = sorted(str(path) for path in matrix.parent.glob("rows/*") if not path.is_symlink())
    comparison = scratch / "comparison.html"
    _run("profile-compare", *rows, "--output", str(comparison))
    return {
        "report": scratch / "run/latest/report.html",
        "matrix": matrix,
        "comparison": comparison,
    }


def _run(command: str, *arguments: str) -> None:
    """A command of the same environment; that a limit was met (3) is what is wanted here."""
    program = Path(sys.executable).with_name(command)
    done = subprocess.run([program, *arguments], check=False, timeout=DEADLINE_S)
    if done.returncode not in (0, 3):
        raise SystemExit(f"{command} ended with {done.returncode}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
