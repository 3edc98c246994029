"""What the containers are made of, and what stands around them; trying all of them takes long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.foreign.cgroup_members import container_folders
from tests.containers import judge
from tests.containers.container import PROJECT, started
from tests.containers.page import keep, kept, page
from tests.containers.surroundings import EBPF, SURROUNDINGS

BY_KEY = {where.key: where for where in SURROUNDINGS}
SEEN = """
import json, os
from pathlib import Path
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps({
    "pid": os.getpid(),
    "groups": sorted({line.split(":", 2)[2] for line in
                      Path("/proc/self/cgroup").read_text().splitlines()}),
    "capabilities": int(status["CapEff"], 16).bit_count(),
    "filter": status["Seccomp"].strip(),
    "tmp": os.listdir("/tmp"),
    "cores": len(os.sched_getaffinity(0)),
    "writable": os.access("/etc", os.W_OK),
    "tracing": Path("/sys/kernel/tracing/events").exists(),
}))
"""


def seen(key):
    with started(BY_KEY[key], ["{python}", "-P", "-c", SEEN]) as container:
        told, _ = container.process.communicate(timeout=60)
        identity = container.container_id
    assert container.process.returncode == 0
    assert not list(container_folders(identity))
    return json.loads(told)


@pytest.mark.privileged
def test_a_container_is_one():
    found = seen("privileged")
    assert found["pid"] == 1
    assert found["groups"] == ["/"]
    assert set(found["tmp"]) <= {PROJECT.parts[2] if PROJECT.parts[1] == "tmp" else ""}
    assert found["filter"] == "0"


@pytest.mark.privileged
def test_each_lacks_what_it_says():
    docker = seen("docker")
    assert (docker["capabilities"], docker["filter"]) == (14, "2")
    assert seen("no-capability")["capabilities"] == 0
    assert seen("cpuset")["cores"] == 1
    assert not seen("read-only")["writable"]
    assert not seen("no-tracefs")["tracing"]


CALLS = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
print(libc.unshare(0x40000000), os.strerror(ctypes.get_errno()), os.getpid() > 0)
"""


@pytest.mark.privileged
def test_the_filter_refuses_what_it_names_and_nothing_else():
    call_filter = Path(__file__).with_name("call_filter.py")
    command = [sys.executable, "-P", str(call_filter), sys.executable, "-c", CALLS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "-1 Operation not permitted True"


def told(state="available", missing=(), **others):
    return {
        "check": "doctor",
        "exit": 0,
        "probes": [
            {
                "name": name,
                "state": "unavailable" if name in missing else state,
                "reason": "no right" if name in missing else "",
                "fix": "give it",
            }
            for name in judge.PROBES
        ],
        **others,
    }


def test_what_cannot_run_there_must_be_said_with_what_would_let_it():
    privileged, docker = BY_KEY["privileged"], BY_KEY["docker"]
    assert judge.problems(privileged, told()) == []
    assert judge.problems(docker, told(missing=EBPF)) == []
    problems = judge.problems(privileged, told(missing=["cpu_stacks"]))
    assert problems == ["cpu_stacks: unavailable: no right"]
    silent = told(missing=["cpu_stacks"])
    silent["probes"] = [{**probe, "fix": ""} for probe in silent["probes"]]
    (problem,) = judge.problems(docker, silent)
    assert "does not say why" in problem


def test_a_refusal_is_two_lines_and_exit_4():
    where = BY_KEY["proc-of-host"]
    facts = {"check": "run", "exit": 4, "stderr": "error: x\nfix: y\n"}
    assert judge.problems(where, facts) == []
    assert judge.problems(where, {**facts, "exit": 1})
    assert judge.problems(where, {**facts, "stderr": "Traceback\n" * 5})
    assert judge.problems(BY_KEY["privileged"], facts) == ["exit 4: error: x fix: y"]


def test_a_watch_from_the_host_speaks_of_the_container():
    facts = told(state="ran", check="watched", cause="fd-limit-process", sentence="x")
    docker = BY_KEY["docker"]
    assert judge.problems(docker, {**facts, "fixes": ["docker run --ulimit nofile=1:1"]}) == []
    (problem,) = judge.problems(docker, {**facts, "fixes": ["systemctl edit NAME.service"]})
    assert "container" in problem


def test_the_page_tells_what_ran_what_did_not_and_why(tmp_path):
    path, docker = tmp_path / "facts", BY_KEY["docker"]
    run = told(missing=EBPF, check="run", cause="reached", sentence="x", confidence="high")
    keep(docker, [told(missing=EBPF), run], "abc", path)
    keep(BY_KEY["quota"], [{"check": "run", "error": "x\nOSError: y\n"}], "def", path)
    text = page(kept(path))
    row = next(line for line in text.splitlines() if line.startswith("| docker"))
    assert row.split(" | ")[1:4] == [f"all but {len(EBPF)} probes"] * 2 + ["not tried"]
    assert "no right; give it" in text
    assert "- quota: run: OSError: y" in text
    assert "commits abc, def" in text


def test_the_page_in_the_docs_is_made_of_what_is_kept():
    assert (PROJECT / "docs" / "containers.md").read_text() == page(kept())


def test_the_names_of_containers_are_words_of_the_command_line():
    assert len(BY_KEY) == len(SURROUNDINGS)
    assert all(" " not in where.key and where.what for where in SURROUNDINGS)
    assert os.sep not in "".join(BY_KEY)
