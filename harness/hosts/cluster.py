"""The control plane: Dask's scheduler and client here, an agent on each host, calls with deadlines.

Nothing is scheduled: each call names its host and is made once (``Client.run``). So nothing is
stolen, tried again, or run where nobody asked for it.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.hosts.certificate import new_certificate
from harness.hosts.dask_settings import turn_off
from harness.hosts.hosts_file import HostEntry, HostsFile
from probes.contract.errors import HostError, UsageError
from probes.contract.private_file import open_new

START_S = 30.0
_END_S = 7.0
CALL_S = 20.0


class NoAnswerError(Exception):
    """A host did not answer in time, or is gone."""


class Cluster:
    """The agents of a run.

    Args:
        hosts: Who they are.
        scheduler: Address of a Dask cluster that runs already, '' to start agents.
        log_folder: Where their output goes; None for nowhere.
    """

    def __init__(self, hosts: HostsFile, scheduler: str, log_folder: Path | None) -> None:
        turn_off()
        self._hosts = hosts
        self._scheduler_address = scheduler
        self._log_folder = log_folder
        self._scheduler: Any = None
        self._client: Any = None
        self._agents: dict[str, asyncio.subprocess.Process] = {}
        self._drains: list[asyncio.Task[None]] = []
        self._last_words: dict[str, str] = {}
        self._addresses: dict[str, str] = {}

    @property
    def scheduler_address(self) -> str:
        """Where the scheduler is, once it is there."""
        return str(self._scheduler.address) if self._scheduler else self._scheduler_address

    async def open(self, is_interrupted: Callable[[], bool]) -> None:
        """Starts the agents, or finds them, and waits until all are there.

        Raises:
            HostError: One is not there in time; the message names it and has its last words.
        """
        from distributed import Client, Scheduler, Security

        if self._scheduler_address:
            self._client = await Client(
                self._scheduler_address, asynchronous=True, timeout=START_S, set_as_default=False
            )
        else:
            made = new_certificate("connscope")
            security = Security(
                require_encryption=True,
                tls_ca_file=made.certificate,
                tls_scheduler_cert=made.certificate,
                tls_scheduler_key=made.key,
                tls_client_cert=made.certificate,
                tls_client_key=made.key,
            )
            host = self._hosts.controller or own_address(self._hosts.hosts[0].address)
            self._scheduler = await Scheduler(
                host=host,
                port=0,
                protocol="tls",
                dashboard=False,
                dashboard_address="127.0.0.1:0",  # it listens whatever it is told; there is nothing
                security=security,
            )
            told = {"scheduler": self._scheduler.address, **made._asdict()}
            for entry in self._hosts.hosts:
                await self._start(entry, told)
            self._client = await Client(
                self._scheduler.address,
                asynchronous=True,
                security=security,
                set_as_default=False,
            )
        await self._wait_for_all(is_interrupted)

    async def _start(self, entry: HostEntry, told: dict[str, str]) -> None:
        command = entry.agent_command()
        try:
            agent = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                cwd="/",
            )
        except OSError as error:
            raise HostError(
                f"host {entry.name}: {command[0]} cannot be started: {error.strerror}",
                fix=f"command -v {command[0]}",
            ) from None
        self._agents[entry.name] = agent
        self._drains.append(asyncio.create_task(self._drain(entry.name, agent)))
        assert agent.stdin is not None
        line = {**told, "name": entry.name, "address": entry.address}
        with suppress(ConnectionError):
            agent.stdin.write(json.dumps(line).encode() + b"\n")
            await agent.stdin.drain()

    async def _drain(self, name: str, agent: asyncio.subprocess.Process) -> None:
        """Reads on for ever: an agent whose output nobody takes stands still."""
        assert agent.stdout is not None
        log = open_new(self._log_folder / f"agent-{name}.log") if self._log_folder else None
        try:
            while data := await agent.stdout.read(65_536):
                if log is not None:
                    log.write(data)
                lines = data.decode(errors="replace").strip().splitlines()
                self._last_words[name] = lines[-1][:300] if lines else ""
        finally:
            if log is not None:
                log.close()

    async def _wait_for_all(self, is_interrupted: Callable[[], bool]) -> None:
        end_s = asyncio.get_running_loop().time() + START_S
        while not is_interrupted():
            known = await self._known()
            self._addresses = {e.name: known[e.name] for e in self._hosts.hosts if e.name in known}
            missing = [e for e in self._hosts.hosts if e.name not in self._addresses]
            if not missing:
                return
            for entry in missing:
                agent = self._agents.get(entry.name)
                if agent is not None and agent.returncode is not None:
                    raise self._not_there(entry, f"its agent ended with {agent.returncode}")
            if asyncio.get_running_loop().time() > end_s:
                raise self._not_there(missing[0], f"its agent was not there within {START_S:.0f} s")
            await asyncio.sleep(0.05)

    async def _known(self) -> dict[str, str]:
        if self._scheduler is not None:
            workers = self._scheduler.workers.values()
            return {str(worker.name): worker.address for worker in workers}
        info = await self._client.scheduler.identity()
        return {str(told["name"]): address for address, told in info["workers"].items()}

    def _not_there(self, entry: HostEntry, what: str) -> HostError:
        said = self._last_words.get(entry.name, "")
        if self._scheduler_address:
            return HostError(
                f"host {entry.name}: {what}",
                fix=f"dask worker {self._scheduler_address} --name {entry.name} --no-nanny "
                "--memory-limit 0 --no-dashboard, on that host",
            )
        return HostError(
            f"host {entry.name}: {what}" + (f", and said: {said}" if said else ""),
            fix=" ".join(entry.agent_command()) + "  # does it start there by hand",
        )

    async def call(
        self,
        name: str,
        function: Callable[..., Coroutine[Any, Any, Any]],
        *words: Any,
        within_s: float = CALL_S,
    ) -> Any:
        """Calls a function of ``harness.hosts.agent`` on a host, once.

        Raises:
            NoAnswerError: No answer in time, or nobody there.
        """
        address = self._addresses[name]
        try:
            made = self._client.run(function, *words, workers=[address], on_error="return")
            answers = await asyncio.wait_for(made, within_s)
        except (OSError, TimeoutError, KeyError, ValueError) as error:
            raise NoAnswerError(f"{name}: {error}") from None
        answer = answers.get(address)
        if isinstance(answer, OSError):  # the way to it is gone
            raise NoAnswerError(f"{name}: {answer}")
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def kill_agent(self, name: str) -> None:
        """Ends what runs here of a host that does not answer any more."""
        agent = self._agents.get(name)
        if agent is not None and agent.stdin is not None:
            agent.stdin.close()

    async def close(self) -> None:
        """Ends all that was started; agents end what they have started before."""
        for agent in self._agents.values():
            if agent.stdin is not None:
                agent.stdin.close()
        waits = [asyncio.ensure_future(agent.wait()) for agent in self._agents.values()]
        if waits:
            await asyncio.wait(waits, timeout=_END_S)
        for agent in self._agents.values():
            if agent.returncode is None:
                with suppress(ProcessLookupError):
                    agent.kill()
        if waits:
            await asyncio.wait(waits, timeout=1.0)
        for task in self._drains:
            task.cancel()
        for part in (self._client, self._scheduler):
            if part is not None:
                with suppress(Exception):
                    await asyncio.wait_for(part.close(), 2.0)


def own_address(towards: str) -> str:
    """This host's address on the way to another.

    Raises:
        UsageError: There is no way.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.connect((towards, 9))  # sends nothing
            return str(asker.getsockname()[0])
    except OSError as error:
        raise UsageError(
            f"{towards} cannot be reached from here: {error.strerror}",
            fix=f"ip route get {towards}",
        ) from None
