"""The times after which servers and proxies give a connection up: their names and their places.

The same two sources as for limits (``analysis/server/own_limits.py``): times that the recording has
of a process (``settings`` of the manifest), of which the one is named that lasts as long as clients
were let wait; and a small table of programs whose time is built in or has a well-known name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_EARLY_S, _LATE_S, _LATE_SHARE = 0.3, 0.8, 0.1
"""A timer is never early, but its moment is seen by another process; it is late on a full host."""
_LEAST_MS = 500
"""A number without a unit that is smaller counts no milliseconds."""
TIME_WORDS = (
    r"time_?out|idle|keep_?-?alive|interval|ttl|expir|max_?-?age|life_?time|heartbeat|ping|pong"
)
"""Of a setting that is a time."""
_TIME = re.compile(TIME_WORDS, re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class KnownTimeout:
    """A time after which a program gives a connection up.

    Attributes:
        program: Matches the beginning of its name.
        setting: Matches the line that sets it.
        default: What to write where nobody set it.
        default_s: How long that is, 0 when there is none.
        raise_it: What to write instead.
        library: Whose default that is, where the program may use it or another; '' where it is the
            program's own.
        path: Matches the path that clients ask for, where that tells the library.
    """

    program: re.Pattern[str]
    setting: re.Pattern[str]
    default: str
    default_s: float
    raise_it: str
    library: str = ""
    path: re.Pattern[str] | None = None


def _known(
    program: str,
    setting: str,
    raise_it: str,
    default: str = "",
    default_s: float = 0.0,
    library: str = "",
    path: str = "",
) -> KnownTimeout:
    return KnownTimeout(
        re.compile(program),
        re.compile(setting),
        default,
        default_s,
        raise_it,
        library,
        re.compile(path) if path else None,
    )


KNOWN: tuple[KnownTimeout, ...] = (
    # src/http/modules/ngx_http_proxy_module.c; the Debian package says no other
    _known("nginx", r"proxy_read_timeout", "proxy_read_timeout 1h;", "proxy_read_timeout", 60),
    _known("nginx", r"proxy_send_timeout", "proxy_send_timeout 1h;"),
    _known("nginx", r"worker_shutdown_timeout", "worker_shutdown_timeout 1h;"),
    # after the upgrade `timeout tunnel` takes the place of the other two, where there is one
    _known("haproxy", r"timeout\s+tunnel", "timeout tunnel 1h"),
    _known("haproxy", r"timeout\s+(?:client|server)\b", "timeout tunnel 1h"),
    # modules/proxy/mod_proxy_wstunnel.c, server/core.c
    _known("(apache2|httpd)", r"ProxyTimeout", "ProxyTimeout 3600"),
    _known("(apache2|httpd)", r"ProxyPass.*\btimeout=", "timeout=3600 in ProxyPass"),
    _known("(apache2|httpd)", r"(?<!Proxy)Timeout", "ProxyTimeout 3600", "Timeout", 60),
    # src/configfile.c
    _known("lighttpd", r"max-read-idle", "server.max-read-idle = 3600", "server.max-read-idle", 60),
    _known("lighttpd", r"max-write-idle", "server.max-write-idle = 3600"),
    _known("varnish", r"pipe_timeout", "varnishd -p pipe_timeout=3600", "pipe_timeout", 60),
    _known("stunnel", r"TIMEOUTidle", "TIMEOUTidle = 86400", "TIMEOUTidle", 43_200),
    _known("envoy", r"idle_timeout", "idle_timeout: 0s", "stream_idle_timeout", 300),
    # pkg/config/static/entrypoints.go, from 3.0 on and 2.11.2
    _known("traefik", r"readTimeout", "respondingTimeouts.readTimeout=0", "readTimeout", 60),
    # lib/thin/server.rb
    _known(r".*\bthin\b", r"timeout", "thin --timeout 3600", "timeout", 30),
    # What a client that speaks WebSocket alone meets in front of Engine.IO: its pings are messages
    _known(
        ".*",
        r"pingInterval|pingTimeout|ping_interval|ping_timeout",
        "pingInterval, pingTimeout",
        "pingInterval + pingTimeout",
        45,
        "Socket.IO from version 3 on",
        r"/(?:socket|engine)\.io\b",
    ),
    # AbstractConnector.java and WebSocketConstants.java
    _known(
        "java",
        r"idleTimeout|IdleTimeout",
        "setIdleTimeout(Duration.ofHours(1))",
        "idleTimeout",
        30,
        "Jetty",
    ),
    # src/cowboy_websocket.erl
    _known("beam", r"idle_timeout", "idle_timeout => infinity", "idle_timeout", 60, "Cowboy"),
    _known(
        "(?:php|php-fpm)",
        r"default_socket_timeout",
        "default_socket_timeout=3600",
        "default_socket_timeout",
        60,
    ),
)
"""A default is named only where nobody set it, that of a library where no other setting fits."""


@dataclass(frozen=True, slots=True)
class NamedTimeout:
    """A time by its name.

    Attributes:
        value_s: How long it is.
        text: The setting as it stands, or its name.
        where: File and line, ``command line`` or ``its default``.
        raise_it: What to write instead, '' where its name is not known.
        is_guess: Whose it is goes by its length alone.
    """

    value_s: float
    text: str
    where: str
    raise_it: str
    is_guess: bool = False

    def __str__(self) -> str:
        """For people."""
        if not self.raise_it:
            return f"as it seems the {self.value_s:g} s of {self.where}: {self.text}"
        if self.is_guess:
            return f"as it may be the {self.value_s:g} s of {self.text}, {self.where}"
        length = "" if self.where != "its default" else f" {self.value_s:g} s"
        return f"{self.text}{length} ({self.where})"

    def fix(self) -> str:
        """How to raise it."""
        if not self.raise_it:
            return f"more than {self.value_s:g} s in {self.where}  # {self.text}"
        now = f"{self.value_s:g} s, {self.where}: {self.text}"
        return f"{self.raise_it}  # {'if it is ' if self.is_guess else 'now '}{now}"


def name_timeout(
    command: str, facts: Sequence[Mapping[str, Any]], waited_s: float, path: str = ""
) -> NamedTimeout | None:
    """The time of a process that gave connections up after so long.

    Args:
        command: What the process is called.
        facts: Of the manifest, its own and those of its kin.
        waited_s: How long they were open, or waited, at the median.
        path: That clients asked for.
    """
    name = command.rpartition("/")[2]
    settings = [each for one in facts for each in one.get("settings") or []]
    times = [(each, value_s) for each in settings for value_s in _times_of(each)]
    fitting = [(each, value_s) for each, value_s in times if _lasts(value_s, waited_s)]
    for known in KNOWN:
        if not _may_be(known, name, path):
            continue
        for each, value_s in fitting:
            if known.setting.search(_text(each)):
                return NamedTimeout(value_s, _text(each), _where(each), known.raise_it)
        is_set = any(known.setting.search(_text(each)) for each in settings)
        is_own = not known.library and not is_set
        if is_own and known.default_s and _lasts(known.default_s, waited_s):
            return NamedTimeout(known.default_s, known.default, "its default", known.raise_it)
    if fitting:
        each, value_s = min(fitting, key=lambda one: abs(one[1] - waited_s))
        return NamedTimeout(value_s, _text(each), _where(each), "")
    return _pings(times, waited_s) or _of_a_library(name, path, settings, waited_s)


def _may_be(known: KnownTimeout, name: str, path: str) -> bool:
    return bool(known.program.match(name)) and (known.path is None or bool(known.path.search(path)))


def _pings(
    times: Sequence[tuple[Mapping[str, Any], float]], waited_s: float
) -> NamedTimeout | None:
    """The interval of pings and the patience with who does not answer one, together."""
    for every, every_s in times:
        for patience, patience_s in times:
            if not (_EVERY.search(_text(every)) and _PATIENCE.search(_text(patience))):
                continue
            if every is not patience and _lasts(every_s + patience_s, waited_s):
                text = f"{_text(every)} and {_text(patience)}"
                return NamedTimeout(every_s + patience_s, text, _where(every), "")
    return None


_EVERY = re.compile(r"(?:ping|heartbeat).?interval|heartbeat\b", re.IGNORECASE)
_PATIENCE = re.compile(r"(?:ping|pong|heartbeat).?(?:timeout|wait)", re.IGNORECASE)


def _of_a_library(
    name: str, path: str, settings: Sequence[Mapping[str, Any]], waited_s: float
) -> NamedTimeout | None:
    """The default of a library that the program may use: nothing that it sets lasts as long."""
    for known in KNOWN:
        if not known.library or not _may_be(known, name, path):
            continue
        is_set = any(known.setting.search(_text(each)) for each in settings)
        if not is_set and _lasts(known.default_s, waited_s):
            where = f"the default of {known.library}"
            return NamedTimeout(
                known.default_s, known.default, where, known.raise_it, is_guess=True
            )
    return None


def _times_of(setting: Mapping[str, Any]) -> list[float]:
    """How long a setting may last; a number without a unit may count seconds or milliseconds."""
    stated_s = setting.get("value_s")
    if stated_s is not None:
        return [float(stated_s)]
    if not (_TIME.search(str(setting["name"])) or _TIME.search(_text(setting))):
        return []
    value = float(setting["value"])
    return [value, value / 1e3] if value >= _LEAST_MS else [value]


def _lasts(value_s: float, waited_s: float) -> bool:
    late_s = max(_LATE_S, _LATE_SHARE * value_s)
    return value_s > 0 and value_s - _EARLY_S <= waited_s <= value_s + late_s


def _text(setting: Mapping[str, Any]) -> str:
    text = str(setting.get("text") or f"--{setting['name']} {setting['value']}")
    return text.rstrip(";, ")


def _where(setting: Mapping[str, Any]) -> str:
    file = str(setting["file"])
    return f"{file}:{setting['line']}" if file else "command line"
