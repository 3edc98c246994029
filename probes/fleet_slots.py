"""Who is in the fleet, as the slots of its shared memory tell it."""

from __future__ import annotations

from probes.live import Counter, Live, Role
from probes.probe import ProcessRef

ROLE_NAMES: dict[int, str] = {
    Role.SERVER: "server",
    Role.ACCEPTOR: "acceptor",
    Role.CLIENT: "client",
}


def processes_of(live: Live) -> dict[int, ProcessRef]:
    """The fleet as its slots tell it, by pid; slots without a pid are left out."""
    found = {}
    for index in range(live.slot_count):
        slot = live.slot(index)
        role, pid = ROLE_NAMES.get(slot[Counter.ROLE]), slot[Counter.PID]
        if role is not None and pid:
            found[pid] = ProcessRef(pid, role, slot[Counter.WORKER], is_python=True)
    return found


def free_slots_of(live: Live) -> list[memoryview]:
    """Slots that nobody has yet: kept for the processes of a server that is not ours."""
    slots = [live.slot(index) for index in range(live.slot_count)]
    return [slot for slot in slots if slot[Counter.ROLE] == Role.FREE]


def fleet_is_ready(live: Live) -> bool:
    """Whether every slot that has a role has a process that reported for work."""
    slots = [live.slot(index) for index in range(live.slot_count)]
    used = [slot for slot in slots if slot[Counter.ROLE] != Role.FREE]
    return bool(used) and all(slot[Counter.PID] and slot[Counter.READY_NS] for slot in used)
