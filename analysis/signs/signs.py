"""What the findings look at: one run's frames, each computed once."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from analysis.evidence import Confidence
from analysis.frames.failures import intervals_s
from analysis.frames.probe_trust import ProbeTrust
from analysis.frames.run_view import RunView
from analysis.ladder.ladder import Rung
from analysis.server.answer_gaps import Hiccup, hiccups
from analysis.server.process_ends import ProcessEnd, process_ends
from analysis.server.server_words import Spoken, spoken
from analysis.signs.hot_worker import find_hot_worker
from analysis.stats.remembered import remembered
from analysis.stats.thresholds import FULL_CORE_PCT, LATE_CPU_S, LATE_EVENT_S, LATE_LIVE_S
from probes.contract.schema import SERVER_ROLES

ACCEPT_CALLS = ("accept4", "accept")
"""Runtimes differ: Node, CPython and uWebSockets call accept4, the JDK accept."""

EMFILE, ENFILE, ENOBUFS = errno.EMFILE, errno.ENFILE, errno.ENOBUFS
EADDRINUSE, EADDRNOTAVAIL, ETIMEDOUT = errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.ETIMEDOUT
CLOSED_ERRNOS = (0, errno.ECONNRESET, errno.ETIMEDOUT, errno.EPIPE)
"""Of a connection that the other side ended, or that got no answer."""

HALF_CORE_PCT = 50.0

MOST_MESSAGE_CPU_US = 200.0
"""A message that costs more CPU than this is not what burns it (ours cost 5 to 25 us)."""

_MESSAGES = (
    "rx_messages_total",
    "tx_messages_total",
    "rx_pings_total",
    "tx_pings_total",
    "rx_pongs_total",
)


@dataclass(frozen=True)
class Signs:
    """The frames of one run that causes are told apart by.

    Attributes:
        view: The run itself.
        errors: ``failures.df_errors``.
        ports: ``ports.df_ports``.
        descriptors: ``descriptors.df_descriptors``.
        worker_cpu: ``cpu.df_worker_cpu``.
        host_cpu: ``cpu.df_host_cpu``.
        ladder: ``ladder.build_ladder``.
    """

    view: RunView
    errors: pd.DataFrame
    ports: pd.DataFrame
    descriptors: pd.DataFrame
    worker_cpu: pd.DataFrame
    host_cpu: pd.DataFrame
    ladder: list[Rung]

    @cached_property
    def hot_worker(self) -> dict[str, Any] | None:
        """The worker at a full core, None when there was none."""
        return find_hot_worker(self.view, self.worker_cpu)

    @cached_property
    def unmet_count(self) -> int:
        """Connections of the target that were never established, or were lost again."""
        view = self.view
        established = int(view.connections["established_s"].notna().sum())
        recorded = max(established, view.peak_count)
        return max(0, view.target_count - recorded) + view.lost_count

    @cached_property
    def stalled_count(self) -> int:
        """Attempts that waited in vain: timed out, or neither open nor failed at the stop."""
        connections = self.view.connections
        late = connections["is_failed"] & (
            (connections["close_kind"] == "timeout") | (connections["errno"] == ETIMEDOUT)
        )
        return int(late.sum()) + self.view.waiting_count

    @cached_property
    def first_stalled_s(self) -> float:
        """When the first of them was begun; the stop when there were none."""
        connections = self.view.connections
        late = connections["is_waiting"] | (
            connections["is_failed"]
            & ((connections["close_kind"] == "timeout") | (connections["errno"] == ETIMEDOUT))
        )
        begun = connections["start_s"][late]
        return float(begun.min()) if len(begun) else self.view.stop_s

    def harmed_since(self, since_s: float) -> int:
        """Attempts that failed, connections that were lost from a moment on, and all that waited.

        Those of a tenth of a second before count too: who is told first varies.
        """
        connections = self.view.connections
        bad = connections["is_failed"] | connections["is_lost"]
        late = connections["closed_s"] >= since_s - LATE_EVENT_S
        return int((bad & late).sum()) + self.view.waiting_count

    @cached_property
    def process_ends(self) -> list[ProcessEnd]:
        """Server processes that ended before the run did."""
        return process_ends(self.view)

    @cached_property
    def hiccups(self) -> list[Hiccup]:
        """Server processes that took nobody while clients waited, the longest first."""
        return hiccups(self.view)

    @cached_property
    def words(self) -> list[Spoken]:
        """What the server's log said of errors."""
        return spoken(self.view)

    def words_of(self, cause: str) -> list[Spoken]:
        """Well-known lines that mean a cause."""
        return [said for said in self.words if said.cause == cause]

    @remembered
    def errors_of(self, syscall: str, errno: int, *, role: str = "") -> pd.DataFrame:
        """Rows of ``errors`` by syscall and errno, before the run began to stop."""
        rows = self.errors
        if (syscall, errno) not in self._failing:
            return rows.iloc[:0]
        wanted = (rows["syscall"] == syscall) & (rows["errno"] == errno)
        wanted &= ~(rows["first_s"] >= self.view.stop_s)
        if role:
            wanted &= rows["role"] == role
        return rows[wanted]

    @cached_property
    def _failing(self) -> set[tuple[str, int]]:
        """Calls that failed, with the error: nearly all that is asked for never happened."""
        return set(zip(self.errors["syscall"], self.errors["errno"], strict=True))

    @cached_property
    def is_server_process_gone(self) -> bool:
        """Some process of the server ended before the run did."""
        processes = self.view.frames["processes"]
        servers = processes[processes["role"].isin(SERVER_ROLES)]
        return bool((servers["exited_ns"] > 0).any())

    @remembered
    def accept_errors(self, errno: int, *, role: str = "") -> pd.DataFrame:
        """The same for both calls that accept, one row a process."""
        return self.errors_by_pid(ACCEPT_CALLS, errno, role=role)

    @remembered
    def errors_by_pid(
        self, syscalls: tuple[str, ...], errno: int, *, role: str = ""
    ) -> pd.DataFrame:
        """Rows of ``errors`` of several syscalls, one row a process.

        Returns:
            pid, role, event_count (sum), first_s, last_s, source, syscall: the one that failed
            most, and syscalls: all that failed, for people.
        """
        columns = ["pid", "role", "event_count", "first_s", "last_s", "source"]
        columns += ["syscall", "syscalls"]
        if not any((syscall, errno) in self._failing for syscall in syscalls):
            return self.errors.iloc[:0].assign(syscalls="")[
                columns
            ]  # of nearly every run, and asked for by several
        parts = [self.errors_of(syscall, errno, role=role) for syscall in syscalls]
        rows = pd.concat(parts, ignore_index=True)
        if rows.empty:
            return rows.assign(syscalls="")[columns]
        rows = rows.sort_values("event_count", ascending=False, kind="stable")
        return rows.groupby("pid", as_index=False).agg(
            role=("role", "first"),
            event_count=("event_count", "sum"),
            first_s=("first_s", "min"),
            last_s=("last_s", "max"),
            source=("source", "first"),
            syscall=("syscall", "first"),
            syscalls=("syscall", lambda names: " and ".join(dict.fromkeys(map(str, names)))),
        )

    @cached_property
    def emfile_rates(self) -> pd.DataFrame:
        """Calls that accept and returned EMFILE, per interval: at_s, pid, per_s, interval_s, table.

        From eBPF; for pids that it did not see, from the workers' own counters, which count one
        for each time the accept loop met the limit.
        """
        view = self.view
        raw = view.frames["failing_syscalls"]
        at_s = view.seconds_of(raw["at_ns"])
        live = view.frames["live_samples"]
        is_full = raw["syscall"].isin(ACCEPT_CALLS) & (raw["errno"] == EMFILE)
        if not is_full.any() and not (live["accept_emfile_total"] > 0).any():
            return _no_rates()
        rows = raw.assign(at_s=at_s)[is_full]
        lengths = intervals_s(rows["at_s"], at_s, view.counting_period_s)
        kernel = pd.DataFrame(
            {
                "at_s": rows["at_s"],
                "pid": rows["pid"],
                "per_s": rows["event_count"] / lengths,
                "interval_s": lengths,
                "table": "failing_syscalls",
            }
        )
        grouped = live.groupby("pid", sort=False)
        elapsed_s = grouped["at_ns"].diff() / 1e9
        grown = grouped["accept_emfile_total"].diff()
        counted = pd.DataFrame(
            {
                "at_s": view.seconds_of(live["at_ns"]),
                "pid": live["pid"],
                "per_s": grown / elapsed_s,
                "interval_s": elapsed_s,
                "table": "live_samples",
            }
        )
        counted = counted[(grown > 0) & (elapsed_s > 0) & ~counted["pid"].isin(kernel["pid"])]
        both = pd.concat([kernel, counted], ignore_index=True)
        both = both[both["at_s"] <= view.stop_s + LATE_CPU_S]
        return both.sort_values(["pid", "at_s"], kind="stable", ignore_index=True)

    def established_between(self, pid: int, since_s: float, until_s: float) -> int | None:
        """Handshakes that a server process completed in a span, None when it was not sampled."""
        live = self.view.frames["live_samples"]
        mine = live[live["pid"] == pid]
        at_s = self.view.seconds_of(mine["at_ns"])
        inside = mine["established_total"][(at_s >= since_s) & (at_s <= until_s)]
        return int(inside.iloc[-1] - inside.iloc[0]) if len(inside) >= 2 else None

    def message_cpu_us(self, pid: int, since_s: float, until_s: float) -> float | None:
        """CPU of a process per message of any kind, both ways; None without messages or samples."""
        live = self.view.frames["live_samples"]
        at_s = self.view.seconds_of(live["at_ns"])
        mine = live[(live["pid"] == pid) & (at_s >= since_s) & (at_s <= until_s + LATE_LIVE_S)]
        cpu_pct = self.cpu_pct_of(pid, since_s, until_s)
        if self.view.is_foreign and self.view.side(pid) == "server":
            return self._foreign_message_cpu_us(
                live[at_s <= until_s + LATE_LIVE_S], since_s, until_s
            )
        if len(mine) < 2 or cpu_pct is None:
            return None
        counts = mine[list(_MESSAGES)].sum(axis=1)
        span_s = float(mine["at_ns"].iloc[-1] - mine["at_ns"].iloc[0]) / 1e9
        per_s = float(counts.iloc[-1] - counts.iloc[0]) / span_s if span_s > 0 else 0.0
        return cpu_pct * 1e4 / per_s if per_s > 0 else None

    def _foreign_message_cpu_us(
        self, live: pd.DataFrame, since_s: float, until_s: float
    ) -> float | None:
        """CPU of all server processes per message that clients counted: theirs count none."""
        clients = live[live["role"] == "client"]
        clients = clients[self.view.seconds_of(clients["at_ns"]) >= since_s]
        cpu = self.worker_cpu
        inside = (cpu["at_s"] > since_s) & (cpu["at_s"] <= until_s + LATE_CPU_S)
        serving = cpu[inside & (cpu["side"] == "server")].groupby("pid")["cpu_pct"].mean()
        if clients.empty or serving.empty:
            return None
        messages = clients.assign(count=clients[list(_MESSAGES)].sum(axis=1))
        grown = messages.groupby("pid")["count"].agg(
            lambda counts: counts.iloc[-1] - counts.iloc[0]
        )
        span_s = float(clients["at_ns"].max() - clients["at_ns"].min()) / 1e9
        per_s = float(grown.sum()) / span_s if span_s > 0 else 0.0
        return float(serving.sum()) * 1e4 / per_s if per_s > 0 else None

    def messages_explain_cpu_of(self, pid: int, since_s: float, until_s: float) -> bool:
        """What it costs per message is what a message costs, here and in its siblings."""
        cost_us = self.message_cpu_us(pid, since_s, until_s)
        if cost_us is None or cost_us >= MOST_MESSAGE_CPU_US:
            return False
        who = self.view.who
        siblings = who[(who["role"] == self.view.subject(pid).role) & (who["pid"] != pid)]["pid"]
        theirs = [self.message_cpu_us(int(p), since_s, until_s) for p in siblings]
        known = [us for us in theirs if us is not None and us > 0]
        return not known or cost_us <= 4 * float(np.median(known))

    def cpu_pct_of(self, pid: int, since_s: float, until_s: float) -> float | None:
        """Mean CPU of a process over the intervals that end in a span, None when not sampled."""
        rows = self.worker_cpu
        inside = (rows["at_s"] > since_s) & (rows["at_s"] <= until_s + LATE_CPU_S)
        mine = rows["cpu_pct"][(rows["pid"] == pid) & inside]
        return float(mine.mean()) if len(mine) else None

    def wait_pct_of(self, pid: int, since_s: float, until_s: float) -> float | None:
        """How much of that span it was ready to run and had no core; None when not known."""
        rows = self.worker_cpu
        inside = (rows["at_s"] > since_s) & (rows["at_s"] <= until_s + LATE_CPU_S)
        mine = rows["wait_pct"][(rows["pid"] == pid) & inside]
        return float(mine.mean()) if mine.notna().any() else None

    def is_busy(self, pid: int, since_s: float, until_s: float) -> bool:
        """A process had most of a core, or was ready for one: it is not idle.

        On a crowded host one that computes all the time has what its neighbours leave it.
        """
        cpu_pct = self.cpu_pct_of(pid, since_s, until_s)
        wait_pct = self.wait_pct_of(pid, since_s, until_s)
        return cpu_pct is not None and cpu_pct + (wait_pct or 0.0) >= FULL_CORE_PCT

    def is_busy_in_part(self, pid: int, since_s: float, until_s: float) -> bool:
        """A process had half of a core, or was ready for one."""
        cpu_pct = self.cpu_pct_of(pid, since_s, until_s)
        wait_pct = self.wait_pct_of(pid, since_s, until_s)
        return cpu_pct is not None and cpu_pct + (wait_pct or 0.0) >= HALF_CORE_PCT

    def host_busy_pct(self, since_s: float, until_s: float) -> float | None:
        """Mean of all cores over the intervals that end in a span."""
        rows = self.host_cpu[self.host_cpu["core"] == -1]
        inside = rows["busy_pct"][(rows["at_s"] > since_s) & (rows["at_s"] <= until_s + LATE_CPU_S)]
        return float(inside.mean()) if len(inside) else None

    @cached_property
    def probe_trust(self) -> ProbeTrust:
        """What is not known because of the probes."""
        return ProbeTrust(self.view)

    def trust(
        self, *tables: str, is_by_absence: bool = False
    ) -> tuple[Confidence, tuple[str, ...]]:
        """How far a finding that needs these tables can be believed, and what is missing.

        Lowers confidence to medium: a table that was not recorded; one whose probe failed, whether
        or not it has rows from before; one whose probe lost more than changes no verdict.

        Args:
            tables: That decide, also where they are empty.
            is_by_absence: The finding rests on events that were not seen, so that any loss and any
                probe that failed may have hidden its opposite.
        """
        missing = self.probe_trust.doubts(tables, is_by_absence=is_by_absence)
        if is_by_absence:
            missing += self.probe_trust.broken_probes
        return ("high" if not missing else "medium"), missing


def _no_rates() -> pd.DataFrame:
    """``Signs.emfile_rates`` without a row."""
    kinds = {"at_s": "float64", "pid": "int64", "per_s": "float64", "interval_s": "float64"}
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in kinds.items()}).assign(
        table=pd.Series(dtype="str")
    )
