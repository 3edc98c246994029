"""What a runtime was told of its heap, from command lines and from a real node."""

import os
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.contract.probe import ProcessRef, Target
from probes.samplers.runtime_limits import RuntimeLimitsProbe, heap_limits

MIB = 1 << 20
HOST = 24 << 30


@pytest.mark.parametrize(
    ("program", "line", "variables", "limit", "scope", "size"),
    [
        ("node", "node --max-old-space-size=64 s.js", {}, "v8_old_space",
         "--max-old-space-size", 64 * MIB),
        ("nodejs", "node --max_old_space_size=64 s.js", {}, "v8_old_space",
         "--max-old-space-size", 64 * MIB),
        ("node", "node s.js", {"NODE_OPTIONS": "--inspect --max-old-space-size=512"},
         "v8_old_space", "--max-old-space-size of NODE_OPTIONS", 512 * MIB),
        ("node", "node --max-old-space-size=64 s.js", {"NODE_OPTIONS": "--max-old-space-size=9"},
         "v8_old_space", "--max-old-space-size", 64 * MIB),
        ("java", "java -Xmx2g -jar a.jar", {}, "jvm_heap", "-Xmx", 2 << 30),
        ("java", "java -Xmx2g -Xmx64m a", {}, "jvm_heap", "-Xmx", 64 * MIB),
        ("java", "java a", {"JAVA_TOOL_OPTIONS": "-Xmx65536K"}, "jvm_heap",
         "-Xmx of JAVA_TOOL_OPTIONS", 64 * MIB),
        ("java", "java -XX:MaxRAMPercentage=50.0 a", {}, "jvm_heap",
         "-XX:MaxRAMPercentage", HOST // 2),
        ("java", "java a", {}, "jvm_heap", "the JVM's default", HOST // 4),
        ("php8.2", "php -d memory_limit=128M s.php", {}, "php_memory", "memory_limit",
         128 * MIB),
        ("server", "server", {"GOMEMLIMIT": "512MiB"}, "go_memory", "GOMEMLIMIT", 512 * MIB),
        ("server", "server", {"GOMEMLIMIT": "1009"}, "go_memory", "GOMEMLIMIT", 1009),
        ("dotnet", "dotnet a.dll", {"DOTNET_GCHeapHardLimit": "0xC800000"}, "dotnet_heap",
         "DOTNET_GCHeapHardLimit", 200 * MIB),
        ("beam.smp", "beam.smp +hmax 1009 -- -root /", {}, "beam_process", "+hmax", 8072),
    ],
)  # fmt: skip
def test_each_runtime_has_its_own_way_to_be_told(program, line, variables, limit, scope, size):
    (reading,) = heap_limits(program, line.split(), variables, HOST)
    assert reading == (limit, scope, size)


@pytest.mark.parametrize(
    ("program", "line", "variables"),
    [
        ("node", "node s.js", {}),
        ("node", "node --max-old-space-size=99999999999 s.js", {}),
        ("python3", "python3 -Xmx2g.py", {}),
        ("php", "php -d memory_limit=-1 s.php", {}),
        ("server", "server", {"GOMEMLIMIT": "off"}),
        ("dotnet", "dotnet", {"DOTNET_GCHeapHardLimit": "zz"}),
    ],
)
def test_no_limit_is_none(program, line, variables):
    assert heap_limits(program, line.split(), variables, HOST) == []


@given(st.sampled_from(["node", "java", "php", "beam.smp", "x"]), st.text(), st.text())
def test_any_words_are_read_without_harm(program, line, value):
    for name in ("NODE_OPTIONS", "JAVA_TOOL_OPTIONS", "GOMEMLIMIT", "ERL_FLAGS"):
        for reading in heap_limits(program, line.split(), {name: value}, HOST):
            assert 0 <= reading.size_bytes < 1 << 110
            assert value not in reading.option or value in ("", reading.option) or len(value) < 24


@pytest.mark.node
def test_a_real_node_is_read_once_from_its_command_line_or_its_environment(run):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    code = "console.log('up'); process.stdin.resume(); process.stdin.on('end', () => {})"
    secret = {"NODE_OPTIONS": "--max-old-space-size=77", "TOKEN": "very secret"}
    child = subprocess.Popen(
        [node, "-e", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **secret},
    )
    with child:
        assert child.stdout.readline() == b"up\n"
        probe = RuntimeLimitsProbe()
        probe.check()
        ref = ProcessRef(child.pid, "server", 0, is_python=False)
        probe.start(Target(run, {child.pid: ref}, frozenset(), None))
        probe.sample(0)
        probe.stop(0)
        probe.writers[0].close()
        child.communicate()
    (row,) = run.read_table("runtime_limits").table.to_pylist()
    assert (row["pid"], row["limit"], row["size_bytes"]) == (
        child.pid,
        "v8_old_space",
        77 * MIB,
    )
    assert "secret" not in str(row)
