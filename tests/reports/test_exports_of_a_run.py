"""One real run: scraped while it goes on, then exported by the very commands of the how-to page."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import jsonschema
import pandas as pd
import pytest
from markdown_it import MarkdownIt
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from analysis.frames.run_frames import load
from analysis.frames.run_view import RunView
from analysis.stacks.stack_samples import df_stack_samples
from harness.commands import report as cli_report
from probes.contract.rundir import open_run_dir

pytestmark = [pytest.mark.privileged, pytest.mark.usefixtures("understood_here")]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/how-to/exports.md"
SCHEMA = ROOT / "tests/node_modules/speedscope/dist/release/file-format-schema.json"
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for line in block.splitlines()
]
(RUN_COMMAND,) = (line for line in COMMANDS if line.startswith("profile-run "))
REPORT_COMMANDS = [line for line in COMMANDS if line != RUN_COMMAND]
CONNECTIONS = 300
DEADLINE_S = 150


class Recorded:
    """The run of the page, and what its endpoint said meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scrapes: list[dict] = []
        # Port 0 instead of the page's: another process of this machine may have that one.
        words = shlex.split(RUN_COMMAND.replace("--metrics 9464", "--metrics 0"))
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "harness.commands.run", *words[1:]],
            cwd=folder,
            env={**os.environ, "CI": "true"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            for line in child.stderr:
                if line.startswith("metrics: "):
                    self.url = line.split()[1]
                    break
            self._scrape_until_the_end()
            self.stdout, self.stderr = child.communicate(timeout=DEADLINE_S)
        finally:
            child.kill()
            child.wait()
        self.exit_code = child.returncode

    def _scrape_until_the_end(self) -> None:
        end_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < end_s:
            try:
                with urllib.request.urlopen(self.url, timeout=10) as answer:
                    text = answer.read().decode()
            except OSError:  # the run is over, and with it the endpoint
                return
            self.scrapes.append({f.name: f for f in text_string_to_metric_families(text)})
            time.sleep(0.05)
        raise AssertionError("the endpoint did not go away with the run")

    def of_phase(self, phase: str) -> list[dict]:
        return [
            scrape
            for scrape in self.scrapes
            if any(
                s.labels["phase"] == phase and s.value for s in scrape["connscope_phase"].samples
            )
        ]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    run = Recorded(tmp_path_factory.mktemp("exports"))
    assert run.exit_code == 0, run.stderr
    return run


@pytest.fixture
def here(recorded, monkeypatch):
    monkeypatch.chdir(recorded.folder)
    return recorded.folder


def report(*arguments):
    """Standard output of profile-report."""
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")) as stream:
        assert cli_report.main(list(arguments)) == 0
        stream.flush()
        return stream.buffer.getvalue().decode()


# -- while it runs ----------------------------------------------------------------------------


def test_the_endpoint_shows_the_hold_with_all_connections(recorded):
    held = recorded.of_phase("hold")
    assert held, f"{len(recorded.scrapes)} scrapes, none in the hold phase"
    last = held[-1]
    assert [s.value for s in last["connscope_connections_open"].samples] == [CONNECTIONS]
    by_role: dict[str, float] = {}
    for sample in last["connscope_process_connections_open"].samples:
        role = sample.labels["role"]
        by_role[role] = by_role.get(role, 0) + sample.value
    assert by_role == {"server": CONNECTIONS, "client": CONNECTIONS}


def test_counters_of_the_endpoint_only_grow(recorded):
    held = recorded.of_phase("hold")
    assert len(held) >= 2

    def total(scrape, name):
        return sum(s.value for s in scrape[name].samples)

    for name in ("connscope_process_messages_received", "connscope_process_cpu_seconds"):
        values = [total(scrape, name) for scrape in held]
        assert values == sorted(values)
        assert values[-1] > values[0], "messages came meanwhile"


# -- afterwards, by the commands of the page --------------------------------------------------


def test_the_page_shows_a_command_for_every_format():
    lines = [line for line in REPORT_COMMANDS if "--format " in line]
    shown = {line.split("--format ")[1].split()[0] for line in lines}
    assert shown == {*cli_report.FILE_FORMATS, *cli_report.FOLDER_FORMATS}


@pytest.mark.parametrize("form", ["perfetto", "speedscope", "openmetrics"])
def test_a_command_of_the_page_writes_its_export_and_changes_nothing(here, form):
    """All of them are run by the tests of the documentation; their contents are looked at below."""
    (line, *_) = (line for line in REPORT_COMMANDS if f"--format {form}" in line)
    before = (here / "runs/latest/verdict.json").read_bytes()
    program, *arguments = shlex.split(line)
    assert program == "profile-report"
    written = report(*arguments)
    if "-o" in arguments:
        target = here / arguments[arguments.index("-o") + 1]
        assert written == ""
        assert any(target.iterdir()) if target.is_dir() else target.stat().st_size > 100
    else:
        assert len(written) > 20
    assert (here / "runs/latest/verdict.json").read_bytes() == before, "an export changes nothing"


def test_markdown_says_the_verdict(here):
    tokens = MarkdownIt("commonmark").enable("table").parse(report("--format", "md"))
    verdict = json.loads((here / "runs/latest/verdict.json").read_text())
    shown = "".join(c.content for t in tokens for c in t.children or [] if c.type == "text")
    assert verdict["verdict"]["sentence"] in shown
    assert not {t.type for t in tokens} & {"html_block", "code_block"}


def test_openmetrics_says_the_same_as_the_verdict(here):
    metrics = {f.name: f for f in text_string_to_metric_families(report("--format", "openmetrics"))}
    verdict = json.loads((here / "runs/latest/verdict.json").read_text())
    assert json.loads(report("--format", "json")) == verdict
    for name in ("target", "peak", "held", "failed", "lost"):
        (sample,) = metrics[f"connscope_{name}_connections"].samples
        assert sample.value == verdict["run"][f"{name}_connections"]
    limits = {s.labels["subject"] for s in metrics["connscope_limit_met"].samples}
    assert limits == {rung["subject"] for rung in verdict["ladder"]}


def test_stacks_of_one_process_and_window_are_a_part_of_all(here):
    def count(*arguments):
        lines = report("--format", "folded", *arguments).splitlines()
        return {line.rpartition(" ")[0]: int(line.rpartition(" ")[2]) for line in lines}

    samples = df_stack_samples(RunView(load(open_run_dir(here / "runs" / "latest"))))
    moments = sorted(
        samples["at_s"][samples["worker"].eq(1) & samples["role"].eq("server")].unique()
    )
    middle = f"{(moments[0] + moments[-1]) / 2:.3f}"
    everything, worker = count(), count("--worker", "1")
    early = count("--worker", "1", "--until", middle)
    late = count("--worker", "1", "--from", middle)
    assert all(stack.startswith("worker 1 (pid ") for stack in worker)
    assert worker == {s: n for s, n in everything.items() if s.startswith("worker 1 ")}
    assert sum(early.values()) + sum(late.values()) == sum(worker.values())
    assert min(map(len, (early, late))) > 0
    assert any("_[k]" in stack for stack in worker), "kernel frames"
    pid = next(iter(worker)).split("pid ")[1].split(",")[0]
    assert count("--pid", pid) == worker


def test_speedscope_of_a_real_run_fits_the_schema_and_the_folded_counts(here):
    document = json.loads(report("--format", "speedscope"))
    jsonschema.validate(document, json.loads(SCHEMA.read_text()))
    folded = report("--format", "folded").splitlines()
    whole = sum(int(line.rpartition(" ")[2]) for line in folded)
    stacks = sum(len(profile["samples"]) for profile in document["profiles"])
    assert 0 < stacks <= whole
    assert {p["unit"] for p in document["profiles"]} == {"nanoseconds"}


def test_tables_agree_with_the_verdict_in_both_forms(here, tmp_path):
    report("--format", "csv", "-o", str(tmp_path / "c"))
    report("--format", "parquet", "-o", str(tmp_path / "p"))
    for read, suffix, folder in ((pd.read_csv, "csv", "c"), (pd.read_parquet, "parquet", "p")):
        over_time = read(tmp_path / folder / f"connections_over_time.{suffix}")
        assert over_time["open_count"].max() == CONNECTIONS
        workers = read(tmp_path / folder / f"processes.{suffix}").query("role == 'server'")
        assert workers["peak_open_count"].sum() == CONNECTIONS
        assert len(read(tmp_path / folder / f"ladder.{suffix}")) >= 5


# -- mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--format", "folded", "--worker", "99"], "no such worker"),
        (["--format", "folded", "--pid", "1"], "no such process"),
        (["--format", "folded", "--from", "900"], "no stack was sampled in that window"),
        (["--format", "folded", "--from", "3", "--until", "2"], "is not before"),
        (["--format", "folded", "--from", "nan"], "nan"),
        (["--format", "folded", "--worker", "0", "--pid", "1"], "both choose"),
        (["--format", "md", "--worker", "0"], "--worker chooses stacks"),
        (["--format", "csv", "-o", "-"], "many files"),
        (["--format", "md", "--json"], "--json"),
        (["--format", "pdf"], "pdf"),
        (["--format", "md", "-o", "."], "is a directory"),
        (["--format", "csv", "-o", "runs/latest/manifest.json"], "is not a folder"),
        (["--format", "md", "-o", "no/such/file.md"], "mkdir -p"),
        (["--format", "md", "-o", "/dev/full"], "fix: --output FILE, for example report.html"),
        (["-o", "/dev/stdout"], "fix: --output FILE, for example report.html"),
    ],
)
def test_a_mistake_is_two_lines_and_exit_code_2(here, capsys, arguments, said):
    assert cli_report.main(arguments) == 2
    error, fix = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert fix.startswith("fix: ")
    assert said in error + fix


def test_html_to_stdout_is_the_page(here):
    page = report("-o", "-")
    assert page.startswith("<!DOCTYPE html>")
    assert page.rstrip().endswith("</html>")
