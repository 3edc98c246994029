"""``host-lost``: a host of the run was not heard of any more, and its part of the load with it.

Proof: its agent answered nothing for four seconds, or its process ended, and what it had recorded
could not be taken. What it did until then nobody knows.
Told apart: ``worker-crash`` is a process that ended on a host that is there. A host whose network
loses packets is late, not lost.
"""

from __future__ import annotations

from analysis.causes import Cause
from analysis.evidence import Evidence, Finding, Fix, Subject
from analysis.frames.several_hosts import HostPart
from analysis.signs.signs import Signs

CAUSE = Cause(
    id="host-lost",
    line="a host of the run was cut off or ended, and its part of the load with it",
    decide="ping that host, and look there: is it up, does its agent run (journalctl -k)",
)


def find(signs: Signs) -> list[Finding]:
    """One finding for each host that was lost."""
    return [_finding(signs, part) for part in signs.view.frames.hosts if part.is_lost]


def _finding(signs: Signs, part: HostPart) -> Finding:
    view = signs.view
    at_s = view.seconds(part.lost_ns) if part.lost_ns else view.stop_s
    seen = view.open_count_at(at_s)
    does = f"its {part.share:,} connections" if part.share else "its server"
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side="host",
        subject=Subject(host=part.name),
        first_s=at_s,
        last_s=max(at_s, view.stop_s),
        evidence=(
            Evidence("connections_of_lost_host", part.share, "manifest", of=part.name),
            Evidence("lost_hosts", sum(each.is_lost for each in view.frames.hosts), "manifest"),
        ),
        explanation=(
            f"Host {part.name} did not answer any more from {at_s:.1f} s {view.words.after_it} on: "
            f"it was cut off from the network, it went down, or its agent was ended. What it had "
            f"recorded until then is not part of this run, and neither are {does}."
        ),
        fix=(
            Fix(
                f"ping {part.name}; ssh {part.name} uptime  # is it there, and since when",
                f"with it the run has {does} again",
            ),
        ),
        at_connections=seen,
        sentence=f"Host {part.name} was lost {at_s:.1f} s {view.words.after_it}, and {does} "
        "with it",
        explained_count=max(1, part.share),
    )
