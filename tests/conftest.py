"""What the tests of several rooms need."""

from __future__ import annotations

import fcntl
import gc
import io
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import (
    ExitStack,
    nullcontext,
    redirect_stderr,
    redirect_stdout,
)
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from harness.results import conclusion
from tests.machine import CALM_CORES, Machine
from tests.orphans import Orphans
from tests.warm_start import NURSERY

# Whoever starts the tests in the background of a script has SIGINT ignored for all below them
# (bash(1), Signals), which a command of ours that a test ends by Ctrl-C would never see.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no defect of the code under test.
settings.register_profile("connscope", deadline=None)
settings.register_profile("hard", deadline=None, max_examples=100_000)  # --hypothesis-profile
settings.load_profile("connscope")

TESTS = Path(__file__).parent
SPREAD = (
    "bench/test_bench.py",
    "bench/test_kill_matrix.py",
    "bench/test_predictions.py",
    "harness/commands/test_cli_doctor.py",
    "harness/commands/test_cli_run.py",
    "harness/foreign/test_foreign_server.py",
    "harness/supervision/test_full_disk.py",
    "harness/matrix/test_matrix_resume.py",
    "harness/commands/test_private_files.py",
    "privileged/test_attach.py",
    "privileged/test_attached_causes.py",
    "privileged/test_causes.py",
    "privileged/test_foreign_stacks.py",
    "privileged/test_hiccups.py",
    "privileged/test_limit_causes.py",
    "privileged/test_neighbours.py",
    "privileged/test_pages.py",
    "privileged/test_peers.py",
    "privileged/test_traffic_causes.py",
    "privileged/test_wild_causes.py",
    "probes/collect/test_collect.py",
)
"""Files whose tests have nothing in common but what ``once`` keeps: any process may run them."""
BY_PARAMETER = ("recordings/test_recordings.py",)
"""Files whose tests of one parameter belong together, and of two have nothing in common."""
LONG = (
    "documentation/test_commands.py",
    "harness/commands/test_cli_compare.py",
    "harness/commands/test_cli_matrix.py",
    "reports/test_comparison_page.py",
    "reports/test_page_in_browser.py",
    "reports/test_exports_of_a_run.py",
    "reports/test_cli_report.py",
    "reports/test_figures.py",
    "reports/test_exports_in_browser.py",
    "harness/foreign/test_foreign_server.py",
    "harness/supervision/test_full_disk.py",
    "harness/matrix/test_matrix_resume.py",
    "harness/commands/test_private_files.py",
    "bench/test_fuzz_recordings.py",
)
"""Files of 20 s and more: one that began last would keep the others waiting."""

IN_TURN_TIMEOUT_S = 600


@pytest.fixture
def deadline() -> Callable[..., Any]:
    """``deadline("what it waits for", condition)`` returns the condition's first true value."""

    def wait(what: str, condition: Callable[[], Any], *, seconds: float = 60.0) -> Any:
        end_s = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < end_s, f"waited {seconds:.0f} s for: {what}"
            time.sleep(0.005)
        return value

    return wait


@pytest.fixture(scope="session")
def call() -> Callable[..., subprocess.CompletedProcess[str]]:
    """``call(main, argument...)``: a command in this process, which has imported it already.

    It returns what ``subprocess.run`` would, for half a second less, and has the recording
    understood here, too (``harness.results.conclusion``). Each command has other tests that start
    it as its users do.
    """

    def called(
        main: Callable[[Sequence[str]], int], *arguments: str | Path
    ) -> subprocess.CompletedProcess[str]:
        words = [str(argument) for argument in arguments]
        with ExitStack() as streams, pytest.MonkeyPatch.context() as patch:
            patch.setattr(conclusion, "is_apart", lambda: False)
            stdout = streams.enter_context(redirect_stdout(io.StringIO()))
            stderr = streams.enter_context(redirect_stderr(io.StringIO()))
            code = main(words)
        return subprocess.CompletedProcess(words, code, stdout.getvalue(), stderr.getvalue())

    return called


@pytest.fixture(scope="session", autouse=True)
def nursery() -> Iterator[None]:
    """The process that forks commands ends with the tests."""
    yield
    NURSERY.close()


@pytest.fixture
def understood_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recordings are understood in this process, as for anybody but root.

    Root's process for it (``harness.results.conclusion``) imports pandas and matplotlib anew: 1.2
    to 2 CPU-seconds for each command. ``tests/harness/results/test_conclusion.py``
    looks at that process.
    """
    monkeypatch.setattr(conclusion, "is_apart", lambda: False)


@pytest.fixture(scope="session", autouse=True)
def parser_of_names() -> Iterator[None]:
    """What probes in this process have started ends with it: the parser of names."""
    yield
    if (module := sys.modules.get("probes.symbols.name_parser_process")) is not None:
        module.name_parser().close()


def _common_folder(config: pytest.Config) -> Path | None:
    """A folder that all processes of the session have in common, None when there is but one."""
    own = config.getoption("basetemp") if hasattr(config, "workerinput") else None
    return Path(own).parent if own else None


@pytest.fixture(scope="session")
def machine(pytestconfig: pytest.Config) -> Machine:
    """The turns on the machine."""
    return Machine(_common_folder(pytestconfig))


Once = Callable[[str, Callable[[Path], Any]], Any]


@pytest.fixture(scope="session")
def once(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Once:
    """``once(name, make)``: what ``make(folder)`` returned, as JSON.

    The first process of the session that asks makes it, in a folder that stays; the others wait.
    """
    common = _common_folder(pytestconfig) or tmp_path_factory.mktemp("common", numbered=False)

    def made(name: str, make: Callable[[Path], Any]) -> Any:
        folder = common / "once" / name
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder.parent / f"{name}.json"
        with (folder.parent / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not kept.exists():
                result = make(folder)
                kept.write_text(json.dumps(result))
        return json.loads(kept.read_text())

    return made


def pytest_configure(config: pytest.Config) -> None:
    """The process that runs the session looks after what the others leave behind."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Orphans())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes the fewest cores comes first; among its like what takes long.

    Each change to more of them waits until so many are free.
    """
    long = {TESTS / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: (_cores(item), long.get(item.path, len(long))))
    for item in items:
        if item.get_closest_marker("in_turn"):
            item.add_marker(pytest.mark.timeout(IN_TURN_TIMEOUT_S))


def _cores(item: pytest.Item) -> float:
    """How many a test waits for: infinite for all."""
    if item.get_closest_marker("alone"):
        return math.inf
    in_turn = item.get_closest_marker("in_turn")
    if in_turn:
        return float(in_turn.kwargs.get("cores", 0.0)) or math.inf
    return CALM_CORES


def pytest_collection_finish() -> None:
    """The 2,700 tests themselves are no garbage: the collector need not look at them each time."""
    gc.freeze()
    gc.set_threshold(20_000)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One process has all tests of a file, as its fixtures want it, but for those of ``SPREAD``."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = str(super()._split_scope(nodeid))
            if file.removeprefix("tests/") in BY_PARAMETER and "[" in nodeid:
                return f"{file}[{nodeid.partition('[')[2]}"
            return nodeid if file.removeprefix("tests/") in SPREAD else file

    return ByFile(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[Any]:
    """Gives a test its turn, with all of its fixtures; waiting is not part of its time."""
    machine = Machine(_common_folder(item.config))
    turn: Any = nullcontext()
    if item.get_closest_marker("alone"):
        turn = machine.alone()
    elif item.get_closest_marker("shared"):
        turn = machine.shared()
    with turn:
        return (yield)
