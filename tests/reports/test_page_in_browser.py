"""Headless Chromium opens the pages of six kinds of run, and one that is wrong on purpose."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from reports.page.page import render

HERE = Path(__file__).parent
SECTIONS = ["verdict", "ladder", "story", "hot", "memory", "ports", "errors", "kernel", "method"]
HOSTILE = (
    "<img src=https://stranger.example/x onerror='pwned=1'></script><script>pwned=1</script>"
    "\"' onload=pwned=1 {{ 7*7 }} $x_1$ \u202e \udc80"
)
WRONG = """<!DOCTYPE html><title>wrong</title><main><h1>x</h1><p id=a id2=b>
<img src="https://stranger.example/pixel.png"><a href="#nowhere">y</a><b id=a></b>
<div style="width:3000px">wide</div></main><script>
window.pwned = 1; throw new Error("boom")</script>"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.node,
    pytest.mark.skipif(
        not (shutil.which("node") and Path("/usr/bin/chromium").exists()),
        reason="needs Debian's chromium and node",
    ),
]

KINDS = {
    "spin": {"spin": True},
    "reached": {},
    "no_ebpf_interrupted": {"spin": True, "bpf": False, "status": "interrupted"},
    "ten_connections": {"target": 10, "workers": 1, "clients": 1},
    "many_workers": {"spin": True, "workers": 64, "clients": 64},
    "hostile": {"spin": True, "hostile": HOSTILE},
}


@pytest.fixture(scope="module")
def seen(make_summary, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    paths = {}
    for kind, options in KINDS.items():
        paths[kind] = folder / f"{kind}.html"
        paths[kind].write_text(render(make_summary(**options)), encoding="utf-8")
    paths["wrong"] = folder / "wrong.html"
    paths["wrong"].write_text(WRONG, encoding="utf-8")
    done = subprocess.run(
        ["node", str(HERE / "check_page.cjs"), *map(str, paths.values())],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    return {kind: results[str(path)] for kind, path in paths.items()}


@pytest.fixture(params=list(KINDS))
def page(request, seen):
    return seen[request.param]


def test_no_console_error_no_request_no_dialog(page):
    assert page["console"] == []
    assert page["requests"] == []
    assert page["dialogs"] == []


def test_no_horizontal_overflow(page):
    assert len(page["overflow"]) >= 2
    assert set(page["overflow"].values()) == {0}, page["overflow"]


def test_every_section_is_there_and_links_lead_somewhere(page):
    look = page["look"]
    assert look["sections"] == SECTIONS
    assert look["brokenLinks"] == []
    assert look["duplicateIds"] == []
    assert look["styleAttributes"] == []
    assert look["emptyBare"] == 0


def test_tables_are_real_tables_and_figures_have_words(page):
    look = page["look"]
    assert len(look["tables"]) >= 6
    for table in look["tables"]:
        assert table["caption"], table
        assert table["headings"] >= 2, table
    assert len(look["figures"]) >= 10
    assert all(len(label) > 30 for label in look["figures"])
    assert set(look["figuresShown"]) == {1}, "one of the two widths is shown"
    assert set(page["narrowFigures"]) == {1}


def test_axe_finds_no_fault(seen):
    looked_at = {kind: page["axe"] for kind, page in seen.items() if kind in KINDS and page["axe"]}
    assert set(looked_at) == set(KINDS)
    assert len(looked_at["spin"]) == 4
    faults = {kind: axe for kind, axe in looked_at.items() if any(axe.values())}
    assert not faults


def test_dark_and_light_differ(seen):
    background = seen["spin"]["background"]
    assert background["1400-light"] != background["1400-dark"]
    assert background["360-light"] == background["1400-light"]


def test_paper_is_light_and_wide_enough_whatever_the_screen(seen):
    paper = seen["spin"]["print"]
    assert paper["overflow"] == 0
    assert paper["background"] == "rgb(255, 255, 255)"
    assert paper["text"] == "rgb(0, 0, 0)"
    assert min(paper["hero"][:3]) > 200
    assert paper["wideFigures"]
    assert paper["narrowestCell"] > 40, "no cell of one letter a line"
    assert 6 <= paper["pages"] <= 40
    assert paper["bytes"] < 5_000_000


def test_flame_graph_zooms_searches_and_takes_keys(seen):
    flame = seen["spin"]["flame"]
    assert flame["python"] == 8
    assert flame["native"] > 50
    assert flame["widthAfter"] > 5 * flame["widthBefore"], "a click zooms in"
    assert flame["focusedName"].startswith("read (worker.py:98)"), "and keeps the focus"
    assert flame["dimmed"] == 4
    assert flame["dimmedAfterEscape"] == 0
    assert flame["hits"] >= 2
    assert flame["noHits"] == 0
    assert "python 92." in flame["foundText"]
    assert flame["levels"] == ["1", "2", "3", "2", "1"]
    assert flame["slashFocuses"] == "flame-search"
    assert flame["processes"][0].startswith("hot: worker 1 ")
    assert flame["otherRoot"].startswith("worker 0 ")


def test_tables_sort_and_unfold(seen):
    tables = seen["spin"]["tables"]
    assert tables["up"] == tables["down"][::-1]
    assert tables["up"][0].startswith("client 0")
    assert tables["down"][0].startswith("worker 6")
    assert tables["ariaSort"] == "descending"
    assert tables["byKey"] == "descending"
    assert tables["numbers"] == sorted(tables["numbers"], reverse=True)
    assert (tables["before"], tables["after"]) == (12, 14)
    assert seen["many_workers"]["tables"]["up"][1].startswith("client 1 "), "2 sorts before 10"


def test_the_fix_can_be_copied(seen):
    copy = seen["spin"]["copy"]
    assert copy["label"] == "Copied"
    assert copy["clipboard"] == copy["command"]
    assert copy["command"].endswith("--at-fd-limit pause")
    assert seen["reached"]["copy"] is None


def test_empty_sections_say_why(seen):
    text = seen["no_ebpf_interrupted"]["look"]["text"]
    assert "The probe tcp_events did not run: needs root and python3-bpfcc." in text
    assert "sudo apt-get install python3-bpfcc" in text
    assert "The run was interrupted." in text
    assert "its supervisor ended before it wrote the last status" in text


def test_hostile_text_is_inert_and_shown(seen):
    page = seen["hostile"]
    assert not page["look"]["pwned"]
    assert page["look"]["strangers"] == 0
    assert page["look"]["scripts"] == seen["spin"]["look"]["scripts"] == 2
    assert "<script>pwned=1</script>" in page["look"]["text"]
    assert "{{ 7*7 }}" in page["look"]["text"]


def test_the_checks_can_fail(seen):
    """The same looking, at a page with every fault, finds every fault."""
    wrong = seen["wrong"]
    assert any("boom" in line for line in wrong["console"])
    assert wrong["requests"][0] == "https://stranger.example/pixel.png"
    assert wrong["overflow"]["1400-light"] > 1000
    assert wrong["axe"]["1400-light"]
    look = wrong["look"]
    assert (look["pwned"], look["strangers"]) == (True, 1)
    assert look["duplicateIds"] == ["a"]
    assert look["brokenLinks"] == ["nowhere"]
    assert look["sections"] == []
