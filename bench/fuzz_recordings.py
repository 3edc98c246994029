"""Damages whole run directories in every way that comes to mind, and reads them as a person would.

``python -m bench.fuzz_recordings --count 10000 --seed 1``: each damage is made of a recorded run,
and ``profile-report`` looks at it in a process of its own with limits of memory and time. It must
end with a verdict (0), or with two lines and exit code 5 (2: no run at all), never with a
traceback, a signal, or more memory than a run of that size can need. What does not is printed with
its number: ``--only N`` makes that damage again, and ``--keep DIR`` leaves it there. A series can
be made in parts: ``--from N`` goes on with that number, and one that is ended says with which.

Root has another process read a page (``harness.results.conclusion``), which has to import
everything first; so one of eight is read by root, the others by a user of our own, in the process
that was forked.

Damages: bytes flipped, files cut, grown, exchanged, removed, or replaced by folders, pipes and
links; values of tables and of the manifest replaced by others that the format allows but no run
has.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.recordings import archive
from probes.contract import live as live_memory
from probes.contract import schema
from probes.contract.live import Counter as Word
from probes.contract.live import Live
from probes.contract.rundir import LIVE, MANIFEST, RunDir
from probes.rights.own_user import OwnUser, become, own_user

RECORDINGS = Path(__file__).parents[1] / "tests" / "recordings"
NAMES = (
    "every-cause/fd-limit-server",
    "every-cause/accept-spin",
    "every-cause/server-resets",
    "older/schema-2-at-a-limit",
    "older/schema-1",
)
MORE_MEMORY_BYTES = 1 << 30
"""Over what the process has when it begins: a report of 120,000 connections takes 300 MB."""
LONGEST_S = 60
PAGE_EACH = 8
"""Of so many damages one is shown as a page, which takes three times as long."""

_NUMBERS = (0, 1, -1, 2**31, -(2**31), 2**53 + 1, 2**63 - 1, -(2**63))
_FLOATS = (0.0, -0.0, -1.0, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf"))
_TEXTS = ("", "\x00", "a" * 10_000, "\x1b[2J", "<script>", "=1+1", "\u2028", "\U0001f600", "../..",
          "server", "client", "running", "1e999", "-1")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one damage.

    Attributes:
        number: Of the damage.
        did: What was done, for people.
        code: Exit code; negative for a signal.
        peak_bytes: Most memory that was resident.
        said: What it wrote to stderr.
    """

    number: int
    did: str
    code: int
    peak_bytes: int
    said: str

    @property
    def complaint(self) -> str:
        """What is wrong with it, '' for nothing."""
        if self.code < 0:
            return f"killed by {signal.Signals(-self.code).name}"
        if "Traceback" in self.said or self.code not in (0, 2, 5):
            return f"a traceback, or exit code {self.code}"
        if "MemoryError" in self.said:
            return "more memory than it may have"
        lines = [line for line in self.said.splitlines() if not line.startswith("note: ")]
        if self.code and [line.partition(":")[0] for line in lines] != ["error", "fix"]:
            return f"not two lines: {lines}"
        return ""


class Damage:
    """One damage of a run directory, the same for the same numbers.

    Args:
        run: The directory; changed.
        chance: Decides.
    """

    def __init__(self, run: Path, chance: random.Random) -> None:
        self._run = run
        self._chance = chance

    def make(self) -> str:
        """Does it once or a few times; says what was done."""
        ways: list[Callable[[], str]] = [
            self._flip, self._cut, self._grow, self._exchange, self._remove, self._replace,
            self._cell, self._cell, self._cell, self._manifest, self._manifest, self._live,
        ]  # fmt: skip
        return "; ".join(self._chance.choice(ways)() for _ in range(self._chance.choice((1, 1, 3))))

    def _file(self) -> Path:
        files = sorted(each for each in self._run.rglob("*") if each.is_file())
        return self._chance.choice(files) if files else self._run / MANIFEST

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._run))

    def _flip(self) -> str:
        path = self._file()
        content = bytearray(path.read_bytes() if path.exists() else b"")
        for _ in range(self._chance.choice((1, 2, 16))):
            if content:
                content[self._chance.randrange(len(content))] = self._chance.randrange(256)
        path.write_bytes(content)
        return f"bytes of {self._name(path)}"

    def _cut(self) -> str:
        path = self._file()
        if path.exists():
            os.truncate(path, self._chance.randint(0, path.stat().st_size))
        return f"cut {self._name(path)}"

    def _grow(self) -> str:
        path = self._file()
        if path.exists():
            with path.open("ab") as stream:
                stream.write(self._chance.randbytes(self._chance.choice((1, 8, 4_096))))
        return f"grown {self._name(path)}"

    def _exchange(self) -> str:
        one, other = self._file(), self._file()
        if one != other and one.exists() and other.exists():
            first, second = one.read_bytes(), other.read_bytes()
            one.write_bytes(second)
            other.write_bytes(first)
        return f"exchanged {self._name(one)} and {self._name(other)}"

    def _remove(self) -> str:
        path = self._file()
        path.unlink(missing_ok=True)
        return f"removed {self._name(path)}"

    def _replace(self) -> str:
        path = self._file()
        path.unlink(missing_ok=True)
        kind = self._chance.choice(("folder", "pipe", "link", "loop", "zero"))
        if kind == "folder":
            path.mkdir(parents=True)
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            to = {"link": "/etc/passwd", "loop": path.name, "zero": "/dev/zero"}[kind]
            path.symlink_to(to)
        return f"{kind} for {self._name(path)}"

    def _cell(self) -> str:
        """A value that the column can have, and no run has."""
        run = RunDir(self._run)
        names = [each.name for each in sorted((self._run / "raw").glob("*")) if each.is_dir()]
        names = [name for name in names if name in schema.TABLES]
        if not names:
            return "nothing"
        table = self._chance.choice(names)
        try:
            columns = run.read_table(table).table.to_pydict()
        except Exception:  # noqa: BLE001 - damaged before
            return f"nothing of {table}"
        count = len(next(iter(columns.values())))
        told = []
        for _ in range(self._chance.choice((1, 1, 5))):
            column = self._chance.choice(schema.TABLES[table].columns)
            value = self._chance.choice(
                {schema.I64: _NUMBERS, schema.F64: _FLOATS, schema.TEXT: _TEXTS}.get(
                    column.type, (True, False)
                )
            )
            is_whole = self._chance.random() < 0.3
            rows = range(count) if is_whole else [self._chance.randrange(count or 1)]
            for row in rows:
                if row < count:
                    columns[column.name][row] = value
            told.append(f"{column.name}={value!r:.20}")
        shutil.rmtree(run.table_dir(table))
        writer = run.writer(table, "fuzz")
        writer.write_columns(columns)
        writer.close()
        return f"{table}: {', '.join(told)}"

    def _manifest(self) -> str:
        """Another value, of another type even, at some place of the manifest."""
        path = self._run / MANIFEST
        try:
            document = json.loads(path.read_text()) if path.is_file() else {}
        except (ValueError, OSError):
            return "nothing of a manifest that is none"
        at: Any = document
        told = ""
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                return f"nothing at {told}"
            key = self._chance.choice(keys)
            told += f".{key}"
            below = at[key]
            if not (isinstance(below, (dict, list)) and below) or self._chance.random() < 0.15:
                break
            at = below
        value: Any = self._chance.choice(
            (*_NUMBERS, *_TEXTS, 1.5, 1e308, None, True, [], {}, [[]], {"a": {}}, [None], ["x", 3])
        )
        if self._chance.random() < 0.2:
            del at[key]
        else:
            at[key] = value
        path.write_text(json.dumps(document))
        return f"manifest{told} = {value!r:.20}"

    def _live(self) -> str:
        """A run that did not end, read from shared memory in which anything may stand."""
        for table in ("connections", "processes", "live_samples"):
            if self._chance.random() < 0.7:
                shutil.rmtree(self._run / "raw" / table, ignore_errors=True)
        path = self._run / LIVE
        if path.is_symlink() or path.exists():
            return "nothing of live.bin"
        fd = live_memory.create(path, 3, 50)
        live = Live(fd)
        for index in range(3):
            slot = live.slot(index)
            slot[Word.PID], slot[Word.ROLE] = 100 + index, 1 + index % 3
            for _ in range(self._chance.choice((0, 3, 30))):
                slot[self._chance.randrange(len(slot))] = self._chance.choice(_NUMBERS)
        content = live.column("stage")
        for record in range(50):
            content[record] = self._chance.randrange(8)
        if self._chance.random() < 0.5:
            live.header[self._chance.randrange(12)] = self._chance.choice(_NUMBERS)
        content.release()
        live.close()
        os.close(fd)
        if self._chance.random() < 0.2:
            os.truncate(path, 1 << self._chance.choice((20, 33, 40)))  # sparse
        return "live.bin"


def read_it(
    run: Path, *, with_page: bool, said: Path, reader: OwnUser | None = None
) -> tuple[int, int]:
    """Has profile-report read a run in a process of its own.

    Args:
        run: The directory.
        with_page: Make the page, else the verdict alone.
        said: Gets what it writes to stderr.
        reader: Who reads it; this user when None.

    Returns:
        Its exit code, negative for a signal; the most memory that it had, in bytes.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            fd = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(fd, 2)
            sys.stderr = os.fdopen(2, "w", closefd=False)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.stdout = os.fdopen(1, "w", closefd=False)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MORE_MEMORY_BYTES,) * 2)
            resource.setrlimit(resource.RLIMIT_CPU, (LONGEST_S, LONGEST_S + 1))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.setpgid(0, 0)  # the signal that ends the series is not for the one under way
            for asked in (signal.SIGTERM, signal.SIGINT):
                signal.signal(asked, signal.SIG_DFL)
            signal.alarm(3 * LONGEST_S)  # for what waits, as at a pipe
            if reader is not None:
                become(reader)
            from harness.commands.report import main

            code = main([str(run)] if with_page else [str(run), "--format", "json"])
        except BaseException:  # noqa: BLE001 - whatever it is, it is what is looked for
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status, usage = os.wait4(pid, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024


def outcome_of(
    number: int,
    seed: int,
    sources: list[Path],
    folder: Path,
    reader: OwnUser | None = None,
    *,
    page_each: int = PAGE_EACH,
) -> Outcome:
    """Makes one damage and looks what comes of it.

    Args:
        number: Of the damage.
        seed: Of all of them.
        sources: Runs to damage; they stay.
        folder: Where the damaged one is made, anew.
        reader: Who reads it where no page is made of it; this user when None.
        page_each: Of one of so many a page is made.
    """
    chance = random.Random(f"{seed} {number}")
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(chance.choice(sources), run)
    did = Damage(run, chance).make()
    said = folder / "said"
    with_page = number % page_each == 0
    if reader is not None and not with_page:
        _give(folder, run, reader)
    else:
        reader = None
    code, peak_bytes = read_it(run, with_page=with_page, said=said, reader=reader)
    return Outcome(number, did, code, peak_bytes, said.read_text(errors="replace"))


def _give(folder: Path, run: Path, reader: OwnUser) -> None:
    folder.chmod(0o711)
    for path in (run, *run.rglob("*")):
        os.chown(path, reader.uid, reader.gid, follow_symlinks=False)


def unpacked(folder: Path) -> list[Path]:
    """The runs to damage."""
    runs = [archive.unpack(RECORDINGS / f"{name}{archive.SUFFIX}", folder) for name in NAMES]
    for module in ("harness.results.export", "harness.results.pipeline", "reports.page.page"):
        __import__(module)  # once, for all the processes that are forked
    return runs


def main() -> int:
    """Makes them all; 1 when one of them is not as it must be."""
    parser = argparse.ArgumentParser(prog="bench.fuzz_recordings", description=__doc__)
    parser.add_argument("--count", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--from", type=int, default=0, dest="first", help="go on with this one")
    parser.add_argument("--only", type=int, help="this damage alone")
    each = "make a page of one of N, which is most of what it costs (default: %(default)s)"
    parser.add_argument("--page-each", type=int, default=PAGE_EACH, metavar="N", help=each)
    parser.add_argument("--keep", type=Path, help="where the damaged run of --only stays")
    options = parser.parse_args()
    is_over: list[int] = []
    for asked in (signal.SIGTERM, signal.SIGINT):
        signal.signal(asked, lambda number, _: is_over.append(number))  # after the one under way
    codes: Counter[int] = Counter()
    wrong: list[Outcome] = []
    done, reader = options.first, own_user()
    with tempfile.TemporaryDirectory(prefix="connscope-fuzz-") as name:
        sources = unpacked(Path(name) / "sources")
        only = options.only
        for number in range(options.first, options.count) if only is None else [only]:
            if is_over:
                break
            outcome = outcome_of(
                number,
                options.seed,
                sources,
                Path(name),
                reader,
                page_each=options.page_each,
            )
            codes[outcome.code] += 1
            done = number + 1
            if outcome.complaint:
                wrong.append(outcome)
                last = outcome.said.strip().splitlines()[-1:] or [""]
                print(f"{number}: {outcome.did}: {outcome.complaint}: {last[0][:200]}", flush=True)
            if options.only is not None:
                print(outcome)
        if options.keep is not None:
            shutil.copytree(Path(name) / "run", options.keep, symlinks=True)
    if options.only is None and done < options.count:
        print(f"ended before its time: go on with --from {done}")
    ends = ", ".join(f"exit code {code}: {count:,}" for code, count in sorted(codes.items()))
    print(f"{sum(codes.values()):,} damaged runs, {len(wrong):,} not as they must be; {ends}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
