"""Hot workers that are not ours, explained by profile-run down to the function."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from probes.contract.rundir import RunDir
from probes.proc.cgroup_memory import mounts
from probes.symbols.elf import ElfFile, symbol_table

pytestmark = [pytest.mark.privileged, pytest.mark.in_turn]

FOREIGN = Path(__file__).parents[1] / "harness" / "foreign"
NODE_MODULES = Path(__file__).parents[1] / "node_modules"
NODE = shutil.which("node") or ""
CLASSES = Path(__file__).parents[2] / ".venv-peers" / "java"
PYTHON_WITH_FRAMES = CLASSES.parent / "python3.15" / "usr" / "bin" / "python3.15"
DEADLINE_S = 150
LIMIT = 300
HALF_A_CORE, ONE_CORE = 0.5, 1.0
LOSES_ITS_RESERVE = ("--connections", "1500", "--clients", "6")
"""Six clients: each gives up after a hundred resets, and each reset is a chance to lose it."""


@pytest.fixture
def profile_run(machine: Any, tmp_path: Path) -> Callable[..., tuple[dict[str, Any], str]]:
    """The verdict of a run against a server, and its page.

    Others may run meanwhile where it says how many ``cores`` it takes.
    """

    def run(command: str, *arguments: str, cores: float = 0) -> tuple[dict[str, Any], str]:
        words = [
            *(sys.executable, "-P", "-m", "harness.commands.run", "--json", "--quiet"),
            *("--server-cmd", command, "--output", str(tmp_path), *arguments),
        ]
        done = machine.record(
            words,
            tmp_path,
            timeout_s=DEADLINE_S,
            cores=cores,
            cwd=tmp_path,  # node leaves an isolate-…-v8.log there
            env={**os.environ, "NODE_PATH": str(NODE_MODULES)},
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert done.stdout, done.stderr
        path = (tmp_path / "latest").resolve()
        return json.loads(done.stdout), (path / "report.html").read_text()

    return run


def native_stacks(run: Path, pid: int) -> dict[str, int]:
    """User stacks of a process and their samples."""
    counts: dict[str, int] = {}
    for row in RunDir(run.resolve()).read_table("cpu_stacks").table.to_pylist():
        if row["pid"] == pid:
            counts[row["user_stack"]] = counts.get(row["user_stack"], 0) + row["sample_count"]
    return counts


def at_limit(command: str, procs: str = "") -> str:
    """The command below a descriptor limit, and in the control group of a ``cgroup.procs``."""
    joined = f"echo 0 > {procs}; " if procs else ""
    return f"sh -c {shlex.quote(f'{joined}ulimit -n {LIMIT}; exec {command}')}"


def finding_of(verdict: dict[str, Any], cause: str) -> dict[str, Any]:
    found = [f for f in verdict["findings"] if f["cause"] == cause]
    assert found, f"{cause} is not among {[f['cause'] for f in verdict['findings']]}"
    return found[0]


def share_of(finding: dict[str, Any], end: str, evidence_id: str = "function_samples") -> float:
    """The only number of that id whose qualifier ends so."""
    (value,) = [
        e["value"] for e in finding["evidence"] if e["id"] == evidence_id and e["of"].endswith(end)
    ]
    return float(value)


def value_of(finding: dict[str, Any], evidence_id: str) -> float:
    (value,) = [e["value"] for e in finding["evidence"] if e["id"] == evidence_id]
    return float(value)


def cpu_pct_of(spin: dict[str, Any]) -> float:
    (value,) = [e["value"] for e in spin["evidence"] if e["id"] == "process_cpu"]
    return float(value)


@pytest.fixture(scope="module")
def has_symbols() -> bool:
    """Whether this node names its static functions: a distribution's may be stripped."""
    return symbol_table(ElfFile(os.open(Path(NODE).resolve(), os.O_RDONLY))) is not None


@pytest.mark.node
@pytest.mark.variant
def test_node_without_its_reserve_descriptor_is_explained_down_to_libuv(profile_run, has_symbols):
    verdict, page = profile_run(
        at_limit(f"node {FOREIGN / 'lost_reserve.cjs'} {{port}}"),
        *LOSES_ITS_RESERVE,
        *("--ramp", "800", "--connect-timeout", "2", "--hold", "0.2"),
    )
    assert verdict["verdict"]["cause"] == "fd-limit-process"
    limit, spin = finding_of(verdict, "fd-limit-process"), finding_of(verdict, "accept-spin")
    assert value_of(limit, "handshakes_unanswered") > 0
    assert spin["side"] == "server"
    assert spin["follows_from"] == "fd-limit-process"
    assert spin["subject"]["pid"] == limit["subject"]["pid"]
    assert value_of(spin, "handshakes_completed") == 0
    assert spin["subject"]["command"] == "node lost_reserve.cjs"
    explanation = spin["explanation"]
    if has_symbols:
        assert "uv__io_poll > uv__server_io" in explanation
        assert "called by uv__server_io" in verdict["verdict"]["sentence"]
        assert "uv__emfile_trick" in explanation
        assert share_of(spin, "uv__server_io") > 5
        assert any("maxConnections" in fix["command"] for fix in spin["fix"])
        assert "uv__server_io" in page
    assert "accept4" in explanation


@pytest.fixture
def quota() -> Iterator[str]:
    """``cgroup.procs`` of a group that has half of a core; gone afterwards."""
    found = mounts(Path("/proc/mounts").read_text(encoding="ascii"))
    folder = (
        found.get("cpu", found.get("", Path("/sys/fs/cgroup"))) / f"connscope-test-{os.getpid()}"
    )
    folder.mkdir()
    try:
        if "cpu" in found:
            (folder / "cpu.cfs_period_us").write_text("20000")
            (folder / "cpu.cfs_quota_us").write_text("10000")
        else:
            (folder.parent / "cgroup.subtree_control").write_text("+cpu")
            (folder / "cpu.max").write_text("10000 20000")
        yield str(folder / "cgroup.procs")
    finally:
        end_s = time.monotonic() + 30
        while any((folder / "cgroup.procs").read_text().split()) and time.monotonic() < end_s:
            time.sleep(0.01)
        folder.rmdir()


@pytest.mark.in_turn(cores=HALF_A_CORE)
def test_the_retry_loop_of_asyncio_is_explained_down_to_its_function(profile_run, quota):
    program = f"{shlex.quote(sys.executable)} {FOREIGN / 'asyncio_retry.py'} {{port}} 4096"
    verdict, page = profile_run(
        at_limit(program, quota),
        *("--connections", "450", "--connect-timeout", "2", "--hold", "1"),
        cores=HALF_A_CORE,
    )
    spin = finding_of(verdict, "accept-spin")
    assert cpu_pct_of(spin) < 65
    assert spin["side"] == "server"
    function = "_accept_connection (asyncio/selector_events.py)"
    assert function in verdict["verdict"]["sentence"]
    # between its tries, a second apart, it rests: on a fast core about half of the time
    assert share_of(spin, function) > 20
    assert "log record" in spin["explanation"]
    assert any("backlog" in fix["command"] for fix in spin["fix"])
    assert "_accept_connection" in page


@pytest.mark.node
@pytest.mark.variant
@pytest.mark.in_turn(cores=HALF_A_CORE)
def test_node_without_its_reserve_descriptor_is_explained_with_half_of_a_core(
    profile_run, has_symbols, quota
):
    verdict, _ = profile_run(
        at_limit(f"node {FOREIGN / 'lost_reserve.cjs'} {{port}}", quota),
        *LOSES_ITS_RESERVE,
        *("--ramp", "400", "--connect-timeout", "2", "--hold", "1"),
        cores=HALF_A_CORE,
    )
    assert cpu_pct_of(finding_of(verdict, "accept-spin")) < 65
    assert "spins in accept4" in verdict["verdict"]["sentence"]
    if has_symbols:
        assert "called by uv__server_io" in verdict["verdict"]["sentence"]


@pytest.mark.in_turn(cores=ONE_CORE)
@pytest.mark.node
@pytest.mark.variant
def test_hot_javascript_is_named_by_the_perf_map_and_its_thread(profile_run):
    verdict, page = profile_run(
        f"node --perf-basic-prof {FOREIGN / 'hot_code.cjs'} {{port}}",
        *("--connections", "60", "--hold", "3"),
        cores=ONE_CORE,
    )
    pid = finding_of(verdict, "hot-worker-code")["subject"]["pid"]
    Path(f"/tmp/perf-{pid}.map").unlink()
    hot = finding_of(verdict, "hot-worker-code")
    assert f"turnsForever ({FOREIGN / 'hot_code.cjs'})" in hot["explanation"]
    assert f"(node, tid {pid})" in hot["explanation"]
    assert share_of(hot, f"(node, tid {pid})", "thread_samples") > 50
    assert not hot["missing"]
    assert "main thread" in page
    assert "turnsForever" in page
    assert "--perf-basic-prof and run again" not in page


@pytest.mark.in_turn(cores=ONE_CORE)
@pytest.mark.node
def test_node_at_the_end_of_its_heap_is_told_from_hot_code(profile_run, has_symbols):
    verdict, page = profile_run(
        f"node --perf-basic-prof --max-old-space-size=200 {FOREIGN / 'collects.cjs'} {{port}}",
        *("--connections", "50", "--hold", "4", "--message-rate", "150"),
        cores=ONE_CORE,
    )
    (pid,) = {f["subject"]["pid"] for f in verdict["findings"] if f["subject"].get("command")}
    Path(f"/tmp/perf-{pid}.map").unlink()
    if not has_symbols:
        pytest.skip("this node names no function of V8")
    found = finding_of(verdict, "garbage-collection")
    assert found["side"] == "server"
    assert value_of(found, "collector_samples") > 50
    assert value_of(found, "loop_collector_samples") > 40
    assert value_of(found, "helper_collector_samples") > 20
    assert f"replaceSome ({FOREIGN / 'collects.cjs'})" in found["explanation"]
    assert found["fix"][0]["command"].startswith("node --max-old-space-size=")
    assert found["fix"][0]["command"].endswith("collects.cjs")
    assert "hot-worker-code" not in {f["cause"] for f in verdict["findings"]}
    # its own stacks need not reach the loop: the collector runs deep below the program
    for thread in ("main thread", "V8 worker thread", "libuv pool thread"):
        assert thread in page


@pytest.mark.variant
def test_java_methods_are_named_by_the_map_of_jcmd_and_the_hot_thread_by_its_name(profile_run):
    if not (CLASSES / "HotServer.class").is_file() or shutil.which("jcmd") is None:
        pytest.skip("no JDK and its classes: make install-peers")
    verdict, page = profile_run(
        f"java -XX:+PreserveFramePointer -Xmx64m -cp {CLASSES} HotServer {{port}} map",
        *("--connections", "50", "--hold", "4"),
    )
    hot = finding_of(verdict, "hot-worker-code")
    assert hot["subject"]["command"] == "java HotServer"
    Path(f"/tmp/perf-{hot['subject']['pid']}.map").unlink()
    assert "HotServer::turn, on its Java thread (busy-turns, tid " in hot["explanation"]
    assert share_of(hot, "HotServer::turn") > 50
    assert "HotServer::turn_[j]" in page
    assert "JavaThread::thread_main_inner" in page
    assert "Compiler.perfmap" not in page


@pytest.mark.variant
def test_java_without_a_map_is_told_the_commands(profile_run):
    if not (CLASSES / "HotServer.class").is_file():
        pytest.skip("no JDK and its classes: make install-peers")
    verdict, page = profile_run(
        f"java -Xmx64m -cp {CLASSES} HotServer {{port}}",
        *("--connections", "50", "--hold", "3"),
    )
    hot = finding_of(verdict, "hot-worker-code")
    commands = [fix["command"] for fix in hot["fix"]]
    # whether its stacks can be walked without the switch depends on what its compilers made
    assert any(each.startswith("jcmd HotServer Compiler.perfmap") for each in commands[:2])
    assert "jcmd HotServer Compiler.perfmap" in hot["explanation"]
    assert "Compiler.perfmap" in page


@pytest.mark.in_turn(cores=ONE_CORE)
@pytest.mark.variant
def test_python_with_its_trampoline_has_python_c_and_kernel_in_one_stack(profile_run, tmp_path):
    if not PYTHON_WITH_FRAMES.is_file():
        pytest.skip("no Python 3.15 of Debian: make install-peers")
    verdict, page = profile_run(
        f"{PYTHON_WITH_FRAMES} -X perf {FOREIGN / 'plain_server.py'} {{port}}",
        *("--connections", "20", "--path", "/hot", "--hold", "3"),
        cores=ONE_CORE,
    )
    hot = finding_of(verdict, "hot-worker-code")
    assert hot["subject"]["command"] == "python3.15 plain_server.py"
    Path(f"/tmp/perf-{hot['subject']['pid']}.map").unlink()
    assert "in calculate (" in hot["explanation"]  # by py-spy, which reads 3.15 as well
    assert share_of(hot, "plain_server.py)") > 50
    stacks = native_stacks(tmp_path / "latest", hot["subject"]["pid"])
    joined = [
        stack
        for stack in stacks
        if f"calculate ({FOREIGN / 'plain_server.py'})_[j]" in stack
        and "BaseEventLoop._run_once (asyncio/base_events.py)_[j]" in stack
        and "_PyFunction_Vectorcall" in stack
    ]
    assert sum(stacks[stack] for stack in joined) > 0.5 * sum(stacks.values())
    assert "calculate" in page
