"""``tcp-memory-pressure``: TCP as a whole may take no more memory, of the host or of the cgroup.

Proof: sock_exceed_buf_limit events (net/core/sock.c, __sk_mem_raise_allocated), packets that were
dropped for PROTO_MEM, TCPRcvQDrop and TCPMemoryPressures, with TCP's memory against its limit.
Memory of TCP is the host's, and in a network namespace that others use the counters are also
theirs: what is refused must be sockets of the run, by their ports, or clients of the run that gave
up.
Told apart from ``receive-buffer-full``: there one socket is over its own rcvbuf, its window closes
and nothing is dropped; here sockets with room in their own buffers drop what arrives, and the send
buffers of the others shrink.
"""

from __future__ import annotations

import pandas as pd

from analysis.causes import Cause
from analysis.evidence import Evidence, Finding, Fix, Subject
from analysis.frames.failures import drops_of_run
from analysis.signs.memory import counter, gave_up, lost_to_full_buffers, rise, until_stop
from analysis.signs.signs import Signs

CAUSE = Cause(
    id="tcp-memory-pressure",
    line="TCP as a whole is over tcp_mem",
    follows_from=("slow-consumers",),
    decide="cat /proc/net/sockstat while it stalls: mem against net.ipv4.tcp_mem",
    decide_between={
        "receive-buffer-full": (
            "cat /proc/net/sockstat against net.ipv4.tcp_mem: below its second value it is "
            "one socket"
        ),
    },
)

_COUNTERS = {
    "TcpExtTCPRcvQDrop": "segments_dropped",
    "TcpExtTCPMemoryPressures": "tcp_memory_pressures",
    "TcpExtTCPAbortOnMemory": "tcp_memory_aborts",
}
"""Counter to the id of its evidence."""

_OVER_LIMIT = {
    "exceed_buf_limit_tx": "over_limit_sends",
    "exceed_buf_limit_rx": "over_limit_receives",
}
"""Kind in ``socket_pressure`` to the id of its evidence."""


def find(signs: Signs) -> list[Finding]:
    """One finding about TCP of the cgroup, or of the host."""
    view = signs.view
    events = until_stop(view, "socket_pressure")
    events = events[events["kind"].isin(_OVER_LIMIT) & (events["event_count"] > 0)]
    events = events[events["side"] != "other"]
    moved = {name: rise(counter(view, name), "value_total") for name in _COUNTERS}
    pressures = moved["TcpExtTCPMemoryPressures"][0] + moved["TcpExtTCPAbortOnMemory"][0]
    if not view.has_own_namespace and not lost_to_full_buffers(view):
        pressures = 0  # of whoever has sockets in it
    if events.empty and not pressures:
        return []
    usage = _usage(signs)
    if not usage:
        # A refusal needs memory at its limit somewhere; without it the events are of one socket.
        return []
    firsts = [t for count, t, _ in moved.values() if count]
    lasts = [t for count, _, t in moved.values() if count]
    firsts += [float(view.seconds(ns)) for ns in events["first_ns"] if ns > 0]
    lasts += [float(t) for t in events["at_s"]]
    first_s, last_s = min(firsts), max(lasts)
    evidence = [
        Evidence(
            _OVER_LIMIT[str(kind)],
            int(part["event_count"].sum()),
            "socket_pressure",
            first_s,
            of=str(side),
        )
        for (kind, side), part in events.groupby(["kind", "side"])
    ]
    for name, (count, at_s, _) in moved.items():
        if count:
            evidence.append(Evidence(_COUNTERS[name], count, "net_counters", at_s))
    drops = drops_of_run(view)
    drops = drops[drops["reason"] == "PROTO_MEM"]
    if len(drops):
        count = int(drops["event_count"].sum())
        evidence.append(Evidence("proto_mem_drops", count, "skb_drops"))
    confidence, missing = signs.trust("socket_pressure", "net_counters")
    used, most = usage[0].value, usage[1].value
    whose = "the cgroup" if usage[0].table == "cgroup_memory" else "the host"
    events_count = int(events["event_count"].sum())
    lost = lost_to_full_buffers(view)
    refused = events_count if view.is_attached else lost
    return [
        Finding(
            cause=CAUSE.id,
            severity="warning",
            side="host",
            subject=Subject(),
            first_s=first_s,
            last_s=max(first_s, last_s),
            evidence=(*usage, *evidence),
            explanation=(
                f"TCP's buffers of {whose} together held {used:,.0f} of {most:,.0f} bytes, so TCP "
                f"refused sockets more memory {events_count:,} times although their own buffers "
                "had room: what arrives is dropped and sent again, and send buffers shrink, so "
                f"senders wait or give up{gave_up(view)}. A receiver does not read what is sent."
            ),
            fix=_fixes(
                whose,
                int(most),
                int(used),
                is_foreign=view.is_foreign,
                page_bytes=_page_bytes(signs),
            ),
            at_connections=view.open_count_at(first_s),
            confidence=confidence,
            missing=missing,
            sentence=f"TCP of {whose} was out of buffer memory: {used:,.0f} of {most:,.0f} bytes, "
            f"refused {events_count:,} times",
            explained_count=refused,
        )
    ]


def _usage(signs: Signs) -> list[Evidence]:
    """Memory of TCP and its limit where it was met: of a cgroup of the run, else of the host."""
    groups = [part for _, part in until_stop(signs.view, "cgroup_memory").groupby("cgroup_id")]
    for group in groups:
        limited = group[group["tcp_max_bytes"] > 0]
        used, most = limited["tcp_used_bytes"], limited["tcp_max_bytes"]
        if found := _met("cgroup_memory", limited["at_s"], used, most):
            return found
    for group in groups:
        whole = group[group["max_bytes"] > 0]
        if len(whole) and rise(whole, "limit_hits_total")[0] and whole["tcp_used_bytes"].max() > 0:
            # version 2: buffers count as memory of the group
            row = whole.iloc[int(whole["tcp_used_bytes"].to_numpy().argmax())]
            pair = (float(row["tcp_used_bytes"]), float(row["max_bytes"]))
            return _pair("cgroup_memory", float(row["at_s"]), *pair)
    stat = until_stop(signs.view, "sockstat")
    stat = stat[stat["tcp_mem_pressure_pages"] > 0]
    page_bytes = _page_bytes(signs)
    used, most = stat["tcp_mem_pages"] * page_bytes, stat["tcp_mem_pressure_pages"] * page_bytes
    return _met("sockstat", stat["at_s"], used, most)


def _page_bytes(signs: Signs) -> int:
    return int(signs.view.host.get("page_size_bytes") or 4096)


def _met(
    table: str, at_s: pd.Series[float], used: pd.Series[int], most: pd.Series[int]
) -> list[Evidence]:
    # The kernel charges sockets in batches, so the last step may fall short of the limit.
    full = used >= 0.95 * most
    if not full.any():
        return []
    peak = int(used.to_numpy().argmax())
    return _pair(table, float(at_s.iloc[peak]), float(used.iloc[peak]), float(most.iloc[peak]))


def _pair(table: str, at_s: float, used: float, most: float) -> list[Evidence]:
    return [
        Evidence("tcp_memory_peak", used, table, at_s),
        Evidence("tcp_memory_limit", most, table),
    ]


def _fixes(
    whose: str, most_bytes: int, used_bytes: int, *, is_foreign: bool, page_bytes: int
) -> tuple[Fix, ...]:
    wanted = 4 * max(most_bytes, used_bytes)
    read = Fix(
        "ss -tmn state established | sort -k1 -n | tail",
        f"shows whose data wait to be read; read, they free up to {used_bytes:,} bytes",
    )
    if whose == "the cgroup" and is_foreign:
        command = (
            f"echo {wanted} > memory.kmem.tcp.limit_in_bytes  # of the server's control group; of "
            "one of version 2: memory.max"
        )
    elif whose == "the cgroup":
        command = "profile-run --tcp-memory-max " + str(wanted)
    else:
        pages = wanted // page_bytes
        command = f'sysctl -w net.ipv4.tcp_mem="{pages // 2} {pages} {2 * pages}"'
    return (read, Fix(command, f"room for {wanted:,} bytes of buffers instead of {most_bytes:,}"))
