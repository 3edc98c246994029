"""From py-spy's chrome trace and the scheduler's clock to rows of ``python_stacks``. Pure.

py-spy's trace format is the only one of its four that keeps the time. It holds a begin event when
a frame appears in a thread's stack and an end event when it goes, and skips samples of threads
that are not on a CPU. So between two samples with the same stack it cannot tell work from waiting:
*which* code ran comes from the trace, *how long* from the process's CPU clock, second by second.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

NS_PER_US = 1_000
_THREAD = re.compile(r"thread \((?P<tid>0x[0-9A-Fa-f]+|\d+)\)(?:: (?P<name>.*))?$")
_PROGRESS = "py-spy>"
_WROTE = re.compile(r"Samples: (?P<samples>\d+) Errors: (?P<errors>\d+)")


@dataclass(frozen=True, slots=True)
class Span:
    """A thread was last seen on a CPU with this stack, from one moment to the next."""

    start_ns: int
    end_ns: int
    thread: str
    stack: str


@dataclass(frozen=True, slots=True)
class StackRow:
    """One row of ``python_stacks`` without its pid; ``sample_count`` is at least 1."""

    at_ns: int
    thread: str
    stack: str
    sample_count: int
    period_ns: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What py-spy said on stderr.

    Attributes:
        sample_count: Samples that it took, -1 when it did not finish.
        error_count: Samples that failed (a stack changed while it was read).
        behind_count: How often it was more than a second behind.
        failure: Its error line, '' for none.
    """

    sample_count: int
    error_count: int
    behind_count: int
    failure: str


def frame_text(name: str, filename: str, line: int) -> str:
    """A frame as the schema wants it: ``function (file:line)``, the file with its folder."""
    parts = PurePosixPath(filename).parts[-2:]
    short = "/".join(part for part in parts if part != "/")
    # A stack is joined with ';', so a frame holds none.
    return f"{name} ({short}:{line})".replace(";", ",")


def parse_trace(text: str, started_ns: int) -> list[Span]:
    """Spans of py-spy's ``chrometrace`` output (one pid), in order of their end.

    Args:
        text: The whole output; '' gives no spans.
        started_ns: CLOCK_MONOTONIC when py-spy's own clock began.

    Raises:
        ValueError: Not such an output, for example cut short.
    """
    if not text.strip():
        return []
    loaded = json.loads(text)
    if not isinstance(loaded, list):
        raise ValueError("py-spy's trace is no list")  # noqa: TRY004  # the text is at fault
    stacks: dict[Any, list[str]] = {}
    since_us: dict[Any, int] = {}
    spans: list[Span] = []
    for event in loaded:
        phase = event["ph"]
        if phase not in ("B", "E"):
            continue
        thread, at_us = event["tid"], int(event["ts"])
        stack = stacks.setdefault(thread, [])
        if stack and at_us > since_us[thread]:
            spans.append(_span(stack, started_ns, since_us[thread], at_us))
        since_us[thread] = at_us
        if phase == "B":
            arguments = event["args"]
            is_thread = not stack and _THREAD.match(event["name"])
            name = event["name"]
            text_of_frame = (
                name
                if is_thread
                else frame_text(name, arguments["filename"], arguments["line"] or 0)
            )
            stack.append(text_of_frame)
        elif stack:
            stack.pop()
    return spans


def _span(stack: Sequence[str], started_ns: int, start_us: int, end_us: int) -> Span:
    match = _THREAD.match(stack[0])
    frames = stack[1:] if match else stack
    thread = (match["name"] or match["tid"]) if match else ""
    return Span(
        started_ns + start_us * NS_PER_US, started_ns + end_us * NS_PER_US, thread, ";".join(frames)
    )


class CpuBilling:
    """Bills the CPU time of one process to the stacks it was seen with.

    Counts are whole samples of ``period_ns``; what is left over is kept for the next row of the
    same stack, so that sums stay right for a process that is nearly idle.
    """

    def __init__(self, period_ns: int) -> None:
        self._period_ns = period_ns
        self._left_ns: dict[tuple[str, str], float] = {}

    def rows(self, spans: Iterable[Span], cpu: Sequence[tuple[int, int]]) -> list[StackRow]:
        """Rows of the intervals between readings.

        Args:
            spans: From ``parse_trace``.
            cpu: Readings (moment, CPU ns so far) of the process, ascending; each pair of
                neighbours is one interval, whose end is ``at_ns`` of its rows.
        """
        rows: list[StackRow] = []
        spans = list(spans)
        for (from_ns, cpu_from_ns), (to_ns, cpu_to_ns) in itertools.pairwise(cpu):
            shares: dict[tuple[str, str], int] = {}
            for span in spans:
                overlap_ns = min(span.end_ns, to_ns) - max(span.start_ns, from_ns)
                if overlap_ns > 0:
                    key = (span.thread, span.stack)
                    shares[key] = shares.get(key, 0) + overlap_ns
            seen_ns = sum(shares.values())
            if not seen_ns:
                continue
            # The spans may cover only a part of the interval (py-spy started in it): the CPU time
            # of that part is what can be billed.
            covered = _covered_ns(spans, from_ns, to_ns) / (to_ns - from_ns)
            scale = (cpu_to_ns - cpu_from_ns) * covered / seen_ns
            for key, share_ns in sorted(shares.items(), key=lambda item: -item[1]):
                due_ns = share_ns * scale + self._left_ns.get(key, 0.0)
                count = int(due_ns // self._period_ns)
                self._left_ns[key] = due_ns - count * self._period_ns
                if count:
                    rows.append(StackRow(to_ns, key[0], key[1], count, self._period_ns))
        return rows


def _covered_ns(spans: Sequence[Span], from_ns: int, to_ns: int) -> int:
    """Length of the union of the spans of all threads within an interval."""
    edges = sorted(
        (max(span.start_ns, from_ns), min(span.end_ns, to_ns))
        for span in spans
        if span.start_ns < to_ns and span.end_ns > from_ns
    )
    total_ns, reached_ns = 0, from_ns
    for start_ns, end_ns in edges:
        total_ns += max(0, end_ns - max(start_ns, reached_ns))
        reached_ns = max(reached_ns, end_ns)
    return total_ns


def parse_outcome(stderr: str) -> Outcome:
    """Reads py-spy's messages; works on what a killed py-spy left, too."""
    wrote = _WROTE.search(stderr)
    lines = stderr.splitlines()
    failure = next(
        (line.strip() for line in lines if line.startswith(("Error:", "Permission Denied"))), ""
    )
    behind_count = sum("behind in sampling" in line for line in lines)
    if wrote is None:
        return Outcome(-1, 0, behind_count, failure)
    return Outcome(int(wrote["samples"]), int(wrote["errors"]), behind_count, failure)


def is_denied(stderr: str) -> bool:
    """Whether py-spy, by its messages, had no right to read the process."""
    lowered = stderr.lower()
    return "permission denied" in lowered or "operation not permitted" in lowered


def explain_failure(stderr: str, end: str, ptrace_scope: int = -1) -> tuple[str, str]:
    """What went wrong and what would help, for people.

    Args:
        stderr: py-spy's messages. Its banner and its progress are no reason.
        end: How it ended (``pyspy_process``), which is the reason where it gave none.
        ptrace_scope: ``kernel.yama.ptrace_scope``, -1 where the kernel has none.
    """
    failure = parse_outcome(stderr).failure
    lowered = stderr.lower()
    if is_denied(stderr):
        if ptrace_scope == 3:
            return (
                "no process may read another (kernel.yama.ptrace_scope is 3)",
                "boot with kernel.yama.ptrace_scope=2 or less: 3 stays until then",
            )
        if ptrace_scope > 0:
            return (
                f"py-spy may not read other processes (kernel.yama.ptrace_scope is {ptrace_scope})",
                "run as root, with CAP_SYS_PTRACE (docker: --cap-add SYS_PTRACE)",
            )
        return (
            "py-spy may not read other processes (ptrace is denied)",
            "run as root, or give the container CAP_SYS_PTRACE (docker: --cap-add SYS_PTRACE)",
        )
    if "Failed to find python version" in stderr or "unsupported version" in lowered:
        return (
            "py-spy does not know this Python interpreter",
            "upgrade py-spy in the environment, or run the servers with a Python it supports",
        )
    if "python interpreter in the .data section" in stderr:  # 0.4 with python3.13t
        return (
            "py-spy finds no interpreter in this process (it reads no free-threaded build)",
            "run a build with the GIL; or python -X perf of a build with frame pointers",
        )
    if "gil_thread_id" in stderr:
        return (
            "py-spy does not read this build of Python (free-threaded)",
            "run a build with the GIL; or python -X perf of a build with frame pointers",
        )
    lines = [line.strip() for line in stderr.splitlines()]
    said = failure or next(
        (line for line in reversed(lines) if line and not line.startswith(_PROGRESS)), ""
    )
    reason = f"py-spy {end}" + (f": {said}" if said else "")
    return reason, "see logs/probes.log in the run directory"
