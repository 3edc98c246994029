"""The limits that servers, proxies and runtimes set themselves: their names, and where they stand.

Two sources. Settings that the recording has of a process (``server.processes[].settings`` of the
manifest): the one whose value is the number of connections that were let in. And a small table of
programs whose limit is built in or has a well-known name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

SLACK_COUNT, SLACK_SHARE = 6, 0.02
"""Some close a few late, or let one in for each that leaves."""
LEAST_SHARE = 0.8
"""A limit counts more than those that were let in: listeners, and at the height of the load those
that are on their way and come to nothing."""
FD_SETSIZE = 1024
"""What select(2) can name (bits/typesizes.h); fixed when a program is compiled."""


@dataclass(frozen=True, slots=True)
class KnownLimit:
    """A limit that a program has of its own.

    Attributes:
        program: Matches the beginning of its name.
        setting: What it is called there.
        default: Its value where nobody set it, 0 when it has none.
        per_connection: What one WebSocket counts.
        raise_it: How to raise it; ``{value}`` is what is needed.
    """

    program: re.Pattern[str]
    setting: str
    default: int
    per_connection: int
    raise_it: str


def _known(
    program: str, setting: str, default: int, raise_it: str, per_connection: int = 1
) -> KnownLimit:
    return KnownLimit(re.compile(program), setting, default, per_connection, raise_it)


KNOWN: tuple[KnownLimit, ...] = (
    _known(
        r"nginx",
        "worker_connections",
        512,
        "worker_connections {value};  # in events {{}} of nginx.conf; a proxied connection takes 2",
        2,
    ),
    _known(
        r"haproxy",
        "maxconn",
        0,
        "maxconn {value}  # global, and each defaults, frontend or server that has one",
    ),
    _known(
        r"systemd-socket-p",
        "connections-max",
        256,
        "systemd-socket-proxyd --connections-max={value}",
    ),
    # lib/puma/cli.rb
    _known(r"puma", "-t", 5, "puma -t {value}:{value}  # or threads in puma.rb: each serves one"),
    _known(r"socat", "max-children", 0, "max-children={value}  # beside fork, in its address"),
    _known(r"envoy", "max_connections", 1024, "max_connections: {value}  # circuit_breakers"),
    _known(
        r"(apache2|httpd)",
        "MaxRequestWorkers",
        150,
        "MaxRequestWorkers {value}  # ServerLimit x ThreadsPerChild has to allow it",
    ),
    # src/server.c: where no number is set, a third of the descriptors
    _known(r"lighttpd", "server.max-connections", 0, "server.max-connections = {value}"),
    _known(r"lighttpd", "server.max-fds", 4096, "server.max-fds = {value}", 3),
    _known(r"mosquitto", "max_connections", 0, "max_connections {value}  # of each listener"),
    _known(r"websocketd", "maxforks", 0, "websocketd --maxforks={value}"),
    _known(r".*gunicorn", "worker-connections", 1000, "gunicorn --worker-connections {value}"),
    _known(r".*uvicorn", "limit-concurrency", 0, "uvicorn --limit-concurrency {value}"),
    _known(r".*hypercorn", "max_app_queue_size", 0, "max_app_queue_size = {value}"),
    _known(r"beam", "+Q", 65536, "erl +Q {value}  # ports; +P for processes"),
    _known(r"java", "maxConnections", 8192, "server.tomcat.max-connections={value}"),
    _known(r"redis", "maxclients", 10000, "CONFIG SET maxclients {value}"),
    _known(r"postgres", "max_connections", 100, "max_connections = {value}  # postgresql.conf"),
    _known(r"(mysqld|mariadbd)", "max_connections", 151, "SET GLOBAL max_connections = {value}"),
    _known(r"stunnel", "FD_SETSIZE", 0, "ulimit -n {value}  # before it starts"),
)


@dataclass(frozen=True, slots=True)
class NamedLimit:
    """A limit by its name.

    Attributes:
        setting: What it is called, '' when it has no known name.
        value: Its value.
        where: File and line, ``command line`` or ``its default``; '' when not known.
        raise_it: How to raise it, for people.
        is_of_all: It is one of all processes that share the listener, not of each.
    """

    setting: str
    value: int
    where: str
    raise_it: str
    is_of_all: bool = False


def name_limit(
    command: str,
    facts: Mapping[str, Any],
    connections: int,
    descriptors: int,
    wanted: int,
    shared_count: int = 0,
) -> NamedLimit | None:
    """The limit of a process that let in so many connections and no more.

    Args:
        command: What the process is called.
        facts: Of the manifest.
        connections: That it let in.
        descriptors: That it had open then, 0 when not known.
        wanted: Connections that were wanted of it.
        shared_count: Connections that all processes that share its listener let in, 0 for one
            alone. A program's own setting, of each or of all, goes before any number that fits.
    """
    if FD_SETSIZE - 3 <= descriptors <= FD_SETSIZE + 3:
        return NamedLimit(
            "FD_SETSIZE",
            FD_SETSIZE,
            "select(2)",
            "let its event loop use epoll or poll instead of select()  # PHP: the extension ev, "
            "event or uv; others: a build with another backend",
        )
    name = _ADDRESSES.sub("", command).rpartition("/")[2]
    counts = [connections, *([shared_count] if shared_count else [])]
    for known in KNOWN:
        if known.program.match(name):
            for position, count in enumerate(counts):
                found = _configured(facts, known, count, wanted)
                if found is not None:
                    return replace(found, is_of_all=position > 0)
    for position, count in enumerate(counts):
        found = _by_value(command, facts, count, wanted)
        if found is not None:
            return replace(found, is_of_all=position > 0)
    return None


def _configured(
    facts: Mapping[str, Any], known: KnownLimit, connections: int, wanted: int
) -> NamedLimit | None:
    value, where, text = known.default, "its default", ""
    stated = [
        each
        for each in facts.get("settings") or []
        if _plain(each["name"]) == _plain(known.setting) and each.get("value_s") is None
    ]
    for each in sorted(stated, key=lambda each: abs(int(each["value"]) - connections) <= 1):
        value, where = int(each["value"]), _where(each)
        text = str(each.get("text") or "") if each.get("file") else ""
    if not value or not _is_met(value, known.per_connection, connections):
        return None
    needed = _round(known.per_connection * wanted * 1.1)
    raise_it = known.raise_it.format(value=needed)
    if text:
        # which of several it is: haproxy has one for all, for a frontend and for a server
        raise_it += ("; " if "  # " in raise_it else "  # ") + f"now {value:,} in {where}: {text}"
    return NamedLimit(known.setting, value, where, raise_it)


def _by_value(
    command: str, facts: Mapping[str, Any], connections: int, wanted: int
) -> NamedLimit | None:
    # a comment only says what a line of code sets
    settings = sorted(
        (each for each in facts.get("settings") or [] if each.get("value_s") is None),
        key=lambda each: (
            bool(_COMMENT.match(str(each.get("text")))),
            abs(int(each["value"]) - connections),
            not (each["name"] or each.get("text")),
        ),
    )
    for each in settings:
        value = int(each["value"])
        if abs(value - connections) <= 1 and not _STATUS.search(str(each.get("text") or "")):
            where, needed = _where(each), _round(wanted * 1.1)
            if not each.get("file"):
                if not each["name"] and not each.get("text"):
                    raise_it = (
                        f"{needed} instead of {value} as an argument of {command or 'its command'}"
                    )
                    return NamedLimit("", value, "its command line", raise_it)
                name = f"-{each['name']}" if len(each["name"]) == 1 else f"--{each['name']}"
                said = f"{name} {needed}" if len(each["name"]) == 1 else f"{name}={needed}"
                return NamedLimit(name, value, where, f"{said}  # {where}")
            # What the number is called is not known for sure: the line says it.
            text = str(each.get("text") or each["name"])
            raise_it = f"{needed:,} instead of {value:,} in {where}  # {text}"
            return NamedLimit("", value, f"{where}: {text}", raise_it)
    return None


_ADDRESSES = re.compile(r"\s*\(\S*://\S*\)")
"""In a title that a program gives itself (puma)."""
_STATUS = re.compile(r"HTTP/1\.[01]|\bswitching\b|\bstatus|\bwriteHead\b", re.IGNORECASE)
"""A line that answers: what it has near the number of connections is an HTTP status (101, 503)."""
_COMMENT = re.compile(r"\s*(?:#|//|/\*|\*|;|--|\"\"\")")


def _is_met(value: int, per_connection: int, connections: int) -> bool:
    allowed = value / per_connection
    most = allowed + max(SLACK_COUNT, SLACK_SHARE * allowed)
    return LEAST_SHARE * allowed <= connections <= most


def _plain(name: str) -> str:
    return re.sub(r"[^a-z+]", "", name.lower())


def _where(setting: Mapping[str, Any]) -> str:
    file = str(setting["file"])
    return f"{file}:{setting['line']}" if file else "command line"


def _round(value: float) -> int:
    """Up to the next number with two digits that count; 110.00000000000001 is one."""
    value = round(value, 6)
    step = 10 ** max(0, len(str(int(value))) - 2)
    return int(-(-value // step) * step)
