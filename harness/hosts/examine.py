"""``profile-doctor --hosts``: what the hosts can hold together, and which of them binds first."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from harness.hosts import agent, clocks
from harness.hosts.cluster import Cluster, NoAnswerError
from harness.hosts.conductor import Conductor
from harness.hosts.hosts_file import HostsFile
from harness.hosts.layout import HostsPlan, lay_out
from harness.planning.checks import DELAYING_LIMITS
from harness.planning.host import Host
from harness.planning.request import MAX_CONNECTIONS, PlanRequest
from harness.planning.text import wrapped
from probes.contract.errors import ExitCode, HostError


@dataclass(frozen=True, slots=True)
class Examined:
    """What was found of one host.

    Attributes:
        name: Its name.
        role: What it does.
        host: Its limits.
        differing: What is another version than here: name, there, here.
        clock: Beside that of the host that serves; None where no UDP came through.
        mtu_bytes: Of the way to the host that serves, 0 not known.
    """

    name: str
    role: str
    host: Host
    differing: tuple[tuple[str, str, str], ...]
    clock: clocks.ClockLine | None
    mtu_bytes: int


@dataclass(frozen=True, slots=True)
class HostsExamination:
    """All of them.

    Attributes:
        hosts: In the order of the file.
        holds_connections: Most connections of one run without a wall on any host.
        next_host: Where the wall after them is, '' for none.
        next_limit: Which it is.
    """

    hosts: tuple[Examined, ...]
    holds_connections: int
    next_host: str
    next_limit: str

    @property
    def exit_code(self) -> ExitCode:
        """Whether a run over them is possible."""
        is_possible = self.holds_connections > 0 and not any(e.differing for e in self.hosts)
        return ExitCode.REACHED if is_possible else ExitCode.HOST_CANNOT

    def to_json(self) -> str:
        """As an indented JSON document."""
        return json.dumps(
            {
                "holds_connections": self.holds_connections,
                "next_host": self.next_host,
                "next_limit": self.next_limit,
                "hosts": [
                    {
                        "name": each.name,
                        "role": each.role,
                        "differing": [list(row) for row in each.differing],
                        "clock": each.clock.to_dict() if each.clock else None,
                        "mtu_bytes": each.mtu_bytes,
                        "host": each.host.to_dict("host"),
                    }
                    for each in self.hosts
                ],
            },
            indent=2,
        )

    def lines(self) -> Iterator[str]:
        """As text for people."""
        wall = ""
        if self.next_limit:
            wall = f" The first wall is {self.next_limit} of {self.next_host}."
        yield from wrapped(
            f"These {len(self.hosts)} hosts can hold about {self.holds_connections:,} connections "
            f"in one run.{wall}"
        )
        yield ""
        yield (
            f"  {'Host':<16}{'Role':<8}{'Cores':>6}{'Memory':>9}{'Round trip':>12}{'Clock ±':>10}"
            f"{'MTU':>7}"
        )
        for each in self.hosts:
            clock = each.clock
            trip = f"{clock.round_trip_ns / 1e6:.3f} ms" if clock else "none"
            bound = f"{clock.bound_ns / 1e6:.3f} ms" if clock else "none"
            if each.role in ("server", "both"):
                trip = bound = "-"
            memory = f"{each.host.memory_room_bytes / 1e9:.1f} GB"
            yield (
                f"  {each.name:<16}{each.role:<8}{each.host.cpu_count:>6}{memory:>9}{trip:>12}"
                f"{bound:>10}{each.mtu_bytes or '-':>7}"
            )
        for each in self.hosts:
            for what, there, here in each.differing:
                yield from wrapped(
                    f"{each.name} has {what} {there}, here it is {here}: a run is refused",
                    first="  ",
                    rest="    ",
                )
                yield f"    fix: install the same on {each.name}"
            if each.clock is None and each.role == "client":
                yield from wrapped(
                    f"no UDP goes from the server's host to {each.name}: a run is refused",
                    first="  ",
                )


def examine(hosts: HostsFile, scheduler: str) -> HostsExamination:
    """Reads every host, at once, and compares them.

    Raises:
        HostError: One is not there.
    """
    return asyncio.run(_examine(hosts, scheduler))


async def _examine(hosts: HostsFile, scheduler: str) -> HostsExamination:
    cluster = Cluster(hosts, scheduler, None)
    try:
        await cluster.open(lambda: False)
        conductor = Conductor(cluster, hosts, "examination", lambda: False)
        facts = await conductor.meet(refuses=False)
        await conductor.compare_clocks()
        own, found = agent.versions(), []
        for entry in hosts.hosts:
            member = conductor.members[entry.name]
            theirs = member.facts["versions"]
            differing = tuple(
                (what, str(theirs.get(what, "none")), wanted)
                for what, wanted in own.items()
                if theirs.get(what) != wanted
            )
            mtu_bytes = 0
            if entry.name != hosts.server.name:
                mtu_bytes = await _mtu_bytes(cluster, entry.name, hosts.server.address)
            line = clocks.fit(member.readings)
            found.append(
                Examined(entry.name, entry.role, facts[entry.name], differing, line, mtu_bytes)
            )
        await conductor.end()
    finally:
        await cluster.close()
    return HostsExamination(tuple(found), *most_of(hosts, facts))


async def _mtu_bytes(cluster: Cluster, name: str, address: str) -> int:
    try:
        return int(await cluster.call(name, agent.mtu_bytes, address))
    except NoAnswerError:
        return 0


def most_of(hosts: HostsFile, facts: Mapping[str, Host]) -> tuple[int, str, str]:
    """Most connections without a wall, and the host and limit of the wall after them."""

    def wall(connections: int) -> tuple[str, str]:
        try:
            plan = lay_out(PlanRequest(connections=connections, force=True), hosts, facts)
        except HostError:
            return hosts.server.name, "fds_per_process"
        return next(iter(walls(plan)), ("", ""))

    holds, beyond, first = 0, MAX_CONNECTIONS + 1, ("", "")
    while beyond - holds > 1:
        middle = (holds + beyond) // 2
        if (found := wall(middle))[1]:
            beyond, first = middle, found
        else:
            holds = middle
    return holds, *first


def walls(plan: HostsPlan) -> list[tuple[str, str]]:
    """Host and limit of each that is met below the target; what only delays is none."""
    found: list[tuple[int, str, str]] = [
        (rung.predicted_connections, part.entry.name, rung.limit)
        for part in plan.parts
        for rung in part.rungs
        if rung.limit not in DELAYING_LIMITS
    ]
    return [(name, limit) for _, name, limit in sorted(found)]
