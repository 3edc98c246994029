"""What helps against an answer that is no upgrade: the command, or what has to change. Pure."""

from __future__ import annotations

import re
import shlex

_LOCATION = re.compile(r"^HTTP 3\d\d: Location: ([^\s;]+)")
_CHOSEN = re.compile(r"subprotocol that was not offered: Sec-WebSocket-Protocol: (\S+)")
_HELP_BY_START = {
    "ECONNREFUSED": "let it listen on 127.0.0.1 or 0.0.0.0  # not on IPv6 alone (ipv6Only)",
    "TLS": "profile-run --ca FILE  # who signed the certificate; or --insecure; ws:// where there "
    "is no TLS",
    "the reply is HTTP/2": "let the server speak HTTP/1.1 too  # Node: allowHTTP1: true",
    "the reply is not HTTP": "profile-run --target URL  # another port: this one speaks another "
    "protocol",
    "the reply's Sec-WebSocket-Accept": "correct the server's Sec-WebSocket-Accept  # RFC 6455 "
    "section 4.2.2: base64 of SHA-1 of key and GUID",
    "the reply names an extension": "turn compression off in the server  # it was not offered",
}
_HELP = {
    400: "--header 'NAME: VALUE'  # or --subprotocol, --path: what the server misses",
    401: "--header 'Authorization: Bearer TOKEN'  # or --cookie NAME=VALUE",
    403: "--header 'Origin: https://your.site'  # or the credentials that the server wants",
    426: "--subprotocol NAME  # or the version of the protocol that the server speaks",
    429: "--ramp RATE  # below the server's rate limit, where it has one",
    503: "--ramp RATE  # or raise the server's own limit of connections",
}


_ENGINE_IO_PATH = "/socket.io/?EIO=4&transport=websocket"
_ENGINE_IO = re.compile(r"Transport unknown|Session ID unknown|Unsupported protocol version")
"""Answers of Engine.IO, on which Socket.IO rests (packages/engine.io/lib/server.ts)."""
_LATE_S = 0.5
"""Engine.IO ends an upgrade that is none of its own a second later, others at once."""
_NO_UPGRADE = re.compile(
    r"connection header|upgrade (?:header|only|token)|'upgrade' token|upgrade required|upgrade hdr"
    r'|"upgrade" only',
    re.IGNORECASE,
)
"""What servers say to a request whose header Upgrade or Connection somebody took away."""
_PASSED_ON = (
    (
        re.compile(r"nginx|openresty"),
        "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header "
        "Connection upgrade;  # in the location of nginx",
    ),
    (
        re.compile(r"apache2|httpd"),
        "ProxyPass ... upgrade=websocket  # of httpd 2.4.47; before, mod_proxy_wstunnel and ws://",
    ),
    (re.compile(r"envoy"), "upgrade_configs: [{upgrade_type: websocket}]  # of envoy's listener"),
)
_PROXIES = re.compile(r"nginx|openresty|apache2|httpd|haproxy|envoy|traefik|caddy|varnish|squid")
_GATEWAY = (502, 504)
"""It is a proxy that says so, of what is behind it (RFC 9110, section 15.6): no path helps."""


def refusal_help(
    status: int, said: str, url: str, *, late_s: float, front: str, is_proxy: bool
) -> list[str]:
    """What helps, the likeliest first.

    Args:
        status: HTTP status, 0 for none.
        said: What came, see ``harness.supervision.fleet.Refusal``.
        url: Where the clients went.
        late_s: How long after their connect the answers came, or the ends (median).
        front: The command of the process that clients come to.
        is_proxy: Others are known to work behind it.
    """
    moved = _LOCATION.search(said)
    if moved:
        return [f"profile-run {_to(moved[1])}  # where the server says it has moved"]
    offered = _CHOSEN.search(said)
    if offered:
        return [f"profile-run --subprotocol {shlex.quote(offered[1])}  # the server insists on it"]
    for start, command in _HELP_BY_START.items():
        if said.startswith(start):
            return [command]
    engine_io = f"profile-run --path {shlex.quote(_ENGINE_IO_PATH)}"
    if _ENGINE_IO.search(said):
        return [f"{engine_io}  # it is Engine.IO, on which Socket.IO rests"]
    if said == "the reply is TLS" or not said:
        secure = shlex.quote(url.replace("ws://", "wss://", 1)) if url else "wss://..."
        aside = "" if said else "  # if it speaks TLS; else --header, --subprotocol"
        tls = f"profile-run --target {secure} --insecure{aside}"
        path = f"{engine_io}  # if it is Socket.IO; else --path PATH: what it upgrades"
        if said:
            return [tls]
        return [path, tls] if late_s >= _LATE_S else [tls, path]
    if _NO_UPGRADE.search(said) and (is_proxy or _PROXIES.search(front)):
        return [_passed_on(front)]
    if status in _GATEWAY:
        return [
            "ss -ltnpx  # what is behind the proxy: does it listen, and where it is looked for?"
        ]
    if status == _NOT_FOUND:
        return [
            "profile-run --path PATH  # the one that the server upgrades",
            engine_io + "  # Socket.IO",
        ]
    return ["profile-run " + _HELP.get(status, "--path PATH  # or --header, --subprotocol")]


_NOT_FOUND = 404


def _passed_on(front: str) -> str:
    """How a proxy is told to pass on the headers that it took away (RFC 9110, section 7.6.1)."""
    for program, words in _PASSED_ON:
        if program.search(front):
            return words
    return f"let {front or 'the proxy'} pass the headers Upgrade and Connection on, by HTTP/1.1"


def _to(location: str) -> str:
    if location.startswith("/"):
        return f"--path {shlex.quote(location)}"
    return f"--target {shlex.quote(re.sub('^http', 'ws', location))}"
