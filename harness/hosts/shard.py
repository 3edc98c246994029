"""What one host does in a run of several: all that its supervisor has to be told, as JSON.

It comes over the supervisor's standard input and never on a command line: it has the values of
``--header``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from harness.fleet.config import FleetConfig
from harness.planning.layout import Plan
from probes.contract.errors import ToolkitError

NAMES_OF_ROLES = ("server", "client", "both")
AGENT_FOLDER = "connscope-agent-"
"""What the name of an agent's folder begins with: its pid follows."""
SERVES = ("server", "both")
LOADS = ("client", "both")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One host's part.

    Attributes:
        run_id: Of the whole run: an agent starts a run once.
        host: The host's name.
        role: server, client or both.
        plan: Its layout.
        fleet: What its processes are told; ``own_uid`` is decided on the host.
        probes: Their names.
        hold_s: How long connections are held.
        failures_max_count: See ``--failures-max``.
        manifest: What its own manifest begins with.
    """

    run_id: str
    host: str
    role: str
    plan: Plan
    fleet: FleetConfig
    probes: list[str]
    hold_s: float
    failures_max_count: int
    manifest: dict[str, Any]

    def to_json(self) -> str:
        """One line."""
        told = {each.name: getattr(self, each.name) for each in fields(self)}
        told["plan"] = asdict(self.plan) | {"rungs": (), "constraints": ()}
        told["fleet"] = self.fleet.to_json()
        return json.dumps(told)

    @classmethod
    def from_json(cls, text: str) -> Shard:
        """Reads what ``to_json`` wrote.

        Raises:
            ToolkitError: It is none.
        """
        try:
            told = json.loads(text)
            plan: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in told["plan"].items()
            }
            told["plan"] = Plan(**plan)
            told["fleet"] = FleetConfig.from_json(told["fleet"])
            return cls(**told)
        except (KeyError, TypeError, ValueError) as error:
            raise ToolkitError(
                f"what this host was told to do cannot be read: {error}",
                fix="install the same connscope on all hosts",
            ) from None
