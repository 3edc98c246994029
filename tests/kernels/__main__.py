"""``python -m tests.kernels``: boots kernels, keeps what works there and writes the table.

Ends with 1 when something is not as it should be, with 4 when a kernel could not be had.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness.version import tool_commit
from tests.kernels import guest
from tests.kernels.catalogue import KERNELS, Kernel
from tests.kernels.checks import CHECKS
from tests.kernels.fetch import CannotFetchError
from tests.kernels.page import Tried, keep, kept, page, parse

JOB = Path(__file__).with_name("checks.py")
CHECK_TIMEOUT_S = 600
"""For each check; on a crowded machine an attach took that long."""
BOOT_TIMEOUT_S = 120


def attempt(
    kernel: Kernel, names: list[str], *, timeout_s: float | None = None, echo: bool = False
) -> Tried:
    """Boots one kernel and does the checks in it.

    Args:
        kernel: Which.
        names: Of the checks.
        timeout_s: For all of it; None is ``CHECK_TIMEOUT_S`` for each, and the boot.
        echo: Also show what it prints.

    Raises:
        CannotFetchError: There is no such kernel here.
    """
    if timeout_s is None:
        timeout_s = BOOT_TIMEOUT_S + CHECK_TIMEOUT_S * len(names)
    try:
        output = guest.run(kernel, JOB, names, timeout_s=timeout_s, echo=echo)
    except guest.GuestFailedError as error:
        tried = parse(kernel, error.output)
        tried.failure = "it did not come to its end"
        print(error, file=sys.stderr)
        return tried
    return parse(kernel, output)


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    keys = [kernel.key for kernel in KERNELS]
    parser = argparse.ArgumentParser(prog="python -m tests.kernels", description=__doc__)
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=f"of {', '.join(keys)}")
    parser.add_argument("--checks", default=",".join(CHECKS), help="names, joined by commas")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    parser.add_argument("--only-page", action="store_true", help="of what is kept; boots nothing")
    arguments = parser.parse_args(argv)
    names = arguments.checks.split(",")
    if unknown := [key for key in arguments.kernels if key not in keys]:
        parser.error(f"no such kernel: {', '.join(unknown)}")
    tries = []
    for kernel in KERNELS:
        is_wanted = not arguments.kernels or kernel.key in arguments.kernels
        if is_wanted and not arguments.only_page:
            print(f"== Linux {kernel.key}", flush=True)
            try:
                tries.append(attempt(kernel, names, echo=True))
            except CannotFetchError as error:
                print(f"cannot boot Linux {kernel.key}: {error}", file=sys.stderr)
                return 4
            keep(tries, tool_commit())
    if arguments.markdown is not None:
        arguments.markdown.write_text(page(kept()))
    found = [problem for tried in tries for problem in tried.problems()]
    for problem in found:
        print(f"not as it should be: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
