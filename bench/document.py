"""The bench's figures as Markdown that also reads well in a terminal. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from bench.bars import BAR_CONNECTIONS, Judgement, judge
from bench.figures import AUTO, NODE_NONE, NODE_RR, NONE, QUIET_PCT, RunFigures, Runs, Spread

_WIDTH = 100

_OURS = (
    ("ramp", "ramp_s", "s"),
    ("CPU per connection, server", "server_cpu_us", "us"),
    ("CPU per connection, clients", "client_cpu_us", "us"),
    ("CPU per connection, server and clients", "fleet_cpu_us", "us"),
    ("CPU per connection, whole host", "host_cpu_us", "us"),
    ("server memory (PSS)", "server_pss_bytes", "bytes"),
    ("server memory (RSS)", "server_rss_bytes", "bytes"),
    ("host CPU in the hold, of a core", "hold_host_cpu_pct", "%"),
    ("probe processes", "probe_process_count", "count"),
    ("probe memory (PSS)", "probe_pss_bytes", "bytes"),
    ("probe memory (RSS)", "probe_rss_bytes", "bytes"),
    ("probe CPU in the hold, of a core", "probe_cpu_pct", "%"),
    ("report after the end", "report_s", "s"),
    ("report size", "report_bytes", "bytes"),
    ("whole command", "command_s", "s"),
    ("established", "established_count", "count"),
    ("failed", "failed_count", "count"),
    ("lost", "lost_count", "count"),
    ("held", "held_count", "count"),
)
_NODE = (
    ("time to the last connection", "ramp_s", "s"),
    ("server CPU per connection", "server_cpu_us", "us"),
    ("… of it the primary", "primary_cpu_us", "us"),
    ("client CPU per connection", "client_cpu_us", "us"),
    ("host CPU per connection", "host_cpu_us", "us"),
    ("server memory (PSS)", "server_pss_bytes", "bytes"),
    ("… of it the primary", "primary_pss_bytes", "bytes"),
    ("established", "established_count", "count"),
    ("failed", "failed_count", "count"),
    ("lost", "lost_count", "count"),
)
_WITHOUT_RATIO = ("established_count", "failed_count", "lost_count")

_METHOD = """\
- Each round runs, one after the other, `profile-run --probes none`, `profile-run` with the default
  probe set and, in the first rounds, Node. A small run before the first is not counted. Before each
  run the bench waits until the host is idle.
- Cells are the median of the runs with lowest and highest in brackets. "Added" is taken within each
  round and then the median, so that drift cancels.
- The ramp ends with the last connection established, by the clients' own records, not when somebody
  noticed.
- CPU of server and clients is the scheduler's run time of their processes from the start of the
  ramp to its end. Without IRQ_TIME_ACCOUNTING (this kernel: {irq}) it contains what runs in
  their context: system calls, the TCP work that loopback does there, and the eBPF programs. The
  whole host's is the time that its cores were not idle: also the probe processes, the supervisor,
  the bench's watching, and interrupts over idle.
- Memory is PSS and RSS of /proc/PID/smaps_rollup in the hold: of the workers and their parent, and
  of the probe process and its children. Kernel memory of the sockets is the same for every server
  and not in it.
- Node is plain `ws` in a `cluster`, perMessageDeflate off, with as many workers, the backlog, the
  network namespace and the descriptor limit of our plan, and our clients with the same plan. Its
  supervisor is the bench and so costs less than ours. Ratios are to our unprofiled run."""


def value_text(value: float | None, unit: str) -> str:
    """One figure with its unit.

    Args:
        value: In ``unit``; None prints as a dash.
        unit: ``s``, ``us``, ``%``, ``bytes`` or ``count``.
    """
    if value is None:
        return "-"
    if unit == "s":
        return f"{value:.2f} s"
    if unit == "us":
        return f"{value:.1f} µs"
    if unit == "%":
        return f"{value:.1f} %"
    if unit == "bytes":
        return f"{value / 1e6:.1f} MB"
    return f"{value:,.0f}"


def spread_text(spread: Spread | None, unit: str) -> str:
    """Median and, where runs differ, their extremes."""
    if spread is None:
        return "-"
    median, low, high = (
        value_text(value, unit) for value in (spread.median, spread.low, spread.high)
    )
    if low == high:
        return median
    return f"{median} ({low.split()[0]} to {high.split()[0]})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns; the first is text, the others are figures."""
    widths = [max(len(row[index]) for row in [head, *rows]) for index in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(head), line(rule), *map(line, rows)])


def bullets(sentences: Sequence[str]) -> str:
    """A list, one point a sentence."""
    return "\n".join(
        textwrap.fill(
            f"- {sentence}", _WIDTH, subsequent_indent="  ", break_long_words=False,
            break_on_hyphens=False,
        )
        for sentence in sentences
    )  # fmt: skip


def render(runs: Runs, environment: Mapping[str, str]) -> str:
    """The whole document."""
    target = runs.target_connections
    parts = ["# Benchmarks", f"{target:,} connections; measured by `make bench`."]
    if target != BAR_CONNECTIONS:
        parts.append(f"The bars are set for {BAR_CONNECTIONS:,} connections, these are {target:,}.")
    parts += ["## Bars", _bars_table(judge(runs))]
    parts += ["## Unprofiled and with the default probes", _ours_table(runs)]
    if any(run.subject in (NODE_NONE, NODE_RR) for run in runs.all):
        parts += ["## Node `ws` with `cluster` on the same clients", _node_table(runs)]
    if remarks := _remarks(runs.all):
        parts += ["## Remarks", bullets(remarks)]
    parts += ["## Where", bullets([f"{name}: {value}" for name, value in environment.items()])]
    irq = environment.get("IRQ_TIME_ACCOUNTING", "unknown")
    parts += ["## How it is measured", _METHOD.format(irq=irq)]
    return "\n\n".join(parts) + "\n"


def _bars_table(judgements: Sequence[Judgement]) -> str:
    rows = [
        [
            each.what,
            value_text(each.measured, each.unit),
            f"{each.comparison} {_limit_text(each)}",
            each.verdict,
        ]
        for each in judgements
    ]
    return table(["figure", "measured", "bar", "verdict"], rows)


def _limit_text(judgement: Judgement) -> str:
    if judgement.unit == "bytes":
        return f"{judgement.limit / 1e6:,.0f} MB"
    if judgement.unit == "count":
        return f"{judgement.limit:,.0f}"
    return f"{judgement.limit:,.0f} {judgement.unit}"


def _count_text(runs: Runs, subject: str) -> str:
    spread = runs.spread(subject, "ramp_s")
    return f"n = {spread.count if spread else 0}"


def _ours_table(runs: Runs) -> str:
    rows = []
    for label, figure, unit in _OURS:
        none, auto = runs.spread(NONE, figure), runs.spread(AUTO, figure)
        has_both = unit in ("s", "us", "bytes") and none is not None and auto is not None
        added = runs.added_pct(figure) if has_both else None
        rows.append(
            [label, spread_text(none, unit), spread_text(auto, unit), spread_text(added, "%")]
        )
    head = [
        "figure",
        f"--probes none, {_count_text(runs, NONE)}",
        f"default probes, {_count_text(runs, AUTO)}",
        "added",
    ]
    return table(head, rows)


def _node_table(runs: Runs) -> str:
    rows = []
    for label, figure, unit in _NODE:
        row = [label, spread_text(runs.spread(NONE, figure), unit)]
        for subject in (NODE_NONE, NODE_RR):
            ratio = None if figure in _WITHOUT_RATIO else runs.ratio(subject, figure)
            row += [
                spread_text(runs.spread(subject, figure), unit),
                "-" if ratio is None else f"{ratio:.2f}",
            ]
        rows.append(row)
    head = [
        "figure",
        f"connscope, {_count_text(runs, NONE)}",
        f"SCHED_NONE, {_count_text(runs, NODE_NONE)}",
        "ratio",
        f"round robin, {_count_text(runs, NODE_RR)}",
        "ratio",
    ]
    return table(head, rows)


def _remarks(runs: Sequence[RunFigures]) -> list[str]:
    remarks = [f"{run.subject}, round {run.number}: {run.error}" for run in runs if run.error]
    busy = [run.background_pct for run in runs if (run.background_pct or 0) > QUIET_PCT]
    if busy:
        remarks.append(
            f"The host was not quiet before {len(busy)} of {len(runs)} runs: others used up to "
            f"{max(each for each in busy if each is not None):.0f} % of a core."
        )
    return remarks
