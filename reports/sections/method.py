"""How this was measured: probes and their cost, host, sysctls, limits, command, how to repeat."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.frames.probe_trust import MATERIAL_LOSS_SHARE
from analysis.frames.run_view import run_directory
from probes.contract.clock import Anchor
from probes.contract.several_hosts import hosts_of
from reports.elements import formatting
from reports.elements.tables import Cell, Heading, Part, Table, number_column, table_of, text_column
from reports.sections.view import View

_STATE_WORDS = {
    "ran": "ran",
    "unavailable": "could not run",
    "failed": "failed",
    "not_asked": "not asked for",
}

_BPF_COST_NOTE = (
    "The kernel counts the time of eBPF programs only while kernel.bpf_stats_enabled is 1, which "
    "costs time itself; no run changes it."
)


def method_section(view: View) -> dict[str, Any]:
    """Everything a doubter asks for."""
    s = view.summary
    manifest = s.manifest
    argv = [str(word) for word in s.run.get("argv") or manifest.get("argv") or []]
    host = _mapping(manifest.get("host"))
    return {
        "command": shlex.join(argv),
        "rebuild": shlex.join(["profile-report", run_directory(manifest)]),
        "started": started_text(manifest),
        "parts": [
            _health_part(view),
            _overhead_part(view),
            *_hosts_parts(manifest),
            _facts_part("host", "Which host was it?", _without(host, "sysctls", "limits")),
            _facts_part("sysctls", "Which sysctls applied?", _mapping(host.get("sysctls"))),
            _facts_part("limits", "Which limits applied?", _mapping(host.get("limits"))),
            _facts_part("settings", "What was set?", _mapping(manifest.get("settings"))),
            _facts_part(
                "plan",
                "What was planned?",
                _without(_mapping(manifest.get("plan")), "rungs", "constraints", "client_shares"),
            ),
        ],
    }


def started_text(manifest: Mapping[str, Any]) -> str:
    """Wall time of the start (UTC) from the manifest's anchor, '' when there is none."""
    anchor = _mapping(_mapping(manifest.get("clock")).get("start"))
    try:
        pair = Anchor(int(anchor["monotonic_ns"]), int(anchor["wall_ns"]), 0)
        return pair.wall_time(pair.monotonic_ns).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (KeyError, TypeError, ValueError, OverflowError):
        return ""


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _without(mapping: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in names}


def _health_part(view: View) -> Part:
    s = view.summary
    part = Part("health", "Which probes ran, and what did they lose?")
    if s.probe_health.empty:
        part.empty = "No probe left a health row: the probe process did not start or was killed."
        return part
    asked = s.probe_health[s.probe_health["asked_for"].astype(bool)]
    ran = int((asked["state"] == "ran").sum())
    part.lead = (
        f"{ran} of {len(asked)} probes that were asked for ran; {_losses_text(s.probe_health)}."
    )

    def state(row: dict[str, Any]) -> Cell:
        name = str(row["state"])
        tone = {"ran": "good", "unavailable": "warn", "failed": "bad"}.get(name, "")
        return Cell(_STATE_WORDS.get(name, name), tone=tone)

    def lost_cell(row: dict[str, Any]) -> Cell:
        value, seen, pct = (float(row[key]) for key in ("lost_count", "seen_count", "lost_pct"))
        text = formatting.count(value)
        if value and seen >= 0 and formatting.is_known(pct):
            text += f" of {formatting.count(seen)} ({formatting.significant(pct, 2)} %)"
        if (missed := float(row["missed_count"])) > 0:
            runs = formatting.count(float(row["run_count"]))
            text += f"; {formatting.count(missed)} of {runs} runs skipped"
        return Cell(text, value, tone="warn" if row["is_loss_material"] else "")

    columns = [text_column("Probe", "probe", is_code=True), (Heading("State"), state)]
    # A column that has nothing to say in this run is left out.
    if (s.probe_health["reason"].astype(str) != "").any():
        columns += [
            text_column("Why not", "reason"),
            text_column("What makes it run", "fix", is_code=True),
        ]
    columns += [
        number_column("Rows", "row_count", "written"),
        (Heading("Lost", "events", is_number=True), lost_cell),
        number_column("Late", "late_count", "samples"),
        number_column("CPU", "cpu_s", "in user space, whole run", formatting.seconds),
    ]
    note = _BPF_COST_NOTE
    if s.probe_health["bpf_run_s"].notna().any():
        columns.append(number_column("CPU in eBPF", "bpf_run_s", "whole run", formatting.seconds))
        note = ""
    caption = "Health of the probes"
    part.tables.append(table_of("health-table", caption, s.probe_health, columns, note))
    return part


def _losses_text(health: pd.DataFrame) -> str:
    """How many of them lost events, and whether that may change the verdict."""
    losing, material = int((health["lost_count"] > 0).sum()), int(health["is_loss_material"].sum())
    if not losing:
        return "none lost an event"
    lost = formatting.count(float(health["lost_count"].sum()))
    which = "one probe" if losing == 1 else f"{losing} probes"
    if not material:
        limit_pct = 100 * MATERIAL_LOSS_SHARE
        which += f", none more than {limit_pct:g} % of what it saw, which changes no verdict"
    return f"{lost} events were lost by {which}"


def _overhead_part(view: View) -> Part:
    s = view.summary
    part = Part("overhead", "What did watching cost?")
    if s.probe_overhead.empty:
        part.empty = view.why_empty(
            "process_samples", otherwise="The probe process was not sampled."
        )
        return part
    columns = [
        text_column("Phase", "phase"),
        number_column(
            "Probe processes", "probe_cpu_pct", "% of a core, mean of the phase", formatting.percent
        ),
        number_column("Memory", "probe_rss_bytes", "RSS at its peak", formatting.size),
    ]
    if s.probe_overhead["bpf_cpu_pct"].notna().any():
        columns.append(
            number_column(
                "eBPF programs", "bpf_cpu_pct", "% of a core, mean of the run", formatting.percent
            )
        )
    part.tables.append(table_of("overhead-table", "Cost of the probes", s.probe_overhead, columns))
    return part


def _hosts_parts(manifest: Mapping[str, Any]) -> list[Part]:
    """The hosts of a run over several, with their clocks; none for a run of one."""
    hosts = hosts_of(manifest)
    if not hosts:
        return []
    rows = []
    begun_ns = int(hosts[0].get("ramp_ns") or 0)
    for each in hosts:
        ramp_ns = int(each.get("ramp_ns") or 0)
        clock, agent = _mapping(each.get("clock")), _mapping(each.get("agent"))
        rows.append(
            {
                "number": int(each["index"]),
                "name": str(each["name"]),
                "role": str(each.get("role") or ""),
                "address": str(each.get("address") or ""),
                "connections": int(each.get("connections") or 0),
                "state": "lost" if each.get("is_lost") else str(each.get("status") or ""),
                "offset_s": float(clock.get("offset_ns") or 0) / 1e9,
                "drift_ppm": float(clock.get("drift_ppm") or 0.0),
                "bound_s": float(clock.get("bound_ns") or 0) / 1e9,
                "start_s": (ramp_ns - begun_ns) / 1e9 if ramp_ns and begun_ns else np.nan,
                "rss_bytes": float(agent.get("rss_bytes") or np.nan),
                "hold_cpu_pct": float(agent.get("hold_cpu_pct") or np.nan),
            }
        )
    part = Part("hosts", "Which hosts took part?")
    part.lead = (
        "All times are those of host 0, onto whose clock the others were moved: an order of two "
        "events on two hosts is known no better than the bounds of their clocks."
    )
    columns = [
        number_column("Number", "number", ""),
        text_column("Host", "name"),
        text_column("Role", "role"),
        text_column("Address", "address", is_code=True),
        number_column("Connections", "connections", "asked for"),
        text_column("Ended", "state"),
        number_column("Clock", "offset_s", "beside that of host 0", formatting.seconds),
        number_column("Drift", "drift_ppm", "ppm", formatting.significant),
        number_column("Bound", "bound_s", "of its clock", formatting.seconds),
        number_column("Ramp began", "start_s", "after that of host 0", formatting.seconds),
        number_column("Agent", "rss_bytes", "RSS", formatting.size),
        number_column("Agent", "hold_cpu_pct", "% of a core in the hold", formatting.percent),
    ]
    part.tables.append(table_of("hosts-table", "The hosts", pd.DataFrame(rows), columns))
    return [part]


def _facts_part(part_id: str, title: str, facts: Mapping[str, Any]) -> Part:
    part = Part(part_id, title)
    if not facts:
        part.empty = "The manifest of this run does not say."
        return part
    part.tables.append(_facts_table(part_id, title, facts))
    return part


def _facts_table(part_id: str, caption: str, facts: Mapping[str, Any]) -> Table:
    rows = [(name, _fact_text(name, value)) for name, value in facts.items()]
    frame = pd.DataFrame(rows, columns=["name", "value"], dtype=object)
    return table_of(
        f"{part_id}-table",
        caption,
        frame,
        [text_column("Name", "name", is_code=True), text_column("Value", "value", is_code=True)],
    )


def _fact_text(name: str, value: Any) -> str:
    if value is None:
        return "off" if name.endswith("keepalive_s") else "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and name.endswith("_bytes"):
        return f"{formatting.size(value)} ({value:,} bytes)"
    if isinstance(value, int) and name.endswith("_count"):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_fact_text(str(key), item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        texts = [_fact_text("", item) for item in value]
        shown = ", ".join(texts[:12])
        return f"{shown}, … ({len(texts)} in all)" if len(texts) > 12 else shown or "none"
    return str(value)
