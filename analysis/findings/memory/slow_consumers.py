"""``slow-consumers``: unsent data piles up in the server for clients that do not read.

Proof: connections whose send queue stands: their peers acknowledged nothing from look to look,
most with a closed window, while more waits to be sent; and the memory of their process grows
meanwhile, with as many connections as before, at about the rate that the others are sent.
Told apart from a server that drops or waits (its memory is flat: worth knowing, and no limit) and
from bulk traffic: a queue that moves counts as little as one that is empty. From a leak: it grows
without standing queues, or by far more than these would have been sent. ``memory-exhausted``,
``runtime-heap-limit`` and the end of the process follow from it.
"""

from __future__ import annotations

from analysis.causes import Cause
from analysis.evidence import Evidence, Finding, Fix, Subject, capitalised
from analysis.signs.send_queues import Growth, Room, Standing, growth, rooms, standing
from analysis.signs.signs import Signs

CAUSE = Cause(
    id="slow-consumers",
    line="unsent data piles up in the server for clients that do not read",
    follows_from=("client-is-the-limit",),
)

_NAMED_COUNT = 3
_FLAT_LEAST_S = 10.0
_FLAT_LEAST_BYTES = 64 << 10
_TABLE = "send_queues"


def find(signs: Signs) -> list[Finding]:
    """One finding for each process that keeps data for clients that do not read."""
    if not signs.view.is_foreign:
        return []
    found: dict[int, Finding] = {}
    for span in standing(signs.view):
        grown = growth(signs.view, span)
        lasts = span.until_s - span.since_s >= _FLAT_LEAST_S
        if grown is None and not (lasts and span.queue_bytes >= _FLAT_LEAST_BYTES):
            continue
        found.setdefault(span.pid, _finding(signs, span, grown))
    return list(found.values())


def _finding(signs: Signs, span: Standing, grown: Growth | None) -> Finding:
    view = signs.view
    subject = view.subject(span.pid) if span.pid else Subject("server")
    name = capitalised(str(subject))
    held = max(view.open_count_at(span.until_s), span.socket_count)
    evidence = [
        Evidence("standing_connections", span.socket_count, _TABLE, span.until_s),
        Evidence("closed_window_peers", span.closed_count, _TABLE, span.until_s),
        Evidence("standing_data", span.queue_bytes, _TABLE, span.until_s),
        Evidence("standing_time", span.until_s - span.since_s, _TABLE, span.since_s),
        Evidence("connections_open", held, "live_samples", span.until_s),
    ]
    if span.unlooked_count:
        evidence.append(Evidence("queues_not_looked_at", span.unlooked_count, _TABLE))
    evidence += [
        Evidence("peer_data", peer.queue_bytes, "standing_sockets", span.until_s, of=peer.address)
        for peer in span.peers[:_NAMED_COUNT]
    ]
    tables = [_TABLE]
    wall: Room | None = None
    if grown is not None:
        evidence += [
            Evidence("memory_growth", grown.per_s_bytes, "process_samples", grown.since_s),
            Evidence("memory_grown", grown.grown_bytes, "process_samples", grown.until_s),
        ]
        tables.append("process_samples")
        wall = next(iter(rooms(view, span.pid)), None)
    if grown is not None and wall is not None:
        evidence += [
            Evidence("memory_left", wall.left_bytes, wall.table, grown.until_s, of=wall.what),
            Evidence("time_to_wall", wall.left_bytes / grown.per_s_bytes, wall.table),
        ]
    confidence, missing = signs.trust(*tables)
    if not span.pid:
        confidence = "medium"
        missing += ("which process has them: its descriptors could not be walked",)
    if grown is not None and not grown.is_like_sent:
        confidence = "medium"
        missing += ("whether it is their data that grows: no others read as much meanwhile",)
    which = f"{span.socket_count:,} of {held:,} connections whose clients do not read"
    if held == span.socket_count == 1:
        which = "its only connection, whose client does not read"
    return Finding(
        cause=CAUSE.id,
        severity="warning" if grown is not None else "info",
        side="server",
        subject=subject,
        first_s=span.since_s,
        last_s=max(span.until_s, grown.until_s if grown is not None else 0.0),
        evidence=tuple(evidence),
        explanation=_explanation(span, grown, wall, f"{name} has data for {which}"),
        fix=_fixes(span, subject, grown, is_attached=view.is_attached),
        at_connections=view.open_count_at(span.since_s),
        confidence=confidence,
        missing=missing,
        sentence=_sentence(grown, wall, name, which, span),
        explained_count=_explained(signs, span) if grown is not None else 0,
    )


def _sentence(
    grown: Growth | None, wall: Room | None, name: str, which: str, span: Standing
) -> str:
    if grown is None:
        return f"{name} has {size(span.queue_bytes)} in the kernel for {which}, and keeps no more"
    text = (
        f"{name} keeps {size(grown.per_s_bytes)} more each second for {which}: "
        f"{size(grown.grown_bytes)} in {grown.until_s - grown.since_s:.0f} s"
    )
    if wall is None:
        return text
    in_time = time_words(wall.left_bytes / grown.per_s_bytes)
    return f"{text}, and {wall.what} ({size(wall.left_bytes)} left) lasts {in_time}"


def _explanation(span: Standing, grown: Growth | None, wall: Room | None, begin: str) -> str:
    closed = f"{span.closed_count:,} of them" if span.closed_count < span.socket_count else "they"
    windows = f"; {closed} closed the window, and the kernel sends nothing" if closed else ""
    if not span.closed_count:
        windows = ": no answer comes from them, and the kernel only sends the same again"
    most = ", ".join(f"{p.address} ({size(p.queue_bytes)})" for p in span.peers[:_NAMED_COUNT])
    text = (
        f"{begin}: for {span.until_s - span.since_s:.0f} s and longer their clients took nothing"
        f"{windows}. {size(span.queue_bytes)} fill their buffers in the kernel"
        + (f", most for {most}" if most else "")
        + ". "
    )
    if grown is None:
        return text + (
            "The memory of the process does not grow meanwhile: it drops what they do not take, or "
            "waits for them. What it sends to all is late for these alone, unless it waits for "
            "each in turn."
        )
    each = grown.per_s_bytes / span.socket_count
    text += (
        f"What the kernel does not take the process keeps itself: its memory grew by "
        f"{size(grown.grown_bytes)} in {grown.until_s - grown.since_s:.0f} s, {size(each)} a "
        "second for each of them, while hardly a connection came or went. "
    )
    if wall is not None:
        text += (
            f"At that rate {wall.what}, {size(wall.left_bytes)}, is used up in "
            f"{time_words(wall.left_bytes / grown.per_s_bytes)}, and the process ends with all of "
            "its connections."
        )
    return text


def _explained(signs: Signs, span: Standing) -> int:
    if signs.view.is_attached:
        return span.socket_count
    return signs.harmed_since(span.since_s)


_BOUNDS = (
    (
        ("node", "bun", "deno"),
        "bound what waits for each client, before each send: if (ws.bufferedAmount > 1e6) "
        "ws.terminate()  // a bare socket: writableLength, destroy()",
    ),
    (
        ("python", "gunicorn", "uvicorn", "hypercorn", "daphne"),
        "bound what waits for each client, before each send: if "
        "transport.get_write_buffer_size() > 1e6: transport.abort()  # or await "
        "asyncio.wait_for(ws.send(data), 5)",
    ),
    (
        ("java", "jetty", "tomcat"),
        "bound what waits for each client: send only if channel.isWritable(), and close what "
        "stays so (Netty); Tomcat: BLOCKING_SEND_TIMEOUT",
    ),
    (("nginx",), "proxy_buffering off; send_timeout 10s;  # in the server or location"),
)
_ANY_BOUND = (
    "bound what waits for each client (a queue of fixed size, a deadline for each write), and drop "
    "or close the client that is over it; Go: SetWriteDeadline and a channel with a size"
)


def _fixes(
    span: Standing, subject: Subject, grown: Growth | None, *, is_attached: bool
) -> tuple[Fix, ...]:
    each = f"{span.socket_count:,} connection" + ("s" if span.socket_count != 1 else "")
    effect = f"a client that does not read costs at most that bound; {each} stand now"
    if grown is not None:
        effect = (
            f"memory stops growing by {size(grown.per_s_bytes)} a second; a client that does not "
            "read costs at most that bound"
        )
    program = subject.command.split(" ")[0].rpartition("/")[2]
    command = next((text for names, text in _BOUNDS if program.startswith(names)), _ANY_BOUND)
    fixes = [Fix(command, effect)]
    if span.peers and is_attached:  # clients of ours end with the run
        peer = span.peers[0]
        fixes.append(
            Fix(
                f"ss -K dst {peer.address}",
                f"closes the connection that holds most ({size(peer.queue_bytes)} in the kernel, "
                "and what the process keeps for it); one for each such client",
            )
        )
    return tuple(fixes)


def size(count: float) -> str:
    """Bytes for people, in the units of the page's tables: 9.2 MiB."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= factor:
            value = count / factor
            return f"{value:,.1f} {unit}" if value < 100 else f"{value:,.0f} {unit}"
    return f"{count:,.0f} bytes"


def time_words(seconds: float) -> str:
    """A time to come for people: about 40 s, 38 min, 5 h, 12 days."""
    for unit, length, most in (("s", 1, 120), ("min", 60, 120 * 60), ("h", 3600, 48 * 3600)):
        if seconds < most:
            return f"about {seconds / length:,.0f} {unit}"
    return f"about {seconds / 86_400:,.0f} days" if seconds < 365 * 86_400 else "more than a year"
