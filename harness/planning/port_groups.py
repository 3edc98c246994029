"""Lays connections over (source address, destination port) groups. Pure.

Within a group only the local port differs, so a group is what a port range bounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice

from harness.planning.limits import BEST_GROUP_COUNT
from probes.contract.errors import HostError

FIRST_DESTINATION_PORT = 9_001
LOWEST_PORT = 1_024
"""ip_unprivileged_port_start of a new namespace; a port range may not begin below it
(net/ipv4/sysctl_net_ipv4.c, ipv4_local_port_range)."""


@dataclass(frozen=True, slots=True)
class Group:
    """Connections of one client that share everything but their local port.

    Attributes:
        source_address: Local address of the client.
        destination_port: Port of the server.
        count: Connections.
    """

    source_address: str
    destination_port: int
    count: int


def best_group(ports: int) -> int:
    """Connections of one group that connect finds quickly: within the first parity it scans."""
    return max(1, min(BEST_GROUP_COUNT, ports // 2))


def groups_needed(shares: tuple[int, ...], limit: int) -> int:
    """Groups that keep every client within the limit on groups of its own.

    Args:
        shares: Connections of each client, largest first.
        limit: Of one group, at least 1.
    """
    return sum(1 for share in shares if share) * math.ceil(shares[0] / limit)


def largest_group(shares: tuple[int, ...], groups: int, limit: int) -> int:
    """Connections of the fullest group, summed over clients, as ``client_layout`` lays them."""
    own = _own_groups(shares, groups, limit)
    return math.ceil(sum(shares) / groups) if own == 0 else math.ceil(shares[0] / own)


def client_layout(
    shares: tuple[int, ...], groups: int, limit: int, client: int
) -> Iterator[tuple[int, int]]:
    """Groups of one client as (group, count), counts above 0, in order.

    Every client has groups of its own when that keeps them within the limit. Otherwise all
    connections are spread evenly over all groups, and neighbours share the groups between them.

    Args:
        shares: Connections of each client, largest first, differing by at most 1.
        groups: How many there are, at least 1.
        limit: Of one group.
        client: Index into ``shares``.
    """
    share = shares[client]
    if not share:
        return
    least = _own_groups(shares, groups, limit)
    if least:
        extra = groups - least * sum(1 for each in shares if each)
        first = client * least + min(client, extra)
        count = least + (client < extra)
        for index in range(min(count, share)):
            yield first + index, share // count + (index < share % count)
        return
    total, start = sum(shares), sum(shares[:client])
    group = start * groups // total
    while group * total // groups < start + share:
        low, high = group * total // groups, (group + 1) * total // groups
        overlap = min(high, start + share) - max(low, start)
        if overlap > 0:
            yield group, overlap
        group += 1


def _own_groups(shares: tuple[int, ...], groups: int, limit: int) -> int:
    """Groups that every busy client can have for itself, 0 when that would overfill one."""
    least = groups // sum(1 for share in shares if share)
    return least if least and math.ceil(shares[0] / least) <= limit else 0


def destination_ports(
    count: int, port_range: tuple[int, int], listening: tuple[int, ...]
) -> tuple[int, ...]:
    """Free ports to listen on from 9001 up.

    Those outside the clients' range come first: a listener inside it takes one port from every
    group (see ``ports_in_range``).

    Raises:
        HostError: Everything is taken.
    """
    taken, (low, high) = set(listening), port_range
    in_order = (*range(FIRST_DESTINATION_PORT, 65_536), *range(LOWEST_PORT, FIRST_DESTINATION_PORT))
    outside = (port for port in in_order if port not in taken and not low <= port <= high)
    inside = (port for port in in_order if port not in taken and low <= port <= high)
    free = tuple(islice(chain(outside, inside), count))
    if len(free) < count:
        raise HostError(
            "no port is free to listen on", fix="run as root: the run then has a private loopback"
        )
    return free


def loopback_address(index: int) -> str:
    """Source address of that index: 127.0.0.2 for 0, then on, without .0 and .255.

    Args:
        index: 0 to 65,000.
    """
    block, last = divmod(index + 1, 254)
    return f"127.0.{block}.{last + 1}"
