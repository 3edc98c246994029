"""What the supervisor tells the server and the clients: one JSON file, read once at start.

No dataclasses here: the measured processes read this, and ``dataclasses`` alone would cost each of
them more memory than ten thousand idle connections.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class GroupShare(NamedTuple):
    """Connections that one client makes from one source address to one server port."""

    source_address: str
    destination_port: int
    connections: int


class FleetConfig(NamedTuple):
    """Everything that the fleet needs to know; see ``profile-run --help`` for the meaning.

    ``keepalive_s`` 0 means off; ``ramp_per_s`` 0 means as fast as possible; ``message_rate_per_s``
    is of the whole fleet; ``socket_port_range`` is empty where the namespace or host has the range.
    ``accept_weights`` is empty, or has one for each worker of a shared listener. ``bind`` early
    takes the local port at bind, late leaves it to connect. ``accept`` foreign: the server is not
    ours and ``workers`` slots are kept for its processes. ``host`` '' is address and port; ``tls``
    is '', verify or insecure, ``tls_ca`` PEM text or '' for the system's; ``message`` is a
    template, '' for ``payload_bytes`` bytes. ``cgroups`` are ``cgroup.procs`` files that every
    process of the fleet joins, ``client_cgroups`` one more by number of the client; the limits of
    ``memory_max_bytes`` and ``tcp_memory_max_bytes`` (0: none) are theirs. ``stall_s`` is how long
    a client goes on while every attempt fails; ``retry_count`` 0 makes no connection again.
    ``own_uid`` and ``own_gid`` are whom they become, 0 where they stay who they are.
    ``parent_pid`` is of the lean parent, which says it to its children; 0 in what it is told.
    """

    server_address: str
    destination_ports: list[int]
    accept: str
    at_fd_limit: str
    server_mode: str
    backlog_count: int
    workers: int
    worker_nofile_count: int
    clients: int
    client_nofile_count: int
    client_groups: list[list[GroupShare]]
    keepalive_s: float
    payload_bytes: int
    message_rate_per_s: float
    ramp_per_s: float
    socket_port_range: list[int]
    in_flight_max_count: int
    connect_timeout_s: float
    gc: bool
    inject: list[str]
    own_uid: int
    own_gid: int
    bind: str = "late"
    host: str = ""
    path: str = "/"
    headers: Sequence[Sequence[str]] = ()
    subprotocols: Sequence[str] = ()
    tls: str = ""
    tls_ca: str = ""
    tls_server_name: str = ""
    message: str = ""
    message_is_text: bool = False
    memory_max_bytes: int = 0
    tcp_memory_max_bytes: int = 0
    cgroups: Sequence[str] = ()
    client_cgroups: Mapping[str, str] = {}
    accept_weights: Sequence[int] = ()
    stall_s: float = 2.0
    retry_count: int = 0
    retry_first_s: float = 1.0
    retry_longest_s: float = 10.0
    parent_pid: int = 0

    @property
    def is_foreign(self) -> bool:
        """The server is not ours: its slots are filled in by the supervisor."""
        return self.accept == "foreign"

    @property
    def acceptors(self) -> int:
        """1 when one process accepts for all, else 0."""
        return 1 if self.accept == "handoff" else 0

    @property
    def slot_count(self) -> int:
        """Slots of live.bin: workers, then the acceptor, then clients."""
        return self.workers + self.acceptors + self.clients

    @property
    def timed_clients(self) -> int:
        """Clients that time the messages that they send: all or none."""
        return self.clients if self.message_rate_per_s > 0 else 0

    def cgroups_of(self, slot: int) -> list[str]:
        """The ``cgroup.procs`` files that the process of a slot joins, outer groups first."""
        own = self.client_cgroups.get(str(slot - self.first_client_slot()))
        return [*self.cgroups, own] if own else [*self.cgroups]

    def first_client_slot(self) -> int:
        """The slot of client 0."""
        return self.workers + self.acceptors

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(self._asdict())

    @classmethod
    def from_json(cls, text: str) -> FleetConfig:
        """Reads what ``to_json`` wrote."""
        values = json.loads(text)
        values["client_groups"] = [
            [GroupShare(*group) for group in groups] for groups in values["client_groups"]
        ]
        return cls(**values)
