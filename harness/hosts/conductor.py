"""One run over hosts, from the agents that are there to the run directory that has all of it.

Phases begin by one deadline on each host's own clock. Here is the reference: the clock of the
host that serves. Nothing of the load or of what watches it runs in this process.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from harness.hosts import agent, clocks
from harness.hosts.cluster import Cluster, NoAnswerError
from harness.hosts.fetch import fetch
from harness.hosts.hosts_file import HostsFile
from harness.hosts.layout import HostsPlan
from harness.hosts.shard import Shard
from harness.hosts.status import status_of
from harness.planning.host import Host
from harness.results.ahead import AnalysisAhead
from probes.contract.errors import HostError, RunDirError
from probes.contract.rundir import RunDir
from reports.terminal.terminal import LiveView

LOST_S = 4.0
"""A host that does not answer for so long is lost: its own supervisor ends then, too."""
_POLL_S = 0.1
_ANSWER_S = 1.5
_READY_S = 120.0
_LEAD_S = 0.25
"""From the order to begin to the moment at which all begin."""
_RECORD_S = 40.0
_ABORT_S = 20.0
"""Processes end within four seconds; then rows are written."""
_HEAR_PERIOD_S = 0.5
_PAIRS_COUNT = 64
_CLOCK_PERIOD_S = 5.0
_PAIRS_MEANWHILE_COUNT = 16
_OVER = ("recorded", "failed")


@dataclass(slots=True)
class Member:
    """One host as this command sees it.

    Attributes:
        name: Its name.
        facts: What ``agent.describe`` said.
        told: What its supervisor said last.
        answered_s: When that was.
        lost_s: Since when nothing was heard, 0 while it is there.
        lost_ns: The same by the reference's clock, 0 when that is not known.
        readings: Of its clock.
        fetched_bytes: Of its run directory, -1 when it could not be taken.
        idle_from: When the hold began and the CPU time of its agent then, both in s.
        idle_until: Likewise at its end.
    """

    name: str
    facts: dict[str, Any]
    told: dict[str, Any] = field(default_factory=dict)
    answered_s: float = 0.0
    lost_s: float = 0.0
    lost_ns: int = 0
    readings: list[clocks.Reading] = field(default_factory=list)
    fetched_bytes: int = -1
    idle_from: tuple[float, float] = (0.0, 0.0)
    idle_until: tuple[float, float] = (0.0, 0.0)

    @property
    def state(self) -> str:
        """Of its supervisor."""
        return str(self.told.get("state", ""))

    @property
    def is_lost(self) -> bool:
        """Nothing is heard of it any more."""
        return self.lost_s > 0

    @property
    def is_over(self) -> bool:
        """Its supervisor has ended, or nobody knows."""
        return self.is_lost or self.state in _OVER


class Conductor:
    """Runs a layout on hosts whose agents are there.

    Args:
        cluster: The agents.
        hosts: The hosts.
        run_id: Of this run.
        is_interrupted: Whether somebody wants it to end.
        with_page: Its page will be wanted at the end.
    """

    def __init__(
        self,
        cluster: Cluster,
        hosts: HostsFile,
        run_id: str,
        is_interrupted: Callable[[], bool],
        *,
        with_page: bool = False,
    ) -> None:
        self._ahead = AnalysisAhead(with_page=with_page)
        self._cluster = cluster
        self._hosts = hosts
        self._run_id = run_id
        self._is_interrupted = is_interrupted
        self._key = secrets.token_bytes(16).hex()
        self._clocks_due_s = 0.0
        self.members: dict[str, Member] = {}
        self.notes: list[str] = []
        self._reference = hosts.server.name

    async def meet(self, *, refuses: bool = True) -> dict[str, Host]:
        """Asks each host what it is.

        Args:
            refuses: A host with another version is refused.

        Raises:
            HostError: One has another connscope, or does not answer.
        """
        entries = self._hosts.hosts
        answers = await asyncio.gather(
            *(
                self._cluster.call(each.name, agent.describe, self._run_id, each.address, self._key)
                for each in entries
            ),
            return_exceptions=True,
        )
        facts: dict[str, Host] = {}
        for entry, answer in zip(entries, answers, strict=True):
            if isinstance(answer, BaseException):
                raise HostError(
                    f"host {entry.name} does not say what it is: {answer}",
                    fix="the same connscope on all hosts: profile-doctor --version there",
                )
            told, host = answer
            if host is None:
                raise HostError(f"host {entry.name}: {told['refusal']}", fix=str(told["fix"]))
            self.members[entry.name] = Member(entry.name, told)
            facts[entry.name] = host
        if refuses:
            self._require_same_versions()
        return facts

    def _require_same_versions(self) -> None:
        own = agent.versions()
        for member in self.members.values():
            for what, wanted in own.items():
                found = str(member.facts["versions"].get(what, "none"))
                if found != wanted:
                    raise HostError(
                        f"host {member.name} has {what} {found}, and this host has {wanted}: what "
                        "two versions record is not one run",
                        fix=f"install connscope {own['connscope']} with the same packages on "
                        f"{member.name}",
                    )

    async def record(self, plan: HostsPlan, parts: dict[str, Shard], view: LiveView) -> str:
        """Makes the run up to the last row on each host.

        Args:
            plan: The layout.
            parts: What each host is told.
            view: Where progress is shown.

        Returns:
            finished or interrupted.

        Raises:
            HostError: A host could not start its part.
        """
        self.members = {name: self.members[name] for name in parts}
        await self._compare_clocks(_PAIRS_COUNT)
        await self._on_all(lambda name: (agent.start, self._run_id, parts[name].to_json()))

        def show(phase: str, left_s: float | None = None) -> None:
            view.update(status_of(phase, plan, self.members, time_left_s=left_s))

        if await self._until_ready(show):
            await self._while_hearing(self._compare_clocks(_PAIRS_COUNT))
            await self._begin_ramp()
            await self._until_ramp_is_over(show)
            await self._hold(next(iter(parts.values())).hold_s, show)
        status = "finished"
        if self._is_interrupted() or self._is_server_over():
            status = "interrupted" if self._is_interrupted() else "finished"
            await self._tell_all({"abort": True})
        self._ahead.begin()
        await self._until_recorded(show, hurried=self._is_interrupted())
        self._ahead.wait()
        await self._compare_clocks(_PAIRS_COUNT)
        return status

    @property
    def _server(self) -> Member:
        return self.members[self._reference]

    def _is_server_over(self) -> bool:
        """There is nothing to load any more."""
        return self._server.is_over

    @property
    def _clients(self) -> list[Member]:
        loading = {entry.name for entry in self._hosts.hosts if entry.loads}
        return [each for each in self.members.values() if each.name in loading]

    def line_of(self, name: str) -> clocks.ClockLine:
        """How a host's clock runs; a line of zeros for the reference."""
        if name == self._reference:
            return clocks.ClockLine()
        line = clocks.fit(self.members[name].readings)
        if line is None:
            raise HostError(
                f"host {name}: its clock could not be compared with that of {self._reference}: no "
                "UDP goes between them",
                fix=f"let UDP through from {self._reference} to {name}, any port",
            )
        return line

    # -- calls --------------------------------------------------------------------------------

    async def _on_all(self, call: Callable[[str], tuple[Any, ...]]) -> None:
        """Calls each host that is there; the first that refuses ends the run.

        Raises:
            HostError: One did.
        """
        names = [name for name, member in self.members.items() if not member.is_lost]
        made = (self._cluster.call(name, *call(name)) for name in names)
        answers = await asyncio.gather(*made, return_exceptions=True)
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, BaseException):
                raise HostError(f"host {name}: {answer}", fix="look at its agent's log in logs/")

    async def _tell_all(self, said: dict[str, Any], names: list[str] | None = None) -> None:
        wanted = [name for name in names or self.members if not self.members[name].is_over]
        made = (
            self._cluster.call(name, agent.tell, self._run_id, said, within_s=_ANSWER_S)
            for name in wanted
        )
        await asyncio.gather(*made, return_exceptions=True)

    async def _hear_all(self) -> None:
        """One round; who has not answered for ``LOST_S`` is lost from then on."""
        there = [each for each in self.members.values() if not each.is_lost]
        made = (
            self._cluster.call(each.name, agent.hear, self._run_id, within_s=_ANSWER_S)
            for each in there
        )
        answers = await asyncio.gather(*made, return_exceptions=True)
        now_s = time.monotonic()
        for member, answer in zip(there, answers, strict=True):
            if isinstance(answer, dict):
                member.told, member.answered_s = answer, now_s
            elif now_s - (member.answered_s or now_s) >= LOST_S or not isinstance(
                answer, NoAnswerError
            ):
                await self._lose(member, str(answer))
            elif not member.answered_s:
                member.answered_s = now_s

    async def _lose(self, member: Member, why: str) -> None:
        member.lost_s = member.answered_s or time.monotonic()
        self.notes.append(f"host {member.name} was lost: {why}")
        self._cluster.kill_agent(member.name)
        with suppress(NoAnswerError):
            ago_ns = round(1e9 * (time.monotonic() - member.lost_s))
            member.lost_ns = await self._reference_now_ns() - ago_ns

    async def _while_hearing(self, work: Coroutine[Any, Any, None]) -> None:
        """Does something for which agents are not left alone: they would end what they started."""
        task = asyncio.create_task(work)
        while not task.done():
            await asyncio.wait([task], timeout=_HEAR_PERIOD_S)
            if not task.done():
                await self._hear_all()
        await task

    # -- clocks -------------------------------------------------------------------------------

    async def compare_clocks(self) -> None:
        """Once, as before a ramp."""
        await self._compare_clocks(_PAIRS_COUNT)

    async def _compare_clocks(self, count: int) -> None:
        """Asks from the reference's host; what could not be asked is missing then."""
        self._clocks_due_s = time.monotonic() + _CLOCK_PERIOD_S
        if self._server.is_lost:
            return
        others = [
            (entry, member)
            for entry in self._hosts.hosts
            if entry.name != self._reference
            and (member := self.members.get(entry.name)) is not None
            and not member.is_lost
        ]
        for entry, member in others:  # one after the other: each disturbs the next
            port = int(member.facts["clock_port"])
            try:
                pairs = await self._cluster.call(
                    *(self._reference, agent.compare_clocks, entry.address, port, self._key, count),
                    within_s=_ANSWER_S + 0.1 * count,
                )
            except NoAnswerError:
                continue
            member.readings += clocks.readings(pairs)

    async def _reference_now_ns(self) -> int:
        return int(await self._cluster.call(self._reference, agent.now_ns, within_s=_ANSWER_S))

    # -- phases -------------------------------------------------------------------------------

    async def _until_ready(self, show: Callable[..., None]) -> bool:
        end_s = time.monotonic() + _READY_S
        while not self._is_interrupted():
            await self._hear_all()
            show("setup")
            for member in self.members.values():
                if member.is_lost or member.state == "failed":
                    why = member.told.get("message") or "it does not answer"
                    raise HostError(
                        f"host {member.name} could not start its part: {why}",
                        fix=str(member.told.get("fix") or "look at its agent"),
                    )
            if all(member.state == "ready" for member in self.members.values()):
                return True
            if time.monotonic() > end_s:
                late = [m.name for m in self.members.values() if m.state != "ready"]
                raise HostError(
                    f"host {late[0]} was not ready within {_READY_S:.0f} s",
                    fix="look at its load: uptime",
                )
            await asyncio.sleep(_POLL_S / 2)
        return False

    async def _begin_ramp(self) -> None:
        at_ns = await self._reference_now_ns() + round(1e9 * _LEAD_S)
        await asyncio.gather(
            *(
                self._tell_all({"ramp_ns": self.line_of(name).local_ns(at_ns)}, [name])
                for name in self.members
            )
        )

    async def _until_ramp_is_over(self, show: Callable[..., None]) -> None:
        while not self._is_interrupted() and not self._is_server_over():
            await self._hear_all()
            show("ramp")
            if all(each.is_over or each.told.get("is_done") for each in self._clients):
                return
            await asyncio.sleep(_POLL_S)

    async def _hold(self, hold_s: float, show: Callable[..., None]) -> None:
        if self._is_interrupted() or self._is_server_over():
            return
        until_ns = await self._reference_now_ns() + round(1e9 * hold_s)
        clients = {each.name for each in self._clients}
        for name in self.members:
            local_ns = self.line_of(name).local_ns(until_ns)
            await self._tell_all({"hold_until_ns": local_ns, "stop": name in clients}, [name])
        end_s = time.monotonic() + hold_s
        for member in self.members.values():
            member.idle_from = time.monotonic(), float(member.told.get("agent_cpu_s", 0.0))
        while not self._is_interrupted() and (left_s := end_s - time.monotonic()) > 0:
            await self._hear_all()
            show("hold", left_s)
            for member in self.members.values():
                member.idle_until = time.monotonic(), float(member.told.get("agent_cpu_s", 0.0))
            if self._is_server_over():
                return
            if time.monotonic() > self._clocks_due_s and left_s > 1.0:
                await self._while_hearing(self._compare_clocks(_PAIRS_MEANWHILE_COUNT))
            await asyncio.sleep(min(_POLL_S * 3, left_s))

    async def _until_recorded(self, show: Callable[..., None], *, hurried: bool) -> None:
        end_s = time.monotonic() + (_ABORT_S if hurried else _RECORD_S)
        is_told = False
        while time.monotonic() < end_s:
            await self._hear_all()
            show("collect")
            if not is_told and all(
                each.is_over for each in self._clients if each.name != self._reference
            ):
                await self._tell_all({"stop": True})
                is_told = True
            if all(member.is_over for member in self.members.values()):
                return
            await asyncio.sleep(_POLL_S)

    # -- results ------------------------------------------------------------------------------

    async def collect(self, run: RunDir) -> None:
        """Takes the run directory of each host that is there."""

        async def take(member: Member) -> None:
            try:
                member.fetched_bytes = await fetch(
                    self._cluster, member.name, self._run_id, run.path
                )
            except (NoAnswerError, RunDirError) as error:
                self.notes.append(f"host {member.name}: its rows could not be taken: {error}")

        there = [each for each in self.members.values() if not each.is_lost]
        await asyncio.gather(*(take(each) for each in there))

    async def end(self) -> None:
        """Has every host that is there forget the run."""
        made = (
            self._cluster.call(name, agent.forget, self._run_id, within_s=agent.UNHEARD_S + 3)
            for name, member in self.members.items()
            if not member.is_lost
        )
        await asyncio.gather(*made, return_exceptions=True)
