"""Every command of README and docs is run, for real, at the size that smaller.py says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from documentation.page_commands import (
    NOT_RUN,
    ROOT,
    blocks_of,
    pages,
    reason_not_to_run,
)
from documentation.verdict_file import OBJECTS
from harness.commands.family import COMMANDS

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.timeout(600),
]

VARIANTS = {"docs/tutorial/from-the-2016-log-to-the-cause.md"}
"""Its verdicts are those of rows of every-cause, which take twenty seconds once more."""


def _marks(page: Path) -> list[pytest.MarkDecorator]:
    marks = [pytest.mark.in_turn] if any(b.shows_verdict for b in blocks_of(page)) else []
    is_variant = str(page.relative_to(ROOT)) in VARIANTS
    return [*marks, pytest.mark.variant] if is_variant else marks


NAMES = [pytest.param(str(page.relative_to(ROOT)), marks=_marks(page)) for page in pages()]


@pytest.mark.parametrize("name", [*NAMES, *(command.name for command in COMMANDS)])
def test_every_command_of_a_page_and_of_a_help_works(name, results):
    for block, code, stdout, stderr in results[name].result().blocks:
        where = f"{name}:{block.line}: {block.commands}"
        assert code == 0, f"{where}\n{stdout[-2000:]}\n{stderr[-2000:]}"
        assert "Traceback" not in stderr, where
        if block.shows_verdict:
            assert _alike(stdout) == _alike(block.shown), f"{where}\n{stdout}"


def _alike(text):
    """The beginning of a verdict without its numbers: who was at which limit."""
    sentence = " ".join(line.strip() for line in text.splitlines()[:2])
    return re.sub(r"[\d,]+", "N", sentence)[:45]


@pytest.mark.parametrize("name", [command.name for command in COMMANDS])
def test_every_command_is_installed_and_starts(name):
    program = Path(sys.executable).parent / name
    done = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {name} ")


def test_what_is_not_run_is_listed_with_a_reason_and_exists():
    skipped = {
        command.strip()
        for page in pages()
        for block in blocks_of(page)
        for command in block.commands
        if reason_not_to_run(command)
    }
    for start, _ in NOT_RUN[:4]:
        assert any(re.match(start, command) for command in skipped), f"{start} is not needed"
    for command in skipped:
        if command.startswith("make "):
            words = command.partition("#")[0].split()
            target = next(word for word in words[1:] if "=" not in word)
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command


def test_no_command_hides_in_a_block_of_another_kind():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        if page.parent.name == "reference":
            continue  # synopses
        for kind, body in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.M | re.S):
            if kind not in ("sh", "console"):
                assert not re.search(r"^(sudo |\$ )?profile-", body, re.MULTILINE), page


def test_options_that_are_named_exist():
    known = {"--print-completion", "--help"}
    for command in COMMANDS:
        for _, _, actions in command.make_parser().groups():
            known |= {name for action in actions for name in action.option_strings}
    others = {  # of other programs, and of the benches
        "--load", "--without",
        "--how",
        "--cap-add", "--ulimit", "--volume", "--privileged", "--pid", "--rm", "--workdir",
        "--security-opt", "--userns", "--mount-proc",
        "--format", "--port", "--subprocesses", "--nonblocking",
        "--max-old-space-size", "--max-semi-space-size",
        "--memory-limit", "--no-dashboard", "--no-nanny", "--system-site-packages",
        "--perf-basic-prof", "--interpreted-frames-native-stack",
    }  # fmt: skip
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", page.read_text()))
        assert named <= known | others, f"{page}: {sorted(named - known - others)}"


def test_the_page_about_verdict_json_has_every_key_of_a_real_one(recorded):
    verdict = json.loads((recorded / "latest" / "verdict.json").read_text())

    def keys(path):
        part = verdict
        for word in path.replace("[]", ".0").split("."):
            part = part[int(word)] if word == "0" else part[word]
        return set(part)

    page = (ROOT / "docs/reference/verdict.md").read_text()
    for path in OBJECTS:
        if path == "verdict.alternatives[]" or path.endswith(("fix[]", "quotes[]", "gave_up[]")):
            continue  # this run has none
        if path.startswith("verdict.unexplained"):
            assert verdict["verdict"]["unexplained"] is None  # it reached its target
            continue
        text = page.partition(f"## {path}\n")[2].partition("\n## ")[0]
        written = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
        assert keys(path) <= written, path
        assert written <= keys(path) | {"command", "host"}, path
    tops = {path.removesuffix("[]") for path in OBJECTS if "." not in path}
    assert set(verdict) == {"schema_version", *tops}


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if "://" in target:
                continue
            name, _, anchor = target.partition("#")
            file = (page.parent / name).resolve() if name else page
            assert file.exists(), f"{page.name}: {target}"
            if anchor:
                heads = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
                slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in heads}
                assert anchor in slugs, f"{page.name}: {target}"


def test_every_page_is_in_the_index():
    index = (ROOT / "docs/README.md").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        name = str(page.relative_to(ROOT / "docs"))
        assert name == "README.md" or name.startswith("design/") or f"({name}" in index, name


def test_no_page_speaks_of_a_command_that_is_not_there():
    names = {command.name for command in COMMANDS}
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        assert set(re.findall(r"\bprofile-[a-z]+", page.read_text())) <= names, page
