"""The one context of the page: a plain dict, built once, handed to the template."""

from __future__ import annotations

from typing import Any

from analysis.summary import Summary
from reports.sections.errors import errors_section
from reports.sections.hot import hot_section
from reports.sections.kernel import kernel_section
from reports.sections.memory import memory_section
from reports.sections.method import method_section, started_text
from reports.sections.ports import ports_section
from reports.sections.story import story_section
from reports.sections.verdict import ladder_section, verdict_section
from reports.sections.view import View

NAVIGATION = (
    ("verdict", "Verdict"),
    ("ladder", "Ladder"),
    ("story", "Story"),
    ("hot", "Hot worker"),
    ("memory", "Memory"),
    ("ports", "Ports"),
    ("errors", "Errors"),
    ("kernel", "Kernel"),
    ("method", "Method"),
)


def build_context(summary: Summary) -> dict[str, Any]:
    """Everything the template shows.

    Args:
        summary: From ``analysis.summary.summarise``.

    Returns:
        ``navigation``, ``words``, ``run``, ``started``, one entry per section (``verdict``,
        ``ladder``, ``story``, ``hot``, ``memory``, ``ports``, ``errors``, ``kernel``,
        ``method``) and ``figure_css``, the styles of all figures.
    """
    view = View.of(summary)
    context: dict[str, Any] = {
        "navigation": NAVIGATION,
        "words": view.words,
        "run": summary.run,
        "started": started_text(summary.manifest),
        "tool_version": str(summary.manifest.get("tool_version", "")),
        "tool_commit": str(summary.manifest.get("tool_commit", "")),
        "kernel_version": str((summary.manifest.get("host") or {}).get("kernel", "")),
        "verdict": verdict_section(view),
        "ladder": ladder_section(view),
        "story": story_section(view),
        "hot": hot_section(view),
        "memory": memory_section(view),
        "ports": ports_section(view),
        "errors": errors_section(view),
        "kernel": kernel_section(view),
        "method": method_section(view),
    }
    context["figure_css"] = view.sheet.css
    return context
