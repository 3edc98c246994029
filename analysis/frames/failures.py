"""What failed: errors by side, process, syscall and errno; drops, resets, retransmits."""

from __future__ import annotations

import errno as errno_module
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.evidence import side_of_role
from analysis.frames.run_view import RunView

_SYSCALL_OF_STAGE = {
    "socket": "socket",
    "bind": "bind",
    "connect": "connect",
    "handshake": "read",
    "open": "read",
    "closed": "read",
}

_RESOURCE = {"EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EADDRNOTAVAIL", "ENOSPC"}
"""Errors that say a resource is out, whatever the syscall."""

_NETWORK_SYSCALLS = {
    "accept",
    "accept4",
    "bind",
    "close",
    "connect",
    "epoll_ctl",
    "getsockname",
    "getsockopt",
    "listen",
    "read",
    "readv",
    "recvfrom",
    "recvmsg",
    "sendfile",
    "sendmsg",
    "sendto",
    "setsockopt",
    "shutdown",
    "socket",
    "write",
    "writev",
}

_NORMAL = {"EAGAIN", "EINPROGRESS", "EINTR", "EALREADY", "EISCONN", "ERESTARTSYS"}
"""Non-blocking sockets return these as part of their work."""

_BENIGN_DROPS = {
    "NOT_SPECIFIED",
    "TCP_OLD_ACK",
    "TCP_OLD_DATA",
    "SKB_CONSUMED",
    "NOT_DROPPED_YET",
    "TCP_FASTOPEN",
}
"""Reasons under which a healthy loopback connection frees packets that did their work."""


def errno_name(number: int) -> str:
    """``EMFILE`` for 24, '' for 0, the number as text when Linux has no such name."""
    return errno_module.errorcode.get(int(number), str(int(number)) if number else "")


def is_benign(syscall: str, name: str) -> bool:
    """Part of normal work: an empty socket, a connect in progress, a file that is optional."""
    if name in _RESOURCE:
        return False
    return name in _NORMAL or syscall not in _NETWORK_SYSCALLS


_ERROR_COLUMNS = [
    "side",
    "role",
    "worker",
    "pid",
    "syscall",
    "errno",
    "errno_name",
    "event_count",
    "first_s",
    "last_s",
    "source",
    "benign",
]


def df_errors(view: RunView) -> pd.DataFrame:
    """Errors of the run by process, syscall and errno, harmful and frequent first.

    What the kernel's probe saw comes first; what only the fleet itself recorded (a failure that
    no syscall returned, or a run without eBPF) is added.
    """
    kernel = _kernel_errors(view)
    # The syscall that returned an errno is the kernel's to say: a refused connect shows at write.
    network = kernel[kernel["syscall"].isin(_NETWORK_SYSCALLS)]
    seen = set(zip(network["pid"], network["errno"], strict=True))
    parts = [kernel]
    for extra in (_connection_errors(view), _accept_errors(view)):
        if extra is not None:
            keys = zip(extra["pid"], extra["errno"], strict=True)
            parts.append(extra[[key not in seen for key in keys]])
    frame = view.with_who(pd.concat(parts, ignore_index=True))
    benign = [is_benign(s, n) for s, n in zip(frame["syscall"], frame["errno_name"], strict=True)]
    after_stop = (frame["first_s"] >= view.stop_s).to_numpy(dtype=bool)
    frame = frame.assign(
        side=frame["role"].map(side_of_role).astype("str"),
        benign=np.array(benign, dtype=bool) | after_stop,
    )
    frame = frame.sort_values(
        ["benign", "event_count"], ascending=[True, False], kind="stable", ignore_index=True
    )
    return frame[_ERROR_COLUMNS]


def _kernel_errors(view: RunView) -> pd.DataFrame:
    raw = view.frames["failing_syscalls"]
    key = ["pid", "syscall", "errno"]
    grouped = raw[[*key, "errno_name", "event_count", "first_ns", "last_ns"]]
    if len(raw):
        grouped = raw.groupby(key, as_index=False).agg(
            errno_name=("errno_name", "last"),
            event_count=("event_count", "sum"),
            first_ns=("first_ns", "min"),
            last_ns=("last_ns", "max"),
        )
    first_s, last_s = view.seconds_of(grouped["first_ns"]), view.seconds_of(grouped["last_ns"])
    named = grouped.assign(first_s=first_s, last_s=last_s, source="failing_syscalls")
    return named.drop(columns=["first_ns", "last_ns"])


def _connection_errors(view: RunView) -> pd.DataFrame | None:
    """What clients recorded of connections that failed or were lost; None where none did."""
    bad = view.ended_connections
    if bad.empty:
        return None
    pids = {int(c): view.pid_of("client", int(c)) for c in bad["client"].unique()}
    rows = bad.assign(
        pid=bad["client"].map(pids).astype("int64"),
        syscall=bad["stage"].map(_SYSCALL_OF_STAGE).fillna("").astype("str"),
        name=_failure_names(bad),
    )
    grouped = rows.groupby(["pid", "syscall", "errno", "name"], as_index=False).agg(
        event_count=("connection", "size"), first_s=("closed_s", "min"), last_s=("closed_s", "max")
    )
    return grouped.rename(columns={"name": "errno_name"}).assign(source="connections")


def _failure_names(bad: pd.DataFrame) -> pd.Series[str]:
    """The errno's name, or how it ended when there was none: EOF, TIMEOUT, PROTOCOL."""
    names = {int(n): errno_name(int(n)) for n in bad["errno"].unique()}
    by_errno = bad["errno"].map(names)
    return by_errno.where(bad["errno"] != 0, bad["close_kind"].str.upper()).astype("str")


def _accept_errors(view: RunView) -> pd.DataFrame | None:
    """EMFILE that the workers counted themselves; None where they counted none."""
    samples = view.frames["live_samples"]
    hit = samples[samples["accept_emfile_total"] > 0]
    if hit.empty:
        return None
    grouped = hit.groupby("pid", as_index=False).agg(
        event_count=("accept_emfile_total", "max"), first=("at_ns", "min"), last=("at_ns", "max")
    )
    first_s, last_s = view.seconds_of(grouped["first"]), view.seconds_of(grouped["last"])
    return grouped.drop(columns=["first", "last"]).assign(
        syscall="accept4",
        errno=errno_module.EMFILE,
        errno_name="EMFILE",
        first_s=first_s,
        last_s=last_s,
        source="live_samples",
    )


def df_errors_over_time(view: RunView, errors: pd.DataFrame) -> pd.DataFrame:
    """Counts of the harmful errors in each interval.

    Args:
        view: The run.
        errors: From ``df_errors``.
    """
    columns = ["at_s", "side", "role", "worker", "pid", "syscall", "errno_name", "event_count"]
    raw = view.frames["failing_syscalls"]
    at_s = view.seconds_of(raw["at_ns"])
    benign = [is_benign(s, n) for s, n in zip(raw["syscall"], raw["errno_name"], strict=True)]
    kernel = raw.assign(at_s=at_s)[~np.array(benign, dtype=bool)]
    kernel = kernel[kernel["at_s"] <= view.stop_s + 1.0]
    kernel = kernel.assign(interval_s=intervals_s(kernel["at_s"], at_s, view.counting_period_s))
    parts = [kernel[["at_s", "pid", "syscall", "errno", "errno_name", "event_count", "interval_s"]]]
    wanted = errors[(errors["source"] == "connections") & ~errors["benign"]]
    keys = set(zip(wanted["pid"], wanted["syscall"], wanted["errno_name"], strict=True))
    bad = view.ended_connections
    pids = {int(c): view.pid_of("client", int(c)) for c in bad["client"].unique()}
    width_s = 0.25
    rows = bad.assign(
        pid=bad["client"].map(pids).astype("int64"),
        syscall=bad["stage"].map(_SYSCALL_OF_STAGE).fillna("").astype("str"),
        errno_name=_failure_names(bad),
        at_s=(np.floor(bad["closed_s"] / width_s) + 1) * width_s,
    )
    counted = rows.groupby(["at_s", "pid", "syscall", "errno", "errno_name"], as_index=False)
    by_bin = counted.agg(event_count=("connection", "size")).assign(interval_s=width_s)
    marks = zip(by_bin["pid"], by_bin["syscall"], by_bin["errno_name"], strict=True)
    parts.append(by_bin[[mark in keys for mark in marks]])
    frame = view.with_who(pd.concat(parts, ignore_index=True))
    frame = frame.assign(
        side=frame["role"].map(side_of_role).astype("str"),
        events_per_s=frame["event_count"] / frame["interval_s"],
    )
    frame = frame.sort_values("at_s", kind="stable", ignore_index=True)
    return frame[[*columns, "events_per_s"]]


def intervals_s(
    at_s: pd.Series[float], raw_at_s: Sequence[float] | np.ndarray, most_s: float = np.inf
) -> np.ndarray:
    """How long the interval of each row was: the distance between the table's moments.

    Args:
        at_s: Ends of the intervals.
        raw_at_s: All moments of the table.
        most_s: The probe's own period, where it watches a part of the time only.
    """
    moments = np.unique(np.asarray(raw_at_s, dtype=np.float64))
    if len(moments) < 2:
        return np.full(len(at_s), 1.0)
    steps = np.diff(moments)
    typical_s = min(most_s, float(np.median(steps)))
    # after a gap in which nothing failed, the interval is still the probe's own period
    lengths = np.minimum(np.concatenate([[typical_s], steps]), min(1.5 * typical_s, most_s))
    found: np.ndarray = lengths[np.searchsorted(moments, at_s.to_numpy())]
    return found


def df_connection_failures(view: RunView) -> pd.DataFrame:
    """Connections that failed or were lost, by client, stage and how."""
    bad = view.ended_connections
    named = bad.assign(errno_name=_failure_names(bad))
    key = ["client", "stage", "errno", "errno_name", "close_kind"]
    return (
        named.groupby(key, as_index=False)
        .agg(
            connection_count=("connection", "size"),
            first_s=("closed_s", "min"),
            last_s=("closed_s", "max"),
        )
        .sort_values("connection_count", ascending=False, kind="stable", ignore_index=True)
    )


def _events(
    view: RunView, table: str, key: list[str], first: str | None, **extra: tuple[str, str]
) -> pd.DataFrame:
    """Counts of an event table by key over the run, most first, with first and last moment."""
    raw = view.frames[table]
    wanted: Mapping[str, tuple[str, str]] = {
        "event_count": ("event_count", "sum"),
        "first_s": (first or "at_ns", "min"),
        "last_s": ("at_ns", "max"),
        **extra,
    }
    raw = raw[raw["event_count"] > 0]
    frame = raw.groupby(key, as_index=False).agg(**dict(wanted))
    frame = frame.assign(
        first_s=view.seconds_of(frame["first_s"]), last_s=view.seconds_of(frame["last_s"])
    )
    return frame.sort_values("event_count", ascending=False, kind="stable", ignore_index=True)


def drops_of_run(view: RunView) -> pd.DataFrame:
    """Rows of ``skb_drops`` that a finding may use: before the stop, and not of any namespace."""
    raw = view.frames["skb_drops"]
    if raw.empty:
        return raw
    return raw[
        (raw["namespace_known"] != 0) & (view.seconds_of(raw["at_ns"]) <= view.last_sample_s)
    ]


def df_drops(view: RunView) -> pd.DataFrame:
    """Packets the kernel dropped, by reason, place and namespace; harmful first."""
    frame = _events(view, "skb_drops", ["reason", "location", "namespace_known"], None)
    attempts = max(1, len(view.connections))
    frame = frame.assign(
        per_connection=frame["event_count"] / attempts,
        benign=frame["reason"].isin(_BENIGN_DROPS),
    )
    return frame.sort_values(
        ["benign", "event_count"], ascending=[True, False], kind="stable", ignore_index=True
    )


def df_resets(view: RunView) -> pd.DataFrame:
    """Resets sent and received."""
    return _events(view, "tcp_resets", ["direction", "side", "state", "reason"], "first_ns")


def df_retransmits(view: RunView) -> pd.DataFrame:
    """Retransmitted segments."""
    return _events(view, "tcp_retransmits", ["side", "state"], None)


def df_socket_pressure(view: RunView) -> pd.DataFrame:
    """Sockets that met a buffer limit."""
    return _events(
        view,
        "socket_pressure",
        ["kind", "side"],
        "first_ns",
        allocated_max_pages=("allocated_max_pages", "max"),
    )


def df_state_transitions(view: RunView) -> pd.DataFrame:
    """TCP state transitions of the run."""
    frame = _events(view, "tcp_state_transitions", ["side", "old_state", "new_state"], None)
    return frame[["side", "old_state", "new_state", "event_count"]]


_TELLING = (
    "TcpExtListenOverflows",
    "TcpExtListenDrops",
    "TcpExtTCPReqQFullDrop",
    "TcpExtTCPReqQFullDoCookies",
    "TcpExtTCPMemoryPressures",
    "TcpExtTCPAbortOnMemory",
    "TcpExtTCPRcvQDrop",
    "TcpExtTCPTimeouts",
    "TcpAttemptFails",
    "TcpEstabResets",
    "TcpRetransSegs",
    "TcpOutRsts",
)


def df_net_counters(view: RunView) -> pd.DataFrame:
    """Counters of the network stack that moved during the run, the most telling first."""
    raw = view.frames["net_counters"]
    at_s = view.seconds_of(raw["at_ns"])
    rows = raw.assign(at_s=at_s)[at_s <= view.stop_s]
    rows = rows.assign(before=rows.groupby("counter", sort=False)["value_total"].shift())
    moved = rows[(rows["value_total"] - rows["before"]) > 0]
    ends = rows.groupby("counter")["value_total"].agg(["first", "last"])
    spans = moved.groupby("counter")["at_s"].agg(["min", "max"])
    frame = pd.DataFrame(
        {
            "change_total": (ends["last"] - ends["first"]).reindex(spans.index).astype("int64"),
            "first_s": spans["min"],
            "last_s": spans["max"],
        }
    )
    frame = frame.rename_axis("counter").reset_index()
    rank = {name: position for position, name in enumerate(_TELLING)}
    place = frame["counter"].map(rank).fillna(len(rank))
    frame = frame.assign(place=place).sort_values(
        ["place", "change_total"], ascending=[True, False], kind="stable", ignore_index=True
    )
    return frame[["counter", "change_total", "first_s", "last_s"]]


def df_failure_stacks(view: RunView) -> pd.DataFrame:
    """The first few failures of each kind with their stacks, harmful ones only."""
    raw = view.frames["failure_stacks"]
    frame = view.with_who(raw.assign(at_s=view.seconds_of(raw["at_ns"])))
    names = {int(n): errno_name(int(n)) for n in frame["errno"].unique()}
    frame = frame.assign(errno_name=frame["errno"].map(names).astype("str"))
    pairs = zip(frame["syscall"], frame["errno_name"], strict=True)
    harmful = np.array([not is_benign(s, n) for s, n in pairs], dtype=bool)
    columns = ["at_s", "pid", "role", "worker", "syscall", "errno_name"]
    return frame[harmful][[*columns, "kernel_stack", "user_stack"]].reset_index(drop=True)
