"""The verdict: one cause, one sentence, and the document ``verdict.json``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analysis.causes import GOOD_CAUSES, INTERRUPTED, NOT_EXPLAINED
from analysis.evidence import Finding, Quote, Side, capitalised, sentence_of
from analysis.findings import CATALOGUE, no_limit_met
from analysis.frames.message_times import message_totals
from analysis.frames.probe_trust import ProbeTrust
from analysis.frames.run_view import RunView
from analysis.ladder.ladder import Rung, layout_wall, next_wall
from analysis.ladder.limit_words import limit_of
from analysis.ladder.rung import PLAN
from analysis.signs.attempts import attempts_of
from analysis.verdict.alternatives import Alternative, alternatives
from analysis.verdict.not_explained import NotExplained
from analysis.verdict.unexplained import unexplained
from probes.contract.errors import ExitCode


@dataclass(frozen=True, slots=True)
class Verdict:
    """What stopped the run, or that nothing did.

    Attributes:
        cause: Id of the binding finding; ``reached``, or ``no-limit-met`` of a run that only
            watched; ``not-explained`` when the target was missed and nothing measured explains
            it; ``interrupted`` when somebody stopped the run before anything else did.
        side: server, client or host.
        host: Of a run over several hosts the one that it is about, '' for all or one.
        headline: The first clause: what happened, with side, process and number.
        at_connections: Open connections when it was met; the held count for ``reached``.
        at_s: Seconds since the ramp began, None when not known.
        confidence: high, medium or low.
        next_rung: One sentence about the next wall, '' when no rung could be fitted.
        alternatives: Other explanations that this run cannot rule out, and what would decide.
        quotes: What the server's log said of it; where no cause was found, what it said then.
        unexplained: Of ``not-explained`` what is known all the same, else None.
        unseen: Of ``no-limit-met`` what would have shown a limit, was asked for and was not seen to
            the end, with why and until when; empty when all of it was.
        consequences: Further clauses: what followed, what did harm all the same, what is not known.
        remedy: The clause that names the first fix, '' for none.
        doubt: The clause that names the alternatives, '' for none.
    """

    cause: str
    side: Side
    headline: str
    at_connections: int
    at_s: float | None
    confidence: str = "high"
    next_rung: str = ""
    alternatives: tuple[Alternative, ...] = ()
    quotes: tuple[Quote, ...] = ()
    unexplained: NotExplained | None = None
    unseen: tuple[str, ...] = ()
    consequences: tuple[str, ...] = ()
    remedy: str = ""
    doubt: str = ""
    host: str = ""

    @property
    def is_good(self) -> bool:
        """Nothing stopped the run."""
        return self.cause in GOOD_CAUSES

    @property
    def said_wall(self) -> str:
        """The next limit, where the sentence names it: where none was met."""
        return self.next_rung if self.is_good else ""

    @property
    def sentence(self) -> str:
        """All of it in one sentence."""
        return sentence_of(
            (self.headline, *self.consequences, self.remedy, self.doubt, self.said_wall)
        )

    @property
    def rest(self) -> str:
        """The sentence without its headline and its fix."""
        return sentence_of((*self.consequences, self.doubt, self.said_wall))


def conclude(
    view: RunView,
    findings: Sequence[Finding],
    ladder: Sequence[Rung],
    said: tuple[Quote, ...] = (),
) -> Verdict:
    """The verdict of a run.

    Args:
        view: The run.
        findings: Ranked.
        ladder: In order.
        said: What the server's log said at the first failure.
    """
    wall = wall_sentence(ladder)
    binding = next((f for f in findings if f.severity == "binding"), None)
    if binding is None:
        return _without_cause(view, wall, said)
    known = binding.at_connections
    # What decides between rivals is a run of ours; nobody repeats what real clients did.
    rivals = () if view.is_attached else alternatives(findings)
    unseen: tuple[str, ...] = ()
    if binding.cause == no_limit_met.CAUSE.id:
        unseen = ProbeTrust(view).unseen(no_limit_met.DECIDING_TABLES)
    return Verdict(
        cause=binding.cause,
        side=binding.side,
        host=binding.subject.host,
        headline=binding.headline,
        consequences=_consequences(binding, findings, unseen),
        remedy=_remedy(binding),
        doubt=_doubt(rivals),
        at_connections=view.peak_count if known is None else known,
        at_s=view.hold.end_s if binding.cause in GOOD_CAUSES else binding.first_s,
        confidence=binding.confidence,
        next_rung=wall,
        alternatives=rivals,
        quotes=binding.quotes,
        unseen=unseen,
    )


def _consequences(
    binding: Finding, findings: Sequence[Finding], unseen: Sequence[str]
) -> tuple[str, ...]:
    if binding.cause in GOOD_CAUSES:
        return tuple(f"yet {each}" for each in unseen[:1]) or _harm(findings)
    told: dict[str, str] = {}
    for finding in findings:
        if finding.follows_from == binding.cause and finding.cause not in told:
            link = "and" if told else "from then on"
            told[finding.cause] = f"{link} {_lower(finding.headline)} ({finding.cause})"
    return tuple(told.values())


def _harm(findings: Sequence[Finding]) -> tuple[str, ...]:
    """What harmed a run that reached its target, first one only; nothing when nothing did."""
    harmful = [f for f in findings if f.severity == "warning" and not f.follows_from]
    first = min(harmful, key=lambda f: f.first_s, default=None)
    return () if first is None else (f"yet {_lower(first.headline)} ({first.cause})",)


def _remedy(binding: Finding) -> str:
    if binding.cause in GOOD_CAUSES or not binding.fix:
        return ""
    is_leak = binding.value_of("left_sockets") is not None
    verb = "raise it with" if CATALOGUE[binding.cause].is_raised and not is_leak else "what helps:"
    return f"{verb} {binding.fix[0].command}"


def _doubt(rivals: Sequence[Alternative]) -> str:
    if not rivals:
        return ""
    named = " or ".join(f"{rival.cause} ({rival.side})" for rival in rivals)
    return f"it may as well be {named}, which is decided by {rivals[0].decide}"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _without_cause(view: RunView, wall: str, said: tuple[Quote, ...]) -> Verdict:
    target, peak = view.target_count, view.peak_count
    is_interrupted = view.manifest.get("status") == "interrupted"
    side: Side = "host"
    consequences: tuple[str, ...] = ()
    counts = f"{peak:,} of {target:,} connections were open at the peak"
    if is_interrupted and not view.failed_count and not view.lost_count:
        headline = f"The run was interrupted when {counts}"
        consequences = ("no limit had been met by then",)
    elif view.connections.empty and not peak:
        headline = "No connection was recorded, so this run cannot say what limits it"
    else:
        known = unexplained(view)
        side = known.side
        ends = f" ({known.words})" if known.words else ""
        headline = capitalised(counts)
        consequences = (
            f"{view.failed_count:,} attempts failed, {view.lost_count:,} were lost, "
            f"{view.waiting_count:,} waited to the end{ends}, and nothing that was measured "
            "explains why",
        )
        is_interrupted = False
    return Verdict(
        cause=INTERRUPTED if is_interrupted else NOT_EXPLAINED,
        side=side,
        headline=headline,
        consequences=consequences,
        at_connections=peak,
        at_s=view.peak_s if peak else None,
        confidence="low",
        next_rung=wall,
        quotes=said,
    )


def wall_sentence(ladder: Sequence[Rung]) -> str:
    """The next wall in words, '' when no rung has a prediction.

    The wall of a layout is no wall of the host: a run for more connections has another layout.
    """
    wall = next_wall(ladder)
    if wall is None:
        return ""
    if wall.moved_by == PLAN:
        return f"the next limit is {_wall_words(wall)}, which the planner moves for a larger target"
    if layout_wall(ladder) is None:
        return f"the next limit is {_wall_words(wall)}"
    return f"the next limit that the planner cannot move is {_wall_words(wall)}"


def _wall_words(rung: Rung) -> str:
    error = f" (± {rung.fit_error_pct:.0f} %)" if (rung.fit_error_pct or 0) >= 1 else ""
    return (
        f"{limit_of(rung.limit, rung.subject)}, "
        f"at about {rung.predicted_connections or 0:,} connections{error}"
    )


def run_facts(view: RunView) -> dict[str, Any]:
    """The object ``run`` of verdict.json."""
    manifest = view.manifest
    return {
        "id": str(manifest.get("run_id") or view.frames.path.resolve().name),
        "argv": [str(word) for word in manifest.get("argv") or []],
        "target_connections": view.target_count,
        "peak_connections": view.peak_count,
        "held_connections": view.held_count,
        "status": str(manifest.get("status") or ""),
        "failed_connections": view.failed_count,
        "lost_connections": view.lost_count,
        "attempts": None if view.is_attached else attempts_of(view).record(),
        "messages": messages.record() if (messages := message_totals(view)) else None,
    }


def exit_code(verdict: Verdict) -> ExitCode:
    """0 when the target was reached or no limit was met while watching, else 3.

    6 where no limit was met as far as was seen, and what would have shown one was not watched to
    the end: a script that takes 0 for "all is well" must not get it for "nobody looked".
    """
    if verdict.unseen:
        return ExitCode.NOT_SEEN
    return ExitCode.REACHED if verdict.cause in GOOD_CAUSES else ExitCode.LIMIT_MET
