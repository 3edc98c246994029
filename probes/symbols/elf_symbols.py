"""Function names of one program or library, from the fullest source that there is."""

from __future__ import annotations

from probes.symbols.clean_name import clean_name
from probes.symbols.debug_files import embedded_debug_file, is_debug_file_of
from probes.symbols.demangle import demangle
from probes.symbols.elf import BAD_FILE, ElfFile, FunctionTable, symbol_table
from probes.symbols.go import go_table


class ElfSymbols:
    """Names by offset in the file; what is no ELF file has none.

    They are those of its ``.symtab``, else of its debug file, else of its ``.gnu_debugdata``, else
    of Go's ``.gopclntab``, and last of ``.dynsym``, which lacks what is not exported. Who can open
    its debug file offers it (``offer_debug``); ``finish`` must come last.

    Args:
        source: As of ``probes.symbols.elf.ElfFile``.

    Attributes:
        wants_debug: It has no table of its own.
        build_id: In hex; '' without one.
        debug_name: What its ``.gnu_debuglink`` says; '' without one.
    """

    def __init__(self, source: int | bytes) -> None:
        self._elf: ElfFile | None = None
        self._tables: list[FunctionTable] = []
        self.wants_debug, self.build_id, self.debug_name = False, "", ""
        try:
            self._elf = elf = ElfFile(source)
            self._add(symbol_table(elf))
            if not self._is_named:
                self.wants_debug = True
                self.build_id, self.debug_name = elf.build_id(), elf.debug_link()[0]
        except BAD_FILE:
            return

    @property
    def _is_named(self) -> bool:
        return any(len(table) for table in self._tables)

    def _add(self, table: FunctionTable | None) -> None:
        if table is not None:
            self._tables.append(table)

    def offer_debug(self, source: int | bytes) -> bool:
        """Takes the names of its debug file; False when this is another file."""
        if self._elf is None or self._is_named:
            return False
        try:
            candidate = ElfFile(source)
            if not is_debug_file_of(self._elf, candidate):
                return False
            self._add(symbol_table(candidate))
        except BAD_FILE:
            return False
        return True

    def finish(self) -> None:
        """Takes what the file itself has besides."""
        if self._elf is None:
            return
        for read in (_embedded_table, go_table):
            if not self._is_named:
                try:
                    self._add(read(self._elf))
                except BAD_FILE:
                    continue
        try:
            self._add(symbol_table(self._elf, is_dynamic=True))
        except BAD_FILE:
            return

    def name(self, file_offset: int) -> str | None:
        """The function at an offset in the file, None when no symbol covers it."""
        address = self._elf.address_of(file_offset) if self._elf is not None else None
        if address is None:
            return None
        for table in self._tables:
            try:
                found = table.find(address)
            except BAD_FILE:  # the file was cut since
                continue
            if found:
                return clean_name(demangle(found))
        return None


def _embedded_table(elf: ElfFile) -> FunctionTable | None:
    embedded = embedded_debug_file(elf)
    return symbol_table(embedded) if embedded is not None else None
