"""What every command of the family does around its own work: errors in two lines, exit codes."""

from __future__ import annotations

import errno
import gc
import sys
from collections.abc import Callable, Sequence

from harness.commands import standard_streams
from probes.contract.errors import ExitCode, ToolkitError

_OBJECTS_PER_COLLECTION = 20_000
"""A page is made of many objects that live until the end: Python's 700 cost 6 % of its time."""

MainFunction = Callable[[Sequence[str]], int]

_FIXES = {
    errno.ENOSPC: "df -h; make room, or choose another place with --output",
    errno.EDQUOT: "quota -s; make room, or choose another place with --output",
    errno.EROFS: "choose a place that is not mounted read-only with --output",
    errno.EACCES: "choose a place that this user may write, or run as root",
    errno.EPERM: "run as root (sudo)",
    errno.EMFILE: "ulimit -n shows this shell's limit; raise it and try again",
    errno.ENFILE: "sysctl fs.file-max; close programs or raise it",
    errno.ENOMEM: "free -m; make memory free and try again",
}


def run_command(main_fn: MainFunction, argv: Sequence[str] | None = None) -> int:
    """Runs a command and turns what goes wrong into two lines on stderr and an exit code.

    Args:
        main_fn: The command; takes its arguments, returns its exit code.
        argv: Arguments without the program's name; sys.argv[1:] when None.

    Returns:
        The command's exit code, that of its ToolkitError, 130 after Ctrl-C, 5 after an error of
        the operating system, 0 when the reader of a pipe went away.
    """
    standard_streams.forgive()
    gc.set_threshold(_OBJECTS_PER_COLLECTION)
    try:
        code = int(main_fn(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except ToolkitError as error:
        print_error(error.message, error.fix)
        return int(error.exit_code)
    except KeyboardInterrupt:
        print_error("interrupted", "run the same command again; what was recorded is kept")
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # `profile-report --json | head`: nobody reads on, which is no failure.
        standard_streams.discard(sys.stdout)
        return 0
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print_error(
            f"{error.strerror or error}{where}",
            _FIXES.get(error.errno or 0, "see the path and try again"),
        )
        return int(ExitCode.FAILED)


def print_error(message: str, fix: str) -> None:
    """Writes the two lines that a person needs: what happened, what makes it go away."""
    for label, text in (("error", message), ("fix", fix)):
        one_line = " ".join(text.split())
        shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in one_line)
        sys.stderr.write(f"{label}: {shown}\n")
    sys.stderr.flush()
