"""profile-compare as its users meet it: refusals in two lines, and real runs compared."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.commands import compare as cli_compare
from harness.commands import run as cli_run
from probes.contract import schema
from probes.contract.rundir import MANIFEST, RunDir, create_run_dir

DEADLINE_S = 150
CONNECTIONS = 300


@pytest.fixture(scope="module")
def compare(call):
    """profile-compare in this process, for a terminal of 120 columns."""

    def compared(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("COLUMNS", "120")
            return call(cli_compare.main, *arguments)

    return compared


def compare_as_users_do(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "harness.commands.compare", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env={**os.environ, "COLUMNS": "120"},
    )


# -- without a recording: what the manifests already tell -------------------------------------


@pytest.fixture
def manifest_only(tmp_path):
    """A run directory of which only the manifest was written."""

    def make(name: str, **changes: Any) -> Path:
        run = create_run_dir(tmp_path, name)
        host = {"kernel": "6.18.0", "machine": "x86_64", "cpu_count": 2, "network_namespace": "own"}
        host |= changes.pop("host", {})
        run.write_manifest(
            {
                "schema_version": schema.SCHEMA_VERSION,
                "run_id": run.run_id,
                "argv": ["profile-run", "--connections", "23", "--name", name],
                "status": "finished",
                "settings": {},
                "plan": {},
                "host": host,
                **changes,
            }
        )
        return run.path

    return make


@pytest.mark.parametrize(
    ("changes", "code", "says", "helps"),
    [
        ({"schema_version": 999}, 2, "schema versions", "profile-run --connections 23"),
        ({"status": "interrupted"}, 2, "was interrupted", "leave it out"),
        ({"status": "running"}, 2, "did not finish", "--name b"),
        ({"host": {"network_namespace": "host"}}, 2, "different networks", "--host-network"),
        ({"host": {"kernel": "6.1.0"}}, 4, "6.18.0 and 6.1.0", "--across-hosts"),
        ({"host": {"cpu_count": 64}}, 4, "number of CPUs 2 and 64", "--across-hosts"),
    ],
)
def test_a_refusal_is_two_lines_and_an_exit_code(
    compare, manifest_only, changes, code, says, helps
):
    done = compare(manifest_only("a"), manifest_only("b", **changes))
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    error, fix = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert says in error
    assert fix.startswith("fix: ")
    assert helps in fix


@pytest.mark.usefixtures("understood_here")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "RUN"),
        (["/nonexistent/run", "/nonexistent/other"], "/nonexistent/run"),
        (["{here}", "{here}"], "is not a run directory"),
        (["{a}"], "nothing to compare"),
        (["{a}", "{a}"], "named twice"),
        (["{a}", "{b}", "--output", "{here}"], "is a directory"),
        (["{a}", "{b}", "--output", "{here}/no/c.html"], "there is no directory"),
        (["{a}", "{b}", "--output", "/dev/full"], "fix: --output FILE, for example"),
        (["{a}", "{b}", "--nonsense"], "--nonsense"),
    ],
)
def test_usage_errors_have_no_traceback(manifest_only, tmp_path, capsys, arguments, says):
    places = {"a": manifest_only("a"), "b": manifest_only("b"), "here": tmp_path}
    code = cli_compare.main([word.format(**places) for word in arguments])
    shown = capsys.readouterr()
    assert code == 2
    assert says in shown.err
    assert len(shown.err.splitlines()) == 2


@pytest.mark.usefixtures("understood_here")
def test_a_broken_manifest_is_named(manifest_only, capsys):
    broken = manifest_only("b")
    (broken / MANIFEST).write_text('{"schema_version": 1,')
    assert cli_compare.main([str(manifest_only("a")), str(broken)]) == 5
    assert "is not JSON" in capsys.readouterr().err


def test_help_names_the_exit_codes_and_flags(capsys):
    with pytest.raises(SystemExit):
        cli_compare.main(["--help"])
    text = capsys.readouterr().out
    for word in ("--across-hosts", "--across-probes", "--output", "--json", "exit codes"):
        assert word in text


# -- real runs --------------------------------------------------------------------------------


def record(call: Any, parent: Path, *options: str) -> Path:
    before = set(parent.iterdir())
    done = call(
        cli_run.main,
        *("--quiet", "--no-report", "--output", parent),
        *("--connections", str(CONNECTIONS), "--workers", "2", "--clients", "1"),
        *("--hold", "1", "--connect-timeout", "3", "--probes", "light", *options),
    )
    assert done.returncode in (0, 3), done.stderr
    (path,) = (p for p in set(parent.iterdir()) - before if p.is_dir() and not p.is_symlink())
    return path


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, call) -> dict[str, list[Path]]:
    """Two repeats each of workers with room, and of workers with 100 descriptors."""
    parent = tmp_path_factory.mktemp("runs")
    runs: dict[str, list[Path]] = {"wide": [], "narrow": []}
    for _ in range(2):
        runs["wide"].append(record(call, parent, "--nofile", "1000"))
        runs["narrow"].append(record(call, parent, "--nofile", "100"))
    return runs


@pytest.fixture(scope="module")
def compared(recorded) -> dict[str, Any]:
    done = compare_as_users_do(*recorded["narrow"], *recorded["wide"], "--json")
    assert done.returncode == 0, done.stderr
    loaded: dict[str, Any] = json.loads(done.stdout)
    return loaded


def figure(compared: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in compared["figures"] if row["name"] == name)


@pytest.mark.privileged
def test_repeats_are_found_and_what_changed_is_named(compared):
    assert [(v["letter"], v["label"], len(v["runs"])) for v in compared["variants"]] == [
        ("A", "nofile=100", 2),
        ("B", "nofile=1000", 2),
    ]
    set_by_user = [c for c in compared["changes"] if c["area"] == "settings"]
    assert [(c["name"], c["values"]) for c in set_by_user] == [("nofile", ["100", "1000"])]
    assert not [c for c in compared["changes"] if c["area"] in ("host", "tool")]


@pytest.mark.privileged
def test_verdicts_stand_side_by_side(compared):
    causes = [variant["causes"] for variant in compared["variants"]]
    assert causes == [{"fd-limit-process": 2}, {"reached": 2}]
    assert "A with fd-limit-process, B with the target reached" in compared["headline"]


@pytest.mark.privileged
def test_what_was_held_differs_and_lost_connections_do_not(compared):
    held = figure(compared, "held_count")
    assert held["repeats"][1] == [CONNECTIONS, CONNECTIONS]
    assert all(150 < value < 200 for value in held["repeats"][0]), (
        "2 workers of 100, less their own"
    )
    assert held["against_base"][0]["difference"] == "higher"
    assert held["against_base"][0]["is_better"] is True
    lost = figure(compared, "lost_count")
    assert lost["against_base"][0]["difference"] == "within the noise"


@pytest.mark.privileged
def test_every_figure_of_speed_was_measured(compared):
    for name in ("established_per_s", "ramp_s", "connect_p50_ms", "open_p99_ms"):
        for spread in figure(compared, name)["values"]:
            assert spread["count"] == 2, name
            assert spread["low"] > 0


@pytest.mark.privileged
def test_the_rung_of_the_workers_moved_with_its_capacity(compared):
    rung = next(
        row
        for row in compared["ladder"]
        if (row["limit"], row["side"]) == ("fds_per_process", "server")
    )
    assert rung["met_count"] == [2, 0]
    assert rung["against_base"][0]["difference"] == "higher"
    assert rung["predicted_connections"][1]["median"] > 1500
    others = [row for row in compared["ladder"] if row is not rung]
    assert not [row for row in others if row["against_base"][0]["difference"] == "lower"]


@pytest.mark.privileged
def test_single_runs_say_that_the_noise_is_not_known(compare, recorded):
    done = compare(recorded["narrow"][0], recorded["wide"][0])
    assert done.returncode == 0, done.stderr
    assert "noise not known" in done.stdout
    assert "record each variant three times" in " ".join(done.stdout.split())
    rows = [line for line in done.stdout.splitlines() if line.startswith("established per second")]
    assert rows
    assert "HIGHER" not in rows[0]
    assert "LOWER" not in rows[0]


@pytest.mark.privileged
def test_repeats_alone_are_noise(compare, recorded):
    done = compare(*recorded["wide"])
    assert done.returncode == 0, done.stderr
    assert "All 2 runs repeat one variant" in done.stdout
    assert "what changed" not in done.stdout


@pytest.mark.privileged
def test_the_page_is_written_and_names_its_runs(compare, recorded, tmp_path):
    page = tmp_path / "comparison.html"
    done = compare(*recorded["narrow"], *recorded["wide"], "--output", page)
    assert done.returncode == 0, done.stderr
    assert f"page     {page}" in done.stdout
    html = page.read_text(encoding="utf-8")
    for paths in recorded.values():
        for path in paths:
            assert path.name in html
    with_json = compare(*recorded["wide"], "--json", "--output", page)
    json.loads(with_json.stdout)
    assert "page " in with_json.stderr


@pytest.mark.privileged
def test_comparing_changes_no_run(compare, recorded):
    def state():
        return {
            p: (p.stat().st_mtime_ns, p.stat().st_size)
            for path in recorded["wide"]
            for p in path.rglob("*")
        }

    before = state()
    assert compare(*recorded["wide"]).returncode == 0
    assert state() == before


@pytest.mark.privileged
def test_other_probes_are_refused_and_compared_with_the_flag(compare, recorded, tmp_path):
    """As recorded, but for one probe of which one run says that it could not run."""
    lacking = tmp_path / "lacking"
    shutil.copytree(recorded["wide"][1], lacking)
    run = RunDir(lacking)
    shutil.rmtree(run.table_dir("probe_health"))
    manifest = run.read_manifest()
    run.write_manifest(manifest | {"run_id": "lacking"})
    refused = compare(recorded["wide"][0], lacking)
    assert refused.returncode == 2
    assert "not watched by the same probes" in refused.stderr
    assert "process_samples" in refused.stderr
    assert "--across-probes" in refused.stderr
    allowed = compare(recorded["wide"][0], lacking, "--across-probes")
    assert allowed.returncode == 0, allowed.stderr
    assert "caution: " in allowed.stdout
