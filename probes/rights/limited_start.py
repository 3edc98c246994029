"""Executes a command with few rights: ``python -P -m probes.rights.limited_start``.

setpriv(1) of util-linux does the same in a tenth of the time; this is for hosts without it, or with
the one of BusyBox, which lacks the options. The command dies with the process ``PARENT``, gains
nothing by what it executes, and has no capability but ``NAMES`` (with commas), as far as this
process has them.
"""

from __future__ import annotations

import os
import sys

from probes.rights import privileges
from probes.rights.parent_death import die_with_parent


def main(argv: list[str]) -> int:
    """Becomes the command; ends with 1 when the parent is gone, 127 when it cannot be executed."""
    parent_pid, names, command = int(argv[0]), argv[1], argv[2:]
    privileges.gain_nothing()
    kept = [name for name in names.split(",") if name]
    privileges.bound_by(kept)
    privileges.keep_only(kept)
    die_with_parent(parent_pid)
    try:
        os.execvp(command[0], command)  # noqa: S606 - no shell, as is meant
    except OSError as error:
        sys.stderr.write(f"cannot execute {command[0]}: {error.strerror}\n")
    return 127


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
