"""``upgrade-unanswered``: the server accepts connections and never answers the handshake.

Proof: handshakes that timed out with TCP established, not one established in the whole run, and
descriptors of the server that grew by them: the application has them, and says nothing.
Told apart from ``accept-queue-overflow`` and a full worker: there the connections wait in the
kernel, and no descriptor of the server grows. From ``upgrade-refused``: there an answer comes. From
``worker-blocked`` and ``hot-worker-code``: those served connections before. From
``waits-for-slot``: there threads wait for an answer that they need first. From ``handshake-cost``:
there the process computes all the time.
"""

from __future__ import annotations

from analysis.causes import Cause, Effect
from analysis.evidence import Evidence, Finding, Fix, capitalised
from analysis.server import fates
from analysis.server.thread_waits import blocking_wait
from analysis.signs.limit_met import met_limits
from analysis.signs.signs import Signs

CAUSE = Cause(
    id="upgrade-unanswered",
    line="the server accepts and never answers the handshake",
    follows_from=(
        Effect.STOPS_SERVING,
        "unix-queue-full",
        Effect.SLOWS_ACCEPT,
        "backend-unavailable",
        "worker-crash",
    ),
)

_LEAST_SHARE = 0.5


def find(signs: Signs) -> list[Finding]:
    """One finding, or none."""
    view = signs.view
    connections = view.connections
    if not view.is_foreign or connections["established_s"].notna().any():
        return []
    in_handshake = connections[
        (connections["stage"] == "handshake")
        & (connections["is_waiting"] | (connections["close_kind"] == "timeout"))
    ]
    if in_handshake.empty or len(in_handshake) < _LEAST_SHARE * len(connections):
        return []
    if any(blocking_wait(view, each) is not None for each in fates.stuck(view)):
        return []  # it speaks the protocol, and waits for somebody else
    if any(view.subject(met.pid).role == "backend" for met in met_limits(signs)):
        return []  # it passes them on, and who is behind it lets nobody in
    taken = fates.peak_counts(view, "server", "acceptor")
    if taken.empty or int(taken.max()) < 1:
        return []
    pid = int(str(taken.idxmax()))
    subject = view.subject(pid)
    if signs.is_busy(pid, float(in_handshake["start_s"].min()), signs.view.stop_s):
        return []  # it works at them
    count, held = len(in_handshake), int(taken.max())
    first_s = float(in_handshake["start_s"].min())
    confidence, missing = signs.trust("live_samples")
    waited_s = float(view.settings.get("connect_timeout_s") or 0)
    name = str(subject)
    name = capitalised(name)
    return [
        Finding(
            cause=CAUSE.id,
            severity="warning",
            side="server",
            subject=subject,
            first_s=first_s,
            last_s=max(first_s, view.stop_s),
            evidence=(
                Evidence("handshakes_unanswered", count, "connections", first_s),
                Evidence("connections_accepted", held, "live_samples"),
                Evidence("connections_established", 0, "connections", view.stop_s),
                Evidence("client_patience", waited_s, "manifest"),
            ),
            explanation=(
                f"{name} accepted {held:,} connections at once and answered none of the {count:,} "
                f"handshakes within {waited_s:g} s: the port is open, but what listens there "
                "speaks no WebSocket, or another protocol first (TLS, PROXY)."
            ),
            fix=(
                Fix(
                    "profile-run --target URL  # the path, scheme or port that upgrades",
                    f"the {count:,} handshakes get an answer",
                ),
            ),
            at_connections=0,
            confidence=confidence,
            missing=missing,
            sentence=f"{name} accepts connections but never answers the upgrade: {count:,} "
            f"handshakes waited {waited_s:g} s in vain",
            explained_count=count,
        )
    ]
