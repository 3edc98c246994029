"""``server-resets-when-full``: a server at its descriptor limit accepts and closes at once.

Proof: accept4 (or accept) returned EMFILE in a worker that lives on, and from then on clients see
their opening handshake end by RST (their request was unread) or EOF.
Of a server that is only watched, whose clients are elsewhere: resets that its sockets sent from
then on, at least one for ten of those EMFILE; a server that only fails to accept sends none.
Told apart from ``worker-crash``: there the process is gone.
"""

from __future__ import annotations

import pandas as pd

from analysis.causes import Cause, Effect
from analysis.evidence import Evidence, Finding, Fix, capitalised, side_of_role
from analysis.server.nofile_setting import lasting_limit_command
from analysis.signs.accept_outcomes import CLOSED_LEAST_SHARE, refused_at_once, resets_sent
from analysis.signs.signs import EMFILE, Signs
from probes.contract.schema import SERVER_ROLES

CAUSE = Cause(
    id="server-resets-when-full",
    line="a full server accepts and closes at once",
    follows_from=(
        "full-worker-on-shared-listener",
        Effect.FILLS_DESCRIPTORS,
    ),
)

_LEAST_EMFILE_SHARE = 0.01
"""libuv gives up its reserve once, then accepts and closes until the queue is empty
(src/unix/stream.c, uv__emfile_trick): one EMFILE for as many as are under way."""


def find(signs: Signs) -> list[Finding]:
    """One finding, about the worker that was full first."""
    view = signs.view
    emfile = signs.accept_errors(EMFILE)
    emfile = emfile[emfile["role"].isin(SERVER_ROLES)]
    processes = view.frames["processes"]
    gone = processes[processes["exited_ns"] > 0]
    emfile = emfile[~emfile["pid"].isin(gone["pid"])]
    if emfile.empty:
        return []
    first = emfile.sort_values("first_s", kind="stable").iloc[0]
    full_s = float(first["first_s"])
    if view.is_attached:
        return _seen_from_the_server(signs, emfile, full_s)
    refused = refused_at_once(view, full_s)
    emfile_count = int(emfile["event_count"].sum())
    if refused.empty or emfile_count < _LEAST_EMFILE_SHARE * len(refused):
        return []
    resets = int((refused["close_kind"] == "rst").sum())
    first_s = float(refused["closed_s"].min())
    subject = view.subject(int(first["pid"]))
    confidence, missing = signs.trust("failing_syscalls")
    name = str(subject)
    return [
        Finding(
            cause=CAUSE.id,
            severity="warning",
            side=side_of_role(subject.role),
            subject=subject,
            first_s=first_s,
            last_s=float(refused["closed_s"].max()),
            evidence=(
                Evidence("refused_by_rst", resets, "connections", first_s),
                Evidence("refused_by_eof", len(refused) - resets, "connections"),
                Evidence(
                    "emfile_calls",
                    emfile_count,
                    str(first["source"]),
                    full_s,
                    of=str(first["syscalls"]),
                ),
            ),
            explanation=(
                f"{capitalised(name)} is at its descriptor limit and alive. It gives up "
                f"a reserve descriptor, accepts and closes at once: {resets:,} clients saw "
                f"ECONNRESET (their request was unread) and {len(refused) - resets:,} saw EOF. "
                "The application is never told."
            ),
            fix=(
                Fix(
                    lasting_limit_command(view, subject.pid, 65_535),
                    f"the {len(refused):,} resets go away until 65,535 descriptors are in use",
                ),
                Fix(
                    "stop listening below the limit (in node: server.maxConnections does not do "
                    "it, server.close() does), listen again when a connection ends"
                    if view.is_foreign
                    else "profile-run --at-fd-limit pause",
                    f"{len(refused):,} clients wait in the accept queue instead of being reset",
                ),
            ),
            at_connections=view.open_count_at(first_s),
            confidence=confidence,
            missing=missing,
            sentence=f"{capitalised(name)} accepted and closed {len(refused):,} "
            f"connection{'s' if len(refused) != 1 else ''} at its descriptor limit",
            explained_count=len(refused),
        )
    ]


def _seen_from_the_server(signs: Signs, emfile: pd.DataFrame, full_s: float) -> list[Finding]:
    """By the resets that the server sent, without the records of its clients."""
    view = signs.view
    sent = resets_sent(view, full_s, view.stop_s + 1.0)
    count, emfile_count = int(sent["event_count"].sum()), int(emfile["event_count"].sum())
    if not count or count < CLOSED_LEAST_SHARE * emfile_count:
        return []
    first = emfile.sort_values("first_s", kind="stable").iloc[0]
    subject = view.subject(int(first["pid"]))
    name = capitalised(str(subject))
    first_s = max(full_s, float(view.seconds(int(sent["first_ns"].min()))))
    confidence, missing = signs.trust("failing_syscalls", "tcp_resets")
    return [
        Finding(
            cause=CAUSE.id,
            severity="warning",
            side=side_of_role(subject.role),
            subject=subject,
            first_s=first_s,
            last_s=max(first_s, float(sent["at_s"].max())),
            evidence=(
                Evidence("server_resets", count, "tcp_resets", first_s),
                Evidence(
                    "emfile_calls",
                    emfile_count,
                    str(first["source"]),
                    full_s,
                    of=str(first["syscalls"]),
                ),
            ),
            explanation=(
                f"{name} is at its descriptor limit and alive. It gives up a reserve descriptor, "
                f"accepts and closes at once: {count:,} resets went out since it was full, which "
                "clients see as ECONNRESET. The application is never told."
            ),
            fix=(
                Fix(
                    lasting_limit_command(view, subject.pid, 65_535),
                    f"the {count:,} resets go away until 65,535 descriptors are in use",
                ),
                Fix(
                    "stop listening below the limit (in node: server.maxConnections does not do "
                    "it, server.close() does), listen again when a connection ends",
                    f"{count:,} clients wait in the accept queue instead of being reset",
                ),
            ),
            at_connections=view.open_count_at(first_s),
            confidence=confidence,
            missing=missing,
            sentence=f"{name} reset {count:,} connection{'s' if count != 1 else ''} at its "
            "descriptor limit",
            explained_count=count,
        )
    ]
