"""``docs/reference/verdict.md``: the format of verdict.json, from the classes it is made of."""

from __future__ import annotations

from analysis.causes import CAUSE_IDS
from analysis.document import SCHEMA_VERSION, finding_document, rung_document
from analysis.evidence import SEVERITIES, SIDES, Evidence, Finding, Fix, Quote, Subject
from analysis.frames.message_times import MessageTotals
from analysis.ladder.rung import Rung
from analysis.signs.attempts import Attempts, GaveUp
from analysis.verdict.alternatives import Alternative
from analysis.verdict.ruled_out import Left
from analysis.verdict.verdict import Verdict
from documentation.markdown import attributes, table
from documentation.reference import MADE

RUN = {
    "id": "name of the run directory",
    "argv": "the exact command, as a list of words",
    "target_connections": "what was asked for",
    "peak_connections": "most connections open at once",
    "held_connections": "connections open when the run began to stop",
    "status": "finished, interrupted, failed, or running (it was killed)",
    "failed_connections": "attempts that failed",
    "lost_connections": "established connections that ended before the stop",
    "attempts": "which were made, see below; `null` where the clients are elsewhere",
    "messages": "how long messages took, see below; `null` where clients of the run sent none",
}
VERDICT = {"sentence": "headline, consequences, remedy and doubt as one sentence"}
PROBE = {
    "name": "as in `--probes`",
    "state": "ran, unavailable, failed or not_asked",
    "reason": "why not, with what it needs",
    "lost": "events or samples that it lost",
    "seen": "all of them, those that it lost too; `null` when not known",
    "cpu_s": "CPU time that it took, seconds",
}
FIX = {"command": "copy and run it", "effect": "what to expect from it, in numbers"}

EVIDENCE = attributes(Evidence) | {
    "id": "what was measured: one of the ids of [Evidence](evidence.md); look it up by this",
    "name": "the same in words, for people; the words may change",
    "unit": "its unit, that of the id; '' for none",
}

OBJECTS: dict[str, tuple[str, dict[str, str]]] = {
    "verdict": ("what stopped the run, or that nothing did", attributes(Verdict) | VERDICT),
    "verdict.alternatives[]": ("other explanations", attributes(Alternative)),
    "verdict.unexplained": (
        "of `not-explained` what is known all the same; `null` of every other cause",
        {
            "ends": "how attempts ended, most frequent first: `count` and `how`",
            "standing": "where connections wait in the server: `count` and `how`",
            "never_count": "connections of the target that were never attempted",
            "left": "what each limit had left, the fullest first",
            "ruled_out": "causes that a number of this run rules out: `cause` and `by`, evidence",
            "unwatched": "probes that did not see the run: `probe`, `state`, `reason`",
            "decide": "the `command` that would tell more, and its `effect`; `null` for none",
        },
    ),
    "verdict.unexplained.left[]": (
        "a limit that was not met",
        attributes(Left) | {"left_pct": "part of the capacity that was free, 0 to 100"},
    ),
    "run": ("the run in numbers", RUN),
    "run.attempts": (
        "the attempts of the clients",
        attributes(Attempts) | {"sentence": "what a reader has to know of it, '' for nothing"},
    ),
    "run.messages": (
        "messages of the clients (`--message-rate`), from when each was due",
        attributes(MessageTotals)
        | {"unanswered_count": "messages that nobody answered, as far as counts tell"},
    ),
    "run.attempts.gave_up[]": ("a client that stopped trying", attributes(GaveUp)),
    "findings[]": ("every cause that was found, binding first", attributes(Finding)),
    "findings[].subject": ("the process", attributes(Subject)),
    "findings[].evidence[]": ("one number of this run", EVIDENCE),
    "findings[].quotes[]": (
        "a line of the server's own log, also of `verdict.quotes[]`",
        attributes(Quote),
    ),
    "findings[].fix[]": ("commands, best first", FIX),
    "ladder[]": ("every limit, next wall first", attributes(Rung)),
    "probes[]": ("what was watched, and what not", PROBE),
}
"""Path of each object to what it is, and what each of its keys may be described by."""


def example_document() -> dict[str, object]:
    """Objects as verdict.json has them, for their keys."""
    finding = Finding(
        "reached", "info", "host", Subject(command="x"), 0.0, 1.0,
        (Evidence("connections_held", 1.0, "connections"),), "", (Fix("", ""),),
    )  # fmt: skip
    rung = Rung("", "", "", None, None, "", None, None, None, "")
    found = finding_document(finding)
    return {
        "findings[]": found,
        "findings[].subject": found["subject"],
        "findings[].evidence[]": found["evidence"][0],
        "ladder[]": rung_document(rung),
    }


def verdict_page() -> str:
    """The page."""
    keys = example_document()
    parts = [
        MADE,
        "# verdict.json\n",
        f"`schema_version` {SCHEMA_VERSION}. `profile-report RUN --format json` prints\n"
        "it, `profile-run --json` as well. Times are seconds since the ramp began; a number that\n"
        "is not finite is `null`.\n",
        f"`side` is one of {', '.join(SIDES)}; `severity` one of {', '.join(SEVERITIES)};\n"
        f"`cause` one of the {len(CAUSE_IDS)} in [Causes](causes.md), `not-explained` or "
        "`interrupted`.\n",
        "Version 2 gave evidence `id` and `of`. A file of version 1 is made anew, from the same\n"
        "recording, by `profile-report RUN`.\n",
    ]
    for path, (what, meanings) in OBJECTS.items():
        shown = keys.get(path, meanings)
        assert isinstance(shown, dict)
        rows = [(f"`{key}`", meanings.get(key, _ELSEWHERE.get(key, ""))) for key in shown]
        parts += [f"## {path}\n", f"{what[:1].upper()}{what[1:]}.\n", table(("key", "is"), rows)]
    return "\n".join(parts)


_ELSEWHERE = {"subject": "the process, see below"}
