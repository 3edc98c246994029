"""Recorded runs as the oracle of every later change: each means what it meant, and can be shown.

What is expected of a recording is its ``.expected.json``, made by ``python -m bench.record
--update``. Verdicts are compared by meaning (``bench.recordings.meaning``), never by wording.
All tests of one recording share its one analysis.

A page takes four times as long as a verdict, and the tables as files twice as long. So that all of
this stays within a minute on two cores, they are made of one recording of each kind (``SHOWN``: of
each cause, and of watches, foreign servers and runs that lack something), and each figure in one of
its two widths. ``EVERY_PAGE=1 pytest tests/recordings`` makes them of all, in both.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pandas as pd
import pyarrow.parquet as pq
import pytest
from markdown_it import MarkdownIt
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from analysis.document import document
from analysis.frames.run_frames import RunFrames, load
from analysis.frames.run_view import RunView
from analysis.stacks.stack_samples import df_stack_samples
from analysis.summary import Summary, summarise
from bench.recordings import archive, catalogue, hard, label
from bench.recordings.catalogue import FOLDER
from bench.recordings.examine import EXPECTED, examine
from bench.recordings.meaning import differences, meaning
from bench.recordings.score_document import markdown
from bench.score import expected_cases
from harness.commands import report as cli_report
from probes.contract.rundir import open_run_dir
from reports.elements import style
from reports.elements.svg import inline_svg
from reports.exports.folded import to_folded
from reports.exports.markdown import to_markdown
from reports.exports.openmetrics import to_openmetrics
from reports.exports.perfetto import to_perfetto
from reports.exports.speedscope import to_speedscope
from reports.exports.tables import csv_files, frames_of, parquet_files
from reports.page.page import render
from reports.sections.view import Chart, View

EVERY_PAGE = os.environ.get("EVERY_PAGE") == "1"
IDS = sorted(
    str(path.relative_to(FOLDER)).removesuffix(label.SUFFIX)
    for path in FOLDER.glob(f"*/*{label.SUFFIX}")
)


def kinds() -> dict[tuple[str, ...], str]:
    """The first recording of each kind: what was provoked, and how it was watched or ended."""
    found: dict[tuple[str, ...], str] = {}
    for each in IDS:
        its = label.read(FOLDER / f"{each}{label.SUFFIX}")
        how = its.group if its.group in (label.WATCHED, label.FOREIGN, label.LACKING) else ""
        what = (its.verdict,) if how else tuple(root.cause for root in its.roots)
        found.setdefault((how, *what), each)
    return found


SHOWN = IDS if EVERY_PAGE else sorted(kinds().values())
DRAWN = [
    each if number % 4 == 0 or EVERY_PAGE else pytest.param(each, marks=pytest.mark.variant)
    for number, each in enumerate(SHOWN)
]
"""Whose page and tables are made: drawing costs four times what understanding does."""
TOLD = [each if each in SHOWN else pytest.param(each, marks=pytest.mark.variant) for each in IDS]
"""Whose exports of text are made: the first of each kind, as of pages."""
MOST_BYTES = 40_000_000
SPEEDSCOPE = FOLDER.parent / "node_modules/speedscope/dist/release/file-format-schema.json"


class Read(NamedTuple):
    """A recording, understood."""

    id: str
    frames: RunFrames
    summary: Summary

    def file(self, suffix: str) -> Path:
        return FOLDER / f"{self.id}{suffix}"


@pytest.fixture(scope="module", params=IDS)
def recording(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Read:
    source = FOLDER / f"{request.param}{archive.SUFFIX}"
    frames = load(open_run_dir(archive.unpack(source, tmp_path_factory.mktemp("recording"))))
    return Read(request.param, frames, summarise(frames))


ADVICE = "where that is meant: python -m bench.record --update, and read the changes line by line"


def test_the_verdict_means_what_it_meant(recording):
    expected = json.loads(recording.file(EXPECTED).read_text())
    del expected["grounding"]
    assert differences(expected, meaning(recording.summary)) == [], ADVICE


@pytest.mark.parametrize("recording", SHOWN, indirect=True)
def test_its_evidence_is_in_its_tables_as_far_as_it_was(recording):
    expected = json.loads(recording.file(EXPECTED).read_text())
    assert differences(expected, examine(recording.summary, recording.frames)) == [], ADVICE


@pytest.fixture
def half_of_the_figures(recording, monkeypatch):
    """Each figure in one width: the wide one of every second figure and recording."""
    turns = itertools.count(IDS.index(recording.id))

    def chart(view: View, chart_id: str, question: str, window: str, said: str, draw: Any) -> Chart:
        width_pt = style.WIDE_PT if next(turns) % 2 else style.NARROW_PT
        with style.common_style():
            drawing = inline_svg(draw(width_pt), chart_id, said, view.sheet)
        return Chart(chart_id, question, window, said, drawing, drawing)

    if not EVERY_PAGE:
        monkeypatch.setattr(View, "chart", chart)


@pytest.mark.usefixtures("half_of_the_figures")
@pytest.mark.parametrize("recording", DRAWN, indirect=True)
def test_the_page_is_drawn_without_a_warning(recording, caplog):
    """A warning of Python is an error in these tests; matplotlib's about fonts are log records."""
    page = render(recording.summary)
    assert page.startswith("<!DOCTYPE html>")
    assert page.rstrip().endswith("</html>")
    assert not caplog.records


# -- exports ----------------------------------------------------------------------------------


def read_json(read: Read) -> None:
    text = json.dumps(document(read.summary), allow_nan=False)
    assert json.loads(text)["verdict"]["cause"] == read.summary.verdict.cause


def read_markdown(read: Read) -> None:
    tokens = MarkdownIt("commonmark").enable("table").parse(to_markdown(read.summary))
    shown = "".join(c.content for t in tokens for c in t.children or [] if c.type == "text")
    assert " ".join(read.summary.verdict.sentence.split()) in shown
    assert not {t.type for t in tokens} & {"html_block", "code_block"}


def read_openmetrics(read: Read) -> None:
    metrics = {f.name: f for f in text_string_to_metric_families(to_openmetrics(read.summary))}
    (peak,) = metrics["connscope_peak_connections"].samples
    assert peak.value == read.summary.run["peak_connections"]


def read_perfetto(read: Read) -> None:
    events = json.loads(to_perfetto(read.summary))["traceEvents"]
    slices = [event for event in events if event["ph"] == "X"]
    assert all(event["dur"] >= 0 and isinstance(event["pid"], int) for event in slices)
    phases = {event["name"] for event in slices}
    assert phases >= set(read.summary.phases["phase"]) - {"stop"}


def read_stacks(read: Read) -> None:
    """speedscope by its own schema, and folded, which has as many samples."""
    samples = df_stack_samples(RunView(read.frames))
    if samples.empty:
        return
    lines = to_folded(samples).splitlines()
    assert all(re.fullmatch(r".+;(python|native)(;.*)? \d+", line) for line in lines)
    count = sum(int(line.rpartition(" ")[2]) for line in lines)
    assert count == samples["sample_count"].sum()
    profile = json.loads(to_speedscope(samples, name="run", exporter="connscope"))
    speedscope_schema().validate(profile)


def read_csv(read: Read) -> None:
    files = dict(csv_files(read.summary))
    for name, frame in frames_of(read.summary):
        found = pd.read_csv(io.BytesIO(files[f"{name}.csv"]), low_memory=False)
        assert list(found.columns) == list(frame.columns), name
        assert len(found) == len(frame), name


def read_parquet(read: Read) -> None:
    files = dict(parquet_files(read.summary))
    for name, frame in frames_of(read.summary):
        found = pq.read_table(io.BytesIO(files[f"{name}.parquet"]))
        assert found.column_names == list(frame.columns), name
        assert found.num_rows == len(frame), name


OF_TEXT: dict[str, Callable[[Read], None]] = {
    "json": read_json,
    "md": read_markdown,
    "speedscope": read_stacks,
    "folded": read_stacks,
    "openmetrics": read_openmetrics,
}
OF_TABLES: dict[str, Callable[[Read], None]] = {
    "perfetto": read_perfetto,
    "csv": read_csv,
    "parquet": read_parquet,
}


@cache
def speedscope_schema() -> Any:
    schema = json.loads(SPEEDSCOPE.read_text())
    return jsonschema.validators.validator_for(schema)(schema)


@pytest.mark.parametrize("recording", TOLD, indirect=True)
def test_every_export_of_text_is_read_back(recording):
    for reader in dict.fromkeys(OF_TEXT.values()):
        reader(recording)


@pytest.mark.parametrize("recording", DRAWN, indirect=True)
def test_every_export_of_tables_is_read_back(recording):
    for reader in OF_TABLES.values():
        reader(recording)


def test_every_format_has_a_reader():
    assert {*OF_TEXT, *OF_TABLES} == {*cli_report.FILE_FORMATS, *cli_report.FOLDER_FORMATS}


# -- the set ----------------------------------------------------------------------------------


def test_what_is_to_be_recorded_is_recorded_and_labelled():
    everything = catalogue.all_recordings()
    for suffix in (archive.SUFFIX, label.SUFFIX, EXPECTED):
        is_label = suffix != archive.SUFFIX
        wanted = {each.id for each in everything if not (is_label and each.is_refused)}
        there = {
            str(path.relative_to(FOLDER)).removesuffix(suffix)
            for path in FOLDER.glob(f"*/*{suffix}")
        }
        assert there == wanted, suffix


def test_every_label_is_one():
    for each in IDS:
        assert label.read(FOLDER / f"{each}{label.SUFFIX}").id == each


def test_git_carries_them_well():
    sizes = [path.stat().st_size for path in FOLDER.glob(f"*/*{archive.SUFFIX}")]
    assert sum(sizes) < MOST_BYTES
    assert max(sizes) < 500_000


PATH = re.compile(rb"(?<![A-Za-z0-9_.)\]:/-])/[a-z][A-Za-z0-9_.-]+/[^\0\"; ]{0,60}")
PUBLIC = (
    b"/usr/",
    b"/lib/",
    b"/proc/",
    b"/sys/",
    b"/etc/",
    b"/srv/conns",
    b"/tmp/run",
    b"/tmp/conn",
)
"""Where every Linux has the same files, and what stands for the paths of the machine."""
GROUP = re.compile(rb"(?:/g\d\d-*)+(?![^/\0\"; ])")
"""What stands for a control group, part by part."""


@pytest.mark.parametrize("name", IDS)
def test_no_path_of_the_machine_that_recorded_is_in_them(name, tmp_path):
    run = archive.unpack(FOLDER / f"{name}{archive.SUFFIX}", tmp_path)
    for path in (path for path in run.rglob("*") if path.is_file()):
        found = PATH.findall(path.read_bytes())
        private = [p for p in found if not p.startswith(PUBLIC) and not GROUP.match(p)]
        assert private == [], path.relative_to(run)


def test_the_page_of_the_documentation_is_what_the_recordings_come_to():
    page = FOLDER.parents[1] / "docs/diagnosis.md"
    runs = hard.read()
    made = markdown(expected_cases(FOLDER), hard.cases(runs), hard.left_out(runs))
    assert page.read_text() == made, "make score writes it anew"
