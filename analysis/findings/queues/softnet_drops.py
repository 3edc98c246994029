"""``softnet-drops``: a core had no room for packets that had arrived and not been looked at yet.

Proof: segments of the server itself among what was dropped at the queue of a core (CPU_BACKLOG of
kfree_skb; net/core/dev.c, enqueue_to_backlog), while the host's counter of such drops moved (second
column of /proc/net/softnet_stat) and clients waited. That counter is of all cores and of everybody:
alone it proves nothing, also where the run has a network namespace of its own.
Told apart from ``accept-queue-overflow``, ``syn-backlog-overflow`` and ``conntrack-full``: there a
packet was looked at, and a counter of the listener or of netfilter moves. From
``neighbour-table-full``: there it never left.
"""

from __future__ import annotations

from analysis.causes import Cause
from analysis.evidence import Evidence, Finding, Fix, Subject
from analysis.signs.listen_queues import (
    LEAST_LATE_COUNT,
    Moved,
    Stalls,
    moved,
    server_drops,
    stall_sentence,
    stalls,
)
from analysis.signs.signs import Signs

CAUSE = Cause(
    id="softnet-drops",
    line="a core's queue of arriving packets is full",
    decide="cat /proc/net/softnet_stat, twice: which core's second column grows",
)

_REASON = "CPU_BACKLOG"
_FUNCTIONS = ("enqueue_to_backlog", "netif_rx_internal", "netif_receive_skb_list_internal")
"""Where it is dropped, before Linux 5.17 told why; a compiler may put the first into the others."""
_LIMIT = "net.core.netdev_max_backlog"
_LEAST_RESENT_COUNT = LEAST_LATE_COUNT
_LEAST_DROPS_OF_A_HANDSHAKE = 2


def find(signs: Signs) -> list[Finding]:
    """One finding about the host, or none."""
    view = signs.view
    own = server_drops(signs, _REASON, _FUNCTIONS)
    whole = moved(signs, "SoftnetDropped")
    if not own.change_count or not whole.change_count:
        return []
    harmed = _harmed(signs, own)
    is_harm, stalled = harmed is not None, harmed or stalls(signs)
    resent_count = int(view.frames["tcp_retransmits"]["event_count"].sum())
    if not is_harm and (view.is_attached or resent_count < _LEAST_RESENT_COUNT):
        return []
    first_s = min(stalled.began_s(own), own.first_s)
    at_connections = view.open_count_at(first_s)
    core, core_count = _fullest_core(signs)
    most = int(view.host_sysctl(_LIMIT) or 0)
    evidence = [
        Evidence("backlog_drops", own.change_count, "skb_drops", own.first_s),
        Evidence("softnet_drops", whole.change_count, "net_counters", whole.first_s),
        *stalled.evidence(),
        Evidence("segments_resent", resent_count, "tcp_retransmits"),
    ]
    if core_count:
        evidence.insert(
            2, Evidence("core_softnet_drops", core_count, "net_counters", of=f"core {core}")
        )
    if most:
        evidence.append(Evidence("limit_size", most, "manifest", of=_LIMIT))
    squeezed = moved(signs, "SoftnetSqueezed")
    if squeezed.change_count:
        evidence.append(Evidence("softnet_squeezed", squeezed.change_count, "net_counters"))
    confidence, missing = signs.trust("skb_drops", "net_counters")
    room = f" of {most:,} packets" if most else ""
    size = f" ({most:,} packets)" if most else ""
    if not most:
        confidence, missing = "medium", (*missing, f"the limit: {_LIMIT} could not be read")
    harm = stall_sentence(stalled) if is_harm else f"{resent_count:,} segments were sent again"
    where = f"core {core}" if core_count >= 0.6 * whole.change_count else "some cores"
    return [
        Finding(
            cause=CAUSE.id,
            severity="warning" if is_harm else "info",
            side="host",
            subject=Subject(),
            first_s=first_s,
            last_s=max(own.last_s, first_s),
            evidence=tuple(evidence),
            explanation=(
                f"Packets that arrive wait for a core in a queue of its own{room}. That of "
                f"{where} was full: {own.change_count:,} segments of this server's connections "
                f"were dropped there, of {whole.change_count:,} packets of everybody on the host, "
                f"before the kernel had looked at them. No client gets an error; they are resent "
                f"after 0.2 s, a SYN after 1, 3 and 7 s. {harm[0].upper()}{harm[1:]}."
            ),
            fix=_fixes(most, own.change_count, is_squeezed=squeezed.change_count > 0),
            at_connections=at_connections,
            confidence=confidence,
            missing=missing,
            sentence=f"The packet queue of {where}{size} was full: {own.change_count:,} segments "
            f"of the server were dropped unread, {harm}",
            explained_count=stalled.explained_count(own) if is_harm else 0,
        )
    ]


def _harmed(signs: Signs, own: Moved) -> Stalls | None:
    """Attempts that these drops can have delayed; None where they are too few for those who waited.

    A SYN is resent after a second. What comes after it is resent after 0.2 s, 0.4 s and so on: a
    handshake is late only when several of its segments were dropped, and for most of those that
    nobody answered the server is to blame.
    """
    for stalled, least_count in (
        (stalls(signs, connect_only=True), 1),
        (stalls(signs), _LEAST_DROPS_OF_A_HANDSHAKE),
    ):
        waited_count = stalled.failed_count + stalled.late_count
        if stalled.is_harm(own) and own.change_count >= least_count * waited_count:
            return stalled
    return None


def _fullest_core(signs: Signs) -> tuple[str, int]:
    """Number of the core that dropped most, and how much; ('', 0) where none is told apart."""
    prefix = "SoftnetDroppedCpu"
    counters = signs.view.frames["net_counters"]["counter"]
    names = sorted({str(name) for name in counters if str(name).startswith(prefix)})
    counts = [(moved(signs, name).change_count, name.removeprefix(prefix)) for name in names]
    count, core = max(counts, default=(0, ""))
    return core, count


def _fixes(most: int, dropped_count: int, *, is_squeezed: bool) -> tuple[Fix, ...]:
    if most:
        wanted = 1 << (4 * most - 1).bit_length()
        queue = Fix(
            f"sysctl -w {_LIMIT}={wanted}",
            f"{wanted:,} packets wait for each core instead of {most:,}: a burst of that length "
            f"passes, and the {dropped_count:,} drops with it",
        )
    else:
        queue = Fix(f"sysctl {_LIMIT}  # then four times that", "a longer burst passes")
    spread = Fix(
        "grep -H . /sys/class/net/*/queues/rx-*/rps_cpus  # 0: the core that the interrupt is on",
        "shows which cores take packets; more of them there, or more queues of the card (ethtool "
        "-l), share the work of the full one",
    )
    budget = Fix(
        "sysctl net.core.netdev_budget net.core.netdev_budget_usecs  # then twice that",
        "a core takes more packets before it does something else: rounds were cut short",
    )
    return (queue, spread, budget) if is_squeezed else (queue, spread)
