"""Errors: which system call failed with what, where, when, and what it means."""

from __future__ import annotations

from typing import Any

import pandas as pd

from reports.elements import formatting
from reports.elements.tables import (
    Cell,
    Heading,
    Part,
    Table,
    number_column,
    process_column,
    table_of,
    text_column,
)
from reports.sections.view import CLIENTS_ELSEWHERE, View

# What an errno says by itself; the cause is the verdict's business. man-pages: accept(2),
# connect(2), socket(2), tcp(7), errno(3).
_MEANINGS = {
    "EMFILE": "the process has no free file descriptor (RLIMIT_NOFILE)",
    "ENFILE": "the host's file table is full",
    "EADDRNOTAVAIL": "no free local port for this destination, or the address is not local",
    "EADDRINUSE": "the local address and port are taken",
    "ECONNREFUSED": "no process listens there",
    "ECONNRESET": "the peer answered with RST",
    "ETIMEDOUT": "no answer in time",
    "EPIPE": "written after the peer had closed",
    "ENOBUFS": "the kernel could not get a buffer or object",
    "ENOMEM": "no memory",
    "ECONNABORTED": "the peer left the accept queue before accept",
    "ENETUNREACH": "no route",
    "EOF": "the peer closed before it was expected",
    "EAGAIN": "nothing to do right now; asked again when the socket is ready",
    "EWOULDBLOCK": "nothing to do right now; asked again when the socket is ready",
    "EINPROGRESS": "the connect goes on; the socket reports its end",
    "EINTR": "interrupted by a signal, made again",
    "ENOENT": "there is no such file, descriptor or key",
    "EBADF": "the descriptor is not open",
    "EACCES": "not permitted",
    "EPERM": "not permitted",
    "EINVAL": "an argument is not valid",
    "EHOSTUNREACH": "no route to the host",
}
MAX_STACKS = 12
_OWN_FRAMES = (
    "syscall_exit_work",
    "syscall_exit_to_user",
    "__bpf_trace_",
    "bpf_trace_run",
    "bpf_prog_",
)


def errors_section(view: View) -> dict[str, Any]:
    """Side x syscall x errno x process, failed connections, sample stacks."""
    s = view.summary
    harmful = s.errors[~s.errors["benign"].astype(bool)]
    benign = s.errors[s.errors["benign"].astype(bool)]
    stacks = {
        (int(row["pid"]), str(row["syscall"]), str(row["errno_name"]))
        for row in s.failure_stacks.to_dict("records")
    }
    main = Part("errors-all", "Which system call failed, on which side?")
    if harmful.empty:
        main.empty = view.why_empty(
            "failing_syscalls", otherwise="No system call of the run failed in a harmful way."
        )
        if not s.connection_failures.empty:
            main.empty += " The clients' own records are below."
    else:
        main.lead = (
            f"{formatting.count(float(harmful['event_count'].sum()))} failed calls in the whole "
            f"run; {len(harmful)} combination{'s' if len(harmful) != 1 else ''} of side, system "
            "call, errno and process."
        )
        main.tables.append(
            _errors_table(view, "errors-table", "Errors, most first", harmful, stacks)
        )
    failures = Part("failures", "How did connections fail?")
    if s.connection_failures.empty:
        failures.empty = "Every attempted connection was established and none was lost."
        if view.is_watched:
            failures.empty = CLIENTS_ELSEWHERE
    else:
        failures.tables.append(_failures_table(view, s.connection_failures))
    parts = [main, failures]
    if not s.failure_stacks.empty:
        parts.append(_stacks_part(view, s.failure_stacks))
    if not benign.empty:
        routine = Part("benign", "Which failures are part of normal work?")
        routine.lead = "Non-blocking sockets answer so all the time; listed for completeness."
        routine.tables.append(_errors_table(view, "benign-table", "Routine errors", benign, set()))
        parts.append(routine)
    return {"parts": parts}


def _errors_table(
    view: View,
    table_id: str,
    caption: str,
    frame: pd.DataFrame,
    stacks: set[tuple[int, str, str]],
) -> Table:
    top = float(frame["event_count"].max())

    def stack(row: dict[str, Any]) -> Cell:
        key = (int(row["pid"]), str(row["syscall"]), str(row["errno_name"]))
        return Cell("sample", href="#stacks") if key in stacks else Cell("none")

    return table_of(
        table_id,
        caption,
        frame,
        [
            text_column("Side", "side"),
            text_column("System call", "syscall", is_code=True),
            text_column("Errno", "errno_name", is_code=True),
            process_column(),
            number_column("Count", "event_count", "whole run", share_of=max(top, 1.0)),
            number_column("First", "first_s", view.words.after_it, formatting.moment),
            number_column("Last", "last_s", view.words.after_it, formatting.moment),
            (
                Heading("What it means"),
                lambda r: Cell(_MEANINGS.get(str(r["errno_name"]), "see errno(3)")),
            ),
            (Heading("Stack"), stack),
            text_column("From table", "source", is_code=True),
        ],
    )


def _failures_table(view: View, frame: pd.DataFrame) -> Table:
    keys = ["client", "stage", "errno_name", "close_kind"]
    ordered = frame.sort_values("connection_count", ascending=False)
    assert set(keys) <= set(ordered.columns)
    return table_of(
        "failures-table",
        "Failed and lost connections by client",
        ordered,
        [
            number_column("Client", "client", ""),
            text_column("While", "stage"),
            (
                Heading("Errno"),
                lambda r: Cell(str(r["errno_name"]) or "none", is_code=bool(r["errno_name"])),
            ),
            text_column("Ended by", "close_kind"),
            number_column("Connections", "connection_count", "whole run"),
            number_column("First", "first_s", view.words.after_it, formatting.moment),
            number_column("Last", "last_s", view.words.after_it, formatting.moment),
        ],
    )


def _stacks_part(view: View, frame: pd.DataFrame) -> Part:
    part = Part("stacks", "Where in the code did they fail?")
    part.lead = (
        "The first failure of each kind, process and stack, outermost frame first. The frames of "
        "the probe itself are left out."
    )
    shown = frame.assign(
        user_stack=frame["user_stack"].map(_readable),
        kernel_stack=frame["kernel_stack"].map(_kernel),
    )
    keys = ["pid", "syscall", "errno_name", "user_stack", "kernel_stack"]
    counts = shown.groupby(keys)["at_s"].transform("size")
    first = shown.assign(sample_count=counts).sort_values("at_s", kind="stable")
    first = first.drop_duplicates(keys)

    def stack(column: str) -> Any:
        return lambda r: Cell(str(r[column]) or "not recorded", is_code=bool(r[column]))

    part.tables.append(
        table_of(
            "stacks-table",
            "Sample stacks of failing system calls",
            first.head(MAX_STACKS),
            [
                number_column("When", "at_s", view.words.after_it, formatting.moment),
                process_column(),
                text_column("System call", "syscall", is_code=True),
                text_column("Errno", "errno_name", is_code=True),
                number_column("Seen", "sample_count", "of the sampled failures"),
                (Heading("User stack"), stack("user_stack")),
                (Heading("Kernel stack"), stack("kernel_stack")),
            ],
        )
    )
    return part


def _readable(stack: str) -> str:
    return str(stack).replace(";", " \N{RIGHTWARDS ARROW} ")


def _kernel(stack: str) -> str:
    """The kernel stack without the frames that only the probe's own hook adds."""
    frames = str(stack).split(";")
    own = next((i for i, name in enumerate(frames) if name.startswith(_OWN_FRAMES)), len(frames))
    return _readable(";".join(name.removesuffix("_[k]") for name in frames[:own]))
