"""``fd-limit-system``: the host's file table is full (fs.file-max).

Proof: ENFILE from accept4 or socket, and /proc/sys/fs/file-nr at fs.file-max at that time
(fs/file_table.c, alloc_empty_file).
Told apart: ``fd-limit-process`` is EMFILE, with the descriptors of one process at its soft limit.
ENFILE with a low file-nr is a socket whose inode could not be allocated (net/socket.c, sock_alloc:
"Not exactly a match"): memory is the cause then, and this module names nothing.

Cannot be provoked without harm to the host (fs.file-max is no setting of a namespace): tested on
built tables alone.
"""

from __future__ import annotations

import pandas as pd

from analysis.causes import Cause, Effect
from analysis.evidence import Evidence, Finding, Fix, Subject, times
from analysis.signs.signs import CLOSED_ERRNOS, ENFILE, Signs
from analysis.stats.thresholds import FULL_SHARE, LATE_TABLE_S

CAUSE = Cause(
    id="fd-limit-system",
    line="the host's file table is full (fs.file-max)",
    effect=Effect.FILLS_DESCRIPTORS,
    is_raised=True,
    decide="cat /proc/sys/fs/file-nr while it fails: at fs.file-max or below",
)


def find(signs: Signs) -> list[Finding]:
    """One finding about the host."""
    refused = pd.concat([signs.errors_of(s, ENFILE) for s in ("accept4", "accept", "socket")])
    if refused.empty:
        return []
    first_s = float(refused["first_s"].min())
    at = _file_table(signs, first_s, float(refused["last_s"].max()))
    if at is None or at[0] < FULL_SHARE * at[1]:
        return []
    return [_finding(signs, refused, *at)]


def _file_table(signs: Signs, first_s: float, last_s: float) -> tuple[int, int] | None:
    """Most open files of the host while calls failed, and fs.file-max; None when not sampled."""
    table = signs.view.frames["sockstat"]
    at_s = signs.view.seconds_of(table["at_ns"])
    inside = table[
        (at_s >= first_s - LATE_TABLE_S)
        & (at_s <= last_s + LATE_TABLE_S)
        & (table["file_max_count"] > 0)
    ]
    if inside.empty:
        return None
    top = inside.sort_values("file_nr_count").iloc[-1]
    return int(top["file_nr_count"]), int(top["file_max_count"])


def _finding(signs: Signs, refused: pd.DataFrame, used: int, most: int) -> Finding:
    view = signs.view
    first = refused.sort_values("first_s", kind="stable").iloc[0]
    first_s, count = float(first["first_s"]), int(refused["event_count"].sum())
    who = view.subject(int(first["pid"]))
    at_connections = view.open_count_at(first_s)
    open_fds = signs.descriptors[signs.descriptors["pid"] == who.pid]
    evidence = [
        Evidence("enfile_calls", count, str(first["source"]), first_s, of=str(first["syscall"])),
        Evidence("open_files", used, "sockstat", first_s),
        Evidence("file_max", most, "sockstat"),
        Evidence("connections_open", at_connections, "connections", first_s),
    ]
    if len(open_fds):
        row = open_fds.iloc[0]
        held = int(row["own_count"]) + int(row["peak_count"])
        evidence.append(Evidence("descriptors_open", held, str(row["table"]), of=str(who)))
        evidence.append(
            Evidence("descriptor_limit", int(row["soft_count"]), "processes", of=str(who))
        )
    confidence, missing = signs.trust("failing_syscalls", "sockstat")
    # A connection over loopback is two sockets of this host, and so two files.
    wanted = max(view.target_count, 2 * view.peak_count)
    other = max(0, used - 2 * view.peak_count)
    new = max(2 * most, other + 2 * wanted)
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side="host",
        subject=Subject(),
        first_s=first_s,
        last_s=max(first_s, float(refused["last_s"].max())),
        evidence=tuple(evidence),
        explanation=(
            f"The host's file table is full: {used:,} of {most:,} files (fs.file-max) were open, "
            f"so {first['syscall']} of {who} failed with ENFILE; {times(count)} in all. No limit "
            "of a single process is met, and raising one does not help."
        ),
        fix=(
            Fix(
                f"sysctl -w fs.file-max={new}",
                f"room for {new - most:,} more files: this rung moves from about "
                f"{(most - other) // 2:,} to about {(new - other) // 2:,} connections over "
                "loopback, two files each",
            ),
        ),
        at_connections=at_connections,
        confidence=confidence,
        missing=missing,
        sentence=f"The host's file table was full: {used:,} of {most:,} files were open when "
        f"{first['syscall']} of {who} failed with ENFILE, at {at_connections:,} connections",
        explained_count=_explained(signs, refused),
    )


def _explained(signs: Signs, refused: pd.DataFrame) -> int:
    """ENFILE at a client's socket; and what a server that cannot accept leaves waiting."""
    connections = signs.view.connections
    own = connections["is_failed"] & (connections["errno"] == ENFILE)
    count = int(own.sum())
    if (refused["side"] == "server").any():
        late = connections["is_failed"] & connections["errno"].isin(CLOSED_ERRNOS)
        count += int(late.sum()) + signs.view.waiting_count
    return max(1, count)
