"""``python -m bench.record`` for real: one run is played, packed, labelled, and not made twice."""

from __future__ import annotations

import json
import os

import pytest

from bench import record, score
from bench.recordings import archive, catalogue, label
from bench.recordings.examine import EXPECTED

pytestmark = [pytest.mark.privileged, pytest.mark.shared]

ID = "lacking/no-probes-at-a-limit"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where recordings go in this test."""
    monkeypatch.setattr(catalogue, "FOLDER", tmp_path / "recordings")
    monkeypatch.setattr(record, "PLAYED", tmp_path / "played")
    return tmp_path / "recordings"


def test_a_recording_is_made_once_and_scored(folder, monkeypatch, call):
    assert os.geteuid() == 0, "these tests need root: sudo make test"
    made = call(record.main, "--only", ID)
    assert (made.returncode, made.stderr.count("\n")) == (0, 2), made.stderr
    assert "as labelled" in made.stderr
    written = {path.name for path in folder.rglob("*") if path.is_file()}
    assert written == {f"no-probes-at-a-limit{s}" for s in (archive.SUFFIX, label.SUFFIX, EXPECTED)}
    assert not list((folder.parent / "played").rglob("manifest.json")), "what is packed is gone"

    monkeypatch.setattr(record, "play", lambda *_: pytest.fail("it is there already"))
    assert call(record.main, "--only", ID).returncode == 0

    scored = call(score.main, "--recordings", folder)
    assert scored.returncode == 0, scored.stderr
    assert "AC@1, cause, side and process" in scored.stdout
    assert "Every verdict is as labelled." in scored.stdout
    assert call(score.main, "--recordings", folder, "--expected").stdout == scored.stdout

    assert call(record.main, "--only", ID, "--update").stderr == "", "nothing has changed"
    expected = folder / f"{ID}{EXPECTED}"
    changed = json.loads(expected.read_text())
    changed["verdict"]["cause"] = "reached"
    expected.write_text(json.dumps(changed))
    said = call(record.main, "--only", ID, "--update").stderr
    assert said == f"{ID}: verdict.cause: expected 'reached', found 'fd-limit-process'\n"
    assert json.loads(expected.read_text())["verdict"]["cause"] == "fd-limit-process"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("--only", "no/such"), "there is no such recording"), (("--step", "sing"), "sing")],
)
def test_a_mistake_is_told(call, arguments, said):
    done = call(record.main, *arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_folder_without_recordings_is_told(call, tmp_path):
    done = call(score.main, "--recordings", tmp_path)
    assert done.returncode == 2
    assert "holds no recordings" in done.stderr
