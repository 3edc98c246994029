"""What the server says of errors: the lines of its log that speak of one, with the time of each.

Measures:
    Lines of the server's own log files that speak of an error, a warning or a limit, the first of
    each kind with the moment when it was read, and how often it came again (table
    ``server_words``). Two lines are of one kind when they differ in numbers only.
Hook:
    ``logs/server.log`` of a server that the run started; of one that runs already the files that
    its first descriptors write to (stdout, stderr, an error log), opened anew through /proc/PID/fd
    and read from their present end on, four times a second. What a unit says goes to the journal,
    which is asked once, at the end, for the time of the run (journalctl(1)). Nothing is written,
    and nothing is taken from anybody who reads a pipe.
Cost:
    10 us a look and file; 0.5 us a line, at most 64 KiB a look and file. One journalctl at the end.
Misses:
    What is written faster than 256 KiB a second: the beginning of each look is read. Kinds of lines
    beyond 200. Lines in another language than English. A pipe or a terminal (a container's log):
    whoever reads that has the lines. A log file that the server opened later than it was found.
Checked against:
    A program that writes known lines, to a file and through a journal (tests/probes/
    test_server_words.py).
"""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from probes.contract.clock import NS_PER_S
from probes.contract.probe import Probe, ProcessRef, Target
from probes.contract.schema import SERVER_ROLES

LINE_CHARACTERS = 300
MOST_KINDS_COUNT = 200
MOST_FILES_COUNT = 32
LOOK_BYTES = 64 << 10
_OUTSIDE_PERIOD_S = 1.0
"""Beside a server in service, whose budget all probes share."""
_DESCRIPTORS_COUNT = 24
"""A server opens its logs before it serves."""
_JOURNAL = Path("/run/systemd/journal")
_JOURNAL_LINES, _JOURNAL_BYTES, _JOURNAL_TIMEOUT_S = 500, 1 << 20, 1.0
_MOST_JOURNAL_PIDS_COUNT = 64

_SPEAKS = re.compile(
    r"error|exception|fatal|panic|warn|emerg|alert|\bcrit|fail|cannot|can't|can not|could ?n.t"
    r"|unable|refus|denied|abort|limit|exceed|too many|out of (?:memory|file|range)|not enough"
    r"|exhaust|overflow|timed? ?out|killed|terminat|respawn|restart|reload|shutting down|no live"
    r"|unavailable|is down\b|heap|[\[(]alert|E(?:MFILE|NFILE|NOMEM|AGAIN|NOBUFS|ADDR\w+|CONN\w+)",
    re.IGNORECASE,
)
_NUMBERS = re.compile(r"0x[0-9a-f]+|\d+", re.IGNORECASE)
_KIND_CHARACTERS = 120


def kind_of(line: str) -> str:
    """What lines have in common that differ in numbers only."""
    return _NUMBERS.sub("#", line)[:_KIND_CHARACTERS]


def inert(line: str) -> str:
    """A stranger's line in printable characters, short."""
    text = "".join(c if c.isprintable() else " " for c in line[: 2 * LINE_CHARACTERS])
    return " ".join(text.split())[:LINE_CHARACTERS]


def telling(text: str) -> list[str]:
    """The lines of a text that speak of an error, inert.

    Args:
        text: What came since the last look; a line that is longer is cut first.
    """
    shown = (inert(line) for line in text.splitlines())
    return [line for line in shown if line and _SPEAKS.search(line)]


@dataclass(slots=True)
class _Log:
    """One file that is read on from where it was.

    Attributes:
        name: What it is called, for people.
        pid: Who writes it, 0 for the whole server.
        fd: Open for reading.
        at: Where the next look begins.
        rest: A line that had not ended.
    """

    name: str
    pid: int
    fd: int
    at: int
    rest: bytes = b""


@dataclass(slots=True)
class _Kind:
    """One kind of line: the first of it, and how many came since the last row."""

    pid: int
    source: str
    line: str
    count: int
    first_ns: int


class ServerWordsProbe(Probe):
    """Appends rows to ``server_words``."""

    name = "server_words"
    period_s = 0.25

    def __init__(self) -> None:
        super().__init__()
        self._logs: list[_Log] = []
        self._known: set[tuple[int, int]] = set()
        self._kinds: dict[tuple[str, str], _Kind] = {}
        self._passed_bytes = 0
        self._journal_pids: list[int] = []
        self._since_ns = 0

    def check(self) -> None:
        """Always possible."""

    def start(self, target: Target) -> None:
        """Opens the logs that are there."""
        self.writers = [target.run.writer("server_words", self.name)]
        if target.attached:
            self.period_s = _OUTSIDE_PERIOD_S
        else:
            self._open(target.run.path / "logs" / "server.log", "server.log", 0, from_end=False)
        for ref in target.processes.values():
            self.add_process(ref)

    def add_process(self, ref: ProcessRef) -> None:
        """Reads also what a server process writes from now on."""
        if ref.role not in SERVER_ROLES:
            return
        for number in range(_DESCRIPTORS_COUNT):
            path = f"/proc/{ref.pid}/fd/{number}"
            try:
                target = os.readlink(path)  # noqa: PTH115 - a link of procfs
            except OSError:
                continue
            if target.startswith("socket:") and number == 2 and _JOURNAL.exists():
                self._journal_pids.append(ref.pid)
            elif target.startswith("/") and _is_log(ref.pid, number, target):
                name = os.path.basename(target.removesuffix(" (deleted)"))  # noqa: PTH119 - a word
                self._open(Path(path), inert(name), ref.pid, from_end=True)

    def _open(self, path: Path, name: str, pid: int, *, from_end: bool) -> None:
        if len(self._logs) >= MOST_FILES_COUNT:
            return
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:
            return
        status = os.fstat(fd)
        key = status.st_dev, status.st_ino
        if not stat.S_ISREG(status.st_mode) or key in self._known:
            os.close(fd)
            return
        self._known.add(key)
        self._logs.append(_Log(name, pid, fd, status.st_size if from_end else 0))

    def sample(self, at_ns: int) -> None:
        """Reads what came since the last look."""
        self._since_ns = self._since_ns or at_ns
        for log in self._logs:
            self._read(log, at_ns)
        self._write(at_ns)

    def _read(self, log: _Log, at_ns: int) -> None:
        size = os.fstat(log.fd).st_size
        if size < log.at:  # somebody cut it
            log.at, log.rest = 0, b""
        if size == log.at:
            return
        data = os.pread(log.fd, LOOK_BYTES, log.at)
        passed = max(0, size - log.at - len(data))
        log.at += len(data) + passed
        self._passed_bytes += passed
        lines, newline, rest = (log.rest + data).rpartition(b"\n")
        log.rest = b"" if passed else rest[-4 * LINE_CHARACTERS :]
        if newline:
            self._take(lines, log.name, log.pid, at_ns)

    def _take(self, data: bytes, source: str, pid: int, at_ns: int) -> None:
        for line in telling(data.decode("utf-8", "replace")):
            key = source, kind_of(line)
            kind = self._kinds.get(key)
            if kind is not None:
                kind.count += 1
            elif len(self._kinds) < MOST_KINDS_COUNT:
                self._kinds[key] = _Kind(pid, source, line, 1, at_ns)
            else:
                self.lost_count += 1

    def _write(self, at_ns: int) -> None:
        for kind in self._kinds.values():
            if kind.count:
                row = (at_ns, kind.pid, kind.source, kind.line, kind.count, kind.first_ns)
                self.writers[0].append(*row)
                kind.count = 0

    @property
    def note(self) -> str:
        """What was not read, for the row of its health."""
        if not self._passed_bytes:
            return ""
        return f"passed over {self._passed_bytes:,} bytes: the log grew faster than it is read"

    def stop(self, at_ns: int) -> None:
        """Takes what is left, asks the journal, closes the files."""
        if self.writers:
            self.sample(at_ns)
            for log in self._logs:
                if log.rest:
                    self._take(log.rest, log.name, log.pid, at_ns)
            self._ask_journal()
            self._write(at_ns)
        while self._logs:
            os.close(self._logs.pop().fd)

    def _ask_journal(self) -> None:
        if not self._journal_pids:
            return
        pids = dict.fromkeys(self._journal_pids[:_MOST_JOURNAL_PIDS_COUNT])
        command = ["journalctl", "--no-pager", "--quiet", "--boot", "--output=json"]
        command += ["--output-fields=MESSAGE,_PID", f"--lines={_JOURNAL_LINES}"]
        command += [f"_PID={pid}" for pid in pids]
        for at_ns, pid, line in journal_lines(command):
            if at_ns >= self._since_ns:
                self._take(line.encode(), "journal", pid, at_ns)


def journal_lines(command: list[str]) -> list[tuple[int, int, str]]:
    """Moments (CLOCK_MONOTONIC, ns), pids and lines that a journalctl with JSON output gives.

    Args:
        command: Its words; it may take a second.
    """
    try:
        done = subprocess.run(command, capture_output=True, timeout=_JOURNAL_TIMEOUT_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for text in done.stdout[:_JOURNAL_BYTES].splitlines():
        try:
            entry = json.loads(text)
            message = entry["MESSAGE"]
            if isinstance(message, list):  # bytes that are no text
                message = bytes(message).decode("utf-8", "replace")
            at_ns = int(entry["__MONOTONIC_TIMESTAMP"]) * (NS_PER_S // 1_000_000)
            found.append((at_ns, int(entry.get("_PID", 0)), str(message)))
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _is_log(pid: int, number: int, target: str) -> bool:
    """Stdout and stderr as files, and files that are only appended to, access logs aside."""
    if number in (1, 2):
        return True
    name = os.path.basename(target)  # noqa: PTH119 - a word
    if number == 0 or "access" in name or not (".log" in name or "err" in name):
        return False
    try:
        text = Path(f"/proc/{pid}/fdinfo/{number}").read_text(encoding="ascii")
        flags = int(next(line for line in text.splitlines() if line.startswith("flags:"))[6:], 8)
    except (OSError, ValueError, StopIteration):
        return False
    return bool(flags & os.O_APPEND) and bool(flags & (os.O_WRONLY | os.O_RDWR))
