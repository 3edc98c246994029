"""Stack samples in speedscope's file format (www.speedscope.app, file-format-schema.json)."""

from __future__ import annotations

import json
import re
from typing import Any

import pandas as pd

from reports.exports.folded import frames_of, process_name
from reports.exports.plain_text import one_line

SPEEDSCOPE_SCHEMA = "https://www.speedscope.app/file-format-schema.json"
_SOURCE_WORDS = {"python": "Python, wall time", "native": "native and kernel, CPU time"}
_PYTHON_FRAME = re.compile(r"(?P<name>.+) \((?P<file>.+):(?P<line>\d+)\)")
_KERNEL_SUFFIX, _MAP_SUFFIX = "_[k]", "_[j]"


def to_speedscope(samples: pd.DataFrame, *, name: str, exporter: str) -> str:
    """One profile for each process and kind of stack, most samples first.

    Samples stand in the order in which they were taken, so speedscope's view "Time Order" shows
    how the process changed; its time axis is the time sampled, without that between the samples.

    Args:
        samples: From ``analysis.stacks.stack_samples``.
        name: Title of the file.
        exporter: Name and version of the tool.
    """
    indices: dict[str, int] = {}
    profiles: list[tuple[int, dict[str, Any]]] = []
    for _, rows in samples.groupby(["role", "worker", "pid", "source"], sort=True):
        first = rows.iloc[0]
        process = process_name(first["role"], first["worker"], first["pid"])
        source = str(first["source"])
        counts = [int(count) for count in rows["sample_count"]]
        periods_ns = [int(period) for period in rows["period_ns"]]
        is_timed = all(period > 0 for period in periods_ns)
        pairs = zip(counts, periods_ns, strict=True)
        weights = [count * period for count, period in pairs] if is_timed else counts
        profile = {
            "type": "sampled",
            "name": f"{process}: {_SOURCE_WORDS.get(source, source)}",
            "unit": "nanoseconds" if is_timed else "none",
            "startValue": 0,
            "endValue": sum(weights),
            "samples": [
                [indices.setdefault(frame, len(indices)) for frame in frames_of(str(stack))]
                for stack in rows["stack"]
            ],
            "weights": weights,
        }
        profiles.append((sum(counts), profile))
    profiles.sort(key=lambda entry: -entry[0])
    document = {
        "$schema": SPEEDSCOPE_SCHEMA,
        "name": one_line(name),
        "exporter": one_line(exporter),
        "activeProfileIndex": 0,
        "shared": {"frames": [_frame(text) for text in indices]},
        "profiles": [profile for _, profile in profiles],
    }
    return json.dumps(document, ensure_ascii=False) + "\n"


def _frame(text: str) -> dict[str, Any]:
    """A frame with its file and line where the name has them; speedscope colours by file."""
    if text.endswith(_KERNEL_SUFFIX):
        return {"name": text, "file": "[kernel]"}
    found = _PYTHON_FRAME.fullmatch(text.removesuffix(_MAP_SUFFIX))
    if found is None:
        return {"name": text}
    return {"name": found["name"], "file": found["file"], "line": int(found["line"])}
