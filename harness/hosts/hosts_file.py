"""``hosts.toml``: which hosts there are, what each does, how its agent is started.

::

    [controller]
    address = "192.0.2.1"     # where agents reach this command; left out: by the route

    [[host]]
    name = "server1"
    address = "192.0.2.9"
    role = "server"           # server, client or both; one host serves
    ssh = "bench@192.0.2.9"   # or start = ["ip", "netns", "exec", "NAME"]; neither: on this machine
    python = "/opt/connscope/.venv/bin/python"

    [[host]]
    name = "client1"
    address = "192.0.2.11"
    addresses = ["192.0.2.11", "192.0.2.21"]   # to connect from
    role = "client"
    ssh = "bench@192.0.2.11"
    connections = 40000       # its share; left out, the planner decides
    clients = 8               # client processes
    nofile = 20000            # RLIMIT_NOFILE to respect
"""

from __future__ import annotations

import ipaddress
import re
import shlex
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.hosts.shard import LOADS, NAMES_OF_ROLES, SERVES
from probes.contract.errors import UsageError
from probes.contract.several_hosts import HOST_NAME

MOST_HOSTS = 1_000
_SSH_DESTINATION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:\[\]-]{0,200}")
_SSH = ("ssh", "-T", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes")
_AGENT = ("-P", "-m", "harness.hosts.agent_main")
_NUMBERS = ("connections", "clients", "workers", "nofile")
_KNOWN = {"name", "address", "addresses", "role", "ssh", "start", "python", *_NUMBERS}
_FIX = "docs/how-to/several-hosts.md has an example"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostEntry:
    """One host as the user described it.

    Attributes:
        name: Its key in the run.
        address: IPv4, where the others reach it.
        addresses: What its clients connect from; ``address`` alone when empty.
        role: server, client or both.
        ssh: Destination of ssh(1), '' for none.
        start: Words before the agent's command, empty for none.
        python: Interpreter of the environment that connscope is installed in, there.
        connections: Its share, None for the planner's.
        clients: Client processes, likewise.
        workers: Server processes, likewise.
        nofile: RLIMIT_NOFILE that is not passed, None for the host's own.
    """

    name: str
    address: str
    addresses: tuple[str, ...] = ()
    role: str = "client"
    ssh: str = ""
    start: tuple[str, ...] = ()
    python: str = sys.executable
    connections: int | None = None
    clients: int | None = None
    workers: int | None = None
    nofile: int | None = None

    @property
    def source_addresses(self) -> tuple[str, ...]:
        """What its clients connect from."""
        return self.addresses or (self.address,)

    @property
    def serves(self) -> bool:
        """The server runs there."""
        return self.role in SERVES

    @property
    def loads(self) -> bool:
        """Clients run there."""
        return self.role in LOADS

    def agent_command(self) -> list[str]:
        """The command that starts its agent from here."""
        if self.ssh:
            words = [*shlex.split(self.python), *_AGENT]
            return [*_SSH, "--", self.ssh, shlex.join(words)]
        return [*self.start, *shlex.split(self.python), *_AGENT]


@dataclass(frozen=True, slots=True)
class HostsFile:
    """All of it; ``controller`` is '' where the route decides."""

    hosts: tuple[HostEntry, ...]
    controller: str = ""

    @property
    def server(self) -> HostEntry:
        """The host that serves: whose clock all others are moved onto."""
        return next(entry for entry in self.hosts if entry.serves)


def read_hosts(path: Path) -> HostsFile:
    """Reads and checks the file.

    Raises:
        UsageError: It cannot be read, or makes no sense; the message names the host.
    """
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--hosts {path}: {error.strerror}", fix=f"ls -l {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--hosts {path}: {error}", fix=_FIX) from None
    return parse_hosts(told, str(path))


def parse_hosts(told: dict[str, Any], where: str) -> HostsFile:
    """Checks what was read.

    Args:
        told: The document.
        where: Its name, for messages.

    Raises:
        UsageError: It makes no sense.
    """
    entries = told.get("host")
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"--hosts {where} names no [[host]]", fix=_FIX)
    if len(entries) > MOST_HOSTS:
        raise UsageError(f"--hosts {where} names {len(entries):,} hosts", fix=f"{MOST_HOSTS:,}")
    hosts = tuple(_entry(each, where) for each in entries)
    names = [each.name for each in hosts]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"--hosts {where} has two hosts {name!r}", fix="one name each")
    serving = [each.name for each in hosts if each.serves]
    if len(serving) != 1:
        raise UsageError(
            f"--hosts {where} has {len(serving)} hosts that serve{_listed(serving)}; it is one",
            fix='role = "server" for one host, role = "client" for the others',
        )
    if not any(each.loads for each in hosts):
        raise UsageError(f"--hosts {where} has no client host", fix='role = "client"')
    controller = told.get("controller") or {}
    address = controller.get("address", "") if isinstance(controller, dict) else ""
    return HostsFile(hosts, _address(address, "[controller]", where) if address else "")


def _listed(names: list[str]) -> str:
    return f" ({', '.join(names)})" if names else ""


def _entry(told: Any, where: str) -> HostEntry:
    if not isinstance(told, dict) or not isinstance(told.get("name"), str):
        raise UsageError(f"--hosts {where}: a [[host]] without a name", fix=_FIX)
    name = told["name"]
    if HOST_NAME.fullmatch(name) is None:
        raise UsageError(
            f"--hosts {where}: {name!r} is no name of a host",
            fix="letters, digits and '-', at most 31",
        )
    unknown = sorted(set(told) - _KNOWN)
    if unknown:
        raise UsageError(
            f"--hosts {where}: host {name} has {unknown[0]!r}, which is not known",
            fix=f"one of: {', '.join(sorted(_KNOWN))}",
        )
    role = told.get("role", "client")
    if role not in NAMES_OF_ROLES:
        raise UsageError(
            f"--hosts {where}: host {name} has the role {role!r}",
            fix=f"one of: {', '.join(NAMES_OF_ROLES)}",
        )
    ssh = told.get("ssh", "")
    if ssh and (not isinstance(ssh, str) or _SSH_DESTINATION.fullmatch(ssh) is None):
        raise UsageError(
            f"--hosts {where}: host {name}: {ssh!r} is no destination of ssh",
            fix='ssh = "user@192.0.2.9"',
        )
    start = told.get("start", [])
    if not isinstance(start, list) or not all(isinstance(word, str) for word in start):
        raise UsageError(
            f"--hosts {where}: host {name}: start is no list of words",
            fix='start = ["ip", "netns", "exec", "NAME"]',
        )
    numbers = {key: _number(told[key], key, name, where) for key in _NUMBERS if key in told}
    return HostEntry(
        name=name,
        address=_address(told.get("address", ""), f"host {name}", where),
        addresses=tuple(
            _address(each, f"host {name}", where) for each in told.get("addresses") or []
        ),
        role=role,
        ssh=ssh,
        start=tuple(start),
        python=str(told.get("python", sys.executable)),
        **numbers,
    )


def _number(value: Any, key: str, name: str, where: str) -> int:
    if type(value) is not int or value < 1:
        raise UsageError(
            f"--hosts {where}: host {name}: {key} = {value!r} is no number from 1 up",
            fix=f"{key} = 1000, or leave it out",
        )
    return value


def _address(value: Any, of: str, where: str) -> str:
    try:
        return str(ipaddress.IPv4Address(value))
    except ValueError:
        raise UsageError(
            f"--hosts {where}: {of}: {value!r} is no IPv4 address", fix='address = "192.0.2.9"'
        ) from None
