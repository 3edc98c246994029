"""Recordings of earlier versions: real ones, made by the programs of that time."""

from __future__ import annotations

import json

import pytest

from analysis.frames.run_frames import load
from bench.recordings import archive
from bench.recordings.catalogue import FOLDER
from harness.commands import report as cli_report
from probes.contract import schema
from probes.contract.errors import RunDirError
from probes.contract.rundir import MANIFEST, RunDir, open_run_dir

LATE_COLUMN = "run_queue_wait_ns_total"


@pytest.fixture
def older(tmp_path):
    """The run directory of a recording of that name."""

    def unpacked(name):
        return archive.unpack(FOLDER / "older" / f"{name}{archive.SUFFIX}", tmp_path)

    return unpacked


def test_a_recording_of_another_schema_is_refused_with_who_reads_it(older, call):
    run = older("schema-1")
    manifest = json.loads((run / MANIFEST).read_text())
    assert manifest["schema_version"] == 1
    said = call(cli_report.main, run, "--format", "json")
    assert said.returncode == 5
    error, fix = said.stderr.splitlines()
    assert error == (
        f"error: {run} has schema version 1, this connscope reads {schema.SCHEMA_VERSION}"
    )
    assert fix == (
        f"fix: read it with connscope {manifest['tool_version']}, commit {manifest['tool_commit']}"
    )
    assert manifest["tool_commit"] == "929ef1fb6a08"


@pytest.mark.parametrize("name", ["schema-2-at-a-limit", "schema-2-without-run-queue-wait"])
def test_a_column_that_came_later_is_not_known_in_a_recording_before_it(older, name):
    """What its verdict means is held by ``test_recordings`` with all the others."""
    run = open_run_dir(older(name))
    samples = load(run)["process_samples"]
    assert len(samples)
    assert set(samples[LATE_COLUMN]) == {-1}


@pytest.mark.parametrize(
    ("version", "commit"),
    [("2\n\x1b[2J" + "9" * 500, "x" * 500), (["0.1.0"] * 400, {"a": 1}), (None, None)],
)
def test_who_reads_it_is_the_word_of_a_stranger(tmp_path, version, commit):
    said = {"schema_version": version, "tool_version": version, "tool_commit": commit}
    RunDir(tmp_path).write_manifest(said)
    with pytest.raises(RunDirError) as error:
        open_run_dir(tmp_path)
    for line in (error.value.message, error.value.fix):
        assert line.isprintable()
        assert len(line) < 200 + len(str(tmp_path))
