"""The options of ``profile-run`` about servers that are not ours, and about what clients say."""

from __future__ import annotations

import argparse
import os
import pwd
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.foreign import endpoint, server_command
from harness.foreign.command_user import command_user
from harness.foreign.secret_words import without_query_values
from harness.foreign.server import SLOTS_COUNT, ForeignRequest, check_running
from harness.options import values
from harness.planning.port_groups import FIRST_DESTINATION_PORT
from probes.contract.errors import UsageError
from probes.netlink.socket_owners import is_local_address
from probes.rights.privileges import would_gain

_TIMEOUT_S = 30.0
_OURS_ALONE = ("workers", "backlog", "destination_ports")
_OUR_DEFAULTS = {
    "accept": "reuseport",
    "accept_weights": (),
    "at_fd_limit": "pause",
    "keepalive": 0.0,
    "gc": "on",
}
_NEED_FOREIGN = ("server_pid", "server_user", "server_timeout", "ca", "insecure",
                 "server_may_gain_privileges")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """What the clients say, to a server of ours too; see ``fleet_config.FleetConfig``."""

    path: str
    headers: tuple[tuple[str, str], ...]
    subprotocols: tuple[str, ...]
    message: str
    message_is_text: bool


def _header(text: str) -> tuple[str, str]:
    try:
        return endpoint.parse_header(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _message(text: str) -> str:
    try:
        endpoint.check_template(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def add_options(top: argparse.ArgumentParser) -> None:
    """Adds both groups of options."""
    server = top.add_argument_group("an external server").add_argument
    server("--server-cmd", metavar="CMD",
           help="command to start; {port} and $PORT expand to its port (no shell)")  # fmt: skip
    server("--target", metavar="URL",
           help="URL of the server: ws://127.0.0.1:9001/path, or wss://")  # fmt: skip
    server(
        "--server-pid",
        type=values.pid,
        metavar="PID",
        help="pid of a server that is already running",
    )
    server("--server-user", metavar="NAME", help="user to start it as (default: the caller)")
    server("--server-may-gain-privileges", action="store_true",
           help="allow setuid programs and file capabilities")  # fmt: skip
    server("--server-timeout", type=values.seconds(is_zero_taken=False), metavar="S",
           help="how long to wait until it listens, default 30")  # fmt: skip
    server("--ca", type=Path, metavar="FILE", help="CA certificates for wss://, PEM")
    server("--insecure", action="store_true", help="accept any certificate")
    speech = top.add_argument_group("handshake and messages").add_argument
    speech("--path", metavar="PATH", help="request target, default /")
    speech(
        "--subprotocol", action="append", default=[], metavar="NAME", help="subprotocol to offer"
    )
    speech("--header", type=_header, action="append", default=[], metavar="'NAME: VALUE'",
           help="request header")  # fmt: skip
    speech("--cookie", action="append", default=[], metavar="NAME=VALUE", help="cookie to send")
    speech("--message", type=_message, default="", metavar="TEXT",
           help="text to send; expands {n}, {connection}, {client}")  # fmt: skip
    speech("--binary", action="store_true", help="send --message as a binary message")


def speech_of(options: argparse.Namespace) -> Speech:
    """What the clients say.

    Raises:
        UsageError: It cannot be said in HTTP.
    """
    path = options.path or "/"
    if options.path is not None and options.target is not None:
        raise UsageError("--path and --target both have a path", fix="put it into --target alone")
    if not path.startswith("/"):
        raise UsageError(f"--path {path!r} does not begin with /", fix=f"--path /{path}")
    endpoint.parse(f"ws://127.0.0.1:1{path}")
    headers = endpoint.request_headers(options.header, options.cookie, options.subprotocol)
    if options.binary and not options.message:
        raise UsageError("--binary needs --message TEXT", fix="--message 'hello {n}' --binary")
    return Speech(
        path=path,
        headers=tuple(headers),
        subprotocols=tuple(options.subprotocol),
        message=options.message,
        message_is_text=bool(options.message) and not options.binary,
    )


def foreign_request(
    options: argparse.Namespace, *, own_namespace: bool, taken: tuple[int, ...]
) -> ForeignRequest | None:
    """The server that is not ours; None where the run starts its own.

    Args:
        options: Parsed.
        own_namespace: The run could have a network namespace of its own: every port is free there.
        taken: Ports that a process listens on in the host's.

    Raises:
        UsageError: Options that do not go together, or a running server that is not there.
        HostError: A running server that may not be looked at.
    """
    if options.server_cmd is None and options.target is None:
        _refuse_lonely(options)
        return None
    _refuse_ours(options)
    if options.server_cmd is not None and options.server_pid is not None:
        raise UsageError(
            "--server-cmd starts a server, --server-pid names one that runs",
            fix=f"--server-cmd {shlex.quote(options.server_cmd)}",
        )
    port = _free_port(() if own_namespace else taken)
    target = options.target or f"ws://127.0.0.1:{{port}}{options.path or '/'}"
    where = endpoint.parse(target, default_port=port if options.server_cmd is not None else 0)
    if (options.ca or options.insecure) and not where.tls:
        raise UsageError(f"--ca and --insecure are for wss://, not {where.url}", fix="wss://...")
    timeout_s = options.server_timeout or _TIMEOUT_S
    if options.server_cmd is None:
        request = ForeignRequest(endpoint=where, pid=options.server_pid or 0, timeout_s=timeout_s)
        return check_running(request)
    _require_local(where, own_namespace=own_namespace)
    command = server_command.words(options.server_cmd, where.port)
    user = _user(options.server_user)
    if not options.server_may_gain_privileges:
        _refuse_what_gains(options.server_cmd, command[0], user)
    return ForeignRequest(
        endpoint=where,
        command=command,
        user=user,
        may_gain=options.server_may_gain_privileges,
        nofile=options.nofile or 0,
        timeout_s=timeout_s,
    )


def _refuse_lonely(options: argparse.Namespace) -> None:
    for name in _NEED_FOREIGN:
        if getattr(options, name):
            raise UsageError(
                f"--{name.replace('_', '-')} is for an external server",
                fix="--server-cmd CMD, or --target ws://127.0.0.1:9001/",
            )


def _refuse_ours(options: argparse.Namespace) -> None:
    given = [name for name in _OURS_ALONE if getattr(options, name) is not None]
    given += [name for name, value in _OUR_DEFAULTS.items() if getattr(options, name) != value]
    if options.server_cmd is None and options.nofile is not None:
        given.append("nofile")
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(
            f"{names} is for the built-in server, and this one is external",
            fix="set it in the server itself; with --server-cmd, --nofile works for any server",
        )


def _free_port(taken: tuple[int, ...]) -> int:
    return next(port for port in range(FIRST_DESTINATION_PORT, 65_536) if port not in taken)


def _require_local(where: endpoint.Endpoint, *, own_namespace: bool) -> None:
    """A server that is started here listens here: the clients must not go to another host."""
    if own_namespace and not where.is_loopback:
        raise UsageError(
            f"--target {where.url}: the network namespace of the run has loopback addresses alone",
            fix="--host-network, or an address like 127.0.0.1",
        )
    if not is_local_address("self", where.address):
        raise UsageError(
            f"--target {where.url}: {where.address} is no address of this host, where the server "
            "is started",
            fix="--target 'ws://127.0.0.1:{port}/'",
        )


def _user(name: str | None) -> str:
    if name is None:
        return command_user()
    try:
        pwd.getpwnam(name)
    except KeyError:
        raise UsageError(
            f"--server-user {name}: there is no such user", fix="getent passwd"
        ) from None
    return name


def _refuse_what_gains(said: str, word: str, user: str) -> None:
    """A program that lives on its setuid bit or its file capabilities would not be itself."""
    found = shutil.which(word)
    if found is None:
        return
    uid, gid = os.geteuid(), os.getegid()
    if user:
        entry = pwd.getpwnam(user)
        uid, gid = entry.pw_uid, entry.pw_gid
    if what := would_gain(Path(found), uid, gid):
        raise UsageError(
            f"--server-cmd: {found} {what}, and a server command gains no privileges",
            fix=f"--server-cmd {shlex.quote(said)} --server-may-gain-privileges",
        )


def fleet_fields(
    options: argparse.Namespace, speech: Speech, server: ForeignRequest | None
) -> dict[str, Any]:
    """The fields of FleetConfig that follow from these options."""
    fields: dict[str, Any] = {
        "path": speech.path,
        "headers": [list(pair) for pair in speech.headers],
        "subprotocols": list(speech.subprotocols),
        "message": speech.message,
        "message_is_text": speech.message_is_text,
    }
    if server is not None:
        where = server.endpoint
        fields |= {
            "workers": SLOTS_COUNT,
            "host": where.host,
            "path": where.path,
            "tls": ("insecure" if options.insecure else "verify") if where.tls else "",
            "tls_ca": endpoint.read_ca(options.ca),
            "tls_server_name": where.server_name,
        }
    return fields


def settings(speech: Speech, server: ForeignRequest | None) -> dict[str, Any]:
    """What the manifest's ``settings`` say of it; what is sent is left out."""
    said: dict[str, Any] = {
        "path": without_query_values(server.endpoint.path if server else speech.path),
        "headers": [name for name, _ in speech.headers],
        "subprotocol_count": len(speech.subprotocols),
        "message_bytes": len(speech.message.encode()),
        "message_is_text": speech.message_is_text,
    }
    if server is not None:
        said |= {"accept": "foreign", "at_fd_limit": "foreign"}
    return said
