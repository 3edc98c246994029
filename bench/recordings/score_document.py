"""The score as a page of the documentation, and as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.recordings.label import GROUPS, HARD
from bench.recordings.scoring import (
    NOTHING,
    Case,
    Confused,
    Measure,
    Share,
    complaints,
    confused,
    score,
)

_HEAD = """\
# How good is the verdict?

Runs that were recorded while something was done to them (`tests/recordings`), understood anew, and
held against what was done. Written by `make score`; do not edit. That every cause is named when it
is provoked anew, three times each, is in [Provoked and named](diagnosis-provoked.md).

Each recording has a label: what was provoked, on which side, in which process, what else that
brings about, what may be named besides. A label comes from how the run was started, never from what
the verdict said. `make recordings` makes them anew.
"""

_TERMS = """\
## What is counted

The *ranking* of a run are the findings that did harm, in the verdict's order. *Roots* are what was
provoked, without what followed from it. Where a run counts in part (two roots, Avg@3) so does its
share. Brackets: Wilson's 95 % interval; with so few runs it says more than the share does.

- **AC@k, Avg@3**: share of the roots among the first k of the ranking, and its mean over k = 1, 2
  and 3 (RCAEval, arXiv 2412.17015). Three times: the cause alone; with its side; with the process
  as well.
- **Exact set**: everything provoked is named, and nothing else but what the label allows (OpenRCA
  2.0, arXiv 2606.27154).
- **Right chain**: each provoked cause is said to follow from what it was made to follow from.
- **Grounded**: the chain is right, and every number of every finding is found again in the table
  that it names, by code that knows nothing of how it was found (`bench/recordings/grounding.py`).
- **False alarm**: a cause is named in a run to which nothing was done (AIOpsLab's no-op,
  arXiv 2501.06706).
- **Abstention**: what was done has no word in the catalogue, and the verdict says that it cannot
  tell (RootCauseBench).

These runs were made by the people who made the verdict: a full column shows that it fits its own
rows, and no more. What it does with servers that nobody here has seen is another question.
"""


_HARD = """\
## Hard rows

Two faults at once, a fault beside a louder innocent (a neighbour that takes a core, kills for
memory of somebody else, a log full of other errors), clients that come again and again, probes
that are missing, 1 and 16 workers, and servers in Node, Go, Java and Python and behind nginx and
haproxy: `bench/hard.toml`, run by `python -m bench.hard`. Each row says what harm it must do to its
clients, and that is counted from the records of the connections, apart from the verdict: a run that
did less is left out. What others on the same machine took of its cores is not held against a
verdict that says so.
"""


def hard_part(cases: Sequence[Case], left_out: Sequence[str]) -> list[str]:
    """The hard rows, each group apart.

    Args:
        cases: Runs whose harm appeared.
        left_out: The others, for people.
    """
    if not cases:
        return []
    crowded = sum(bool(case.found.get("is_crowded")) for case in cases)
    run = {case.label.group for case in cases}
    unrun = "; ".join(group for group in HARD.values() if group not in run)
    return [
        _HARD,
        *([f"No run is kept of: {unrun}.", ""] if unrun else []),
        f"**{len(cases)} runs: {_split(cases)}.** In {crowded} of them processes beside the run "
        "had a good part of the cores.",
        "",
        *_score_table(cases, tuple(HARD.values())),
        "",
        *_confusion_table(confused(cases)),
        "",
        "Not as labelled:",
        "",
        *_complaints(cases),
        *(["", "Left out, as the harm did not appear:", ""] if left_out else []),
        *(f"- {each}" for each in left_out),
        "",
    ]


def markdown(
    cases: Sequence[Case], hard: Sequence[Case] = (), hard_left_out: Sequence[str] = ()
) -> str:
    """The page.

    Args:
        cases: Every recording, group by group.
        hard: Runs of hard rows whose harm appeared.
        hard_left_out: The others, for people.
    """
    return "\n".join(
        [
            _HEAD,
            f"**{len(cases)} recordings: {_split(cases)}.**",
            "",
            "## Score",
            "",
            *_score_table(cases),
            "",
            *_evidence(cases),
            "",
            _TERMS,
            "## What was taken for what",
            "",
            "By what was provoked (its roots): what was named first, and what was named without "
            "reason. *nothing* provoked is a healthy run.",
            "",
            *_confusion_table(confused(cases)),
            "",
            "## What is not as labelled",
            "",
            *_complaints(cases),
            "",
            *hard_part(hard, hard_left_out),
        ]
    )


def text(cases: Sequence[Case], of: str = "recordings") -> str:
    """The score for a terminal: all of them together, and what is not as labelled."""
    lines = [f"{len(cases)} {of}: {_split(cases)}", ""]
    lines += [f"{each.name:<68} {_cell(each.share)}" for each in score(cases)]
    return "\n".join([*lines, "", *_complaints(cases)])


def _evidence(cases: Sequence[Case]) -> list[str]:
    kept = [case.found["grounding"] for case in cases]
    found = sum(each["found_count"] for each in kept)
    missing = [f"- {case.label.id}: {each}" for case in cases
               for each in case.found["grounding"]["missing"]]  # fmt: skip
    made_up = Share(
        sum(each["made_up_found_count"] for each in kept),
        sum(each["made_up_count"] for each in kept),
    )
    said = (
        f"Evidence: {found:,} of {found + len(missing):,} numbers were found again in their "
        f"tables. The control, numbers that were made up from these (1.1 to 2.5 times as large): "
        f"{_cell(made_up)} were found as well, small counts most of all."
    )
    return [said, *(["", "Not found again:", "", *missing] if missing else [])]


def _split(cases: Sequence[Case]) -> str:
    healthy = sum(case.label.is_healthy for case in cases)
    outside = sum(case.label.is_outside for case in cases)
    return (
        f"{len(cases) - healthy - outside} with a fault that the catalogue has, {outside} with one "
        f"that it lacks, {healthy} healthy"
    )


def _score_table(cases: Sequence[Case], known: Sequence[str] = GROUPS) -> list[str]:
    groups = [group for group in known if any(case.label.group == group for case in cases)]
    columns = [score(cases)]
    columns += [score([case for case in cases if case.label.group == group]) for group in groups]
    return [
        "| | all | " + " | ".join(groups) + " |",
        "|---" * (len(groups) + 2) + "|",
        *(_line(measures) for measures in zip(*columns, strict=True)),
    ]


def _line(measures: Sequence[Measure]) -> str:
    cells = " | ".join(_cell(measure.share) for measure in measures)
    return f"| {measures[0].name} | {cells} |"


def _cell(share: Share) -> str:
    if not share.whole:
        return ""
    low, high = share.interval
    return f"{share.part / share.whole:.2f} of {share.whole} ({low:.2f} to {high:.2f})"


def _confusion_table(rows: Sequence[Confused]) -> list[str]:
    return [
        "| provoked | runs | named first | named without reason |",
        "|---|--:|---|---|",
        *(
            f"| {_provoked(row)} | {row.run_count} | {_counted(row.first)} "
            f"| {_counted(row.unrelated)} |"
            for row in rows
        ),
    ]


def _provoked(row: Confused) -> str:
    if row.provoked == NOTHING:
        return "*nothing*"
    return f"`{row.provoked}`" + (" (not in the catalogue)" if row.is_outside else "")


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(
        f"{'*nothing*' if cause == NOTHING else f'`{cause}`'} {count}"
        for cause, count in counts.items()
    )


def _complaints(cases: Sequence[Case]) -> list[str]:
    lines = [
        f"- {case.label.id}: {'; '.join(wrong)}"
        for case in cases
        if (wrong := complaints(case.label, case.found))
    ]
    return lines or ["Every verdict is as labelled."]
