"""matrix.html and its Markdown: what they say, and that no stranger's text runs in them."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from analysis.matrix.confusion import confusion
from analysis.matrix.matrix import Outcome, RowSpec, compare
from reports.matrix.markdown import diagnosis
from reports.matrix.page import MatrixFacts, render
from reports.matrix.terminal import MatrixView, confusion_lines, result_lines

HERE = Path(__file__).parent
HOSTILE = "<img src=x onerror=pwned=1></script><script>pwned=1</script>{{ 7*7 }}\x1b[31m"
HOST = {"kernel": "6.18", "cpu_count": 2, "memory_total_bytes": 24 << 30, "tool_version": "0.1",
        "tool_commit": "abc"}  # fmt: skip


def facts(**changes):
    values = {
        "name": "the-2016-log", "shows": "a log", "status": "finished", "started":
        "2026-11-24T02:00:00+00:00", "seed": 7, "repeats": 1, "command": "profile-matrix x",
        "directory": "runs/m", "host": HOST, "log_scale": 0.061, "scale_words": "4,000 for 65,535",
        "left_count": 0, "is_varied": False,
    }  # fmt: skip
    return MatrixFacts(**{**values, **changes})


def outcome(row, ceiling, cause="fd-limit-process", repeat=1, text="Worker 0 was full."):
    finding = {
        "cause": cause, "severity": "binding", "side": "server", "role": "server", "worker": 0,
        "first_s": 0.5, "at_connections": ceiling, "follows_from": "", "confidence": "high",
        "evidence": [{"name": "open files", "value": 4000, "unit": "count"}],
        "fix": [{"command": f"raise {text}", "effect": "more"}],
    }  # fmt: skip
    return Outcome(
        row, repeat, "done", 6.0, run=f"rows/{row}",
        verdict={"cause": cause, "side": "server", "sentence": f"{text}; raise it with x.",
                 "headline": text, "consequences": []},
        facts={"peak_connections": ceiling, "target_connections": 9000, "held_connections": ceiling,
               "failed_connections": 3, "lost_connections": 0},
        findings=[finding],
        ladder=[{"limit": "fds_per_process", "subject": "worker 0",
                 "predicted_connections": ceiling}],
        figures={"ceiling_count": float(ceiling), "held_count": float(ceiling),
                 "server_hold_cpu_pct": 12.5, "established_per_s": None},
        workers=[{"worker": 0, "peak_count": 3992, "own_count": 8, "room_count": 3992}],
    )  # fmt: skip


def results(text="Worker 0 was full.", second=8000):
    specs = [
        RowSpec("one", "one worker", "profile-run --workers 1", {"workers": 1}, provoked="reached",
                log_row=2, log=f"54 k {text}", log_ceiling=54000, scale=0.061,
                has_expectation=True),
        RowSpec("two", text, f"profile-run {text}", {"workers": 2}, against="one", move="up",
                provoked="fd-limit-process", note=text, has_expectation=True),
        RowSpec("three", "fails", "profile-run", {}, has_expectation=True),
        RowSpec("four", "not run yet", "profile-run", {}),
    ]  # fmt: skip
    outcomes = [
        outcome("one", 4000, text=text),
        outcome("two", second, text=text),
        Outcome("three", 1, "failed", 1.0, error=f"hung {text}"),
    ]
    return compare(specs, outcomes)


def test_the_page_says_what_moved_and_by_how_much():
    page = render(facts(), results())
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert "2 of 3 rows were as expected" in text
    assert "+4,000 (+100.0 %)" in text
    assert "workers 1 → 2" in text
    assert "65,574 at the log's size" in text
    assert "hung Worker 0" in text
    assert "Not run yet." in text
    assert 'href="rows/one/report.html"' in page


def test_a_matrix_that_is_not_finished_says_so():
    page = render(facts(left_count=3), results())
    assert "Not finished" in page
    assert "3 runs are left" in page


def test_the_confusion_table_is_shown_of_what_is_not_scaled():
    assert 'id="confusion"' not in render(facts(), results())
    assert 'id="confusion"' in render(facts(log_scale=None), results())


def test_the_effects_of_a_varied_matrix_are_shown():
    page = render(facts(is_varied=True, log_scale=None), results())
    assert 'id="effects"' in page
    assert "--workers" in page


def test_markdown_keeps_its_tables_whole():
    text = diagnosis(confusion(results("a | b")), results("a | b"), HOST, 1)
    assert "a \\| b" in text
    assert "- `accept-spin`: " in text.split("## Not provoked here")[1]
    head, rule, *rows = [line for line in text.splitlines() if line.startswith("|")][:4]
    width = head.count("|")
    assert rule.count("|") == width
    assert all(row.replace("\\|", "").count("|") == width for row in rows)


def test_terminal_lines_fit_and_show_no_control_characters():
    lines = result_lines(results(HOSTILE), 80)
    assert all(len(line) <= 80 for line in lines if not line.startswith("      "))
    assert "\x1b" not in "".join(lines + confusion_lines(confusion(results(HOSTILE))))
    assert any("+100 %" in line for line in lines)


def test_a_pipe_gets_a_line_when_a_row_starts_and_one_when_it_ends():
    stream = io.StringIO()
    with MatrixView(2, 0, enabled=True, stream=stream) as view:
        view.begin("one", "one worker", 12.0)
        view.tick("0.1 s | ramp")
        view.end(outcome("one", 4000))
    first, second = stream.getvalue().splitlines()
    assert first == "1/2 one: one worker (about 12 s left)"
    assert second.strip() == "one: fd-limit-process at 4,000 connections, 6 s"


def test_quiet_says_nothing():
    stream = io.StringIO()
    with MatrixView(1, 0, enabled=False, stream=stream) as view:
        view.begin("one", "one worker", 12.0)
        view.end(outcome("one", 4000))
    assert stream.getvalue() == ""


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    if not (shutil.which("node") and Path("/usr/bin/chromium").exists()):
        pytest.skip("needs Debian's chromium and node")
    folder = tmp_path_factory.mktemp("matrix")
    kinds = {
        "log": render(facts(), results()),
        "varied": render(facts(is_varied=True, log_scale=None), results()),
        "hostile": render(facts(name=HOSTILE, shows=HOSTILE, command=HOSTILE), results(HOSTILE)),
    }
    paths = {kind: folder / f"{kind}.html" for kind in kinds}
    for kind, path in paths.items():
        path.write_text(kinds[kind], encoding="utf-8")
    done = subprocess.run(
        ["node", str(HERE / "check_page.cjs"), *map(str, paths.values())],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    return {kind: answers[str(path)] for kind, path in paths.items()}


@pytest.mark.browser
@pytest.mark.node
@pytest.mark.parametrize("kind", ["log", "varied", "hostile"])
def test_in_a_browser_nothing_overflows_nothing_is_fetched_and_nothing_runs(seen, kind):
    page = seen[kind]
    assert page["console"] == []
    assert page["requests"] == []
    assert page["dialogs"] == []
    assert set(page["overflow"].values()) == {0}, page["overflow"]
    look = page["look"]
    assert look["brokenLinks"] == []
    assert look["duplicateIds"] == []
    assert not look["pwned"]
    assert look["strangers"] == 0
    assert all(table["caption"] for table in look["tables"])


@pytest.mark.browser
@pytest.mark.node
def test_in_a_browser_axe_finds_no_fault(seen):
    faults = {kind: page["axe"] for kind, page in seen.items() if any(page["axe"].values())}
    assert seen["log"]["axe"]
    assert not faults
