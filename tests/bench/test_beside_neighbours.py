"""The script that runs the suite in fresh clones: here the suite is a recipe of two lines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.beside_neighbours import SuiteRun, main, read_results, table
from probes.proc import process_tree
from tests.neighbours.program import NOISY

ROOT = Path(__file__).resolve().parents[2]
SLEEPS_S = f"{os.getpid()}.25"  # a command line that nobody else has
GREEN = SuiteRun("quiet", 0, 3_267, 2, (), (), 540.0)
RESULTS = """\
<testsuites><testsuite>
<testcase classname="tests.a" name="one"/>
<testcase classname="tests.a" name="two[x]"><failure>no</failure></testcase>
<testcase classname="tests.b" name="three"><skipped/></testcase>
<testcase classname="tests.b" name="four"><error>no</error></testcase>
</testsuite></testsuites>
"""


def changed(**values) -> SuiteRun:
    fields = {name: getattr(GREEN, name) for name in SuiteRun.__slots__}
    return SuiteRun(**{**fields, **values})


def test_results_of_both_parts_are_counted(tmp_path):
    for name in ("ordinary.xml", "in-turn.xml"):
        (tmp_path / name).write_text(RESULTS)
    assert read_results(tmp_path) == (2, 2, ("tests.a::two[x]", "tests.b::four"))


@pytest.mark.parametrize(
    ("run", "word"),
    [
        (changed(failing=("tests.a::two",), exit_code=2), "tests.a::two"),
        (changed(exit_code=2), "make ended with 2"),
        (changed(passed_count=0), "no test ran"),
        (changed(left_behind=("sleep 9",)), "left behind: sleep 9"),
        (changed(took_s=901.0), "longer than 900 s"),
    ],
)
def test_what_is_not_green_says_why(run, word):
    assert GREEN.complaints(900.0) == []
    assert word in " ".join(run.complaints(900.0))
    assert word in table([GREEN, run], 900.0).splitlines()[-1]
    assert "| 1 | quiet | 3,267 | 2 | 0 | 540 | green |" in table([GREEN, run], 900.0)


def repository(path: Path, *recipe: str) -> Path:
    """A project whose ``make test`` is those lines."""
    path.mkdir()
    lines = "".join(f"\t@{line}\n" for line in recipe)
    (path / "Makefile").write_text(f"SHELL := /bin/bash\ntest:\n{lines}")
    for words in (
        ("init", "--quiet"),
        ("add", "Makefile"),
        ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "one"),
    ):
        subprocess.run(["git", "-C", str(path), *words], check=True)
    return path


def command(tmp_path: Path, *recipe: str) -> list[str]:
    made = repository(tmp_path / "project", *recipe)
    output = str(tmp_path / "output")
    return ["--repeats", "1", "--wait-s", "0", "--repository", str(made), "--output", output]


def running(words: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if words in path.read_text().replace("\0", " "):
                found.append(path.parent.name)
        except OSError:
            continue
    return found


@pytest.mark.privileged
def test_a_process_that_a_run_leaves_behind_is_named_and_ended(tmp_path):
    results = f"echo '{RESULTS.partition('<testcase')[0]}<testcase/></testsuite></testsuites>'"
    recipe = (
        " ".join(results.split("\n")) + " > $(RESULTS)/all.xml",
        f"setsid sleep {SLEEPS_S} </dev/null >/dev/null 2>&1 &",
    )
    words = [sys.executable, "-m", "bench.beside_neighbours", *command(tmp_path, *recipe)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    quiet, neighbours = done.stdout.splitlines()[-2:]
    for line, kind in ((quiet, "quiet"), (neighbours, "neighbours")):
        assert f"| {kind} | 1 | 0 | 0 |" in line
        assert f"left behind: sleep {SLEEPS_S}" in line
    for words in NOISY:
        assert f"neighbour {words[0]} had its effect" in done.stderr
    assert not running(f"sleep {SLEEPS_S}")
    assert (tmp_path / "output" / "table.md").read_text() == done.stdout


@pytest.mark.privileged
def test_ctrl_c_ends_the_run_and_the_neighbours_and_takes_the_clone_away(tmp_path, deadline):
    recipe = (f"(setsid sleep {SLEEPS_S} &) ; pwd > $(RESULTS)/folder; sleep {SLEEPS_S}",)
    words = [sys.executable, "-m", "bench.beside_neighbours", *command(tmp_path, *recipe)]
    folder = tmp_path / "output" / "neighbours-1" / "folder"
    with subprocess.Popen(
        [*words, "--only", "neighbours"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            deadline(
                "the run has begun", lambda: folder.exists() and folder.read_text(), seconds=60
            )
            below = process_tree.tree_of(child.pid)[1:]
            assert len(below) > len(NOISY)
            child.send_signal(signal.SIGINT)
            said, _ = child.communicate(timeout=300)
        finally:
            child.kill()
    assert child.returncode == 130
    assert said.startswith("| run |")
    ended = [process_tree.read_stat(pid) for pid in below]
    assert not [stat for stat in ended if stat and stat.is_alive]
    assert not running(f"sleep {SLEEPS_S}")
    assert not Path(folder.read_text().strip()).exists()


def test_an_output_that_is_there_is_not_written_over(tmp_path):
    (tmp_path / "output").mkdir()
    with pytest.raises(SystemExit) as ended:
        main(command(tmp_path, "true"))
    assert ended.value.code == 2
