"""The page docs/benchmarks-attach.md from what ``bench.attach`` measured. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from bench.attach_figures import BAR_PCT, FOREIGN_MOST_PCT, Change, Pair, change_of

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

Measured = tuple[str, tuple[str, ...], int, list[Pair]]
"""Title, figures, pairs measured, pairs that count."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and how it was measured.

    Attributes:
        kernel: Its release.
        cpus: How many of which.
        connections: All of them.
        busy_count: Those that talk.
        seconds: Length of a window.
        probes: ``--probes``.
    """

    kernel: str
    cpus: str
    connections: int
    busy_count: int
    seconds: float
    probes: str


def page(setting: Setting, parts: Sequence[Measured]) -> str:
    """The whole page."""
    changes = {
        (title, name): _judged(change_of(pairs, name, more_is_better=_NAMES[name][2]), pairs)
        for title, names, _, pairs in parts
        for name in names
    }
    lines = [
        _HEAD,
        f"Linux {setting.kernel}, {setting.cpus}; {setting.connections:,} connections of which "
        f"{setting.busy_count} talk; windows of {setting.seconds:g} s; "
        f"`--probes {setting.probes}`.",
        "",
        *_change_table(parts, changes),
        "",
        *_cost_table(parts),
        "",
        *(textwrap.fill(line, 100, break_on_hyphens=False) for line in _summary(parts, changes)),
        "",
        _REST,
    ]
    return "\n".join(lines)


def _foreign_pct(pairs: Sequence[Pair]) -> float:
    return median(window["foreign_cpu_pct"] for pair in pairs for window in pair)


def _judged(change: Change, pairs: Sequence[Pair]) -> Change:
    """On a machine that strangers fill no interval decides anything."""
    is_quiet = _foreign_pct(pairs) <= QUIET_MOST_PCT
    return change if is_quiet else replace(change, verdict="not decided")


def _change_table(parts: Sequence[Measured], changes: dict[tuple[str, str], Change]) -> list[str]:
    lines = [
        f"| load | figure | without | with | change (95 % interval) | bar of {BAR_PCT:g} % |",
        "|---|---|---|---|---|---|",
    ]
    for title, names, _, _ in parts:
        for name in names:
            label, form, _ = _NAMES[name]
            change = changes[title, name]
            between = f"{change.low_pct:+.2f} to {change.high_pct:+.2f}"
            cells = [
                title,
                label,
                form.format(change.without),
                form.format(change.with_it),
                f"{change.change_pct:+.2f} % ({between})",
                change.verdict,
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cost_table(parts: Sequence[Measured]) -> list[str]:
    lines = [
        "| load | pairs that count | server | probe process with py-spy | profile-attach itself "
        "| strangers |",
        "|---|---|---|---|---|---|",
    ]
    for title, _, count, pairs in parts:
        on = [pair[1] for pair in pairs]
        windows = [window for pair in pairs for window in pair]
        cells = [
            title,
            f"{len(pairs)} of {count}",
            f"{median(each['server_cpu_pct'] for each in windows):.0f} %",
            f"{_mean(on, 'probe_cpu_pct'):.2f} %",
            f"{_mean(on, 'supervisor_cpu_pct'):.2f} %",
            f"{_foreign_pct(pairs):.0f} %",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _mean(windows: Sequence[dict[str, float]], name: str) -> float:
    return sum(window[name] for window in windows) / len(windows)


def _summary(parts: Sequence[Measured], changes: dict[tuple[str, str], Change]) -> list[str]:
    most_pct = max(_foreign_pct(pairs) for _, _, _, pairs in parts)
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

`make bench-attach` measures it and prints this page, in about 8 minutes. One echo server (asyncio,
one process) and one client process live through the whole bench. Windows without and with
profile-attach come in pairs, in the order off on, on off. The change is the trimmed mean (inner
60 %) of the pairs' log ratios with its 95 % bootstrap interval. A pair counts when strangers took
in neither window {FOREIGN_MOST_PCT:g} % of a core more than in the quieter windows, or is among the
six least disturbed. "Within" is said only when the whole interval is.

At a given load messages are due a tick of a millisecond apart, and their time counts from when they
were due. As fast as it goes is a machine without room: server and clients take both cores, and what
anybody else takes is missing. A server in service is the other case: it has room.

## As it is now
"""
_REST = """\
The CPU columns are of one core, while it watches. The 99th percentile is shown and decides nothing:
it moves by many per cent from window to window without any watch. How the cost is bounded, and what
that takes from what is seen: [design note 0008](design/0008-harmless-watching.md).

A watch has run for 1.5 s when its first window begins and for 4 s when its second does, so a part
of what it may spend at once is in these figures: up to 150 ms of the probes' CPU. In the long run
that is 0.5 % of a core, by design.

## What it was
The first version watched failing system calls all the time and sampled a hot worker 100 times a
second (Linux 6.18, 2 cores, 2,032 connections, as fast as it goes, 7 pairs of 4 s; change of the
mean ± standard error): messages -10.2 % ± 2.3, p50 +17 % ± 7. The second watched failing calls one
second in 20, but always from half of a process's descriptors on, which was so in that bench: server
CPU a message +5.3 % ± 2.2, at 30 % of the load +3.6 % ± 1.1. Its probe process took 1.1 % of a core
beside a quiet server and profile-attach itself 0.3 %.

## What is not in these figures
- The start: the probe process compiles its programs once, which is about 1 s of CPU at nice 5.
- The report, after the watch is over: about 1.5 s of CPU at nice 5. It can be made elsewhere:
  `profile-attach` may be killed, and `profile-report` makes the report of a copy of the run.
- A host whose control groups give the shell and the server CPU apart: nice counts only within a
  group there, so the budget alone bounds the cost.
"""
