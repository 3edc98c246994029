"""The label of a recording: what was provoked, of whom, what may be named besides, what must not.

A label comes from how the run was provoked, never from what the verdict said of it. It stands
beside its recording as ``<name>.label.json``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from analysis.causes import CAUSE_IDS, GOOD_CAUSES, INTERRUPTED, NOT_EXPLAINED
from harness.matrix.scenario import Expectation, Row
from probes.contract.errors import RunDirError

SUFFIX = ".label.json"

OWN = "own rows"
LOG = "the 2016 log"
WATCHED = "attached watches"
FOREIGN = "foreign servers"
LACKING = "cut short, interrupted, or with probes missing"
GROUPS = (OWN, LOG, WATCHED, FOREIGN, LACKING)
"""In the order to show."""
HARD: Mapping[str, str] = {
    "double": "two faults",
    "distracted": "beside a louder innocent",
    "changing": "changing load",
    "unseen": "probes missing",
    "workers": "1, 2 and 16 workers",
    "runtimes": "other runtimes and proxies",
    "asks": "what it asks for is used up",
    "healthy": "nothing done to it",
}
"""Groups of hard rows (``bench/hard.toml``), by the word for them there, in the order to show."""

_WITHOUT_FAULT = (*GOOD_CAUSES, INTERRUPTED, NOT_EXPLAINED, "")


@dataclass(frozen=True, slots=True)
class Provoked:
    """One cause that the run was made to have.

    Attributes:
        cause: An id of ``analysis.causes.CAUSE_IDS``, or another word where the catalogue has none.
        side: Whose limit it is, '' for any.
        role: Role of its process, '' for any.
        worker: Number of that within its role, -1 for any.
        command: How the name of a process that is not ours begins, '' for any.
        follows_from: The provoked cause that brings it about, '' for a root.
    """

    cause: str
    side: str = ""
    role: str = ""
    worker: int = -1
    command: str = ""
    follows_from: str = ""

    def is_process(self, subject: Mapping[str, Any]) -> bool:
        """Whether a finding's subject is the process that is meant."""
        return (
            self.role in ("", subject["role"])
            and self.worker in (-1, subject["worker"])
            and str(subject.get("command", "")).startswith(self.command)
        )


@dataclass(frozen=True, slots=True)
class Label:
    """What one recording is of.

    Attributes:
        id: ``folder/name`` below ``tests/recordings``.
        group: One of ``GROUPS``; they are scored apart.
        shows: One line for people.
        provoked_by: The command, and what was done to it.
        verdict: What the verdict's cause must be, '' where the run may end either way.
        provoked: Roots first; empty for a healthy run.
        may: Causes that may be named besides: what else the set-up brings about, now and then.
        never: Causes that it is known to be taken for: they must not even be mentioned.
        harm: What users saw of it, counted apart from the verdict (``harm_of``).
    """

    id: str
    group: str
    shows: str
    provoked_by: str
    verdict: str = ""
    provoked: tuple[Provoked, ...] = ()
    may: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    harm: Mapping[str, int] = field(default_factory=dict)

    @property
    def roots(self) -> tuple[Provoked, ...]:
        """What was done, without what followed."""
        return tuple(each for each in self.provoked if not each.follows_from)

    @property
    def is_healthy(self) -> bool:
        """Nothing was done to it: whatever is named is a false alarm."""
        return not self.provoked

    @property
    def is_outside(self) -> bool:
        """The catalogue has no word for what was done: the verdict must say that it cannot tell."""
        return any(root.cause not in CAUSE_IDS for root in self.roots)

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"


def read(path: Path) -> Label:
    """Reads the label of a recording.

    Raises:
        RunDirError: It is none.
    """
    try:
        label = of_document(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunDirError(
            f"{path} is no label of a recording: {error}", fix="make recordings writes it anew"
        ) from error
    _check(label, path)
    return label


def of_document(document: Mapping[str, Any]) -> Label:
    """A label from the JSON of ``asdict``.

    Raises:
        KeyError: Something is missing.
        TypeError: Something is not of its form.
    """
    raw = dict(document)
    provoked = tuple(Provoked(**each) for each in raw.pop("provoked"))
    may, never = tuple(raw.pop("may")), tuple(raw.pop("never"))
    return Label(**raw, provoked=provoked, may=may, never=never)


def _check(label: Label, path: Path) -> None:
    roots = {root.cause for root in label.roots}
    unknown = {each.follows_from for each in label.provoked if each.follows_from} - {
        each.cause for each in label.provoked
    }
    followers = {each.cause for each in label.provoked} - roots
    unknown |= {*followers, *label.may, *label.never} - CAUSE_IDS
    if unknown or label.group not in (*GROUPS, *HARD.values()):
        wrong = ", ".join(sorted(unknown)) or label.group
        raise RunDirError(f"{path}: {wrong} makes no sense", fix="correct it")


def of_row(row: Row, expect: Expectation, *, recording: str, group: str, provoked_by: str) -> Label:
    """The label of a scenario's row, which says what it provokes.

    Its root is ``root`` of the row's ``label`` (a list where several faults were made at once),
    else the cause of the verdict, else what is named; all else that must be named follows from the
    root, unless ``follows`` says from what. The process that a row gives is that of ``named``.

    Args:
        row: Of a scenario file; its ``label`` may say ``root``, ``follows``, ``side``, ``sides``
            (by cause), ``command``, ``may`` and ``never``.
        expect: What the verdict must say; empty where ``label`` says a root that has no word yet.
        recording: Id of the recording.
        group: Of ``GROUPS``.
        provoked_by: The command.
    """
    extra = dict(row.extra.get("label", {}))
    named = expect.named or expect.cause
    causes = list(dict.fromkeys((expect.cause, named, *expect.also)))
    causes = [cause for cause in causes if cause not in _WITHOUT_FAULT]
    root = extra.get("root", causes[:1])
    roots = list(root) if isinstance(root, list) else [str(root)]
    follows: dict[str, str] = dict(extra.get("follows", {}))
    sides: dict[str, str] = dict(extra.get("sides", {}))

    def side(cause: str) -> str:
        return sides.get(cause, expect.side or str(extra.get("side", "")))

    def provoked(cause: str) -> Provoked:
        is_meant = cause == named or (cause in roots and named not in causes)
        is_root = cause in roots
        return Provoked(
            cause=cause,
            side=side(cause) if is_meant or is_root else "",
            role=expect.role if is_meant else "",
            worker=expect.worker if is_meant else -1,
            command=str(extra.get("command", "")) if is_root else "",
            follows_from="" if is_root else follows.get(cause, roots[0]),
        )

    return Label(
        id=recording,
        group=group,
        shows=row.shows,
        provoked_by=provoked_by,
        verdict=expect.cause,
        provoked=tuple(provoked(cause) for cause in dict.fromkeys((*roots, *causes))),
        may=tuple(dict.fromkeys((*expect.may, *extra.get("may", ())))),
        never=tuple(extra.get("never", ())),
    )


def harm_of(run: Mapping[str, Any]) -> dict[str, int]:
    """What users saw, as the records of the connections have it.

    Args:
        run: ``run`` of verdict.json, which counts and does not judge.
    """
    target, peak = run["target_connections"], run["peak_connections"]
    return {
        "failed_connections": run["failed_connections"],
        "lost_connections": run["lost_connections"],
        "missing_connections": max(0, target - peak),
    }
