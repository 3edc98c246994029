"""The terminal: a live view while the fleet runs, and the few lines at the end.

Imported by the supervisor while the measurement goes on, so it imports the standard library only;
rich comes with the first live picture. Progress goes to stderr. A terminal gets a picture that is
redrawn in place; a pipe, a CI job or a dumb terminal gets a plain line every few seconds.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from analysis.ladder.limit_words import limit_of, unit_words
from reports.terminal.redrawn import Redrawn, write_text

if TYPE_CHECKING:
    from rich.text import Text

PLAIN_PERIOD_S = 5.0
REDRAW_PERIOD_S = 0.2
HOT_CPU_PCT = 90.0
FULL_SHARE = 0.98
END_LINES_COUNT = 3

_BLOCKS = "▏▎▍▌▋▊▉█"


@dataclass(frozen=True, slots=True)
class Status:
    """What the supervisor knows now.

    Attributes:
        elapsed_s: Seconds since the ramp began, 0 before.
        phase: setup, ramp, hold, stop, collect or analyse.
        established: Handshakes completed since the start.
        open_count: Connections open now.
        rate_per_s: Handshakes per second over the last second or so.
        failed: Attempts that failed and connections lost so far.
        errors: (side, errno or other name, count), most frequent first.
        workers: (label, connections open, connections it can hold or 0 when unknown, CPU in per
            cent of one core, negative when unknown), in the order to show.
        time_left_s: Estimated seconds until the run stops, None when unknown.
        note: One remark for the person, '' for none.
    """

    elapsed_s: float
    phase: str
    established: int
    open_count: int
    rate_per_s: float
    failed: int
    errors: Sequence[tuple[str, str, int]] = ()
    workers: Sequence[tuple[str, int, int, float]] = ()
    time_left_s: float | None = None
    note: str = ""


def is_interactive(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a picture can be redrawn on this stream: a terminal, not dumb, not a CI job."""
    if environ.get("CI", "").lower() not in ("", "0", "false"):
        return False
    if environ.get("TERM", "") in ("", "dumb"):
        return False
    return stream.isatty()


def has_colour(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether colour may be used; NO_COLOR with any value forbids it (no-color.org)."""
    return not environ.get("NO_COLOR") and is_interactive(stream, environ)


def printable(text: str) -> str:
    """The text with control characters replaced: names of processes must not drive a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def plain_line(status: Status, target_connections: int) -> str:
    """One line of progress for logs, without colour or control characters.

    Without a target (0) somebody else's clients are watched, so nothing is counted against one.
    """
    parts = [
        f"{status.elapsed_s:6.1f} s",
        f"{status.phase:<7}",
        *(
            [f"{status.established:,}/{target_connections:,} established"]
            if target_connections
            else []
        ),
        f"{status.open_count:,} open",
        f"{status.rate_per_s:,.0f}/s",
        f"{status.failed:,} failed",
    ]
    parts += [f"{side} {name} {count:,}" for side, name, count in status.errors[:3]]
    known = [worker for worker in status.workers if worker[3] >= 0]
    if known:
        label, _, _, cpu_pct = max(known, key=lambda worker: worker[3])
        parts.append(f"busiest {label} {cpu_pct:.0f}% CPU")
    if status.time_left_s is not None:
        parts.append(f"{status.time_left_s:.0f} s left")
    if status.note:
        parts.append(status.note)
    return printable(" | ".join(parts))


def bar(share: float, width: int) -> str:
    """A horizontal bar of ``width`` cells, filled to ``share`` (0 to 1) in eighths of a cell."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    drawn = "█" * full + (_BLOCKS[rest - 1] if rest else "")
    return drawn + "·" * (width - len(drawn))


def worker_cells(
    workers: Sequence[tuple[str, int, int, float]], width: int, height: int
) -> tuple[list[list[tuple[str, str]]], int]:
    """Lays the workers out in a grid that fits, in the most telling form that does.

    Args:
        workers: As in Status.
        width: Columns of the terminal.
        height: Lines that may be used, at least 1.

    Returns:
        Lines of (text, style) cells, and how many workers did not fit (the least busy ones).
    """
    if not workers or height < 1:
        return [], len(workers)
    label_width = max(len(printable(worker[0])) for worker in workers)
    columns, bar_width, with_count = 1, 0, False
    for with_count, bar_width in (
        (True, 20),
        (True, 8),
        (False, 8),
        (False, 4),
        (False, 2),
        (False, 0),
    ):
        cell_width = _cell_width(label_width, bar_width, with_count)
        columns = max(1, (width + 2) // (cell_width + 2))
        if columns * height >= len(workers):
            break
    hidden_count = max(0, len(workers) - columns * height)
    shown = list(workers)
    if hidden_count:
        keep = {id(w) for w in sorted(workers, key=lambda w: -w[3])[: columns * height]}
        shown = [worker for worker in workers if id(worker) in keep]
    if with_count and columns > 1 and len(shown) <= height:
        columns = 1
    line_count = -(-len(shown) // columns)
    if columns == 1:
        spare = width - _cell_width(label_width, 0, with_count) - 1
        bar_width = max(0, min(40, spare))
    lines: list[list[tuple[str, str]]] = []
    for line in range(line_count):
        cells = shown[line::line_count]
        lines.append([_cell(worker, label_width, bar_width, with_count) for worker in cells])
    return lines, hidden_count


def _cell_width(label_width: int, bar_width: int, with_count: bool) -> int:
    return label_width + (bar_width + 1 if bar_width else 0) + (8 if with_count else 0) + 5


def _cell(
    worker: tuple[str, int, int, float], label_width: int, bar_width: int, with_count: bool
) -> tuple[str, str]:
    label, open_count, capacity, cpu_pct = worker
    text = f"{printable(label):<{label_width}}"
    if bar_width:
        text += " " + bar(open_count / capacity if capacity > 0 else 0.0, bar_width)
    if with_count:
        text += f" {open_count:>7,}"
    text += f" {cpu_pct:3.0f}%" if cpu_pct >= 0 else "   - "
    if capacity > 0 and open_count >= capacity * FULL_SHARE:
        return text, "bold yellow"
    return text, "bold red" if cpu_pct >= HOT_CPU_PCT else ""


def picture(status: Status, target_connections: int, width: int, height: int) -> list[Text]:
    """The live view as lines that fit ``width`` x ``height``."""
    from rich.text import Text

    lines: list[Text] = []

    def add(*parts: tuple[str, str]) -> None:
        line = Text(no_wrap=True, overflow="ellipsis")
        for part, style in parts:
            line.append(part, style=style)
        lines.append(line)

    share = status.established / target_connections if target_connections else 0.0
    left = "" if status.time_left_s is None else f"   about {status.time_left_s:.0f} s left"
    add((status.phase, "bold cyan"), (f"   {status.elapsed_s:.1f} s{left}", ""))
    figures = f" {status.established:,} of {target_connections:,}"
    if target_connections:
        drawn = bar(share, max(10, min(60, width - len(figures) - 6)))
        add((drawn, "cyan"), (figures, "bold"))
    add(
        (f"{status.open_count:,} open   {status.rate_per_s:,.0f} per s   ", ""),
        (f"{status.failed:,} failed", "bold red" if status.failed else "dim"),
    )
    if status.errors:
        named = [f"{side} {name} {count:,}" for side, name, count in status.errors]
        shown = "   ".join(named[:4]) + (f"   +{len(named) - 4}" if len(named) > 4 else "")
        add((printable(shown), "red"))
    if status.note:
        add((printable(status.note), "yellow"))
    room = height - len(lines) - 2  # the heading of the workers and a free line for the cursor
    if status.workers and room >= 1:
        cells, hidden_count = worker_cells(status.workers, width, room)
        hidden = f"; {hidden_count} less busy ones do not fit" if hidden_count else ""
        add((f"bar: connections held of those it can hold, CPU in % of a core{hidden}", "dim"))
        for line_cells in cells:
            joined: list[tuple[str, str]] = []
            for cell in line_cells:
                joined += [cell, ("  ", "")]
            add(*joined[:-1])
    return lines[: max(1, height - 1)]


def remark_lines(remarks: Sequence[str], width: int, height: int) -> list[Text]:
    """Remarks below a picture, a free line before them; none where they do not fit ``height``."""
    import textwrap

    from rich.text import Text

    lines = [line for remark in remarks for line in textwrap.wrap(remark, max(20, width))]
    if not lines or len(lines) + 1 > height:
        return []
    return [Text(""), *(Text(line, style="dim") for line in lines)]


class LiveView:
    """Shows the run on stderr while it goes on.

    ::

        with LiveView(target_connections=120_000, enabled=not quiet) as view:
            view.update(Status(...))      # as often as the supervisor likes

    It is drawn by ``update`` only: a thread that redraws would take time from the fleet.

    Args:
        target_connections: What the run is to reach.
        enabled: False shows nothing.
        stream: Where to; sys.stderr when None.
        remarks: Lines that stay true all the time: what the plan expects, where metrics are. They
            are printed once, and stand below the picture where that leaves room.
        redraw_period_s: How often a terminal gets a new picture at most.
    """

    def __init__(
        self,
        target_connections: int,
        enabled: bool,
        stream: TextIO | None = None,
        remarks: Sequence[str] = (),
        redraw_period_s: float = REDRAW_PERIOD_S,
    ) -> None:
        self._redraw_period_s = redraw_period_s
        self._target_connections = target_connections
        self._enabled = enabled
        self._remarks = [printable(remark) for remark in remarks]
        self._stream = stream if stream is not None else sys.stderr
        self._picture: Redrawn | None = None
        self._last: Status | None = None
        self._printed: Status | None = None
        self._next_s = 0.0

    def __enter__(self) -> Self:
        if self._enabled:
            for remark in self._remarks:
                write_text(self._stream, remark + "\n")
        if self._enabled and is_interactive(self._stream):
            self._picture = Redrawn(self._stream, colour=has_colour(self._stream))
        return self

    def is_due(self, phase: str) -> bool:
        """Whether ``update`` would show something now, for whom a status costs too much."""
        phase_changed = self._last is None or self._last.phase != phase
        return self._enabled and (phase_changed or time.monotonic() >= self._next_s)

    def update(self, status: Status) -> None:
        """Takes the newest status; draws it when enough time has passed or the phase changed."""
        if not self._enabled:
            return
        now_s = time.monotonic()
        phase_changed = self._last is None or self._last.phase != status.phase
        self._last = status
        if now_s < self._next_s and not phase_changed:
            return
        if self._picture is None:
            self._print_plain(status)
            self._next_s = now_s + PLAIN_PERIOD_S
            return
        width, height = self._picture.size()
        lines = picture(status, self._target_connections, width, height)
        self._picture.draw(lines + remark_lines(self._remarks, width, height - 2 - len(lines)))
        self._next_s = now_s + self._redraw_period_s

    def _print_plain(self, status: Status) -> None:
        self._printed = status
        write_text(self._stream, plain_line(status, self._target_connections) + "\n")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        last = self._last
        if self._picture is not None:
            self._picture.close()
            self._picture = None
            if last is not None:  # the picture is gone; what it last said stays, on one line
                established = f"{last.established:,} of {self._target_connections:,} established"
                if not self._target_connections:
                    established = f"{last.open_count:,} open"
                text = f"{established}, {last.failed:,} failed, {last.elapsed_s:.1f} s"
                write_text(self._stream, text + "\n")
        elif self._enabled and last is not None and last is not self._printed:
            self._print_plain(last)


def print_end(
    verdict: Mapping[str, Any], report_path: Path | str | None, stream: TextIO | None = None
) -> None:
    """Prints the end of a run: verdict, fix, next rung and report, three lines each at most.

    Args:
        verdict: The content of verdict.json.
        report_path: The page that was written, or the command that writes it; None when it could
            not be.
        stream: Where to; sys.stdout when None (pass sys.stderr when stdout carries JSON).
    """
    stream = stream if stream is not None else sys.stdout
    width = max(40, shutil.get_terminal_size((100, 24)).columns)
    for line in end_lines(verdict, report_path, width, colour=has_colour(stream)):
        write_text(stream, line + "\n")


def end_lines(
    verdict: Mapping[str, Any], report_path: Path | str | None, width: int, *, colour: bool = False
) -> list[str]:
    """The lines of ``print_end``; a path or command is never wrapped, so that it can be copied."""
    result = verdict.get("verdict", {})
    entries = [("verdict", _wrapped(str(result.get("sentence", "no verdict")), width - 9))]
    fixes = first_fixes(verdict)
    if fixes:
        entries.append(("fix", [printable(str(fix.get("command", ""))) for fix in fixes]))
    tried = str((verdict.get("run", {}).get("attempts") or {}).get("sentence") or "")
    if tried:
        entries.append(("tried", _wrapped(tried, width - 9)))
    messages = verdict.get("run", {}).get("messages")
    if messages:
        entries.append(("messages", _wrapped(message_sentence(messages), width - 9)))
    quotes = result.get("quotes") or []
    if quotes:
        first = quotes[0]
        text = f'{first.get("source")}, {first.get("at_s"):.1f} s: "{first.get("line")}"'
        entries.append(("said", _wrapped(text, width - 9)))
    rivals = result.get("alternatives") or []
    if rivals:
        text = "; ".join(f"{a.get('cause')} ({a.get('side')}): {a.get('decide')}" for a in rivals)
        entries.append(("or", _wrapped(text, width - 9)))
    known = result.get("unexplained") or {}
    if known:
        entries += _unexplained_entries(known, width - 9)
    rung = next_rung(verdict)
    if rung is not None:
        entries.append(("next", _wrapped(rung_sentence(rung), width - 9)))
    if report_path is not None:
        entries.append(("report", [printable(str(report_path))]))
    entries += _probe_entries(verdict.get("probes", []), width - 9)
    bold, plain = ("\x1b[1m", "\x1b[0m") if colour else ("", "")
    lines: list[str] = []
    for label, texts in entries:
        for number, text in enumerate(texts[:END_LINES_COUNT]):
            head = f"{bold}{label:<8}{plain}" if number == 0 else " " * 8
            lines.append(f"{head} {text}")
    return lines


def message_sentence(messages: Mapping[str, Any]) -> str:
    """How long messages took, from the object ``run.messages`` of verdict.json."""
    sent, answered = messages["sent_count"], messages["answered_count"]
    if not answered:
        return f"{sent:,} sent, none answered with a message that is known as its answer"
    within = [
        f"{share} within {messages[key]:,.3g} ms"
        for share, key in (("half", "p50_ms"), ("99 %", "p99_ms"), ("99.9 %", "p99_9_ms"))
    ]
    return (
        f"{answered:,} of {sent:,} answered: {', '.join(within)}, the longest "
        f"{messages['longest_ms']:,.3g} ms, from when each was due"
        if answered <= sent
        else f"{sent:,} sent, {answered:,} deliveries: {', '.join(within)}, the longest "
        f"{messages['longest_ms']:,.3g} ms, from when each was due"
    )


def _probe_entries(probes: Sequence[Mapping[str, Any]], width: int) -> list[tuple[str, list[str]]]:
    """Probes that did not see the run; those with the same reason in one line."""
    alike: dict[tuple[str, str], list[str]] = {}
    for probe in probes:
        if probe.get("state") in ("unavailable", "failed"):
            how = (str(probe["state"]), str(probe.get("reason", "")))
            alike.setdefault(how, []).append(str(probe.get("name")))
    entries = []
    for (state, reason), names in alike.items():
        who = names[0] if len(names) == 1 else f"{len(names)} probes ({names[0]}, ...)"
        entries.append(("probe", _wrapped(f"{who} {state}: {reason}", width)[:1]))
    return entries


def _unexplained_entries(known: Mapping[str, Any], width: int) -> list[tuple[str, list[str]]]:
    """What is known of a run that nothing explains; the page has all of it."""
    entries = []
    spare = [
        f"{each['left_pct']:.0f} % of {each['limit']}, {each['subject']}"
        for each in list(known.get("left") or [])[:3]
    ]
    if spare:
        entries.append(("left", _wrapped("; ".join(spare), width)))
    out = [str(each["cause"]) for each in known.get("ruled_out") or []]
    if out:
        text = f"{', '.join(out)} (by which numbers: see the report)"
        entries.append(("not", _wrapped(text, width)))
    decide = known.get("decide")
    if decide:
        command = printable(str(decide["command"]))
        entries.append(("decide", [command, *_wrapped(str(decide["effect"]), width)]))
    return entries


def first_fixes(verdict: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The fixes of the finding that the verdict names, else of the first binding finding.

    A run that reached its target needs none, except for what harmed it all the same.
    """
    cause = verdict.get("verdict", {}).get("cause")
    findings = list(verdict.get("findings", []))
    if cause == "reached":
        findings = [f for f in findings if f.get("severity") == "warning"]
    ranked = sorted(
        findings,
        key=lambda f: (
            f.get("cause") != cause,
            f.get("severity") != "binding",
            bool(f.get("follows_from")),
            f.get("first_s", 0.0),
        ),
    )
    for finding in ranked[:1]:
        return list(finding.get("fix", []))
    return []


def next_rung(verdict: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The first rung of the ladder beyond what the run reached, None when none is known."""
    peak_connections = verdict.get("run", {}).get("peak_connections") or 0
    known = [r for r in verdict.get("ladder", []) if r.get("predicted_connections") is not None]
    beyond = [r for r in known if r["predicted_connections"] > peak_connections]
    # What the next plan moves by itself is worth a line only where nothing else is known.
    return min(
        beyond,
        key=lambda r: (r.get("moved_by") == "plan", float(r["predicted_connections"])),
        default=None,
    )


def rung_sentence(rung: Mapping[str, Any]) -> str:
    """One sentence about a rung: which limit, of whom, at how many connections, use at peak."""
    subject = str(rung.get("subject") or rung.get("scope") or "").strip()
    sentence = limit_of(str(rung.get("limit")), subject)
    sentence += f" at about {rung['predicted_connections']:,.0f} connections"
    used, capacity = rung.get("used_at_peak"), rung.get("capacity")
    if isinstance(used, (int, float)) and isinstance(capacity, (int, float)):
        unit = unit_words(str(rung.get("unit", "")))
        sentence += f" (used {_whole(used)} of {_whole(capacity)} {unit}".rstrip() + ")"
    return sentence


def _whole(value: float) -> str:
    """A number as people read it: 2,466,174, but 0.25."""
    return f"{value:,.0f}" if abs(value) >= 1_000 or value == int(value) else f"{value:.4g}"


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(
        printable(text),
        max(20, width),
        max_lines=END_LINES_COUNT,
        placeholder=" …",
        break_on_hyphens=False,  # an option is copied whole
    )
