"""Which connscope this is: version and commit."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def tool_version() -> str:
    """The installed version of connscope."""
    try:
        return version("connscope")
    except PackageNotFoundError:
        return "unknown"


def tool_commit() -> str:
    """The commit of the source tree this runs from, '' for an installed package."""
    tree = Path(__file__).resolve().parent.parent
    if not (tree / ".git").exists():
        return ""
    try:
        done = subprocess.run(
            ["git", "-C", str(tree), "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
