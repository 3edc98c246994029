"""Names for addresses, made of what strangers wrote: the part that runs without rights.

Files come as descriptors, and are read here alone: ELF files, their debug files, Go's tables, perf
maps and the text of ``/proc/PID/maps``. What they take of memory has one limit, that of the process
(RLIMIT_AS): a request that goes over it is answered so, and what it made is dropped. It runs in
``probes.symbols.name_parser_main``; who asks is ``probes.symbols.name_parser_process``.
"""

from __future__ import annotations

import os
from contextlib import suppress

from probes.symbols.clean_name import clean_name
from probes.symbols.elf import BAD_FILE, ElfFile
from probes.symbols.elf_symbols import ElfSymbols
from probes.symbols.go import GO_SECTIONS
from probes.symbols.mappings import Mapping, Mappings, parse_maps
from probes.symbols.name_messages import Answer, Ask, Kind, Request, Status
from probes.symbols.perf_map import MapBudget, PerfMap

MOST_FILES = 256
"""Programs and libraries whose tables are kept; a server that is deployed anew has others."""
MOST_MAPS_BYTES = 16 << 20

_FileKey = tuple[bytes, tuple[bytes, bytes]]


class NameParser:
    """Keeps what it has read, and answers one request after the other."""

    def __init__(self) -> None:
        self._sets: dict[int, Mappings] = {}
        self._lines: dict[int, dict[int, Mapping]] = {}
        self._files: dict[_FileKey, ElfSymbols] = {}
        self._begun: tuple[_FileKey, ElfSymbols] | None = None  # waits for its debug file
        self._maps: dict[int, PerfMap] = {}
        self._budget = MapBudget()

    def answer(self, request: Request, fd: int) -> Answer:
        """Does what is asked for.

        Args:
            request: From the probe process, which is believed.
            fd: The descriptor that came with it, -1 for none; it is this object's.
        """
        try:
            return self._done(request, fd)
        except MemoryError:
            self._drop(request)
            return Answer(request.number, Status.NO_MEMORY)
        except BAD_FILE:
            return Answer(request.number, Status.BAD)

    def _done(self, request: Request, fd: int) -> Answer:
        match request.ask:
            case Ask.NAMES:
                return self._names(request)
            case Ask.FILE:
                return self._file(request, fd)
            case Ask.FINISH:
                return self._finish(request)
        with _Closing(fd):
            match request.ask:
                case Ask.MAPS:
                    self._add_set(request.key, _whole(fd, MOST_MAPS_BYTES))
                    return _said(request, True)
                case Ask.DEBUG:
                    begun = self._begun
                    return _said(request, begun is not None and begun[1].offer_debug(os.dup(fd)))
                case Ask.PERF_MAP:
                    perf_map = self._maps.setdefault(request.key, PerfMap(self._budget))
                    return _said(request, perf_map.read_on(fd))
                case Ask.IS_GO:
                    elf = ElfFile(os.dup(fd))
                    return _said(request, elf.section(*GO_SECTIONS) is not None)
        if request.ask == Ask.FORGET_PIDS:
            for pid in request.numbers:
                if pid in self._maps:
                    self._maps.pop(pid).forget()
        elif request.ask == Ask.FORGET_SETS:
            for key in request.numbers:
                self._sets.pop(key, None)
                self._lines.pop(key, None)
        return _said(request, True)

    def lines_of(self, key: int) -> list[int]:
        """Where the lines of a set of mappings begin in its text."""
        return list(self._lines.get(key, {}))

    def _drop(self, request: Request) -> None:
        """Gives back what a request took that needed more memory than there is."""
        self._begun = None
        if request.ask == Ask.PERF_MAP and request.key in self._maps:
            self._maps[request.key].forget()
        if request.ask in (Ask.FILE, Ask.DEBUG, Ask.FINISH):
            mapping = self._lines.get(request.key, {}).get(request.other)
            if mapping is not None:
                self._files[mapping.path, mapping.file] = ElfSymbols(b"")

    def _add_set(self, key: int, text: bytes) -> None:
        self._sets[key] = mappings = parse_maps(text)
        self._lines[key] = {row.line_at: row for row in mappings.rows}

    def _file(self, request: Request, fd: int) -> Answer:
        mapping = self._lines.get(request.key, {}).get(request.other)
        if mapping is None:
            with _Closing(fd):
                return Answer(request.number, Status.NO_SET)
        symbols = ElfSymbols(fd if fd >= 0 else b"")
        self._begun = (mapping.path, mapping.file), symbols
        if symbols.wants_debug:
            texts = symbols.build_id, symbols.debug_name
            return Answer(request.number, Status.WANTS_DEBUG, texts=texts)
        return self._finish(request)

    def _finish(self, request: Request) -> Answer:
        if self._begun is None:
            return Answer(request.number, Status.NO_SET)
        key, symbols = self._begun
        symbols.finish()
        self._begun = None
        if len(self._files) >= MOST_FILES:
            del self._files[next(iter(self._files))]
        self._files[key] = symbols
        return _said(request, True)

    def _names(self, request: Request) -> Answer:
        mappings = self._sets.get(request.key)
        if mappings is None:
            return Answer(request.number, Status.NO_SET)
        rows = [self._name(mappings, request.other, address) for address in request.numbers]
        kinds, lines, texts = zip(*rows, strict=True) if rows else ((), (), ())
        return Answer(request.number, Status.YES, kinds, lines, texts)

    def _name(self, mappings: Mappings, pid: int, address: int) -> tuple[int, int, str]:
        mapping = mappings.at(address)
        if mapping is not None and mapping.is_file:
            symbols = self._files.get((mapping.path, mapping.file))
            if symbols is None:
                return Kind.WANTS_FILE, mapping.line_at, ""
            name = symbols.name(address - mapping.start + mapping.file_offset)
            if name is not None:
                return Kind.FUNCTION, mapping.line_at, name
        perf_map = self._maps.get(pid)
        made = perf_map.find(address) if perf_map is not None else None
        if made is not None:
            return Kind.MADE, 0, made
        if mapping is None:
            return Kind.UNKNOWN, 0, ""
        module = mapping.path.rpartition(b"/")[2].decode(errors="replace")
        offset = address - mapping.start + mapping.file_offset
        return Kind.MODULE, mapping.line_at, f"{clean_name(module)}+{offset:#x}"


class _Closing:
    """Closes a descriptor that came, when the block ends."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            with suppress(OSError):
                os.close(self._fd)


def _said(request: Request, is_so: bool) -> Answer:
    return Answer(request.number, Status.YES if is_so else Status.NO)


def _whole(fd: int, most_bytes: int) -> bytes:
    pieces: list[bytes] = []
    at = 0
    while at < most_bytes and (piece := os.pread(fd, most_bytes - at, at)):
        pieces.append(piece)
        at += len(piece)
    return b"".join(pieces)
