"""Whether a file that a person named can be written, asked before the work that it is to hold."""

from __future__ import annotations

from pathlib import Path

from probes.contract.errors import UsageError
from probes.contract.whole_file import is_kept


def check_output_file(path: Path, *, option: str, usual: str) -> None:
    """Refuses what is no place for a file.

    Args:
        path: What was named; the null device is a place: what goes there is gone.
        option: That named it.
        usual: What such a file is called.

    Raises:
        UsageError: It is a directory, another device, or in no directory.
    """
    if path.is_dir():
        raise UsageError(f"{option} {path} is a directory", fix=f"{option} {path / usual}")
    check_parent(path, option=option)
    if is_kept(path):
        raise UsageError(
            f"{option} {path} is a device, and no file takes its place",
            fix=f"{option} FILE, for example {usual}",
        )


def check_parent(path: Path, *, option: str) -> None:
    """Refuses a file or folder in a directory that is not there.

    Raises:
        UsageError: It is not.
    """
    if not path.parent.is_dir():
        raise UsageError(
            f"{option} {path}: there is no directory {path.parent}", fix=f"mkdir -p {path.parent}"
        )
