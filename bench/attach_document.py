"""The page docs/benchmarks-attach.md from what ``bench.attach`` measured. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import NamedTuple

from bench.attach_figures import (
    BAR_PCT,
    FOREIGN_MOST_PCT,
    LEAST_BLOCKS,
    Block,
    Change,
    Figures,
    change_of,
)

_NAMES = {
    "messages_per_s": ("messages per s", "{:,.0f}", True),
    "p50_us": ("p50, µs", "{:,.0f}", False),
    "p99_us": ("p99, µs", "{:,.0f}", False),
    "server_cpu_us": ("CPU of the server a message, µs", "{:.3f}", False),
}
_DECIDING = ("messages_per_s", "p50_us", "server_cpu_us")
"""99th percentiles move by many per cent from window to window without any watch."""

QUIET_MOST_PCT = 25.0
"""CPU of a core that strangers may take in the median window of a load that decides something."""


class Measured(NamedTuple):
    """One load.

    Attributes:
        title: Of its rows.
        names: Which figures are judged.
        watches_count: Watches that were measured.
        blocks: Those that count.
    """

    title: str
    names: tuple[str, ...]
    watches_count: int
    blocks: list[Block]


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and how it was measured.

    Attributes:
        kernel: Its release.
        cpus: How many of which.
        connections: All of them.
        busy_count: Those that talk.
        seconds: Length of a window.
        settle_s: From the begin of a watch to the first window of its steady state.
        probes: ``--probes``.
    """

    kernel: str
    cpus: str
    connections: int
    busy_count: int
    seconds: float
    settle_s: float
    probes: str


def page(setting: Setting, parts: Sequence[Measured]) -> str:
    """The whole page."""
    changes = {
        (part.title, name): _judged(
            change_of(part.blocks, name, more_is_better=_NAMES[name][2]), part.blocks
        )
        for part in parts
        for name in part.names
    }
    lines = [
        _HEAD,
        f"Linux {setting.kernel}, {setting.cpus}; {setting.connections:,} connections of which "
        f"{setting.busy_count} talk; windows of {setting.seconds:g} s, the first "
        f"{setting.settle_s:g} s after the watch began; `--probes {setting.probes}`.",
        "",
        *_change_table(parts, changes),
        "",
        *_cost_table(parts),
        "",
        *(textwrap.fill(line, 100, break_on_hyphens=False) for line in _summary(parts, changes)),
        "",
        _STEADY,
        *_start_table(parts),
        "",
        _REST,
    ]
    return "\n".join(lines)


def _windows(blocks: Sequence[Block]) -> Iterator[Figures]:
    for block in blocks:
        yield from (*block.off, *block.on)


def _foreign_pct(blocks: Sequence[Block]) -> float:
    return median(window["foreign_cpu_pct"] for window in _windows(blocks))


def _judged(change: Change, blocks: Sequence[Block]) -> Change:
    """On a machine that strangers fill no interval decides anything."""
    is_quiet = _foreign_pct(blocks) <= QUIET_MOST_PCT
    return change if is_quiet else replace(change, verdict="not decided")


def _change_table(parts: Sequence[Measured], changes: dict[tuple[str, str], Change]) -> list[str]:
    lines = [
        f"| load | figure | without | with | change (95 % interval) | bar of {BAR_PCT:g} % |",
        "|---|---|---|---|---|---|",
    ]
    for part in parts:
        for name in part.names:
            label, form, _ = _NAMES[name]
            change = changes[part.title, name]
            cells = [
                part.title,
                label,
                form.format(change.without),
                form.format(change.with_it),
                _with_interval(change),
                change.verdict,
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def _with_interval(change: Change) -> str:
    return f"{change.change_pct:+.2f} % ({change.low_pct:+.2f} to {change.high_pct:+.2f})"


def _start_table(parts: Sequence[Measured]) -> list[str]:
    """What the first seconds cost, which judge nothing."""
    lines = [
        "| load | figure | without | from the command on | until it has settled |",
        "|---|---|---|---|---|",
    ]
    for part in parts:
        if not all(block.start and block.settle for block in part.blocks):
            continue
        for name in part.names:
            label, form, more_is_better = _NAMES[name]
            start, settle = (
                change_of(part.blocks, name, more_is_better=more_is_better, kind=kind)
                for kind in ("start", "settle")
            )
            cells = [part.title, label, form.format(start.without)]
            cells += [_with_interval(change) for change in (start, settle)]
            lines.append("| " + " | ".join(cells) + " |")
        used = [
            fmean(block.windows(kind)[-1]["watch_cpu_s"] for block in part.blocks)
            for kind in ("start", "settle")
        ]
        cells = [part.title, "CPU of the watch until then, s", "", *(f"{s:.2f}" for s in used)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cost_table(parts: Sequence[Measured]) -> list[str]:
    lines = [
        "| load | watches that count | server | probe process with py-spy | profile-attach itself "
        "| strangers |",
        "|---|---|---|---|---|---|",
    ]
    for part in parts:
        on = [window for block in part.blocks for window in block.on]
        server_pct = median(each["server_cpu_pct"] for each in _windows(part.blocks))
        cells = [
            part.title,
            f"{len(part.blocks)} of {part.watches_count}",
            f"{server_pct:.0f} %",
            f"{fmean(each['probe_cpu_pct'] for each in on):.2f} %",
            f"{fmean(each['supervisor_cpu_pct'] for each in on):.2f} %",
            f"{_foreign_pct(part.blocks):.0f} %",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _summary(parts: Sequence[Measured], changes: dict[tuple[str, str], Change]) -> list[str]:
    most_pct = max(_foreign_pct(part.blocks) for part in parts)
    disturbed = (
        f"**The machine was not quiet**: other programs took {most_pct:.0f} % of a core. A load "
        f"with more than {QUIET_MOST_PCT:g} % decides nothing, whatever its interval says."
    )
    deciding = {key: change for key, change in changes.items() if key[1] in _DECIDING}
    found = {
        verdict: [
            f"{_NAMES[name][0].partition(',')[0]} ({title})"
            for (title, name), change in deciding.items()
            if change.verdict == verdict
        ]
        for verdict in ("over", "not decided")
    }
    if not any(found.values()):
        return [
            f"**The bar of {BAR_PCT:g} % is met** for throughput, median latency and CPU of the "
            "server: the whole interval of each is within it.",
        ]
    lines = [disturbed] if most_pct > QUIET_MOST_PCT else []
    for verdict, what in found.items():
        if what:
            said = "The bar is missed" if verdict == "over" else "Not decided here"
            lines.append(f"**{said}:** {', '.join(what)}.")
    within = len(deciding) - sum(map(len, found.values()))
    if within:
        lines.append(f"The other {within} of {len(deciding)} deciding figures are within it.")
    return lines


_HEAD = f"""\
# What profile-attach costs the server that it watches

`make bench-attach` measures it and prints this page, in about 8 minutes for each load (`--load`
measures one, `--json FILE` keeps its windows and goes on from there). One echo server (asyncio, one
process) and one client process live through the whole bench, each on a core of its own; the watch
may run on both. A block is two windows without a watch, one watch with four windows in its steady
state, and two windows without it again, so that a machine that drifts meets both kinds alike. From
block to block they come later in the watch, by up to 10 s: what it does in turns, it does in some.

Windows of one watch are not independent of each other. So each block gives one value, the
difference of the mean logarithms with and without the watch; the change is the trimmed mean (inner
60 %) of these, and its 95 % interval is a bootstrap over the blocks, not over the windows. A window
counts when strangers took no more than {FOREIGN_MOST_PCT:g} % of a core beyond what they take in
the quieter windows; a block when at least half of its windows do, or when it is among the
{LEAST_BLOCKS} least disturbed. "Within" is said only when the whole interval is.

At a given load messages are due a tick of a millisecond apart, and their time counts from when they
were due. As fast as it goes is a machine without room: server and clients take both cores, and what
anybody else takes is missing. A server in service is the other case: it has room.

## As it is now: the steady state, in which a watch is for hours
"""
_STEADY = """\
The CPU columns are of one core, while it watches. py-spy samples in most of these windows, as in
the first 30 s of every watch; later it rests two thirds of the time. The 99th percentile decides
nothing, since it moves by many per cent from window to window without any watch. But it is where a
watch is felt: on two cores that are both the target's, its moments (0.4 % of a core) are among the
slowest 1 % of the messages. How the cost is bounded, and what that takes from what is seen:
[design note 0008](design/0008-harmless-watching.md).

## The first seconds
Against the same windows without a watch. The first column is 5 s that begin with the command: two
Python processes start, look for the server and attach the programs (compiled ones are kept from run
to run; compiling them takes 1 s of CPU once). The second is what follows until the watch has
settled. Both are shown and decide nothing: they are over when the windows above begin.
"""
_REST = """\
## What it was
The first version watched failing system calls all the time and sampled a hot worker 100 times a
second (Linux 6.18, 2 cores, 2,032 connections, as fast as it goes, 7 pairs of 4 s; change of the
mean ± standard error): messages -10.2 % ± 2.3, p50 +17 % ± 7. The second watched failing calls one
second in 20, but always from half of a process's descriptors on, which was so in that bench: server
CPU a message +5.3 % ± 2.2, at 30 % of the load +3.6 % ± 1.1. Its probe process took 1.1 % of a core
beside a quiet server and profile-attach itself 0.3 %.

The third, with a budget, was measured in 18 pairs of 2.5 s for each load, of which the first began
1.5 s after the watch and the second ended 6.5 s after it; each pair counted for itself, and the
scheduler chose the cores (change and 95 % interval). As fast as it goes: messages -0.66 % (-1.17 to
+0.05), p50 -0.02 % (-0.84 to +0.66), CPU a message -0.48 % (-1.07 to +0.03). At 30 % of the load:
p50 +1.62 % (+0.53 to +2.96), CPU a message +1.64 % (-1.96 to +4.05); with 95 % of the descriptors
in use +0.97 % (-0.69 to +2.48) and -0.85 % (-5.10 to +4.37). Nothing was proven to be over the bar,
and 5 of 7 figures were not decided. That watch woke up 22 times a second and took 0.66 % of a core,
where a quiet one takes 0.37 % now, in 14.

The fourth had today's paces, and kept a core for 1.4 ms when it had one, which is what the kernel
gives also to the least important (12, 10 and 8 watches). As fast as it goes: messages -0.77 %
(-1.93 to -0.05), p50 +0.25 % (-0.06 to +1.27). At 30 % of the load: p50 +0.33 % (-3.91 to +6.34),
CPU a message +0.19 % (-2.24 to +2.66), with 95 % of the descriptors in use +0.09 % (-2.12 to
+1.42) and -0.63 % (-1.53 to +0.44). p99 at these two loads: +22 % (+12 to +35) and +25 % (+4 to
+48).

## What is not in these figures
- The report, after the watch is over: about 1.5 s of CPU at nice 5. It can be made elsewhere:
  `profile-attach` may be killed, and `profile-report` makes the report of a copy of the run.
- As fast as it goes, the tracepoint at every call is on for a moment in less than every block: what
  it may cost in the long run is 0.1 % of a core.
- A host whose control groups give the shell and the server CPU apart: nice counts only within a
  group there, so the budget alone bounds the cost.
"""
