"""``fd-limit-process``: a process is at RLIMIT_NOFILE.

Proof: EMFILE from accept4, accept, socket or another call that takes a descriptor (server; a proxy
opens a socket for each connection, others a file or a pipe) or socket (client), which Linux returns
for nothing else (fs/file.c, alloc_fd), and descriptors open = soft limit of that pid. A worker that
leaves its listener before it meets EMFILE is full by its count alone; that is a limit only when
connections wanted in.
What its clients see depends on the runtime. Those that were never answered are counted here; resets
are ``server-resets-when-full``, a status is ``upgrade-refused``.
Sockets that clients have left and the server keeps (CLOSE_WAIT) are no load: a quarter of all and
more, at two looks in a row, is a leak, which a higher limit only puts off.
Told apart from ``fd-limit-system``: that one is ENFILE, with descriptors below the soft limit.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.causes import Cause, Effect
from analysis.evidence import (
    Evidence,
    Finding,
    Fix,
    Subject,
    capitalised,
    side_of_role,
    times,
)
from analysis.findings.descriptors.sockets_left_open import CLOSE_THEM
from analysis.server.nofile_setting import lasting_limit_command, raised_where_it_is_set
from analysis.signs.full_processes import full_processes
from analysis.signs.signs import ACCEPT_CALLS, CLOSED_ERRNOS, EMFILE, Signs
from probes.contract.schema import SERVER_ROLES

CAUSE = Cause(
    id="fd-limit-process",
    line="a process is at its descriptor limit (RLIMIT_NOFILE)",
    effect=Effect.FILLS_DESCRIPTORS,
    follows_from=("full-worker-on-shared-listener",),
    is_raised=True,
    decide="profile-run with twice the --nofile: what is left is not that limit",
    decide_between={
        "fd-limit-system": "profile-run with twice the --nofile: EMFILE goes away, ENFILE stays",
        "hot-worker-code": (
            "profile-run with twice the --nofile: a full worker then accepts, a hot one still"
            " does not"
        ),
        "worker-blocked": (
            "profile-run with twice the --nofile: a full worker then accepts, a blocked one "
            "does not"
        ),
        "accept-queue-overflow": (
            "profile-run with twice the --nofile: overflows that stay are those of a slow accept"
        ),
    },
)

_LEAST_TRYING_S = 0.5
_LEFT_LEAST_COUNT, _LEFT_LEAST_PCT = 20, 25.0
"""Sockets that clients have closed are closed within milliseconds, unless the server forgets to."""


def find(signs: Signs) -> list[Finding]:
    """One finding a side: about the process that was full first; the others are counted."""
    found = []
    for roles in (SERVER_ROLES, ("client",)):
        rows = full_processes(signs, roles)
        if len(rows):
            found.append(_finding(signs, rows))
    return found


def _finding(signs: Signs, rows: pd.DataFrame) -> Finding:
    view = signs.view
    row = rows.to_dict("records")[0]
    subject = view.subject(int(row["pid"]))
    soft, own, held = int(row["soft_count"]), int(row["own_count"]), int(row["peak_count"])
    emfile_count, first_s = int(row["emfile_count"]), float(row["first_s"])
    is_client = subject.role == "client"
    at_connections = view.begun_count_at(first_s) if is_client else view.open_count_at(first_s)
    open_then = at_connections
    if not is_client and not at_connections and not view.is_attached:
        # all came at once, and those that it had taken were answered a moment later
        full = min(held, soft - own) // view.descriptors_per_connection(subject.role)
        at_connections = min(full, view.peak_count)
    if view.is_attached:
        open_then = at_connections = _at_that_moment(signs, subject.pid, first_s, soft - own)
    # EMFILE itself proves that every descriptor was taken; the samples come twice a second
    used = soft if emfile_count else own + held
    counted_in = "live_samples" if view.is_attached else "connections"
    evidence = [
        Evidence("descriptors_open", used, str(row["table"]), first_s),
        Evidence("descriptor_limit", soft, "processes"),
        Evidence("descriptors_own", own, "processes"),
        Evidence("process_connections", held, str(row["table"])),
        Evidence("connections_open", open_then, counted_in, first_s),
        Evidence("processes_at_limit", len(rows), "processes"),
    ]
    syscall = str(row["emfile_calls"])
    if emfile_count:
        table = str(row["emfile_table"])
        evidence.append(Evidence("emfile_calls", emfile_count, table, first_s, of=syscall))
    confidence, missing = signs.trust("failing_syscalls", "live_samples")
    if emfile_count and held < 0.98 * (soft - own):
        confidence = "medium"
        missing += (f"no sample saw more than {held:,} connections in it before EMFILE",)
    others = ""
    if not is_client and (hanging_count := _hanging_count(signs, first_s)):
        evidence.append(Evidence("handshakes_unanswered", hanging_count, "connections", first_s))
        others = (
            f" {hanging_count:,} clients got no answer until their timeout: they hang instead of "
            "being reset."
        )
        others += _tries_again(emfile_count, float(row["last_s"]) - first_s)
    left = _left_open(signs, subject)
    leak = ""
    if left:
        evidence += left
        leak = f"; {left[0].value:,.0f} sockets, {left[1].value:.0f} % of them, had been closed by "
        leak += "their clients and not by it (CLOSE_WAIT)"
        others += (
            f" At {left[0].at_s or 0.0:.1f} s {left[0].value:,.0f} sockets of the server, "
            f"{left[1].value:.0f} % of those that it had, were of clients that had left "
            "(CLOSE_WAIT): it does not close them, and any limit is met in the end."
        )
    if len(rows) > 1:
        others += f" {len(rows)} processes of this side were full in the end."
    each_count = view.descriptors_per_connection(subject.role)
    taken = f"{soft - own:,} connections"
    if each_count > 1:
        evidence.append(Evidence("descriptors_per_connection", each_count, "live_samples"))
        taken = f"{soft - own:,} for {(soft - own) // each_count:,} connections"
    doing = "accepts" if subject.role != "client" else "opens"
    wanted = "connection"
    if emfile_count and not is_client and not any(each in syscall for each in ACCEPT_CALLS):
        doing, wanted = "opens", "file, pipe or socket"
    explanation = (
        f"{capitalised(str(subject))} {doing} no further {wanted}: its {soft:,} descriptors are "
        f"all in use, {own:,} by itself, {taken}."
        + (f" {syscall} returned EMFILE {times(emfile_count)}." if emfile_count else "")
        + others
    )
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side=side_of_role(subject.role),
        subject=subject,
        first_s=first_s,
        last_s=float(rows["last_s"].max()),
        evidence=tuple(evidence),
        explanation=explanation,
        fix=(*([CLOSE_THEM] if left else []), *_fixes(signs, row)),
        at_connections=at_connections,
        confidence=confidence,
        missing=missing,
        sentence=f"{capitalised(str(subject))} was at its descriptor limit of {soft:,} "
        f"({taken} + {own:,} own) at {at_connections:,} connections{leak}",
        explained_count=_explained(signs, subject),
    )


def _left_open(signs: Signs, subject: Subject) -> tuple[Evidence, Evidence] | None:
    """Sockets of the server that their clients had left and it kept, and their part of all.

    They must be there at two looks in a row, and become no fewer: of a server that is only late
    they go. What waits in a queue that nobody serves any more is looked at by other findings.
    """
    view = signs.view
    if not view.is_foreign or side_of_role(subject.role) != "server":
        return None
    states = view.frames["tcp_states"]
    states = states[states["side"] == "server"]
    full = signs.errors_by_pid(("accept4", "accept"), EMFILE)
    full_s = float(full["first_s"].min()) if len(full) else view.stop_s
    states = states[view.seconds_of(states["at_ns"]) <= full_s]
    kept = states[states["state"].isin(["ESTABLISHED", "CLOSE_WAIT"])]
    counts = kept.pivot_table(
        index="at_ns", columns="state", values="socket_count", aggfunc="sum", fill_value=0
    )
    if len(counts) < 2 or "CLOSE_WAIT" not in counts:
        return None
    before, count = (int(each) for each in counts["CLOSE_WAIT"].iloc[-2:])
    share_pct = 100 * count / max(1, int(counts.iloc[-1].sum()))
    if before < _LEFT_LEAST_COUNT or count < before or share_pct < _LEFT_LEAST_PCT:
        return None
    at_s = view.seconds(int(counts.index[-1]))
    return (
        Evidence("left_sockets", count, "tcp_states", at_s),
        Evidence("left_share", share_pct, "tcp_states", at_s),
    )


def _at_that_moment(signs: Signs, pid: int, at_s: float, capacity: int) -> int:
    """Connections of all when one was full, where they are only sampled: it held its capacity."""
    view = signs.view
    samples = view.watched_samples
    before = samples[view.seconds_of(samples["at_ns"]) <= at_s]
    latest = before.drop_duplicates("pid", keep="last")
    return int(latest["open_count"][latest["pid"] != pid].sum()) + capacity


def _explained(signs: Signs, subject: Subject) -> int:
    """What failed by this limit: EMFILE at a client's socket, else what a full server left."""
    connections = signs.view.connections
    if subject.role == "client":
        hit = connections["is_failed"] & (connections["errno"] == EMFILE)
        never_tried = signs.view.target_count - len(connections)
        return int(hit.sum()) + max(0, never_tried)
    others = connections["is_failed"] & (connections["errno"].isin(CLOSED_ERRNOS))
    return max(1, int(others.sum()) + signs.view.waiting_count)


def _hanging_count(signs: Signs, since_s: float) -> int:
    """Handshakes that ended by the client's own timeout after a process was full."""
    rows = signs.view.connections
    hanging = rows["is_failed"] & (rows["stage"] == "handshake") & (rows["close_kind"] == "timeout")
    return int((hanging & (rows["closed_s"] >= since_s)).sum())


def _tries_again(emfile_count: int, seconds: float) -> str:
    """How often a server that keeps its listener tries: with back-off, or in a loop."""
    if emfile_count < 2 or seconds < _LEAST_TRYING_S:
        return ""
    return (
        f" It keeps its listener and tries {(emfile_count - 1) / seconds:,.0f} times a second; who "
        "waits in the queue is served when a descriptor is freed."
    )


def _fixes(signs: Signs, row: Mapping[Hashable, Any]) -> tuple[Fix, ...]:
    """Raise the limit to what the target needs; or spread the target over more processes."""
    view = signs.view
    soft, own = int(str(row["soft_count"])), int(str(row["own_count"]))
    each_count = view.descriptors_per_connection(str(row["role"]))
    # its own files alone can fill it before the first connection
    capacity = max(1, (soft - own) // each_count)
    share = capacity / max(1, view.peak_count)
    wanted = max(view.target_count, 2 * view.peak_count)
    needed = own + each_count * int(np.ceil(share * wanted * 1.05))
    new = max(65_535 if needed <= 65_535 else -(-needed // 65_536) * 65_536, 2 * soft)
    if view.server_command and not view.host.get("may_raise_nofile", True):
        # the run starts it, and can give it no more than it has itself
        hard = int((view.host.get("limits") or {}).get("nofile_hard_count") or new)
        new = min(new, hard) if hard > soft else new
    moves = (
        f"moves this rung from about {round(capacity / share):,} connections to about "
        f"{round((new - own) / each_count / share):,} at the same share of {100 * share:.0f} % per "
        "process"
    )
    peers = view.who[view.who["role"] == row["role"]]
    per_target = int(np.ceil(wanted / capacity * 1.05))
    more = Fix(
        f"profile-run --{'clients' if row['role'] == 'client' else 'workers'} "
        f"{max(len(peers) + 1, per_target)}",
        f"{capacity:,} connections a process at this limit: so many processes hold {wanted:,}",
    )
    if row["role"] == "client":
        return Fix(f"ulimit -n {new}", moves), more
    lasting = Fix(lasting_limit_command(view, int(str(row["pid"])), new), moves)
    if not view.is_foreign:
        return lasting, Fix(f"profile-run --nofile {new}", moves), more
    more = Fix(
        f"start {max(len(peers) + 1, per_target)} processes of it (cluster, workers, replicas)",
        more.effect,
    )
    # what works as it stands goes first: the name of a unit is not known
    where_set = raised_where_it_is_set(view, int(str(row["pid"])), soft, new)
    if where_set is not None:  # more for its launcher would not reach it
        return Fix(where_set, moves), more
    if view.server_command:
        return Fix(f"profile-run --nofile {new}", moves), lasting, more
    return Fix(f"prlimit --pid {row['pid']} --nofile={new}", moves), lasting, more
