"""Discovery of processes: shells with known children, ends by known statuses."""

from __future__ import annotations

import os
import subprocess

import pytest

from probes.proc import process_tree


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["/usr/bin/node", "--inspect", "/srv/server.js", "--port", "1"], "node server.js"),
        (["/usr/bin/python3", "-P", "-m", "uvicorn", "app"], "python3 -m uvicorn"),
        (["python3", "-c", "print()"], "python3 -c"),
        (
            ["python", "-c", "from multiprocessing.spawn import spawn_main; spawn_main()"],
            "python multiprocessing",
        ),
        (["/opt/go-server", "-x"], "go-server"),
        (["nginx: worker process"], "nginx: worker process"),
        ([], ""),
        (
            ["java", "-Xmx1g", "-cp", "/srv/a.jar:/srv/b", "org.acme.Server", "9001"],
            "java org.acme.Server",
        ),
        (["java", "-jar", "server.jar"], "java -jar"),
        (["python3.13t", "-X", "perf", "-W", "error", "app.py"], "python3.13t app.py"),
        (["node", "-r", "./trace.js", "server.js"], "node server.js"),
        (["php", "-d", "memory_limit=24M", "-f", "server.php", "9001"], "php server.php"),
    ],
)
def test_a_command_has_the_name_that_people_use(words, name):
    assert process_tree.name_of_command(words) == name


def test_the_limit_of_a_process_is_read_where_prlimit_is_refused(monkeypatch, deadline):
    """As for another user's process when root lacks CAP_SYS_RESOURCE, in many containers."""
    with subprocess.Popen(["sh", "-c", "ulimit -n 321; exec sleep 97"]) as child:
        try:

            def refuse(_pid, _limit):
                raise PermissionError

            deadline("exec", lambda: process_tree.read_stat(child.pid).comm == "sleep")
            monkeypatch.setattr(process_tree.resource, "prlimit", refuse)
            assert process_tree.nofile_soft_count(child.pid) == 321
        finally:
            child.kill()


def test_stat_of_a_hostile_name():
    fields = "S 7 5 5 0 -1 4194560 " + " ".join(str(n) for n in range(10, 40))
    stat = process_tree.parse_stat(f"42 (a) S 1 (b)) {fields}")
    assert (stat.pid, stat.comm, stat.state, stat.ppid) == (42, "a) S 1 (b)", "S", 7)
    assert stat.is_alive
    assert not stat.is_kernel_thread
    with pytest.raises(ValueError, match="not the text"):
        process_tree.parse_stat("42 nothing")


@pytest.fixture
def family():
    with subprocess.Popen(["sh", "-c", "sleep 97 & cat; kill $!"], stdin=subprocess.PIPE) as shell:
        yield shell
        shell.stdin.close()


@pytest.mark.parametrize("kernel", ["lists children", "without CONFIG_PROC_CHILDREN"])
def test_a_tree_has_all_descendants_parents_first(family, deadline, monkeypatch, kernel):
    if kernel != "lists children":
        monkeypatch.setattr(process_tree, "kernel_lists_children", lambda: False)
    tree = deadline("three processes", lambda: (t := process_tree.tree_of(family.pid))[2:] and t)
    assert tree[0] == family.pid
    assert {process_tree.read_stat(pid).ppid for pid in tree[1:]} == {family.pid}
    assert process_tree.tree_of(1 << 22) == []
    assert set(process_tree.children_of(family.pid)) == set(tree[1:])
    assert family.pid in process_tree.own_children()


def test_an_end_is_seen_with_its_status():
    watch = process_tree.EndWatch()
    child = subprocess.Popen(["sh", "-c", "read line; exit 23"], stdin=subprocess.PIPE)
    assert watch.add(child.pid)
    assert watch.ended() == []
    assert not watch.wait(0.001)
    child.communicate()
    assert watch.wait(20.0)
    assert watch.ended() == [child.pid]
    status = watch.wait_status(child.pid)
    major, minor = (int(part) for part in os.uname().release.split(".")[:2])
    assert status == (23 << 8 if (major, minor) >= (6, 15) else None)
    watch.forget(child.pid)
    assert watch.ended() == []
    assert not watch.add(child.pid)


def test_limit_user_and_python_of_this_process():
    pid = os.getpid()
    assert process_tree.nofile_soft_count(pid) > 0
    assert process_tree.nofile_soft_count(1 << 22) == 0
    assert process_tree.user_of(pid) == os.geteuid()
    assert process_tree.is_python(pid)
    assert not process_tree.is_python(1 << 22)
