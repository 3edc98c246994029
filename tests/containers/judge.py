"""What the facts of a check should be in surroundings, and where they are not.

Pure: facts in, sentences out. An empty list is a check that came out as it should.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probes.collect.registry import PROBES
from tests.containers.surroundings import Surroundings

Facts = Mapping[str, Any]

EXPECTED_CAUSE = {
    "run": "reached",
    "server-cmd": "reached",
    "attach": "no-limit-met",
    "fd-limit-process": "fd-limit-process",
    "watched": "fd-limit-process",
}
"""By check; ``watched`` is made from the host, where all probes run whatever the container may."""
REFUSED_EXIT = 4


def problems(where: Surroundings, facts: Facts) -> list[str]:
    """What is not as it should be in the facts of one check."""
    if "error" in facts:
        return [str(facts["error"]).strip().splitlines()[-1]]
    check = facts["check"]
    if where.is_refused and check != "watched":
        return _of_refusal(facts)
    if "probes" not in facts:
        return [f"exit {facts['exit']}: {' '.join(facts.get('stderr', '').split())}"]
    lacks = () if check == "watched" else where.lacks
    found = [
        f"{probe['name']}: {probe['state']}: {probe['reason']}"
        for probe in facts["probes"]
        if probe["state"] not in ("ran", "available") and probe["name"] not in lacks
    ]
    found += [
        f"{probe['name']}: it does not say why it does not run, or what would let it"
        for probe in facts["probes"]
        if probe["state"] not in ("ran", "available")
        and not (probe["reason"] and probe.get("fix", "-"))
    ]
    silent = set(PROBES) - {probe["name"] for probe in facts["probes"]}
    if check in ("doctor", "run"):
        found += [f"{name}: it is not told what it did" for name in sorted(silent)]
    wanted = EXPECTED_CAUSE.get(check)
    if wanted is not None and facts["cause"] != wanted:
        found.append(f"the verdict is {facts['cause']}: {facts['sentence']}")
    if check == "watched" and not any("docker" in fix for fix in facts["fixes"]):
        found.append(f"no fix speaks of its container: {facts['fixes']}")
    return found


def _of_refusal(facts: Facts) -> list[str]:
    lines = facts.get("stderr", "").strip().splitlines()
    if facts["exit"] != REFUSED_EXIT:
        return [f"exit {facts['exit']}, where no run is possible"]
    return [] if len(lines) == 2 else [f"it is refused in {len(lines)} lines: {lines}"]
