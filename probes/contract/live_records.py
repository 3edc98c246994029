"""live.bin as columns: the connection records and the slots of the fleet, read in bulk.

Used by the supervisor to write ``raw/connections`` and ``raw/processes`` at the end of a run, and
by the analysis when the supervisor did not live to do that. numpy only.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.contract.live import CloseKind, Counter, Live, Role, Stage

Columns = dict[str, npt.NDArray[Any]]

_STAGE_NAMES = np.array([stage.name.lower() for stage in Stage], dtype=object)
_CLOSE_NAMES = np.array([kind.name.lower() for kind in CloseKind], dtype=object)
_DTYPES = {"q": np.int64, "I": np.uint32, "H": np.uint16, "B": np.uint8}


def read_connections(live: Live) -> Columns:
    """All records that were begun, as the columns of the schema's table ``connections``.

    Records of stage PENDING are left out. ``source_address`` of a record is the address as a
    number (127.0.0.1 is 0x7F000001); 0 gives ''. A stage or close kind that this version does not
    know becomes ``error``.

    Args:
        live: A mapping, also of a run that is still going: each value is then old or new.
    """
    stage = np.frombuffer(live.column("stage"), dtype=np.uint8, count=live.capacity)
    begun = np.flatnonzero(stage != Stage.PENDING)

    def column(name: str, code: str) -> npt.NDArray[Any]:
        return np.frombuffer(live.column(name), dtype=_DTYPES[code], count=live.capacity)[begun]

    addresses, address_index = np.unique(column("source_address", "I"), return_inverse=True)
    dotted = np.array(
        [socket.inet_ntoa(struct.pack("!I", int(a))) if a else "" for a in addresses],
        dtype=object,
    )
    return {
        "connection": begun.astype(np.int64),
        "client": _client_of(live, begun),
        "start_ns": column("start_ns", "q"),
        "connected_ns": column("connected_ns", "q"),
        "established_ns": column("established_ns", "q"),
        "closed_ns": column("closed_ns", "q"),
        "stage": _named(_STAGE_NAMES, stage[begun]),
        "errno": column("errno", "H").astype(np.int64),
        "close_kind": _named(_CLOSE_NAMES, column("close_kind", "B")),
        "source_address": dotted[address_index] if len(dotted) else np.empty(0, dtype=object),
        "destination_port": column("destination_port", "H").astype(np.int64),
    }


def _named(names: npt.NDArray[Any], codes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    known = codes < len(names)
    result: npt.NDArray[Any] = np.where(known, names[np.where(known, codes, 0)], "error")
    return result


def _client_of(live: Live, records: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The client number of each record index, -1 when no slot claims it."""
    owner = np.full(len(records), -1, dtype=np.int64)
    for index in range(live.slot_count):
        slot = live.slot(index)
        if slot[Counter.ROLE] != Role.CLIENT:
            continue
        base, count = slot[Counter.RECORD_BASE], slot[Counter.RECORD_COUNT]
        first, last = np.searchsorted(records, [base, base + count])
        owner[first:last] = slot[Counter.WORKER]
    return owner


def read_slots(live: Live) -> list[dict[str, int]]:
    """The counters of every used slot, keys as in ``Counter`` in lower case, plus ``slot``."""
    rows = []
    for index in range(live.slot_count):
        words = live.slot(index)
        if words[Counter.ROLE] != Role.FREE:
            rows.append({"slot": index} | {c.name.lower(): words[c] for c in Counter})
    return rows
