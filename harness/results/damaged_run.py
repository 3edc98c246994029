"""What is in a recording may be anything; who reads one is told in two lines what is wrong with it.

The tables are checked when they are read, the manifest is a document of many forms. Each of its
values is looked at where it is used, by code that is the same for a run that has just ended: there
what is missing is a defect of ours, and shows itself as one.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from probes.contract.errors import RunDirError

_DAMAGE = (
    ArithmeticError, AssertionError, AttributeError, BufferError, LookupError, MemoryError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip


@contextmanager
def told_as_damage(path: Path, fix: str) -> Iterator[None]:
    """Tells what a recording does to who reads it as damage of that recording.

    Args:
        path: The recording, for people.
        fix: What to do.

    Raises:
        RunDirError: What is in it cannot be understood.
    """
    try:
        yield
    except _DAMAGE as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {str(error)[:200]}".rstrip(": ")
        raise RunDirError(
            f"{path} holds nothing that can be understood: {what} "
            f"({Path(last.filename).name}, line {last.lineno})",
            fix=fix,
        ) from error
