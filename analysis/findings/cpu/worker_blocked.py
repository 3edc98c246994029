"""``worker-blocked``: a worker's event loop stands still on no CPU: a sleep, a lock, the disk.

Proof: samples of its turns that slept instead of calculating, their system call and wait channel,
and the Python stack that they were called from. Without those samples, turns of half a second
while the process was seen asleep outside of its poll: the finding then has medium confidence.
Under our own load also what clients saw: a while in which none was answered, though they waited,
and in which the process took none and was not on a core. What it did is then not always known.
Where nobody waited, so short a standstill is worth knowing only.
Told apart from ``hot-worker-code``, ``garbage-collection`` and ``accept-spin``: there the turns are
on a CPU. A worker that waits for a core, as in the ramp of a full host, is runnable and no sample
of it counts; one that waits for events is in no turn. From ``waits-for-slot``: a server without an
event loop, whose only thread serves one client after the other.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.causes import Cause, Effect
from analysis.evidence import Evidence, Finding, Fix, capitalised, side_of_role
from analysis.findings.server import own_limit, waits_for_slot
from analysis.server import fates
from analysis.server.answer_gaps import Hiccup
from analysis.signs.full_processes import is_server_full
from analysis.signs.signs import Signs
from analysis.stacks.function_shares import function_name
from probes.contract.schema import SERVER_ROLES

CAUSE = Cause(
    id="worker-blocked",
    line="a worker's event loop stands still off the CPU",
    effect=Effect.SLOWS_ACCEPT,
    follows_from=(
        Effect.STOPS_SERVING,
        "cpu-quota",
    ),
    decide="cat /proc/PID/wchan of the worker while its loop stands still",
)

_LEAST_S = 1.0
_LEAST_SHARE = 0.25
"""A loop that is off the CPU inside its turns for a quarter of the time answers late; a healthy one
is so for none of it: it never waits but in epoll_wait."""
_LEAST_SAMPLES, _SOME_SAMPLES = 5, 2
_SAMPLES_OF_ONE_TURN, _ONE_TURN_SHARE = 3, 0.5
"""So few will do of one turn that lasts a second and was asleep for most of it: on a slow host
there are no more looks at it. Ten looks a second make it five."""
_SHORT_LEAST_S, _SHORT_LEAST_SAMPLES = 0.4, 4
"""Of a server that is not ours, under our own load: it is looked at ten times a second."""
_BRIEF_S = 0.1
_GAP_S = 1.0
_LONG_LAG_S = 0.5
_ASLEEP = ("sleeping", "disk-sleep", "stopped")
_POLL_CHANNELS = ("ep_poll", "do_epoll", "do_sys_poll", "do_poll", "do_select", "poll_schedule")

_ANSWER_CALLS = (
    *("recvfrom", "recvmsg", "recvmmsg", "read", "readv", "connect", "sendto", "sendmsg"),
    *("poll", "ppoll", "select", "pselect6"),
)
_DISK_CALLS = ("fsync", "fdatasync", "sync_file_range", "msync", "pwrite64", "pread64", "openat")
_WAITS: dict[str, tuple[str, str]] = {
    "clock_nanosleep": ("a sleep", "a timer of the event loop instead of the sleep"),
    "nanosleep": ("a sleep", "a timer of the event loop instead of the sleep"),
    "futex": ("a lock", "take the lock in a thread, or hold it for a shorter time elsewhere"),
    "flock": ("a file lock", "take the file lock in a thread"),
    "wait4": ("a child process", "let SIGCHLD or a pidfd in the event loop say when it ends"),
    **dict.fromkeys(
        _ANSWER_CALLS,
        (
            "an answer from a socket or a pipe",
            "make that request with a client of the event loop, or in a thread",
        ),
    ),
    **dict.fromkeys(_DISK_CALLS, ("the disk", "write and sync in a thread, or less often")),
}
_PIPES: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("write", "writev"),
        "a full pipe without a reader",
        "let the reader of its log or output go on, or write to a file or in a thread",
    ),
    (
        ("read", "readv"),
        "a pipe without a writer",
        "read it when the event loop says that there is something, or in a thread",
    ),
)
_PIPE_CHANNELS = ("pipe_", "anon_pipe_", "fifo_")
_ELSE = ("something else", "make that call non-blocking, or in a thread")
_FROZEN, _FROZEN_CHANNELS = "frozen", ("do_freezer_trap", "__refrigerator")
_HALTED = {
    _FROZEN: (
        "frozen with its control group (docker pause, cgroup.freeze)",
        "docker unpause CONTAINER  # of no container: echo 0 > cgroup.freeze in the group of "
        "/proc/{pid}/cgroup",
    ),
    "T": ("stopped by a signal (SIGSTOP, SIGTSTP)", "kill -CONT {pid}"),
    "t": (
        "stopped by a debugger",
        "grep TracerPid /proc/{pid}/status  # who holds it; detach that",
    ),
}
"""By the letter of its state (proc(5)): the call that it was in says nothing then."""
_WHO_STOPS = (
    "perf trace -a -e signal:signal_generate --filter 'sig == 19 || sig == 20'  # in the next run: "
    "who stops it; it goes on by itself, so SIGCONT is sent as well"
)


class _Block(NamedTuple):
    """One worker that stood still.

    Attributes:
        pid: Its pid.
        since_s: First moment.
        until_s: Last moment.
        share_pct: Part of that time that it was blocked.
        evidence: What was seen.
        syscall: The call it slept in most, '' unknown.
        frame: The Python function (file:line) that called it, '' unknown.
        table: Where this comes from.
        state: Letter of the state that it was in most, '' unknown.
        hiccup: What clients saw of it, None when nobody waited or that is not known.
        channel: Where in the kernel it slept most, '' unknown.
        is_partly_seen: Fewer than half of the looks found it in a call.
    """

    pid: int
    since_s: float
    until_s: float
    share_pct: float
    evidence: tuple[Evidence, ...]
    syscall: str
    frame: str
    table: str
    state: str = ""
    hiccup: Hiccup | None = None
    channel: str = ""
    is_partly_seen: bool = False


def find(signs: Signs) -> list[Finding]:
    """One finding for each blocked server process, the longest first."""
    held = waits_for_slot.pids_of_one_client(signs)
    blocks = [block for block in _blocks(signs) if block.pid not in held]
    halted = tuple(sorted(block.pid for block in blocks if block.state == "T"))
    return [_finding(signs, block, halted) for block in blocks]


def blocked_pids(signs: Signs) -> set[int]:
    """Every server process that stood still."""
    return {block.pid for block in _blocks(signs)}


def _blocks(signs: Signs) -> list[_Block]:
    who = signs.view.who
    servers = who[who["role"].isin(SERVER_ROLES)]["pid"]
    found = []
    stood = {each.pid: each for each in reversed(signs.hiccups) if not each.is_on_core}
    for pid in servers:
        if _is_helper(signs, int(pid)) or _only_looks_after(signs, int(pid)):
            continue
        if _serves_one_for_another(signs, int(pid)):
            continue
        hiccup = stood.get(int(pid))
        block = _sampled(signs, int(pid)) or _inferred(signs, int(pid))
        if block is not None and hiccup is not None and _meets(block, hiccup):
            block = block._replace(hiccup=hiccup)
        elif hiccup is not None and block is None:
            block = _seen_by_clients(signs, hiccup)
        if block is not None:
            found.append(block)
    return sorted(found, key=lambda b: (b.since_s - b.until_s, b.pid))


def _is_helper(signs: Signs, pid: int) -> bool:
    """A child that a serving process forked while it served: it has its sockets and takes nobody.

    It may sleep or calculate for its parent, who may stand still for it.
    """
    view = signs.view
    processes = view.frames["processes"]
    started = processes["start_ns"][processes["pid"] == pid]
    if started.empty or view.is_attached or fates.accepted_count(view, pid) > 0:
        return False
    others = [each for each in fates.servers(view) if fates.accepted_count(view, each) > 0]
    return bool(others) and view.seconds(int(started.max())) > view.ramp.start_s


def _serves_one_for_another(signs: Signs, pid: int) -> bool:
    """One of many processes with a connection each, which another one accepts for them.

    Inetd's children and those of a server that forks wait for their client: no loop of events.
    One that is stopped from outside is told all the same.
    """
    view = signs.view
    if not view.is_foreign or not fates.is_process_per_connection(view, pid):
        return False
    samples = view.frames["blocked_samples"]
    return not samples["state"][samples["pid"] == pid].isin(["T", "t"]).any()


def _only_looks_after(signs: Signs, pid: int) -> bool:
    """A parent that holds its workers' listener and takes nobody itself: it sleeps until one ends.

    One that is stopped from outside is told all the same.
    """
    view = signs.view
    if not view.is_foreign:
        return False
    owners = view.frames["listener_owners"]
    peaks = fates.peak_counts(view, *SERVER_ROLES)
    if int(peaks.get(pid, 0)) > 0:
        return False
    mine = owners["socket_inode"][owners["pid"] == pid]
    sharing = owners["pid"][owners["socket_inode"].isin(mine) & (owners["pid"] != pid)]
    if not (peaks.reindex(sharing.unique()).fillna(0) > 0).any():
        return False
    samples = view.frames["blocked_samples"]
    return not samples["state"][samples["pid"] == pid].isin(["T", "t"]).any()


def _meets(block: _Block, hiccup: Hiccup) -> bool:
    return block.since_s <= hiccup.gap.until_s and hiccup.gap.since_s <= block.until_s


def _seen_by_clients(signs: Signs, hiccup: Hiccup) -> _Block | None:
    """From a gap between answers; a server that lets in no more is not still."""
    view, gap = signs.view, hiccup.gap
    if any(found.subject.pid == hiccup.pid for found in own_limit.find(signs)):
        return None  # a full one lets somebody in when others have left
    samples = view.frames["blocked_samples"]
    at_s = view.seconds_of(samples["at_ns"])
    mine = samples[(samples["pid"] == hiccup.pid).to_numpy()]
    mine = mine[((at_s >= gap.since_s) & (at_s <= gap.until_s))[samples["pid"] == hiccup.pid]]
    if hiccup.is_off_core:
        share_pct = 100 * hiccup.off_core_share
        block = _described(hiccup.pid, mine, gap.since_s, gap.until_s, share_pct)
        return block._replace(hiccup=hiccup)
    if len(mine) >= _SOME_SAMPLES:
        # short calls, one after the other: most looks fall between two of them
        block = _described(hiccup.pid, mine, gap.since_s, gap.until_s, 100)
        seen = (
            Evidence("blocked_looks", 100 * hiccup.off_core_share, "blocked_samples", gap.since_s),
            *(each for each in block.evidence if each.id not in ("loop_blocked_time",)),
        )
        if block.syscall:
            return block._replace(hiccup=hiccup, evidence=seen, is_partly_seen=True)
    cpu_pct = 100 * hiccup.cpu_share
    evidence = (Evidence("process_cpu", cpu_pct, "process_samples", gap.since_s),)
    return _Block(
        hiccup.pid, gap.since_s, gap.until_s, 100, evidence, "", "", "connections", "", hiccup
    )


def _sampled(signs: Signs, pid: int) -> _Block | None:
    """From the samples of turns off the CPU."""
    view = signs.view
    samples = view.frames["blocked_samples"]
    mine = samples[samples["pid"] == pid]
    if len(mine) < _SAMPLES_OF_ONE_TURN:
        return None
    mine = mine.assign(at_s=view.seconds_of(mine["at_ns"])).sort_values("at_s", kind="stable")
    mine = mine[(mine["at_s"] >= view.ramp.start_s) & (mine["at_s"] <= view.stop_s)]
    is_loaded = view.is_foreign and not view.is_attached
    least_s = _SHORT_LEAST_S if is_loaded else _LEAST_S
    least_count = _SHORT_LEAST_SAMPLES if is_loaded else _LEAST_SAMPLES
    if len(mine) < _SAMPLES_OF_ONE_TURN:
        return None
    # on a slow host looks are seconds apart: a turn that went on meanwhile leaves no gap
    turns_s = (mine["lag_ns"] / 1e9).clip(lower=0)
    group = ((mine["at_s"].diff() - turns_s) > _GAP_S).cumsum()
    best: _Block | None = None
    for _, rows in mine.groupby(group):
        since_s = max(view.ramp.start_s, float((rows["at_s"] - rows["lag_ns"] / 1e9).iloc[0]))
        until_s = float(rows["at_s"].iloc[-1])
        length_s = until_s - since_s
        blocked_s = min(float(rows["period_ns"].sum()) / 1e9, length_s)
        if len(rows) < _SAMPLES_OF_ONE_TURN or length_s < least_s:
            continue
        share = blocked_s / length_s
        longest_s = float(turns_s[rows.index].max())
        if longest_s < _BRIEF_S and signs.is_busy_in_part(pid, since_s, until_s):
            continue  # its threads work, and the first one waits for the others again and again
        is_one_turn = longest_s >= _LEAST_S and share >= _ONE_TURN_SHARE
        if share < _LEAST_SHARE or not (is_one_turn or len(rows) >= least_count):
            continue
        if best is None or length_s > best.until_s - best.since_s:
            best = _described(pid, rows, since_s, until_s, 100 * share)
    return best


def _described(
    pid: int, rows: pd.DataFrame, since_s: float, until_s: float, share_pct: float
) -> _Block:
    table = "blocked_samples"
    evidence = [
        Evidence("loop_blocked_time", share_pct, table, since_s),
        Evidence("blocked_samples", len(rows), table, since_s),
        Evidence("longest_blocked_turn", float(rows["lag_ns"].max()) / 1e6, table),
    ]
    syscall, part = _most(rows["syscall"])
    if syscall:
        evidence.append(Evidence("blocked_syscall_samples", 100 * part, table, of=syscall))
    channel, part = _most(rows["wait_channel"])
    if channel:
        evidence.append(Evidence("blocked_channel_samples", 100 * part, table, of=channel))
    leaves = rows["python_stack"].str.split(";").str[-1]
    leaves = leaves[leaves != ""]
    # two lines of one function are one place; the line is shown of the more frequent one
    function, part = _most(leaves.map(function_name))
    frame = ""
    if function:
        evidence.append(Evidence("blocked_function_samples", 100 * part, table, of=function))
        frame = _most(leaves[leaves.map(function_name) == function])[0]
    state = _FROZEN if channel.startswith(_FROZEN_CHANNELS) else _most(rows["state"])[0]
    return _Block(
        pid,
        since_s,
        until_s,
        share_pct,
        tuple(evidence),
        syscall,
        frame,
        table,
        state,
        channel=channel,
    )


def _most(values: pd.Series[str]) -> tuple[str, float]:
    """The most frequent text that is not '', and its part of all; ('', 0) when there is none."""
    counts = values[values != ""].value_counts()
    return (str(counts.index[0]), float(counts.iloc[0]) / len(values)) if len(counts) else ("", 0.0)


def _inferred(signs: Signs, pid: int) -> _Block | None:
    """From long turns of a process that was seen asleep: no sample of the turns themselves."""
    view = signs.view
    if len(view.frames["blocked_samples"]):
        return None
    live = view.frames["live_samples"]
    mine = live[(live["pid"] == pid) & (live["loop_lag_ns"] >= _LONG_LAG_S * 1e9)]
    at_s = view.seconds_of(mine["at_ns"])
    mine = mine[(at_s >= view.ramp.start_s) & (at_s <= view.stop_s)]
    if len(mine) < 2:
        return None
    moments = view.seconds_of(mine["at_ns"])
    since_s = max(view.ramp.start_s, float(moments[0] - mine["loop_lag_ns"].iloc[0] / 1e9))
    until_s = float(moments[-1])
    cpu = signs.worker_cpu
    cpu = cpu[(cpu["pid"] == pid) & cpu["at_s"].between(since_s, until_s + 0.5)]
    in_poll = cpu["wait_channel"].str.startswith(_POLL_CHANNELS)
    asleep = cpu["state"].isin(_ASLEEP) & ~in_poll
    if until_s - since_s < _LEAST_S or cpu.empty or float(asleep.mean()) < 0.5:
        return None
    cpu_pct = float(cpu["cpu_pct"].mean())
    if signs.is_busy_in_part(pid, since_s, until_s):  # ready to run is not blocked
        return None
    longest_ms = float(mine["loop_lag_ns"].max()) / 1e6
    channel, _ = _most(cpu["wait_channel"][asleep])
    evidence = [
        Evidence("longest_loop_turn", longest_ms, "live_samples", since_s),
        Evidence(
            "samples_asleep", 100 * float(asleep.mean()), "process_samples", since_s, of=channel
        ),
    ]
    return _Block(pid, since_s, until_s, 100 - cpu_pct, tuple(evidence), "", "", "live_samples")


def _waits_for(block: _Block) -> tuple[str, str]:
    """What such a call waits for, and what to do instead."""
    if block.channel.startswith(_PIPE_CHANNELS):
        for calls, kind, remedy in _PIPES:
            if block.syscall in calls:
                return kind, remedy
    return _WAITS.get(block.syscall, _ELSE)


def _finding(signs: Signs, block: _Block, halted: tuple[int, ...] = ()) -> Finding:
    view = signs.view
    subject = view.subject(block.pid)
    since_s, until_s = block.since_s, block.until_s
    name = capitalised(str(subject))
    kind, remedy = _waits_for(block)
    evidence = [
        *block.evidence,
        Evidence("span_length", until_s - since_s, block.table, since_s),
    ]
    hiccup = block.hiccup
    cpu_pct = signs.cpu_pct_of(block.pid, since_s, until_s)
    if hiccup is not None:
        evidence += hiccup.evidence()
        cpu_pct = 100 * hiccup.cpu_share
    if cpu_pct is not None and all(each.id != "process_cpu" for each in evidence):
        evidence.append(Evidence("process_cpu", cpu_pct, "process_samples", since_s))
    others_ms = _lag_of_siblings_ms(signs, block)
    if others_ms is not None:
        evidence.append(Evidence("siblings_longest_loop_turn", others_ms, "live_samples"))
    confidence, missing = signs.trust("blocked_samples", "process_samples")
    if not block.syscall:
        confidence = "medium"
        missing += (
            "the call that it was blocked in: "
            + (
                "it was seen in none for long"
                if len(view.frames["blocked_samples"]) or block.hiccup is not None
                else "blocked_samples was not recorded"
            ),
        )
    where = (
        f"blocked in {block.syscall} ({kind})" if block.syscall else "blocked outside of its poll"
    )
    where += f", called from {block.frame}" if block.frame else ""
    if block.table == "connections":
        where = "at something that no sample shows"
    elif block.is_partly_seen:
        where = f"in {block.syscall} ({kind}) again and again, as some looks show"
        where += f", called from {block.frame}" if block.frame else ""
        confidence = "medium"
    stalled = signs.stalled_count if signs.first_stalled_s >= since_s - 0.5 else 0
    if is_server_full(signs):
        stalled = 0  # a full worker strands connections whether this one is blocked or not
    elif hiccup is not None:
        stalled = max(stalled, hiccup.gap.failed_count)
    harm = f"; {hiccup.harm}" if hiccup is not None else ""
    is_short = until_s - since_s < _LEAST_S and hiccup is None
    # a first thread that others hold up for moments, and nobody waited in vain for it
    is_short |= hiccup is None and not stalled and _is_brief(signs, block)
    used = "" if cpu_pct is None else f", at {cpu_pct:.0f} % of a core"
    place = function_name(block.frame) if block.frame else "the call"
    command = f"move {place} off the event loop: {remedy}"
    if block.state in _HALTED:
        where, command = _HALTED[block.state]
        pids = halted if block.state == "T" else (block.pid,)
        command = command.format(pid=" ".join(map(str, pids)))
        if block.state == "T" and until_s < view.stop_s - _GAP_S and not view.is_attached:
            command = _WHO_STOPS
    elif not block.syscall and hiccup is not None:
        command = f"strace -f -T -p {block.pid}  # in the next run: the call in which it stands"
    return Finding(
        cause=CAUSE.id,
        severity="info" if is_short else "warning",
        side=side_of_role(subject.role),
        subject=subject,
        first_s=since_s,
        last_s=until_s,
        evidence=tuple(evidence),
        explanation=(
            f"{name} stood still for {block.share_pct:.0f} % of {until_s - since_s:.1f} s{used}: "
            f"its event loop was {where}. While it waits there, none of its connections "
            f"is accepted, answered or pinged{harm}."
        ),
        fix=(
            Fix(
                command,
                f"gives {block.share_pct / 100 * (until_s - since_s):.1f} s of "
                f"{until_s - since_s:.1f} s back to the connections of this worker"
                + (f"; its longest turn falls to about {others_ms:.0f} ms" if others_ms else ""),
            ),
        ),
        at_connections=view.open_count_at(since_s),
        confidence=confidence,
        missing=missing,
        sentence=f"{name} stood still for {block.share_pct:.0f} % of {until_s - since_s:.1f} s, "
        f"{where}{used}{harm}",
        explained_count=stalled,
    )


def _is_brief(signs: Signs, block: _Block) -> bool:
    """Of a server under our own load: most looks found it in a call that had just begun."""
    view = signs.view
    if not view.is_foreign or view.is_attached:
        return False
    samples = view.frames["blocked_samples"]
    at_s = view.seconds_of(samples["at_ns"])
    inside = (at_s >= block.since_s) & (at_s <= block.until_s)
    lags_ns = samples["lag_ns"][(samples["pid"] == block.pid).to_numpy() & inside]
    return len(lags_ns) > 0 and float(lags_ns.median()) < 1e9 * _BRIEF_S


def _lag_of_siblings_ms(signs: Signs, block: _Block) -> float | None:
    """Median over the other workers of their longest turn meanwhile, None without any."""
    view = signs.view
    if view.is_foreign:
        return None  # they do not say how long their turns are
    live = view.frames["live_samples"]
    at_s = view.seconds_of(live["at_ns"])
    role = view.subject(block.pid).role
    others = live[(live["role"] == role) & (live["pid"] != block.pid)]
    others = others[(at_s >= block.since_s)[others.index] & (at_s <= block.until_s)[others.index]]
    if others.empty:
        return None
    return float(np.median(others.groupby("pid")["loop_max_lag_ns"].max())) / 1e6
