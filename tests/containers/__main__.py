"""``python -m tests.containers``: tries connscope in containers, and writes the table.

Ends with 1 when something is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.version import tool_commit
from tests.containers.container import PROJECT, Container, started
from tests.containers.judge import problems
from tests.containers.page import keep, kept, page
from tests.containers.surroundings import SURROUNDINGS, Surroundings
from tests.kernels.checks import child, profile_attach

INSIDE = ("doctor", "run", "server-cmd", "attach", "fd-limit-process")
CHECKS = (*INSIDE, "watched")
CHECK_TIMEOUT_S = 180
SERVER_PORT = 9300
SERVER_DESCRIPTORS_COUNT = 64
CLIENTS_COUNT = 90
FOREIGN = PROJECT / "tests" / "harness" / "foreign"


def inside(where: Surroundings, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Does checks within: the facts of each."""
    command = ["{python}", "-P", "{project}/tests/kernels/checks.py", *names]
    with started(where, command, stderr=subprocess.PIPE) as container:
        process = container.process
        try:
            out, err = process.communicate(timeout=CHECK_TIMEOUT_S * len(names))
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            err += "\nit did not come to its end"
    told = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    yield from told
    for name in names[len(told) :]:
        yield {"check": name, "error": err[-2000:] or f"exit {process.returncode}"}


def watched(where: Surroundings) -> dict[str, Any]:
    """A server within that is out of descriptors, watched from the host by its container."""
    limit = f"--nofile={SERVER_DESCRIPTORS_COUNT}:{SERVER_DESCRIPTORS_COUNT}"
    server = ["{python}", "{project}/tests/harness/foreign/plain_server.py", str(SERVER_PORT)]
    with (
        tempfile.TemporaryDirectory(prefix="connscope-watched-") as folder,
        started(where, ["prlimit", limit, *server], stderr=subprocess.DEVNULL) as container,
        clients_of(container),
    ):
        words = ("--container", container.container_id[:12], "--duration", "8")
        return {"check": "watched", **profile_attach(*words, runs=Path(folder))}


@contextmanager
def clients_of(container: Container) -> Iterator[None]:
    """More clients than the server has descriptors for, in its network namespace."""
    end_s = time.monotonic() + CHECK_TIMEOUT_S
    while not container.listens(SERVER_PORT):
        assert container.process.poll() is None, "the server ended"
        assert time.monotonic() < end_s, "the server does not listen"
        time.sleep(0.1)
    clients = [sys.executable, FOREIGN / "plain_clients.py", str(SERVER_PORT)]
    command = ["nsenter", f"--net={container.network_path()}", *clients]
    with child(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdin.write(f"{CLIENTS_COUNT}\n")
        process.stdin.flush()
        process.stdout.readline()
        yield


def attempt(where: Surroundings, names: Sequence[str]) -> list[dict[str, Any]]:
    """Does the checks of these names: the facts of each."""
    within = [name for name in names if name in INSIDE]
    facts = list(inside(where, within)) if within else []
    if "watched" in names:
        try:
            facts.append(watched(where))
        except Exception as error:  # noqa: BLE001  # the other containers are of use all the same
            facts.append({"check": "watched", "error": f"{type(error).__name__}: {error}"})
    return facts


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    keys = [where.key for where in SURROUNDINGS]
    parser = argparse.ArgumentParser(prog="python -m tests.containers", description=__doc__)
    parser.add_argument("containers", nargs="*", help=f"of {', '.join(keys)}")
    parser.add_argument("--checks", default=",".join(CHECKS), help="names, joined by commas")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    parser.add_argument("--only-page", action="store_true", help="of what is kept; tries nothing")
    arguments = parser.parse_args(argv)
    names = arguments.checks.split(",")
    if unknown := {*names} - {*CHECKS} | {*arguments.containers} - {*keys}:
        parser.error(f"not known: {', '.join(sorted(unknown))}")
    found = []
    for where in SURROUNDINGS:
        if arguments.only_page or (arguments.containers and where.key not in arguments.containers):
            continue
        facts = attempt(where, names)
        keep(where, facts, tool_commit())
        wrong = [f"{each['check']}: {what}" for each in facts for what in problems(where, each)]
        print(f"{where.key}: {'; '.join(wrong) or 'as it should be'}", flush=True)
        found += wrong
    if arguments.markdown is not None:
        arguments.markdown.write_text(page(kept()))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
