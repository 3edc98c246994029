"""What all sections share while a page is built: summary, styles, drawing, why empty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd
from matplotlib.figure import Figure

from analysis.evidence import full_stop
from analysis.frames.probe_trust import PROBE_OF_TABLE
from analysis.frames.run_words import RunWords, is_watched, words_of
from analysis.summary import Summary
from reports.elements import style
from reports.elements.svg import StyleSheet, inline_svg
from reports.elements.tables import Chart
from reports.figures.time_axis import Phase, TimeFrame

# The part of the page that shows each table, for linking a claim to its evidence. Every id is there
# in every page, also when the part is empty.
PART_OF_TABLE = {
    "connections": "story-all",
    "live_samples": "workers",
    "events": "story-all",
    "processes": "processes",
    "process_samples": "hot-cpu",
    "blocked_samples": "hot-cpu",
    "cpu_stacks": "flame",
    "python_stacks": "flame",
    "syscall_mix": "syscalls",
    "runq_latency": "kernel",
    "failing_syscalls": "errors-all",
    "failure_stacks": "errors-all",
    "socket_memory": "memory-per",
    "socket_traffic": "states",
    "slab_caches": "memory-per",
    "sockstat": "tcp-mem",
    "host_memory": "memory-per",
    "cgroups": "memory-per",
    "cgroup_memory": "memory-per",
    "oom_kills": "memory-per",
    "skb_allocs": "kernel",
    "port_groups": "ports-all",
    "tcp_states": "states",
    "tcp_state_transitions": "transitions",
    "tcp_resets": "resets",
    "tcp_retransmits": "retransmits",
    "skb_drops": "drops",
    "socket_pressure": "pressure",
    "listeners": "listeners",
    "net_counters": "counters",
    "host_cpu": "story-all",
    "host_pressure": "story-all",
    "probe_health": "health",
    "manifest": "method",
}

Draw = Callable[[float], Figure]


CLIENTS_ELSEWHERE = (
    "The clients are elsewhere: only the server's side was watched, so what they saw is not known."
)
"""Why a section about clients is empty in a run that only watched."""


@dataclass(slots=True)
class View:
    """One page in the making.

    Attributes:
        summary: The run, understood.
        sheet: Styles of all its figures.
        end_s: Right end of all time axes.
        phases: (name, start_s, end_s).
    """

    summary: Summary
    sheet: StyleSheet = field(default_factory=StyleSheet)
    end_s: float = 0.0
    phases: list[Phase] = field(default_factory=list)

    @classmethod
    def of(cls, summary: Summary) -> View:
        """Reads the time axis from the summary."""
        phases = [
            (str(row["phase"]), float(row["start_s"]), float(row["end_s"]))
            for row in summary.phases.to_dict("records")
        ]
        last_s = [summary.duration_s]
        last_s += [end for name, _, end in phases if name in ("ramp", "hold", "watch")]
        return cls(summary, end_s=max(last_s), phases=phases)

    @property
    def is_watched(self) -> bool:
        """The run watched a server that was there before, with clients of its own."""
        return is_watched(self.summary.manifest)

    @property
    def words(self) -> RunWords:
        """What the parts of this run are called."""
        return words_of(self.summary.manifest)

    @property
    def time(self) -> TimeFrame:
        """The time that all figures share."""
        window_s = self.summary.failure_window_s
        return TimeFrame(self.phases, window_s, self.end_s, self.words.began)

    def chart(self, chart_id: str, question: str, window: str, label: str, draw: Draw) -> Chart:
        """Draws a figure in both widths.

        Args:
            chart_id: Unique in the page.
            question: Its title.
            window: Unit and window of its numbers.
            label: Its answer in words.
            draw: Width in points to figure.
        """
        drawings = []
        with style.common_style():
            for suffix, width_pt in (("w", style.WIDE_PT), ("n", style.NARROW_PT)):
                figure = draw(width_pt)
                drawings.append(inline_svg(figure, f"{chart_id}-{suffix}", label, self.sheet))
        return Chart(chart_id, question, window, label, drawings[0], drawings[1])

    def why_empty(self, *tables: str, otherwise: str) -> str:
        """Why there is nothing of these tables: the probe's own reason, else ``otherwise``."""
        health = self.summary.probe_health
        reasons: list[str] = []
        for probe in dict.fromkeys(PROBE_OF_TABLE.get(table, "") for table in tables):
            rows = health[health["probe"] == probe] if probe else pd.DataFrame()
            if probe and rows.empty:
                reasons.append(f"The probe {probe} was not part of this run.")
                continue
            for row in rows.to_dict("records"):
                if row["state"] == "ran":
                    continue
                reason = str(row["reason"]) or "no reason was recorded"
                fix = f" What makes it run: {row['fix']}" if row["fix"] else ""
                state = "was not asked for" if row["state"] == "not_asked" else "did not run"
                reasons.append(f"The probe {probe} {state}: {full_stop(reason)}{fix}")
        return " ".join(reasons) or otherwise
