"""Names in a recording replaced by stand-ins, the same one for the same name everywhere.

A word stays when connscope's own program text has it: no other can matter to a verdict, so that the
analysis of what was redacted comes to the same. Every other word is a name: of a host, a user, a
program, a file, a control group, a function, a customer. Numbers and punctuation stay. Addresses,
but those of loopback, become others of the blocks for documentation (RFC 5737, RFC 3849).

Numbers are kept, also those in a log: a recording is made of them. Where one of them is a secret,
the bundle is not for publishing.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probes.contract import schema

if TYPE_CHECKING:
    import pyarrow as pa

_ROOMS = ("analysis", "harness", "probes", "reports")
_PUBLIC_WORDS = frozenset(
    {"bin", "cfg", "cjs", "conf", "cpp", "dev", "dist", "env", "etc", "exe", "go", "home", "ini"}
    | {"jar", "java", "js", "json", "lib", "lib64", "local", "log", "mjs", "modules", "opt", "php"}
    | {"node_modules", "packages", "pl", "proc", "py", "rb", "root", "rs", "run", "sbin", "sh"}
    | {"scope", "service", "share", "site", "slice", "so", "sock", "srv", "sys", "system", "tmp"}
    | {"bash", "toml", "ts", "tsx", "usr", "var", "wsgi", "yaml", "yml"}
)
"""Folders, endings and tools that every host has."""

_PUBLIC_COLUMNS = frozenset(
    {"event", "role", "side", "state", "old_state", "new_state", "errno_name", "syscall", "cache"}
    | {"counter", "reason", "location", "wait_channel", "kernel_stack", "fate", "waits_for"}
    | {"limit", "scope", "unit", "kind", "direction", "resource", "stage", "close_kind", "probe"}
    | {"fix"}
)
"""Columns of tables whose words are ours or the kernel's."""

_PUBLIC_FIELDS = frozenset(
    {"schema_version", "tool_version", "tool_commit", "plan", "stages", "clock", "status"}
    | {"probes_asked", "probes_answer", "kernel", "machine", "python", "cpu_model"}
    | {"cpus_allowed", "effective_capabilities", "sysctls", "limits", "attempts", "bundle"}
)
"""Fields of the manifest whose words are ours, the kernel's or the processor's."""

_TOKEN = re.compile(
    r"(?P<utc>\b\d{8}T\d{6}Z\b)"
    r"|(?P<v4>(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.]|\.\d))"
    r"|(?P<v6>(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?:\.\d{1,3}){0,3}(?![\w:]))"
    r"|(?P<hex>\b(?=[0-9a-f]*[a-f])[0-9a-f]{12,}\b)"
    r"|(?P<word>\w*[^\W\d_]\w*)"
)
_ESCAPE = re.compile(r"\\[A-Za-z]")
_WORD = re.compile(r"\w*[^\W\d_]\w*")
_V4_BLOCKS = ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "198.18.0.0/15")
_V6_BLOCK = 0x20010DB8 << 96


@cache
def known_words() -> frozenset[str]:
    """Every word of connscope's own program text, in lower case."""
    root = Path(__file__).resolve().parents[2]
    found: set[str] = set()
    for room in _ROOMS:
        for path in (root / room).rglob("*.py"):
            text = _ESCAPE.sub(" ", path.read_text(encoding="utf-8"))
            found.update(word.lower() for word in _WORD.findall(text))
    return _PUBLIC_WORDS | found


class Redaction:
    """One bundle's stand-ins.

    Args:
        words: Which stay, in lower case; those of ``known_words`` when None.
    """

    def __init__(self, words: frozenset[str] | None = None) -> None:
        self._words = known_words() if words is None else words
        self._stand_ins: dict[str, str] = {}
        self._counts: dict[str, int] = {}

    @property
    def replaced_count(self) -> int:
        """How many names and addresses have a stand-in."""
        return len(self._stand_ins)

    def text(self, text: str) -> str:
        """A text with every name in it replaced."""
        return _TOKEN.sub(self._replaced, text)

    def value(self, value: Any, field: str = "") -> Any:
        """A value of the manifest, and all that is in it."""
        if field in _PUBLIC_FIELDS:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {name: self.value(inner, str(name)) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(inner) for inner in value]
        return value

    def table(self, name: str, table: pa.Table) -> dict[str, Any]:
        """The columns of a table of the schema."""
        import pyarrow as pa

        columns: dict[str, Any] = {}
        for column in schema.TABLES[name].columns:
            values = table.column(column.name).combine_chunks()
            if column.type == schema.TEXT and column.name not in _PUBLIC_COLUMNS:
                encoded = values.dictionary_encode()
                shown = [self.text(each or "") for each in encoded.dictionary.to_pylist()]
                values = pa.array(shown, type=pa.string()).take(encoded.indices)
            columns[column.name] = values
        return columns

    def address(self, number: int) -> int:
        """An IPv4 address as a number."""
        return int(ipaddress.IPv4Address(self.text(str(ipaddress.IPv4Address(number)))))

    def _replaced(self, found: re.Match[str]) -> str:
        text = found[0]
        kind = found.lastgroup or ""
        if kind == "utc":
            return text
        if kind in ("v4", "v6"):
            return self._address(text)
        if kind == "word" and (len(text) == 1 or text.lower() in self._words):
            return text
        made = self._stand_ins.get(text)
        if made is None:
            number = self._next(kind)
            # A container's id is known by its length (analysis/server/control_group.py).
            made = f"{number:0{len(text)}x}" if kind == "hex" else f"name{number}"
            self._stand_ins[text] = made
        return made

    def _address(self, text: str) -> str:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return text  # a time, a version
        if address.is_loopback or address.is_unspecified:
            return text
        key = str(address)
        made = self._stand_ins.get(key)
        if made is None:
            if isinstance(address, ipaddress.IPv4Address):
                made = _documentation_v4(self._next("v4"))
            elif address.ipv4_mapped is not None:
                made = f"::ffff:{self._address(str(address.ipv4_mapped))}"
            else:
                made = str(ipaddress.IPv6Address(_V6_BLOCK + self._next("v6")))
            self._stand_ins[key] = made
        return made

    def _next(self, kind: str) -> int:
        self._counts[kind] = number = self._counts.get(kind, 0) + 1
        return number


def _documentation_v4(number: int) -> str:
    for block in _V4_BLOCKS:
        network = ipaddress.IPv4Network(block)
        if number < network.num_addresses - 1:
            return str(network[number])
        number -= network.num_addresses - 2
    return "192.0.2.0"  # more than 130,000 addresses: the rest are one
