"""``message-amplification``: each message goes to all, and what goes out fills a core.

Proof: for each message that comes in about as many go out as connections are open (clients of ours
count both; of a server that is only watched its sockets count segments and bytes, and what goes out
is as long as what comes in), while the core of the worker is full. With a number of connections
that send at one rate the work grows with its square.
Told apart from ``keepalive-storm``: there one goes out for each that comes in. From a server that
sends to all of its own accord: that grows with the number of connections alone, and what it sends
has nothing to do with what it gets. From ``hot-worker-code`` and ``handshake-cost``: a message
costs far more there, or none was sent. ``garbage-collection`` says better what the time goes to.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from analysis.causes import Cause, Effect
from analysis.evidence import Evidence, Finding, Fix, capitalised
from analysis.findings.cpu import handshake_cost, keepalive_storm
from analysis.findings.descriptors import accept_spin
from analysis.findings.memory import garbage_collection
from analysis.frames.cpu import never_rested
from analysis.frames.run_view import RunView
from analysis.frames.socket_traffic import Traffic, traffic_between
from analysis.signs.signs import MOST_MESSAGE_CPU_US, Signs
from analysis.stats.remembered import remembered
from analysis.stats.spans import runs_of
from analysis.stats.thresholds import LATE_EVENT_S, STEADY_CORE_PCT

CAUSE = Cause(
    id="message-amplification",
    line="each message goes to all, and what goes out fills a core",
    effect=Effect.SLOWS_ACCEPT,
    fills_a_core=True,
)

_LEAST_OUT_PER_IN = 8.0
_LEAST_CONNECTIONS = 10
_LEAST_IN_PER_S = 1.0
_LEAST_S, _WATCHED_LEAST_S = 1.9, 2.9
_REACHES_ALL, _SURELY_ALL = 0.05, 0.5
"""Share of its connections that a message reaches: one that falls behind has not sent them all."""
_MOST_TIMES_ALL = 1.5
"""More than one to each connection comes from elsewhere."""
_KEEPS_UP = 0.8
_LIKE_ALL = (0.3, 1.3)
"""Of a server that is only watched: messages out for one in, by connections."""
_LIKE_SIZE = (0.3, 6.0)
"""Length of a segment that goes out by that of one that comes in."""
_TOLD_WAIT_PCT = 10.0
_LEAST_SIZE_BYTES = 16.0
"""A ping or a pong is shorter."""


class _Rates(NamedTuple):
    """Messages of the server in a span, and how many connections were open then."""

    in_per_s: float
    out_per_s: float
    connections: int


class Amplified(NamedTuple):
    """A worker that never rests, and the messages of the server meanwhile.

    Attributes:
        pid: The worker.
        since_s: Begin of the span.
        until_s: Its end.
        cpu_pct: Its CPU there.
        wait_pct: How much of the time it waited for a core, None when not known.
        in_per_s: Messages that the server got.
        out_per_s: Messages that it sent.
        cpu_us: CPU of the server for one that it sent.
        work_share: Part of the server's CPU that is this worker's.
        connections: Open meanwhile.
        is_counted: Clients of ours counted the messages; else they are segments.
    """

    pid: int
    since_s: float
    until_s: float
    cpu_pct: float
    wait_pct: float | None
    in_per_s: float
    out_per_s: float
    cpu_us: float
    work_share: float
    connections: int
    is_counted: bool

    @property
    def out_per_in(self) -> float:
        """Messages that went out for each that came in."""
        return self.out_per_s / self.in_per_s

    @property
    def reached_share(self) -> float:
        """Part of the other connections that one reached, 0 to 1."""
        return min(1.0, self.out_per_in / max(1, self.connections - 1))

    @property
    def keeps_up(self) -> bool:
        """What came in has gone out to all."""
        return self.reached_share >= _KEEPS_UP

    @property
    def due_per_s(self) -> float:
        """Messages that would go out if all that came in went to all."""
        return self.out_per_s if self.keeps_up else self.in_per_s * (self.connections - 1)

    @property
    def wanted_pct(self) -> float:
        """CPU that this worker needs for that."""
        return self.due_per_s * self.cpu_us / 1e4 * self.work_share

    @property
    def most_connections(self) -> int:
        """Connections, each sending as now, at which the worker's core is just full.

        The work grows with their square, so with the root of what a core is of what is wanted.
        """
        return max(1, int(self.connections * math.sqrt(100 / self.wanted_pct)))


def find(signs: Signs) -> list[Finding]:
    """One finding about the worker whose core is full of it, or none."""
    found = amplified(signs)
    return [_finding(signs, found)] if found is not None else []


def amplifying_pids(signs: Signs) -> set[int]:
    """The worker whose core goes to messages that each reach all."""
    found = amplified(signs)
    return {found.pid} if found is not None else set()


@remembered
def amplified(signs: Signs) -> Amplified | None:
    """What the busiest worker of somebody else's server sends for what it gets, if it is much."""
    if not signs.view.is_foreign:
        return None
    taken: set[int] | None = None
    for pid, since_s, until_s in _spans(signs):
        found = _amplified(signs, pid, since_s, until_s)
        if found is None:
            continue
        if taken is None:
            taken = accept_spin.spinning_pids(signs) | garbage_collection.collecting_pids(signs)
            taken |= keepalive_storm.storming_pids(signs) | handshake_cost.costly_pids(signs)
        if pid not in taken:
            return found
    return None


def _spans(signs: Signs) -> list[tuple[int, float, float]]:
    """Where a worker never rested while connections were held: pid, begin, end; longest first."""
    view, rows = signs.view, signs.worker_cpu
    rows = rows[(rows["role"] == "server") & (rows["at_s"] <= view.stop_s + LATE_EVENT_S)]
    least_s = _WATCHED_LEAST_S if view.is_attached else _LEAST_S
    found = []
    for pid, mine in rows.groupby("pid", sort=True):
        at_s = mine["at_s"].to_numpy()
        busy = never_rested(mine["cpu_pct"].to_numpy(), mine["wait_pct"].to_numpy())
        for start, stop in runs_of(busy & (at_s > view.hold.start_s + 0.6)):
            since_s = max(view.hold.start_s, float(at_s[max(0, start - 1)]))
            if float(at_s[stop - 1]) - since_s >= least_s:
                found.append((int(str(pid)), since_s, float(at_s[stop - 1])))
    return sorted(found, key=lambda span: span[1] - span[2])


def _amplified(signs: Signs, pid: int, since_s: float, until_s: float) -> Amplified | None:
    view = signs.view
    rates = _counted(view, since_s, until_s)
    is_counted = rates is not None
    if rates is None and view.is_attached:
        rates = _watched(view, since_s, until_s)
    if rates is None or rates.in_per_s < _LEAST_IN_PER_S or rates.out_per_s <= 0:
        return None
    servers = view.pids_of("server")
    each_pct = {p: signs.cpu_pct_of(p, since_s, until_s) or 0.0 for p in servers}
    busy_pct = sum(each_pct.values())
    if not each_pct.get(pid):
        return None
    found = Amplified(
        pid=pid,
        since_s=since_s,
        until_s=until_s,
        cpu_pct=each_pct[pid],
        wait_pct=signs.wait_pct_of(pid, since_s, until_s),
        in_per_s=rates.in_per_s,
        out_per_s=rates.out_per_s,
        cpu_us=busy_pct * 1e4 / rates.out_per_s,
        work_share=each_pct[pid] / busy_pct,
        connections=rates.connections,
        is_counted=is_counted,
    )
    is_much = (
        found.out_per_in >= _LEAST_OUT_PER_IN
        and found.reached_share >= _REACHES_ALL
        and found.out_per_in <= _MOST_TIMES_ALL * found.connections
        and found.connections >= _LEAST_CONNECTIONS
        and found.wanted_pct >= STEADY_CORE_PCT
    )
    return found if is_much and found.cpu_us < MOST_MESSAGE_CPU_US else None


def _counted(view: RunView, since_s: float, until_s: float) -> _Rates | None:
    """Messages in and out a second and connections, as clients of ours counted them."""
    live = view.frames["live_samples"]
    at_s = view.seconds_of(live["at_ns"])
    rows = live[(live["role"] == "client") & (at_s >= since_s) & (at_s <= until_s + 0.3)]
    if rows.empty:
        return None
    sums = rows.groupby("pid")[["tx_messages_total", "rx_messages_total"]]
    grown = (sums.max() - sums.min()).sum()
    span_s = float(rows["at_ns"].max() - rows["at_ns"].min()) / 1e9
    if span_s <= 0 or not grown["tx_messages_total"] or not grown["rx_messages_total"]:
        return None
    middle_s = (since_s + until_s) / 2
    sent, got = float(grown["tx_messages_total"]), float(grown["rx_messages_total"])
    traffic = traffic_between(view, since_s, until_s)
    if traffic is not None and not _is_like_in_size(traffic):
        return None
    return _Rates(sent / span_s, got / span_s, view.open_count_at(middle_s))


def _watched(view: RunView, since_s: float, until_s: float) -> _Rates | None:
    """The same by segments and bytes of the server's sockets, where messages go to all."""
    traffic = traffic_between(view, since_s, until_s)
    if traffic is None or not traffic.socket_count or traffic.rx_bytes < _LEAST_SIZE_BYTES:
        return None
    share = traffic.tx_per_s / traffic.rx_per_s / traffic.socket_count
    longer = traffic.tx_bytes / traffic.rx_bytes
    # Segments of a peer that is slow are joined: then there are fewer, and they are longer.
    by_bytes = share * longer
    is_like_all = _LIKE_ALL[0] <= share <= _LIKE_ALL[1] or _LIKE_ALL[0] <= by_bytes <= _LIKE_ALL[1]
    if not is_like_all or not _is_like_in_size(traffic):
        return None
    return _Rates(traffic.rx_per_s, traffic.tx_per_s, traffic.socket_count)


def _is_like_in_size(traffic: Traffic) -> bool:
    """What goes out may be what came in, with a name or a time around it."""
    return _LIKE_SIZE[0] <= traffic.tx_bytes / traffic.rx_bytes <= _LIKE_SIZE[1]


def _finding(signs: Signs, found: Amplified) -> Finding:
    view = signs.view
    subject = view.subject(found.pid)
    name = capitalised(str(subject))
    table = "live_samples" if found.is_counted else "socket_traffic"
    most = found.most_connections
    evidence = [
        Evidence("process_cpu", found.cpu_pct, "process_samples", found.since_s),
        Evidence("span_length", found.until_s - found.since_s, "process_samples", found.since_s),
        Evidence("messages_in_rate", found.in_per_s, table, found.since_s),
        Evidence("messages_out_rate", found.out_per_s, table, found.since_s),
        Evidence("messages_out_per_in", found.out_per_in, table, found.since_s),
        Evidence("reached_share", 100 * found.reached_share, table, found.since_s),
        Evidence("connections_open", found.connections, table, found.since_s),
        Evidence("cpu_per_message", found.cpu_us, "process_samples", found.since_s),
        Evidence("cpu_wanted", found.wanted_pct, "process_samples", found.since_s),
        Evidence("full_at_connections", most, "process_samples"),
    ]
    waited = waits = ""
    if found.wait_pct is not None and found.wait_pct >= _TOLD_WAIT_PCT:
        evidence.append(
            Evidence("core_wait", found.wait_pct, "process_samples", found.since_s, of=str(subject))
        )
        waits = f" and waits for one {found.wait_pct:.0f} % of the time"
        waited = f" and waited for one {found.wait_pct:.0f} % of the time"
    confidence, missing = signs.trust("process_samples", table)
    if not found.is_counted:
        confidence = "medium"
        missing += (
            "what the messages say: that those that go out are those that came in is told by their "
            "number and length",
        )
    elif found.reached_share < _SURELY_ALL:
        confidence = "medium"
        missing += ("whether each is to go to all: far fewer went out than that would be",)
    each_per_s = found.in_per_s / found.connections
    behind = ""
    if not found.keeps_up:
        behind = (
            f" It falls behind: to all others would be {found.connections - 1:,} for each, and "
            f"{found.out_per_in:,.0f} went out."
        )
    lost = view.connections["is_lost"] & (view.connections["closed_s"] >= found.since_s)
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side="server",
        subject=subject,
        first_s=found.since_s,
        last_s=found.until_s,
        evidence=tuple(evidence),
        explanation=(
            f"{name} was at {found.cpu_pct:.0f} % of a core for "
            f"{found.until_s - found.since_s:.1f} s{waited}. For each of the {found.in_per_s:,.0f} "
            f"messages a second that {found.connections:,} connections sent, "
            f"{found.out_per_in:,.0f} went out, at {found.cpu_us:.0f} us of CPU each.{behind} "
            f"Twice the connections send twice as many to twice as many: the work grows with their "
            f"square. At {each_per_s:.2g} messages a second from each the core is full at about "
            f"{most:,} connections; with twice the cores at {int(most * math.sqrt(2)):,}, not at "
            f"{2 * most:,}."
        ),
        fix=_fixes(found, most),
        at_connections=found.connections,
        confidence=confidence,
        missing=missing,
        sentence=(
            f"{name} is at {found.cpu_pct:.0f} % of a core{waits}, as each message goes to all: "
            f"{found.out_per_in:,.0f} out for each that comes in, {found.out_per_s:,.0f} a second "
            f"to {found.connections:,} connections; that grows with the square of their number and "
            f"fills a core at about {most:,}"
        ),
        explained_count=0 if view.is_attached else int(lost.sum()),
    )


_INTERVALS_MS = (50, 100, 250, 500, 1_000)
_COMFORTABLE_PCT = 70.0
_ROOMS = 4


def _fixes(found: Amplified, most: int) -> tuple[Fix, ...]:
    due_per_s = found.due_per_s
    fixes = []
    for interval_ms in _INTERVALS_MS:
        ticks_per_s = found.connections * 1_000 / interval_ms
        wanted_pct = ticks_per_s * found.cpu_us / 1e4 * found.work_share
        if wanted_pct <= _COMFORTABLE_PCT and ticks_per_s <= due_per_s / 2:
            fixes.append(
                Fix(
                    f"collect what came in for {interval_ms} ms and send it to each as one message",
                    f"{ticks_per_s:,.0f} messages a second go out instead of {due_per_s:,.0f}, "
                    f"whatever comes in: about {wanted_pct:.0f} % of a core, and it grows with the "
                    "number of connections, not with its square",
                )
            )
            break
    return (
        *fixes,
        Fix(
            "send to whom it concerns: divide the connections into rooms, each on a worker of its "
            "own",
            f"in {_ROOMS} rooms of one size {due_per_s / _ROOMS:,.0f} messages a second go out in "
            f"all instead of {due_per_s:,.0f}, and one core carries {most:,} connections of a room",
        ),
        Fix(
            "make the message once and send the same bytes to all (no JSON for each)",
            f"one that goes out costs {found.cpu_us:.0f} us now; at half of it the core is full at "
            f"about {int(most * math.sqrt(2)):,} connections",
        ),
    )
