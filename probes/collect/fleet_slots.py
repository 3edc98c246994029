"""Who is in the fleet, as the slots of its shared memory tell it."""

from __future__ import annotations

from probes.contract.live import Counter, Live, Role
from probes.contract.probe import ProcessRef
from probes.proc.process_tree import is_python

ROLE_NAMES: dict[int, str] = {
    Role.SERVER: "server",
    Role.ACCEPTOR: "acceptor",
    Role.CLIENT: "client",
    Role.BACKEND: "backend",
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


def has_free_slots(live: Live) -> bool:
    """Whether there are slots that nobody has: kept for processes of a server that is not ours."""
    slots = (live.slot(index) for index in range(live.slot_count))
    return any(slot[Counter.ROLE] == Role.FREE for slot in slots)


class FollowedSlots:
    """Tells which processes took a slot since the last look, of a server that is not ours.

    Args:
        live: The shared memory; its slots before those of clients are for that server. Who has one
            now is known already.
    """

    def __init__(self, live: Live) -> None:
        slots = [live.slot(index) for index in range(live.slot_count)]
        self._slots = [slot for slot in slots if slot[Counter.ROLE] != Role.CLIENT]
        self._seen: list[tuple[int, int]] = [(0, 0)] * len(self._slots)
        self.take_new()

    def take_new(self) -> list[tuple[ProcessRef, memoryview[int]]]:
        """Processes that came, each with its slot. They take slots in order, and leave none empty.

        One that ended before anybody looked is left out.
        """
        found = []
        for index, slot in enumerate(self._slots):
            occupant = slot[Counter.PID], slot[Counter.STARTED_NS]
            if not occupant[0]:
                break
            if occupant == self._seen[index] or slot[Counter.ROLE] == Role.FREE:
                continue
            self._seen[index] = occupant
            if slot[Counter.STOPPED_NS]:
                continue
            role = ROLE_NAMES.get(slot[Counter.ROLE], "server")
            pid = occupant[0]
            ref = ProcessRef(pid, role, slot[Counter.WORKER], is_python=is_python(pid))
            found.append((ref, slot))
        return found


def fleet_is_ready(live: Live) -> bool:
    """Whether every slot that has a role has a process that reported for work."""
    slots = [live.slot(index) for index in range(live.slot_count)]
    used = [slot for slot in slots if slot[Counter.ROLE] != Role.FREE]
    return bool(used) and all(slot[Counter.PID] and slot[Counter.READY_NS] for slot in used)
