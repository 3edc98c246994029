"""Hot workers that are not ours, explained by profile-run down to the function."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from probes.elf import ElfFile, symbol_table

pytestmark = [pytest.mark.privileged, pytest.mark.alone]

FOREIGN = Path(__file__).parents[1] / "harness" / "foreign"
NODE_MODULES = Path(__file__).parents[1] / "node_modules"
NODE = shutil.which("node") or ""
DEADLINE_S = 90
LIMIT = 300


def profile_run(folder: Path, command: str, *arguments: str) -> tuple[dict[str, Any], str]:
    """The verdict of a run against a server, and its page."""
    done = subprocess.run(
        [
            *(sys.executable, "-P", "-m", "harness.cli_run", "--json", "--quiet"),
            *("--server-cmd", command, "--output", str(folder), *arguments),
        ],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        cwd=folder,  # node leaves an isolate-…-v8.log there
        env={**os.environ, "NODE_PATH": str(NODE_MODULES)},
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout, done.stderr
    run = (folder / "latest").resolve()
    return json.loads(done.stdout), (run / "report.html").read_text()


def at_limit(command: str) -> str:
    return f"sh -c {shlex.quote(f'ulimit -n {LIMIT}; exec {command}')}"


def finding_of(verdict: dict[str, Any], cause: str) -> dict[str, Any]:
    found = [f for f in verdict["findings"] if f["cause"] == cause]
    assert found, f"{cause} is not among {[f['cause'] for f in verdict['findings']]}"
    return found[0]


def share_of(finding: dict[str, Any], function: str) -> float:
    (value,) = [e["value"] for e in finding["evidence"] if e["name"].endswith(function)]
    return float(value)


@pytest.fixture(scope="module")
def has_symbols() -> bool:
    """Whether this node names its static functions: a distribution's may be stripped."""
    return symbol_table(ElfFile(Path(NODE).resolve())) is not None


@pytest.mark.node
def test_node_without_its_reserve_descriptor_is_explained_down_to_libuv(tmp_path, has_symbols):
    verdict, page = profile_run(
        tmp_path,
        at_limit(f"node {FOREIGN / 'lost_reserve.cjs'} {{port}}"),
        *("--connections", "450", "--ramp", "400", "--connect-timeout", "2", "--hold", "1"),
    )
    assert verdict["verdict"]["cause"] == "fd-limit-process"
    spin = finding_of(verdict, "accept-spin")
    assert spin["side"] == "server"
    assert spin["subject"]["command"] == "node lost_reserve.cjs"
    explanation = spin["explanation"]
    if has_symbols:
        assert "uv__io_poll > uv__server_io" in explanation
        assert "called by uv__server_io" in verdict["verdict"]["sentence"]
        assert "uv__emfile_trick" in explanation
        assert share_of(spin, "samples in uv__server_io") > 5
        assert any("maxConnections" in fix["command"] for fix in spin["fix"])
        assert "uv__server_io" in page
    assert "accept4" in explanation


def test_the_retry_loop_of_asyncio_is_explained_down_to_its_function(tmp_path):
    program = f"{shlex.quote(sys.executable)} {FOREIGN / 'asyncio_retry.py'} {{port}} 4096"
    verdict, page = profile_run(
        tmp_path,
        at_limit(program),
        *("--connections", "450", "--connect-timeout", "2", "--hold", "1"),
    )
    spin = finding_of(verdict, "accept-spin")
    assert spin["side"] == "server"
    function = "_accept_connection (asyncio/selector_events.py)"
    assert function in verdict["verdict"]["sentence"]
    # between its tries, a second apart, it rests: on a fast core about half of the time
    assert share_of(spin, function) > 20
    assert "log record" in spin["explanation"]
    assert any("backlog" in fix["command"] for fix in spin["fix"])
    assert "_accept_connection" in page


@pytest.mark.node
def test_hot_javascript_is_named_by_the_perf_map_and_its_thread(tmp_path):
    verdict, page = profile_run(
        tmp_path,
        f"node --perf-basic-prof {FOREIGN / 'hot_code.cjs'} {{port}}",
        *("--connections", "60", "--hold", "3"),
    )
    pid = finding_of(verdict, "hot-worker-code")["subject"]["pid"]
    Path(f"/tmp/perf-{pid}.map").unlink()
    hot = finding_of(verdict, "hot-worker-code")
    assert f"turnsForever ({FOREIGN / 'hot_code.cjs'})" in hot["explanation"]
    assert f"(node, tid {pid})" in hot["explanation"]
    assert share_of(hot, f"(node, tid {pid})") > 50
    assert not hot["missing"]
    assert "main thread" in page
    assert "turnsForever" in page
    assert "--perf-basic-prof and run again" not in page
