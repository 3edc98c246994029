"""Under which conditions a run was made, which runs repeat each other, and what changed.

Runs with the same settings, plan, host and tool version are repeats of one variant. What moves by
itself between two runs on one host (free memory, descriptors in use, a cgroup's path) is no
condition, and neither are the plan's predictions, which follow from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Manifest = Mapping[str, Any]
Key = tuple[str, str]
"""Area (settings, plan, host, tool) and the name within it."""

AREAS = ("settings", "plan", "host", "tool")

_MOVING = {
    ("plan", "constraints"),
    ("plan", "rungs"),
    ("plan", "notes"),
    ("host", "memory_available_bytes"),
    ("host", "file_used_count"),
    ("host", "conntrack_used_count"),
    ("host", "cgroup.path"),
    ("host", "cgroup.memory_used_bytes"),
}
_FLATTENED = ("sysctls", "limits", "cgroup")
_NONE_WORDS = {"keepalive_s": "off", "ramp_per_s": "max", "nofile": "the host's"}
_LONG_COUNT = 4
_LABEL_CHANGES = 3


@dataclass(frozen=True, slots=True)
class Change:
    """One condition in which variants differ.

    Attributes:
        area: settings, plan, host or tool.
        name: Of the condition, as in the manifest.
        values: In words, one for each variant.
    """

    area: str
    name: str
    values: tuple[str, ...]


def conditions(manifest: Manifest) -> dict[Key, Any]:
    """Every condition of a run that another run can repeat.

    Those that are null are left out: a run from before an option existed had it off as well.
    """
    found: dict[Key, Any] = {("tool", "tool_version"): manifest.get("tool_version")}
    found["settings", "target_connections"] = manifest.get("target_connections")
    for area in ("settings", "plan", "host"):
        for name, value in (manifest.get(area) or {}).items():
            if name in _FLATTENED and isinstance(value, Mapping):
                found |= {(area, f"{name}.{key}"): inner for key, inner in value.items()}
            else:
                found[area, str(name)] = value
    found.pop(("plan", "target_connections"), None)
    return {k: value for k, value in found.items() if k not in _MOVING and value is not None}


def variant_key(manifest: Manifest) -> str:
    """The same text for runs that repeat each other."""
    rows = sorted((area, name, _plain(v)) for (area, name), v in conditions(manifest).items())
    return json.dumps(rows)


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def changes(manifests: Sequence[Manifest]) -> list[Change]:
    """In which conditions the runs differ: settings first, then what the plan made of them.

    A plan entry that only repeats a setting of the same name is left out.

    Args:
        manifests: One for each variant.
    """
    by_run = [conditions(manifest) for manifest in manifests]
    names = {key: None for found in by_run for key in found}  # a set that keeps the order
    result = []
    for area, name in sorted(names, key=lambda key: AREAS.index(key[0])):
        values = [found.get((area, name)) for found in by_run]
        if len({_plain(value) for value in values}) < 2:
            continue
        if area == "plan" and all(
            found.get(("settings", name)) == value
            for found, value in zip(by_run, values, strict=True)
        ):
            continue
        result.append(Change(area, name, tuple(_words_of(name, values))))
    return result


def _words_of(name: str, values: Sequence[Any]) -> Iterable[str]:
    if all(isinstance(value, list) for value in values) and name == "probes":
        return _probe_words(values)
    return [value_words(name, value) for value in values]


def _probe_words(values: Sequence[list[str]]) -> list[str]:
    """Only what not all of them have: the names that they share say nothing."""
    shared = set(values[0]).intersection(*values[1:])
    words = []
    for value in values:
        own = [probe for probe in value if probe not in shared]
        rest = f"{len(shared)} in common" if shared else ""
        words.append(", ".join([rest, *own] if rest else own) or "none")
    return words


def value_words(name: str, value: Any) -> str:
    """A recorded value as people read it."""
    if value is None:
        return _NONE_WORDS.get(name, "none")
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        if name == "port_range" and len(value) == 2:
            return f"{value[0]}-{value[1]}"
        if len(value) > _LONG_COUNT:
            return f"{len(value)}: {value[0]} to {value[-1]}"
        return ", ".join(str(item) for item in value) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={value_words(key, inner)}" for key, inner in value.items())
    return str(value)


def labels(found: Sequence[Change], variant_count: int) -> list[str]:
    """A short name for each variant, of what sets it apart: ``accept=shared``.

    Settings name it; only where none differs do plan, host or tool.
    """
    for area in AREAS:
        mine = [change for change in found if change.area == area][:_LABEL_CHANGES]
        if mine:
            return [
                ", ".join(f"{change.name}={_short(change.values[index])}" for change in mine)
                for index in range(variant_count)
            ]
    return ["all runs"] * variant_count


def _short(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:23]}\N{HORIZONTAL ELLIPSIS}"
