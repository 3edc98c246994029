"""``python -m tests.distributions``: ``make run`` from nothing in roots of distributions.

Ends with 1 when something is not as it should be, with 4 when a root could not be had.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from harness.version import tool_commit
from tests.distributions.page import keep, kept, page, problems
from tests.distributions.roots import DISTRIBUTIONS, Distribution, base, run
from tests.kernels.fetch import CannotFetchError

TIMEOUT_S = 1_200
_MARK = "versions:"
# What the README says, on a system that has nothing but apt.
_SCRIPT = """
exec 3>&1 >&2
apt-get update -qq && apt-get install -y -qq --no-install-recommends make ca-certificates || exit 9
cd /src && make run CONNECTIONS=1000 ARGS='--hold 2 --probes full --json --no-report' >&3
code=$?
[ ! -x .venv/bin/python ] || .venv/bin/python -V | sed 's/^Python/versions: python/'
dpkg-query -W -f 'versions: ${source:Package} ${Version}\\n' python3-bpfcc 'libllvm*'
exit $code
"""


def attempt(distribution: Distribution) -> dict[str, Any]:
    """What came of it.

    Raises:
        CannotFetchError: There is no such root here.
    """
    root = base(distribution)
    began_s = time.monotonic()
    try:
        done = run(root, _SCRIPT, [], timeout_s=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return {"error": f"it did not come to its end within {TIMEOUT_S} s"}
    facts: dict[str, Any] = {"exit": done.returncode, "seconds": round(time.monotonic() - began_s)}
    lines = done.stderr.splitlines()
    facts["versions"] = dict(
        line.split()[1:3] for line in lines if line.startswith(_MARK) and len(line.split()) == 3
    )
    try:
        found = json.loads(done.stdout)
    except ValueError:
        return {**facts, "error": "\n".join(lines[-12:])}
    probes = [
        {name: probe.get(name, "") for name in ("name", "state", "reason")}
        for probe in found["probes"]
        if probe["state"] != "not_asked"
    ]
    verdict = found["verdict"]
    return {**facts, "cause": verdict["cause"], "sentence": verdict["sentence"], "probes": probes}


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    keys = [each.key for each in DISTRIBUTIONS]
    parser = argparse.ArgumentParser(prog="python -m tests.distributions", description=__doc__)
    parser.add_argument("distributions", nargs="*", help=f"of {', '.join(keys)}")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    parser.add_argument("--only-page", action="store_true", help="of what is kept; tries nothing")
    arguments = parser.parse_args(argv)
    if unknown := {*arguments.distributions} - {*keys}:
        parser.error(f"no such distribution: {', '.join(sorted(unknown))}")
    is_wrong = False
    for each in DISTRIBUTIONS:
        if arguments.only_page or each.key not in (arguments.distributions or keys):
            continue
        try:
            facts = attempt(each)
        except CannotFetchError as error:
            print(f"cannot try {each.key}: {error}", file=sys.stderr)
            return 4
        keep(each.key, facts, kernel=platform.release(), commit=tool_commit())
        found = problems(facts)
        is_wrong = is_wrong or bool(found)
        print(f"{each.key}: {'; '.join(found) or 'as it should be'}", flush=True)
    if arguments.markdown is not None:
        arguments.markdown.write_text(page(kept()))
    return 1 if is_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
