"""What to say of a server that does not listen where the clients would go. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

from harness.foreign.endpoint import Endpoint
from probes.contract.errors import ToolkitError
from probes.netlink.socket_owners import Listener

_LISTED_MOST = 4


def addresses(found: Sequence[Listener]) -> str:
    """``127.0.0.1 port 9001, ::1 port 9001``."""
    return ", ".join(f"{each.address} port {each.port}" for each in found[:_LISTED_MOST])


def is_ipv6_alone(listener: Listener) -> bool:
    """No IPv4 connection can arrive at its address."""
    address = ip_address(listener.address)
    return address.version == 6 and address.ipv4_mapped is None and not address.is_unspecified


def never_listened(
    endpoint: Endpoint,
    timeout_s: float,
    *,
    tcp: Sequence[Listener],
    unix: Sequence[str],
    said: str,
    log_path: Path,
) -> ToolkitError:
    """The error of a server that is there and does not listen on its endpoint.

    Args:
        endpoint: Where it was waited for.
        timeout_s: How long.
        tcp: What its processes listen on instead.
        unix: Paths of Unix sockets that they listen on.
        said: Its last words, with what joins them to a sentence.
        log_path: All of them.
    """
    at_all = f"the server did not listen on {endpoint.address}:{endpoint.port} within"
    at_all += f" {timeout_s:g} s"
    here = [each for each in tcp if each.port == endpoint.port]
    if here and all(is_ipv6_alone(each) for each in here):
        return ToolkitError(
            f"{at_all}; it listens on {addresses(here)}, where no IPv4 client arrives",
            fix="let it listen on 127.0.0.1, 0.0.0.0 or :: instead of localhost or ::1",
        )
    if tcp:
        other = next((each for each in tcp if not is_ipv6_alone(each)), tcp[0])
        return ToolkitError(
            f"{at_all}; it listens on {addresses(tcp)}",
            fix=f"--target {_url(endpoint, other.port)}, or put {{port}} into --server-cmd",
        )
    if unix:
        return ToolkitError(
            f"{at_all}; it listens on the Unix socket {unix[0]}",
            fix="let it listen on TCP port {port} or $PORT; clients here speak TCP",
        )
    return ToolkitError(
        f"{at_all}{said}", fix=f"cat -v {log_path}; --server-timeout S gives it longer"
    )


def _url(endpoint: Endpoint, port: int) -> str:
    scheme = "wss" if endpoint.tls else "ws"
    return shlex.quote(f"{scheme}://{endpoint.server_name}:{port}{endpoint.path}")
