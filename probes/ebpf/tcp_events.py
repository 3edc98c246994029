"""TCP's own events: state changes, resets, retransmits, dropped packets, full buffers.

Measures
    Transitions by (side, old, new); resets by direction, side, state and reason; retransmits by
    side and state; dropped skbs by reason and kernel function; sockets that met tcp_mem or their
    own receive buffer. Only of the run's network namespace.
Hook
    Raw tracepoints inet_sock_set_state, tcp_receive_reset, tcp_send_reset, tcp_retransmit_skb,
    kfree_skb, sock_exceed_buf_limit, sock_rcvqueue_full; probes/bpf/tcp_events.c.
Cost
    Five or six events per connection, each two reads of kernel memory and an increment in a
    per-CPU array. kfree_skb leaves at once for reasons that say that nothing was dropped.
Misses
    Sides are told by ports, so ``other`` holds what is neither to nor from the server. Before 5.17
    a drop has no reason, before 6.10 a reset sent has none; a kernel without a tracepoint has no
    rows for it and a note in the run. A drop with neither socket nor device may be of another
    namespace: its row says so (``namespace_known``), and no finding uses it. Names of drop reasons
    outside the core (wireless, Open vSwitch) are numbers.
Checked against
    23 connections, a reset by SO_LINGER, a connect to a closed port, a full receive buffer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from probes.bpf_loader.btf import Btf, MissingTypeError
from probes.bpf_loader.program import BpfObject
from probes.contract.errors import ProbeUnavailableError
from probes.contract.probe import Target
from probes.ebpf import shared as bpf_shared
from probes.ebpf import sources as bpf_sources
from probes.ebpf.base import BpfProbe
from probes.ebpf.sources import SourceBuilder
from probes.proc.tcp_names import SIDES, state_name
from probes.symbols.kernel import kernel_symbols

EVENTS = {  # program: raw tracepoint
    "tcp_state_change": "inet_sock_set_state",
    "tcp_retransmit": "tcp_retransmit_skb",
    "sock_over_limit": "sock_exceed_buf_limit",
    "sock_queue_full": "sock_rcvqueue_full",
    "tcp_reset_received": "tcp_receive_reset",
    "tcp_reset_sent": "tcp_send_reset",
    "skb_dropped": "kfree_skb",
}
_PRESSURE_KINDS = ("exceed_buf_limit_tx", "exceed_buf_limit_rx", "rcvqueue_full")
_NEVER = np.iinfo(np.uint64).max


def short_names(values: dict[str, int], prefix: str) -> dict[int, str]:
    """Enumerators by value, without their common prefix."""
    return {value: name.removeprefix(prefix) for name, value in values.items()}


def drop_reason(names: dict[int, str], number: int) -> str:
    """Name of a skb_drop_reason; the upper half of the number is the subsystem that defines it."""
    if number >> 16:
        return f"SUBSYSTEM_{number >> 16}_{number & 0xFFFF}"
    return names.get(number, f"REASON_{number}")


def _earliest(first_ns: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The first time over the CPUs (second axis), of which those without an event say 0."""
    seen: npt.NDArray[np.uint64] = np.where(first_ns == 0, _NEVER, first_ns)
    earliest: npt.NDArray[np.uint64] = seen.min(axis=1, initial=_NEVER)
    return earliest


class TcpEventsProbe(BpfProbe):
    """Writes the five TCP tables."""

    name = "tcp_events"
    tables = (
        "tcp_state_transitions",
        "tcp_resets",
        "tcp_retransmits",
        "skb_drops",
        "socket_pressure",
    )
    programs = tuple(EVENTS)

    def __init__(self) -> None:
        super().__init__()
        self._kernel = kernel_symbols()
        self._before: npt.NDArray[Any] = np.zeros(1, dtype=bpf_sources.TCP_COUNTS)
        self._resets: dict[tuple[int, ...], int] = {}
        self._drops: dict[tuple[int, int, int, int], int] = {}
        self._drop_reasons: dict[int, str] = {}
        self._reset_reasons: dict[int, str] = {}
        self._drops_have_reasons = False

    def _source(self) -> SourceBuilder:
        return bpf_sources.tcp_events

    def _attach(self, loaded: BpfObject, target: Target) -> None:
        btf = Btf.of_kernel()
        drops = bpf_sources.enum_or_empty(btf, "skb_drop_reason")
        resets = bpf_sources.enum_or_empty(btf, "sk_rst_reason")
        self._drop_reasons = short_names(drops, "SKB_DROP_REASON_")
        self._reset_reasons = short_names(resets, "SK_RST_REASON_")
        self._drops_have_reasons = bool(drops)
        self._kernel.load()
        refused: list[ProbeUnavailableError] = []
        for program, event in EVENTS.items():
            try:
                btf.tracepoint_arguments(event)
                self._links.append(loaded.attach_raw_tracepoint(program, event))
            except MissingTypeError as error:
                target.notes.append(str(error))
            except ProbeUnavailableError as error:
                refused.append(error)
                target.notes.append(error.message)
        if not self._links and refused:
            raise refused[0]

    def _read(self, loaded: BpfObject, at_ns: int) -> None:
        now = loaded.maps["tcp_counts"].get(0)
        assert now is not None
        transitions, _, retransmits, _, pressure = self.writers
        total = now["transitions"].sum(axis=0)
        news = total - self._before["transitions"][0]
        for side, old, new in np.argwhere(news).tolist():
            count = int(news[side, old, new])
            transitions.append(at_ns, SIDES[side], state_name(old), state_name(new), count)
        self._before["transitions"][0] = total

        total = now["retransmits"].sum(axis=0)
        news = total - self._before["retransmits"][0]
        for side, state in np.argwhere(news).tolist():
            retransmits.append(at_ns, SIDES[side], state_name(state), int(news[side, state]))
        self._before["retransmits"][0] = total

        pressures = now["pressure"]
        total = pressures["count"].sum(axis=0)
        news = total - self._before["pressure"]["count"][0]
        for kind, side in np.argwhere(news).tolist():
            cell = pressures[:, kind, side]
            first_ns = int(_earliest(cell["first_ns"][None, :])[0])
            largest_pages = int(cell["allocated_max_pages"].max())
            pressure.append(
                at_ns,
                _PRESSURE_KINDS[kind],
                SIDES[side],
                int(news[kind, side]),
                largest_pages,
                first_ns,
            )
        self._before["pressure"]["count"][0] = total
        self._read_resets(loaded, at_ns)
        self._read_drops(loaded, at_ns)
        self._count_losses(bpf_shared.lost(loaded, "resets", "drops"))

    def _read_resets(self, loaded: BpfObject, at_ns: int) -> None:
        keys, values = loaded.maps["reset_counts"].items()
        counts = values["count"].sum(axis=1).tolist()
        first_ns = _earliest(values["first_ns"]).tolist()
        for key, count, first in zip(keys.tolist(), counts, first_ns, strict=True):
            news = count - self._resets.get(key, 0)
            if not news:
                continue
            self._resets[key] = count
            self._recorded_count += news
            received, side, state, reason = key
            self.writers[1].append(
                at_ns,
                "rx" if received else "tx",
                SIDES[side],
                state_name(state) if state else "",
                "" if received else self._reset_reasons.get(reason, ""),
                news,
                first,
            )

    def _read_drops(self, loaded: BpfObject, at_ns: int) -> None:
        keys, values = loaded.maps["drop_counts"].items()
        for key, count in zip(keys.tolist(), values.sum(axis=1).tolist(), strict=True):
            news = count - self._drops.get(key, 0)
            if not news:
                continue
            self._drops[key] = count
            self._recorded_count += news
            location, number, namespace_known, of_server = key
            known = self._drops_have_reasons
            reason = drop_reason(self._drop_reasons, number) if known else ""
            # the location is a return address: see KernelSymbols.stack
            place = self._kernel.name(location - 1)
            self.writers[3].append(at_ns, reason, place, news, namespace_known, of_server)
