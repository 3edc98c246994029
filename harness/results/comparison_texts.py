"""A comparison of runs as JSON, as text for a terminal and as a page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from analysis.comparison.comparable import check_comparable, check_probes, probes_that_ran
from analysis.comparison.comparison import RunDigest, compare, digest
from analysis.comparison.document import document
from analysis.frames.run_frames import load
from analysis.summary import summarise
from harness.results.analysis_request import JSON, PAGE, TEXT
from harness.results.damaged_run import told_as_damage
from harness.results.results import Result
from probes.contract.rundir import RunDir, require_version
from reports.comparison.text import comparison_text

_ADVICE = "leave it out, or copy the run directory again"


def comparison_texts(
    runs: Sequence[RunDir],
    *,
    across_hosts: bool,
    across_probes: bool,
    columns: int,
    with_page: bool,
) -> Iterator[Result]:
    """Reads runs one at a time and keeps of each only what a comparison needs.

    What is not comparable is refused before the first recording is read, as far as manifests tell.

    Args:
        runs: The recordings, the base first.
        across_hosts: See ``analysis.comparison.comparable.check_comparable``.
        across_probes: See ``analysis.comparison.comparable.check_probes``.
        columns: Of the terminal.
        with_page: The page as well.

    Raises:
        UsageError: The runs cannot be compared.
        HostError: They are of different hosts.
        RunDirError: A recording cannot be read.
    """
    digests, caution = _digests(runs, across_hosts=across_hosts, across_probes=across_probes)
    comparison = compare(digests, cautions=[caution] if caution else [])
    yield JSON, (json.dumps(document(comparison), indent=2) + "\n").encode()
    yield TEXT, comparison_text(comparison, columns).encode()
    if with_page:
        from reports.comparison.page import render_comparison  # matplotlib: only for the page

        commands = {
            one.run_id: [str(word) for word in one.manifest.get("argv") or []] for one in digests
        }
        yield PAGE, render_comparison(comparison, commands).encode()


def _digests(
    runs: Sequence[RunDir], *, across_hosts: bool, across_probes: bool
) -> tuple[list[RunDigest], str]:
    # Of any schema version: comparing says better than reading what is wrong.
    manifests = [run.read_manifest() for run in runs]
    everything = Path(" and ".join(str(run.path) for run in runs))
    with told_as_damage(everything, _ADVICE):
        check_comparable(manifests, across_hosts=across_hosts)
    digests = []
    for run in runs:
        with told_as_damage(run.path, _ADVICE):
            require_version(run)
            digests.append(digest(summarise(load(run))))
    caution = check_probes(
        [one.manifest for one in digests],
        [probes_that_ran(one.verdict) for one in digests],
        across_probes=across_probes,
    )
    return digests, caution
