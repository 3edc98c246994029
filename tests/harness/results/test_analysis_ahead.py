"""The import of the analysis beside the end of a run: it happens, once, and not when cut short."""

import subprocess
import sys

DEADLINE_S = 60


def told(code: str, *, is_apart: bool = False) -> str:
    head = "import sys, threading; from harness.results.ahead import AnalysisAhead; "
    head += f"from harness.results import conclusion; conclusion.is_apart = lambda: {is_apart}; "
    head += "ahead = AnalysisAhead(); loaded = lambda: 'harness.results.pipeline' in sys.modules; "
    done = subprocess.run(
        [sys.executable, "-P", "-c", head + code],
        capture_output=True, text=True, timeout=DEADLINE_S, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_nothing_is_imported_before_the_end_nor_when_nobody_has_begun():
    assert told("ahead.wait(); print(loaded(), threading.active_count())") == "False 1"


def test_who_waits_at_once_imports_it_himself():
    assert told("ahead.begin(); ahead.wait(); print(loaded(), threading.active_count())") in (
        "False 1",
        "True 1",  # on a machine so busy that the tenth of a second was over
    )


def test_it_is_there_when_the_thread_has_ended():
    others = "[t for t in threading.enumerate() if t is not threading.main_thread()]"
    assert told(f"ahead.begin(); {others}[0].join(); ahead.wait(); print(loaded())") == "True"


def test_for_root_another_process_imports_it():
    code = "ahead.begin(); print(loaded(), threading.active_count(), len(conclusion.pids()))"
    assert told(code, is_apart=True) == "False 1 1"
