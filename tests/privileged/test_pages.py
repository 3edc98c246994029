"""The pages of real runs of a dozen kinds, as headless Chromium shows them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probes.contract import schema
from probes.contract.rundir import create_run_dir

TESTS = Path(__file__).parents[1]
CHECK = TESTS / "reports/check_page.cjs"
CLUSTER = TESTS / "harness/foreign/cluster.cjs"
DEADLINE_S = 150
S = 1_000_000_000
MAX_BYTES = 5_000_000
SECTIONS = ["verdict", "ladder", "story", "hot", "memory", "ports", "errors", "kernel", "method"]

# Rows that other tests of this folder run anyway.
PROVOKED = {
    "healthy": "healthy",
    "fd_limit": "fd-limit-server",
    "ports": "ephemeral-ports",
    "spin": "accept-spin",
    "hot_code": "hot-worker-code",
    "crash": "worker-crash",
}
RUNS = {
    "ten_one_worker": ("--connections", "10", "--workers", "1", "--hold", "1"),
    "no_ebpf": ("--connections", "200", "--probes", "none", "--hold", "1"),
    "no_pyspy_64_workers": (
        *("--connections", "640", "--workers", "64", "--probes", "light", "--hold", "1"),
    ),
    "foreign": (
        *("--connections", "200", "--hold", "1", "--server-cmd"),
        f"node {CLUSTER} {{port}} 2 none",
    ),
}

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.in_turn,
    pytest.mark.browser,
    pytest.mark.node,
    pytest.mark.skipif(
        not (shutil.which("node") and Path("/usr/bin/chromium").exists()),
        reason="needs Debian's chromium and node",
    ),
]


def profile_run(folder: Path, arguments: Sequence[str]) -> Path:
    command = [sys.executable, "-P", "-m", "harness.commands.run", *arguments]
    done = subprocess.run(
        [*command, "--quiet", "--output", str(folder)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode in (0, 3), done.stderr
    return (folder / "latest").resolve()


def report(run: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "harness.commands.report", str(run)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode in (0, 3), done.stderr
    assert "Traceback" not in done.stderr


def interrupted(folder: Path) -> Path:
    child = subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", "harness.commands.run", "--connections", "300"),
            *("--hold", "60", "--quiet", "--output", str(folder)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "CI": "true"},
    )
    try:
        end_s = time.monotonic() + DEADLINE_S
        while not _holds(folder / "latest/manifest.json"):
            assert time.monotonic() < end_s, "the run did not come to its hold phase"
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        _, stderr = child.communicate(timeout=DEADLINE_S)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 130, stderr
    return (folder / "latest").resolve()


def _holds(manifest: Path) -> bool:
    try:
        stages = json.loads(manifest.read_text())["stages"]
    except OSError:
        return False
    return any(stage["stage"] == "hold" for stage in stages)


def cut_short(whole: Path, folder: Path) -> Path:
    """The recording as a power cut leaves it: each file a third shorter, nobody wrote the end."""
    run = folder / "cut"
    shutil.copytree(whole, run, symlinks=True)
    for name in ("report.html", "verdict.json"):
        (run / name).unlink()
    shutil.rmtree(run / "derived", ignore_errors=True)
    for path in (run / "raw").rglob("*.arrows"):
        os.truncate(path, path.stat().st_size * 2 // 3)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["status"] = "running"
    manifest["stages"] = [stage for stage in manifest["stages"] if stage["stage"] != "stop"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    report(run)
    return run


def million(folder: Path) -> Path:
    """1,000,000 connections in 53 workers, written by the writer of real runs."""
    run = create_run_dir(folder, "million")
    count, workers, origin_ns = 1_000_000, 53, 50 * S
    number = np.arange(count)
    start_ns = origin_ns + number * 40_000
    connections = {
        "connection": number.tolist(),
        "client": (number % workers).tolist(),
        "start_ns": start_ns.tolist(),
        "connected_ns": (start_ns + 100_000).tolist(),
        "established_ns": (start_ns + 500_000).tolist(),
        "source_address": [f"127.0.0.{i % workers + 1}" for i in range(count)],
        "destination_port": [9000] * count,
        "stage": ["open"] * count,
        "close_kind": ["none"] * count,
    }
    _write(run, "connections", connections, count)
    pids = [800 + i for i in range(2 * workers)]
    roles = ["server"] * workers + ["client"] * workers
    numbers = [i % workers for i in range(2 * workers)]
    processes = {
        "pid": pids, "role": roles, "worker": numbers, "slot": list(range(2 * workers)),
        "start_ns": [origin_ns - S] * 2 * workers, "exit_status": [-1] * 2 * workers,
        "nofile_soft_count": [20_000] * 2 * workers, "own_fds_count": [16] * 2 * workers,
    }  # fmt: skip
    _write(run, "processes", processes, 2 * workers)
    moments = [(q, pid) for q in range(200) for pid in range(2 * workers)]
    open_counts = [min(18_868, q * 118) for q, _ in moments]
    live = {
        "at_ns": [origin_ns + q * S // 4 for q, _ in moments],
        "pid": [pids[i] for _, i in moments], "role": [roles[i] for _, i in moments],
        "worker": [numbers[i] for _, i in moments],
        "open_count": open_counts, "established_total": open_counts,
    }  # fmt: skip
    _write(run, "live_samples", live, len(moments))
    stages = [("setup", -1, 0), ("ramp", 0, 40), ("hold", 40, 50), ("stop", 50, 51)]
    run.write_manifest(
        {
            "schema_version": schema.SCHEMA_VERSION, "tool_version": "0.1.0",
            "run_id": run.run_id, "name": "million", "argv": ["profile-run"],
            "status": "finished", "target_connections": count,
            "settings": {"accept": "reuseport", "at_fd_limit": "pause", "keepalive_s": None},
            "plan": {}, "host": {"cpu_count": 2, "memory_total_bytes": 24 << 30, "sysctls": {}},
            "stages": [
                {"stage": name, "start_ns": origin_ns + a * S, "end_ns": origin_ns + b * S}
                for name, a, b in stages
            ],
        }
    )  # fmt: skip
    report(run.path)
    return run.path


MAKERS: dict[str, Callable[[Path], Path]] = {
    **{kind: partial(profile_run, arguments=words) for kind, words in RUNS.items()},
    "interrupted": interrupted,
    "million": million,
}
ALL_KINDS = [*PROVOKED, *MAKERS, "cut_short"]
SHOWN = {"fd_limit", "hot_code", "no_ebpf", "cut_short"}
"""Those that have all parts of a page between them, and all that says why a part is empty."""


def looked_at(*kinds: str) -> list[Any]:
    """Parameters: kinds of runs, those that others stand for as variants."""
    return [
        kind if kind in SHOWN else pytest.param(kind, marks=pytest.mark.variant) for kind in kinds
    ]


KINDS = looked_at(*ALL_KINDS)


def _write(run, table, columns, count):
    blank = {schema.I64: 0, schema.F64: 0.0, schema.TEXT: "", schema.BOOL: False}
    writer = run.writer(table, "built")
    writer.write_columns(
        {c.name: columns.get(c.name, [blank[c.type]] * count) for c in schema.TABLES[table].columns}
    )
    writer.close()


@pytest.fixture(scope="session")
def page(machine, once, provoked):
    """The page of a kind of run, made the first time that a test of the session asks for it."""

    def get(kind: str) -> Path:
        if kind in PROVOKED:
            run = provoked(PROVOKED[kind]).run
        elif kind == "cut_short":
            whole = provoked(PROVOKED["spin"]).run
            run = Path(once("page-cut_short", lambda folder: shared(cut_short, whole, folder)))
        else:
            run = Path(once(f"page-{kind}", lambda folder: shared(MAKERS[kind], folder)))
        return run / "report.html"

    def shared(make: Callable[..., Path], *arguments: Path) -> str:
        with machine.shared():
            return str(make(*arguments))

    return get


@pytest.fixture(scope="session")
def seen(machine, once, page):
    """What Chromium shows of the page of a kind of run, looked at once in a session."""

    def look(kind: str) -> Any:
        path = str(page(kind))

        def made(_folder: Path) -> Any:
            with machine.until_recorded(cores=1.5):
                done = subprocess.run(
                    ["node", str(CHECK), "", path], capture_output=True, text=True, timeout=300
                )
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)[path]

        return once(f"seen-{kind}", made)

    return look


# They run while others share the machine; what is seen of all of them takes it alone.
@pytest.mark.in_turn(cores=0.5)
@pytest.mark.parametrize("kind", looked_at(*MAKERS))
def test_a_page_of_any_run_can_be_sent_by_mail(page, kind):
    assert 10_000 < page(kind).stat().st_size < MAX_BYTES


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_is_whole_and_quiet(seen, page, kind):
    shown = seen(kind)
    assert (shown["console"], shown["requests"], shown["dialogs"]) == ([], [], [])
    assert shown["look"]["sections"] == SECTIONS
    assert (shown["look"]["brokenLinks"], shown["look"]["duplicateIds"]) == ([], [])
    assert shown["look"]["emptyBare"] == 0, "an empty part says why it is empty"
    assert all(table["caption"] for table in shown["look"]["tables"])
    assert shown["overflow"] == {"1400-light": 0, "360-dark": 0}
    assert page(kind).stat().st_size < MAX_BYTES


@pytest.mark.parametrize("kind", KINDS)
def test_axe_finds_no_fault(seen, kind):
    assert set(seen(kind)["axe"]) == {"1400-light"}, "dark and narrow: tests/reports"
    assert not any(seen(kind)["axe"].values()), seen(kind)["axe"]


@pytest.mark.parametrize("kind", looked_at(*(kind for kind in ALL_KINDS if kind != "million")))
def test_tables_sort_by_mouse_and_by_key(seen, kind):
    tables = seen(kind)["tables"]
    assert tables["up"] == tables["down"][::-1]
    assert tables["byKey"] == "descending"
    assert tables["numbers"] == sorted(tables["numbers"], reverse=True)


@pytest.mark.parametrize("kind", looked_at("spin", "hot_code", "cut_short"))
def test_the_flame_graph_zooms_and_searches(seen, kind):
    zoom = seen(kind)["zoom"]
    assert zoom["share"] > 0.99, "a click gives a frame the full width"
    assert zoom["back"] == zoom["count"], "Escape gives all of it back"
    assert zoom["hits"] >= 1
    assert "%" in zoom["foundText"]


@pytest.mark.parametrize("kind", looked_at("fd_limit", "ports", "spin"))
def test_the_fix_can_be_copied(seen, kind):
    copy = seen(kind)["copy"]
    assert copy["label"] == "Copied"
    assert copy["clipboard"] == copy["command"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("fd_limit", "accept4 EMFILE: first of"),
        ("hot_code", "process became hot"),
        pytest.param("ports", "all 1,000 ports from 127.0.0.2 to port", marks=pytest.mark.variant),
        pytest.param("crash", "process ended", marks=pytest.mark.variant),
    ],
)
def test_what_came_first_is_said(seen, kind, words):
    assert words in seen(kind)["look"]["text"].partition("Events, earliest first")[2]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("no_ebpf", "was not part of this run"),
        pytest.param(*("healthy", "Nothing but the phases of the run"), marks=pytest.mark.variant),
        ("cut_short", "its manifest is not final"),
        pytest.param(
            "no_pyspy_64_workers",
            "The probe python_stacks was not asked for",
            marks=pytest.mark.variant,
        ),
        pytest.param("no_pyspy_64_workers", "64 workers held", marks=pytest.mark.variant),
        pytest.param("interrupted", "The run was interrupted.", marks=pytest.mark.variant),
        pytest.param("million", "All 1,000,000 connections", marks=pytest.mark.variant),
    ],
)
def test_what_is_not_there_says_why(seen, kind, words):
    assert words in seen(kind)["look"]["text"]
