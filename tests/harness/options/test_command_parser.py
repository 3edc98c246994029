"""Help that fits a screen, and complaints that say what to type instead."""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path

import pytest

from harness.commands.family import COMMANDS
from harness.options.parser import HELP_COLUMNS, HELP_LINES, Example, Parser
from probes.contract.errors import UsageError

ROOT = Path(__file__).parents[3]


def test_the_list_has_every_command_that_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [command.name for command in COMMANDS] == list(project["scripts"])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_help_fits_a_screen_and_has_worked_examples(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # the same on every terminal
    parser = command.make_parser()
    lines = parser.format_help().splitlines()
    assert parser.prog == command.name
    assert len(lines) <= HELP_LINES, "\n".join(lines)
    assert max(len(line) for line in lines) <= HELP_COLUMNS, max(lines, key=len)
    shown = [example for example in parser.examples if f"  {example.command}" in "\n".join(lines)]
    assert len(shown) >= 3
    assert "exit codes: 0 " in "\n".join(lines)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_every_option_has_a_line_of_help_somewhere(command):
    parser = command.make_parser()
    text = parser.format_help_all()
    for _, _, actions in parser.groups():
        for action in actions:
            assert action.help, action
            assert (action.option_strings or [action.metavar])[-1] in text
    for example in parser.examples:
        assert example.command in text


def test_help_all_is_an_option_of_the_commands_that_need_it(capsys):
    parser = next(c for c in COMMANDS if c.name == "profile-run").make_parser()
    assert "--tcp-memory-max" not in parser.format_help()
    with pytest.raises(SystemExit) as left:
        parser.parse_args(["--help-all"])
    assert left.value.code == 0
    assert "--tcp-memory-max" in capsys.readouterr().out


def test_examples_give_way_where_the_screen_is_full():
    parser = Parser(
        prog="x",
        description="y.",
        examples=[Example(f"x --{n}", "z" * 60) for n in range(9)],
        exit_codes={0: "done"},
    )
    shown = parser.format_help()
    assert "x --0" in shown
    assert "x --8" not in shown
    assert shown.count("\n") <= HELP_LINES
    assert "x --8" in parser.format_help_all()


def _small():
    parser = Parser(prog="profile-x", description="For a test.")
    parser.add_argument("--number", type=int, required=True, metavar="N", help="how many")
    parser.add_argument("--mode", choices=("fast", "slow"), help="how")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser


@pytest.mark.parametrize(
    ("argv", "fix"),
    [
        ([], "profile-x --number N  # how many"),
        (["--number"], "profile-x ... --number N  # how many"),
        (["--number", "many"], "profile-x ... --number N  # how many"),
        (["--nmber", "5"], "profile-x --number 5"),
        (["--nmber=5"], "profile-x --number=5"),
        (["--number", "5", "--quite"], "profile-x --number 5 --quiet"),
        (["--number", "5", "--mode", "fsat"], "profile-x --number 5 --mode fast"),
        (["--number", "5", "--mode=slo"], "profile-x --number 5 --mode=slow"),
        (["--number", "5", "--mode", "a b"], "profile-x --number 5 --mode fast"),
        (["--number", "5", "--frobnicate"], "profile-x --help"),
        (["--number", "5", "stray"], "profile-x --help"),
    ],
)
def test_a_complaint_says_what_to_type_instead(argv, fix):
    with pytest.raises(UsageError) as complaint:
        _small().parse_args(argv)
    assert complaint.value.fix == fix
    assert "\n" not in complaint.value.message


WRONG = {
    "profile-run": [
        "", "--connections", "--connections abc", "--connections 0", "--conections 5",
        "--connections 5 --accept share", "--connections 5 --port-range 5",
        "--connections 5 --inject nope:1", "--connections 5 --hold -1",
        "--connections 5 --cookie foo", "--connections 5 --subprotocol a/b",
        "--connections 5 --probes foo", "--connections 5 --name a/b",
        "--connections 5 --metrics 99999", "--connections 5 --path chat",
        "--connections 5 --target http://x", "--connections 5 --server-pid 0",
    ],
    "profile-doctor": [
        "x", "--connection 5", "--connections", "--connections abc", "--connections 0",
        "--connections -1", "--connections 99999999999", "--jsn", "--json=yes",
        "--print-completion", "--print-completion zhs", "--print-completion tcsh",
    ],
    "profile-report": [
        "", "nosuch", ".", "--format htm", "--format", "x y", "--worker x", "--worker 1",
        "--format folded --from 5 --until 2", "--from abc",
        "--format folded --worker 1 --pid 2", "--json --format md", "--format csv -o -",
        "--outptu x",
    ],
    "profile-matrix": [
        "", "nope", "every-cuase", "the-2016-log --vary a=b", "--vary a=b",
        "--vary accept -- --connections 5", "--vary acept=x -- --connections 5",
        "--vary accept=foo -- --connections 5", "--resume nosuch", "--resume . --seed 5",
        "the-2016-log --only nope", "the-2016-log --repeats 0", "the-2016-log --scale 3",
        "the-2016-log --markdown /nosuch/x.md", "the-2016-log --lits",
    ],
    "profile-attach": [
        "", "9001", "--port", "--port abc", "--port 70000", "--prot 9", "--pid 0",
        "--pid 1 --unit x", "--unit nosuch.service", "--container zz",
        "--container 0123456789ab", "--pid 1 --duration 0", "--pid 1 --probes foo",
    ],
    "profile-compare": [
        "", "nosuch", ". .", "--outpt x", "--output . nosuch", "--output /nosuch/x nosuch",
        "--json", "--across-host x",
    ],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_wrong_input_is_two_lines_and_exit_code_2(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = {"profile-run": "harness.commands.run"}.get(command.name, command.parser.split(":")[0])
    main = __import__(module, fromlist=["main"]).main
    for line in WRONG[command.name]:
        code = main(line.split())
        out, err = capsys.readouterr()
        assert code == 2, (line, err)
        assert out == ""
        error, fix = err.splitlines()
        assert error.startswith("error: "), line
        assert fix.startswith("fix: "), line
        assert len(fix) > len("fix: "), line
    assert list(tmp_path.iterdir()) == [], "what was refused left nothing behind"


def test_the_fix_does_not_depend_on_the_words_of_argparse(monkeypatch):
    monkeypatch.setattr(argparse, "_", lambda text: f"(translated) {text}")
    for argv, fix in (
        ([], "--number N  # how many"),
        (["--number"], "... --number N  # how many"),
        (["--number", "5", "--mode", "fsat"], "--number 5 --mode fast"),
    ):
        with pytest.raises(UsageError) as complaint:
            _small().parse_args(argv)
        assert complaint.value.fix == f"profile-x {fix}"
