"""Findings and ladder of a run over several hosts: each is asked of the host that it is true of.

What is the server's is found in the rows of all hosts. What is of the clients, or of a client host
as a whole, is found in the rows of that host beside those of the server: there it is what it would
be in a run of one host, so that no finder knows of several.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from analysis.evidence import Finding
from analysis.findings import find_all
from analysis.frames.run_view import RunView
from analysis.frames.several_hosts import HostPart
from analysis.ladder.rung import Rung, ordered
from analysis.signs.signs import Signs

_OF_THE_RUN = ("reached", "no-limit-met", "host-lost")


def find_on_hosts(signs: Signs, signs_of: Callable[[RunView], Signs]) -> list[Finding]:
    """All findings, each with its host.

    Args:
        signs: Of the whole run.
        signs_of: Makes those of a view.
    """
    parts = signs.view.frames.hosts
    if not parts:
        return find_all(signs)
    server = parts[0].name
    found = [
        finding if finding.cause in _OF_THE_RUN else on_host(finding, server)
        for finding in find_all(signs)
        if finding.side != "client" or finding.cause in _OF_THE_RUN
    ]
    for part in loading(parts):
        here = find_all(signs_of(RunView(signs.view.frames.of_host(part))))
        sides = ("client", "host") if part.number else ("client",)
        found += [
            on_host(finding, part.name)
            for finding in here
            if finding.side in sides and finding.cause not in _OF_THE_RUN
        ]
    return found


def loading(parts: Sequence[HostPart]) -> list[HostPart]:
    """Hosts with clients whose rows are there."""
    return [part for part in parts if part.share and part.has_rows]


def on_host(finding: Finding, host: str) -> Finding:
    """The finding with its host, which its sentences name where they name no process of it."""
    subject = replace(finding.subject, host=host)
    if finding.subject.pid:
        return replace(finding, subject=subject)
    return replace(
        finding,
        subject=subject,
        sentence=f"On host {host}: {finding.headline}",
        explanation=f"On host {host}: {finding.explanation}",
    )


def ladder_of_hosts(
    signs: Signs, ladder: Sequence[Rung], ladder_of: Callable[[RunView], list[Rung]]
) -> list[Rung]:
    """The ladder with the limits that each client host has as a whole.

    Args:
        signs: Of the whole run.
        ladder: Of the whole run: all processes, and the host that serves.
        ladder_of: Makes the ladder of a view.
    """
    parts = signs.view.frames.hosts
    if not parts:
        return list(ladder)
    server = parts[0].name
    found = [_named(rung, server) for rung in ladder]
    for part in loading(parts):
        if not part.number:
            continue
        times = signs.view.target_count / part.share
        found += [
            _named(_of_the_run(rung, times), part.name)
            for rung in ladder_of(RunView(signs.view.frames.of_host(part)))
            if rung.scope == "host"
        ]
    return ordered(found)


def _named(rung: Rung, host: str) -> Rung:
    return replace(rung, subject=f"host {host}") if rung.scope == "host" else rung


def _of_the_run(rung: Rung, times: float) -> Rung:
    """In connections of the whole run, of which this host makes a part."""
    predicted, each = rung.predicted_connections, rung.per_connection
    return replace(
        rung,
        predicted_connections=None if predicted is None else round(predicted * times),
        per_connection=None if each is None else each / times,
    )
