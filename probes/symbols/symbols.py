"""Names for addresses of watched processes, from their files and maps.

A process's executable mappings are read when it is added, since it may be gone when its stacks are
read; forked workers have the same mappings and share one entry. Code that a runtime made is in no
file: its perf map names it.

What strangers wrote is not understood here. Texts, programs, libraries, debug files and perf maps
go to the parser of names (``probes.symbols.name_parser_process``), a process without rights, as
descriptors that are opened here (``probes.rights.stranger_file``); it answers for many addresses at
once. It never says what is to be opened: it points to a line of a text that is kept here.

Frames: one from a perf map ends in ``_[j]``; one without a symbol is ``module+0x<offset>``; one in
no mapping, or that the parser was to name when it ended, is ``[unknown]``.
Source: proc(5).
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from probes.rights import stranger_file
from probes.symbols.clean_name import clean_name
from probes.symbols.debug_places import open_candidates, open_elf
from probes.symbols.mappings import Mapping, parse_mapping
from probes.symbols.name_messages import MOST_ADDRESSES, Ask, Kind, Status
from probes.symbols.name_parser_process import NameParserProcess, ParserGoneError, name_parser
from probes.symbols.perf_map_file import MapRefusedError, open_map
from probes.symbols.stacks import callers_of, join_stack

MAP_SUFFIX = "_[j]"
UNKNOWN = "[unknown]"  # an address in no executable mapping
MOST_NAMES = 200_000
"""Names that are kept; a program that makes code without end has more."""
MOST_MAPS_BYTES = 16 << 20
_EXECUTABLE = re.compile(rb"^[0-9a-f]+-[0-9a-f]+ ..x.*$", re.MULTILINE)
_REFRESH_S = 1.0


@dataclass(slots=True)
class _Set:
    """The executable mappings that processes have in common.

    Attributes:
        number: By which the parser knows them.
        text: Their lines.
        is_ours: Its paths mean the same to us.
        turn: Of the parser to which they were told; -1 to none.
    """

    number: int
    text: bytes
    is_ours: bool
    turn: int = -1


@dataclass(slots=True)
class _Process:
    """What is known of one process.

    Attributes:
        pid: Its number.
        mappings: Of it.
        read_s: When they were read.
        made: Names of code that its runtime made, or that is in no file.
        version: Grows when the runtime has named more.
        is_wanting: It has frames outside of every file.
        map_read_s: When its perf map was read.
        map_turn: Of the parser that read it.
        refused: Why a perf map that is there does not count, '' otherwise.
    """

    pid: int
    mappings: _Set
    read_s: float
    made: dict[int, str] = field(default_factory=dict)
    version: int = 0
    is_wanting: bool = False
    map_read_s: float = 0.0
    map_turn: int = -1
    refused: str = ""


class UserSymbols:
    """Function names of the processes that were added.

    Args:
        parser: Who reads what they wrote; the one of this process when None.
    """

    def __init__(self, parser: NameParserProcess | None = None) -> None:
        self._parser = parser or name_parser()
        self._processes: dict[int, _Process] = {}
        self._by_text: dict[tuple[bytes, bool], _Set] = {}
        self._sets_count = 0
        self._known: dict[tuple[int, int], str] = {}  # by set and address
        self._bad: set[tuple[bytes, tuple[bytes, bytes]]] = set()  # files that ended the parser

    def add_process(self, pid: int) -> bool:
        """Reads the mappings of a process now; False when it is gone already."""
        try:
            with open(f"/proc/{pid}/maps", "rb") as stream:  # noqa: PTH123 - a bounded read
                text = stream.read(MOST_MAPS_BYTES)
        except OSError:
            return False
        executable = b"\n".join(_EXECUTABLE.findall(text))
        known = self._processes.get(pid)
        if known is not None:
            known.read_s = time.monotonic()
        if not executable:
            return False
        is_ours = False
        with contextlib.suppress(OSError):
            is_ours = Path(f"/proc/{pid}/root").samefile("/")
        mappings = self._by_text.get((executable, is_ours))
        if mappings is None:
            self._sets_count += 1
            mappings = _Set(self._sets_count, executable, is_ours)
            self._by_text[executable, is_ours] = mappings
        if known is None:
            self._processes[pid] = added = _Process(pid, mappings, time.monotonic())
            self._read_map(added)
        elif known.mappings is not mappings:
            before, known.mappings = known.mappings, mappings
            known.made.clear()
            self._drop_unused({before.number: before})
        return True

    def remove(self, pids: Collection[int]) -> None:
        """Forgets processes that ended; what their number means later is another process."""
        ended = [each for pid in pids if (each := self._processes.pop(pid, None)) is not None]
        with_map = [each.pid for each in ended if each.map_turn >= 0]
        self._tell(Ask.FORGET_PIDS, with_map)
        self._drop_unused({each.mappings.number: each.mappings for each in ended})

    def _drop_unused(self, left: dict[int, _Set]) -> None:
        """Drops mappings that no process has any more, with the names that were found by them."""
        for process in self._processes.values():
            left.pop(process.mappings.number, None)
        for mappings in left.values():
            del self._by_text[mappings.text, mappings.is_ours]
        if left:
            self._known = {key: name for key, name in self._known.items() if key[0] not in left}
        self._tell(Ask.FORGET_SETS, [each.number for each in left.values() if each.turn >= 0])

    def _tell(self, ask: Ask, numbers: list[int]) -> None:
        for at in range(0, len(numbers), MOST_ADDRESSES):
            with contextlib.suppress(ParserGoneError):
                self._parser.ask(ask, numbers=numbers[at : at + MOST_ADDRESSES])

    def version(self, pid: int) -> int:
        """Grows when the process's runtime named more code: names before may be out of date.

        Reads on in its perf map, at most once a second, where frames were met that need it.
        """
        process = self._processes.get(pid)
        if process is None:
            return 0
        if process.is_wanting:
            self._read_map(process)
        return process.version

    @property
    def troubles(self) -> list[str]:
        """Why frames have no names, for people: perf maps that do not count, an ended parser."""
        refused = [
            f"the perf map of pid {pid} is not read: {process.refused}"
            for pid, process in self._processes.items()
            if process.refused
        ]
        return [*refused, self._parser.trouble] if self._parser.trouble else refused

    def _read_map(self, process: _Process) -> bool:
        now_s = time.monotonic()
        if process.map_read_s and now_s - process.map_read_s < _REFRESH_S:
            return False
        process.map_read_s = now_s
        try:
            fd = open_map(process.pid)
        except MapRefusedError as error:
            process.refused = str(error.strerror)
            return False
        except (OSError, ValueError):
            return False  # there is none, or the process is gone: what was read stays
        process.refused = ""
        try:
            answer = self._parser.ask(Ask.PERF_MAP, process.pid, fd=fd)
        except ParserGoneError:
            return False
        process.map_turn = self._parser.turn
        if answer.status == Status.NO_MEMORY:
            process.refused = "it needs more memory than there is for names"
        if answer.status != Status.YES:
            return False
        process.version += 1
        process.made.clear()
        return True

    def name(self, pid: int, address: int) -> str:
        """The function of a process at an address.

        Returns:
            ``module+0x<offset>`` without a symbol, UNKNOWN outside of every mapping.
        """
        self.learn(pid, [address])
        process = self._processes.get(pid)
        return self._kept(process, address) or UNKNOWN if process is not None else UNKNOWN

    def _kept(self, process: _Process, address: int) -> str | None:
        known = self._known.get((process.mappings.number, address))
        return known if known is not None else process.made.get(address)

    def learn(self, pid: int, addresses: Iterable[int]) -> None:
        """Has the names of many addresses found at once, where they are not known yet."""
        process = self._processes.get(pid)
        if process is None:
            if not self.add_process(pid):
                return
            process = self._processes[pid]
        unnamed, unmapped = self._asked(process, addresses)
        if unnamed and self._read_map(process):
            _, unmapped = self._asked(process, unnamed)
        if unmapped and time.monotonic() - process.read_s >= _REFRESH_S:
            # Walking frame pointers in code that has none yields addresses that are in no mapping:
            # they are read again for a library loaded since, at most once a second.
            before = process.mappings
            if self.add_process(pid) and process.mappings is not before:
                self._asked(process, unmapped)

    def _asked(self, process: _Process, addresses: Iterable[int]) -> tuple[list[int], list[int]]:
        """Has addresses named; returns those without a function, and of these the unmapped ones."""
        wanted = sorted({each for each in addresses if self._kept(process, each) is None})
        if len(self._known) + len(process.made) > MOST_NAMES:
            self._known.clear()
            process.made.clear()
        unnamed: list[int] = []
        unmapped: list[int] = []
        for at in range(0, len(wanted), MOST_ADDRESSES):
            part = wanted[at : at + MOST_ADDRESSES]
            try:
                rows = self._ask_for_names(process, part)
            except ParserGoneError:
                break
            for address, kind, _, text in rows:
                if kind == Kind.FUNCTION:
                    self._known[process.mappings.number, address] = clean_name(text)
                    continue
                process.is_wanting = True
                if kind == Kind.MADE:
                    process.made[address] = clean_name(text) + MAP_SUFFIX
                    continue
                unnamed.append(address)
                if kind == Kind.MODULE:
                    process.made[address] = clean_name(text)
                else:
                    unmapped.append(address)
        return unnamed, unmapped

    def _ask_for_names(
        self, process: _Process, addresses: Sequence[int]
    ) -> list[tuple[int, int, int, str]]:
        """Address, kind, line and text of each; the parser is told all that it needs for that."""
        mappings = process.mappings
        opened: set[int] = set()
        while True:
            if mappings.turn != self._parser.turn:
                self._tell_mappings(mappings)
            if process.map_turn not in (-1, self._parser.turn):
                process.map_read_s = 0.0
                self._read_map(process)
            answer = self._parser.ask(Ask.NAMES, mappings.number, process.pid, addresses)
            if answer.status == Status.NO_SET and mappings.turn != self._parser.turn:
                continue
            rows = list(zip(addresses, answer.kinds, answer.lines, answer.texts, strict=False))
            files = {line for _, kind, line, _ in rows if kind == Kind.WANTS_FILE} - opened
            if not files:
                return rows
            opened |= files
            for line_at in sorted(files):
                self._tell_file(process.pid, mappings, line_at)

    def _tell_mappings(self, mappings: _Set) -> None:
        turn = self._parser.turn
        fd = os.memfd_create("maps", os.MFD_CLOEXEC)
        try:
            os.write(fd, mappings.text)
        except OSError:
            os.close(fd)
            raise
        answer = self._parser.ask(Ask.MAPS, mappings.number, fd=fd)
        if answer.status != Status.YES:
            raise ParserGoneError
        mappings.turn = turn

    def _tell_file(self, pid: int, mappings: _Set, line_at: int) -> None:
        """Gives the parser the file of a line, which it has pointed to."""
        line = mappings.text[line_at:].partition(b"\n")[0]
        is_line = line_at < len(mappings.text) and (
            line_at == 0 or mappings.text[line_at - 1 : line_at] == b"\n"
        )
        mapping = parse_mapping(line, line_at) if is_line else None
        if mapping is None or not mapping.is_file:
            raise ParserGoneError  # it points to what is no line
        key = mapping.path, mapping.file
        fd = -1 if key in self._bad else _open_mapped(pid, mapping, is_ours=mappings.is_ours)
        turn = self._parser.turn
        try:
            self._hand_over(pid, mappings, mapping, fd)
        except ParserGoneError:
            if self._parser.turn != turn:
                self._bad.add(key)
            raise

    def _hand_over(self, pid: int, mappings: _Set, mapping: Mapping, fd: int) -> None:
        place = mappings.number, mapping.line_at
        answer = self._parser.ask(Ask.FILE, *place, fd=fd)
        if answer.status != Status.WANTS_DEBUG:
            return
        build_id, name = answer.texts
        path = os.fsdecode(mapping.path)
        for candidate in open_candidates(build_id, name, path, (stranger_file.root_of(pid), "/")):
            if self._parser.ask(Ask.DEBUG, *place, fd=candidate).status == Status.YES:
                break
        self._parser.ask(Ask.FINISH, *place)

    def stack(self, pid: int, addresses: Sequence[int]) -> str:
        """A user stack, leaf first, as one string; UNKNOWN frames in a row are one.

        Walking frame pointers in code that has none can yield a hundred of them.
        """
        return self.stacks(pid, [addresses])[0]

    def stacks(self, pid: int, stacks: Sequence[Sequence[int]]) -> list[str]:
        """Many stacks of one process, whose addresses are looked up at once."""
        called = [callers_of(each) for each in stacks]
        self.learn(pid, [address for each in called for address in each])
        process = self._processes.get(pid)
        joined = []
        for each in called:
            frames: list[str] = []
            for address in each:
                name = self._kept(process, address) if process is not None else None
                if name is not None or frames[-1:] != [UNKNOWN]:
                    frames.append(name or UNKNOWN)
            joined.append(join_stack(frames))
        return joined


def _open_mapped(pid: int, mapping: Mapping, *, is_ours: bool) -> int:
    """A descriptor of a mapped file, -1 when it is no ELF file or gone."""
    path = os.fsdecode(mapping.path)
    # The kernel's own link leads to the very file, wherever its path leads by now.
    link = f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}"
    places = [("", link), (stranger_file.root_of(pid), path)]
    if is_ours:
        places.append(("/", path))  # of a process that ended meanwhile
    for root, place in places:
        fd = open_elf(root, place)
        if fd >= 0:
            return fd
    return -1


@cache
def user_symbols() -> UserSymbols:
    """Symbols of watched processes, one copy for all probes of this process."""
    return UserSymbols()
