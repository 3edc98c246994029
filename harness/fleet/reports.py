"""What the lean parents report: how a process ended, and what refused a client."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProcessEnd:
    """How a process of the fleet ended; ``status`` is -1 and ``signal`` 0 where not applicable."""

    pid: int
    slot: int
    exited_ns: int
    status: int
    signal: int

    @property
    def is_failure(self) -> bool:
        """Whether it ended by anything but its own good exit."""
        return self.status != 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a client was told instead of the upgrade, or when it was closed; one a kind and client.

    Attributes:
        pid: The client.
        at_ns: When.
        status: HTTP status, 0 when it was no HTTP, or TLS before it; of a close frame its code.
        reason: In our words.
        body: The start of what came with it, in printable characters.
        event: What it becomes in ``events``.
    """

    pid: int
    at_ns: int
    status: int
    reason: str
    body: str
    event: str = "upgrade_refused"

    def __str__(self) -> str:
        if self.event == "connection_closed" and self.status:
            return f"code {self.status}" + (f": {self.body}" if self.body else "")
        text = f"HTTP {self.status}" if self.status not in (0, 101) else self.reason
        return f"{text}: {self.body}" if self.body else text
