"""Perf maps: what runtimes write, what others might, and a real Node process's."""

import os
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.symbols import perf_map
from probes.symbols.clean_name import MAX_NAME_CHARACTERS, clean_name
from probes.symbols.perf_map import CodeMap, MapBudget, PerfMap, frame_name, parse_line
from probes.symbols.perf_map_file import MapRefusedError, open_map
from probes.symbols.symbols import UserSymbols

# Captured from CPython 3.12.1, python -X perf spin.py
TRAMPOLINE = b"""\
7f9da4fcd02c b py::_ModuleLock.__init__:<frozen importlib._bootstrap>
7f9da4fcd7b1 b py::<module>:/tmp/spin.py
7f9da4fcd7bc b py::spin:/tmp/spin.py
"""


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("JS:*turn /srv/server.js:10:20", "turn (/srv/server.js:10)"),
        ("JS:~turn file:///srv/a b.mjs:10:20", "turn (/srv/a b.mjs:10)"),
        ("LazyCompile:^turn /srv/server.js:10:20", "turn (/srv/server.js:10)"),
        ("JS:~ /srv/server.js:1:1", "<anonymous> (/srv/server.js:1)"),
        ("JS:+listOnTimeout node:internal/timers:5:2", "listOnTimeout (node:internal/timers:5)"),
        ("Builtin:JSEntry", "Builtin:JSEntry"),
        ("py::Loop.turn:/srv/loop.py", "Loop.turn (/srv/loop.py)"),
        (
            "py::Runner.run:/usr/lib/python3.15/asyncio/runners.py",
            "Runner.run (asyncio/runners.py)",
        ),
        ("py::a:/v/lib/python3.13t/site-packages/ws/b.py", "a (ws/b.py)"),
        ("Lorg/example/Server;::turn", "org.example.Server::turn"),
        # as jcmd of JDK 17 wrote them
        ("long HotServer.turn(int, long)", "HotServer::turn"),
        ("void java.lang.Object.<init>()", "java.lang.Object::<init>"),
        ("java.lang.Object[] a.B$C.d(java.lang.Class[])", "a.B$C::d"),
        ("void a.B$$Lambda$1/0x0000000800c01000.run()", "a.B$$Lambda$1::run"),
        ("StubRoutines (1)", "StubRoutines (1)"),
        ("clear\x1b[2J\u202ename_[k]", "clear?[2J?name"),
        ("_[k]", "?"),
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),  # pages escape it
    ],
)
def test_a_name_is_the_function_and_says_where_it_comes_from(written, name):
    assert frame_name(written) == name


def test_a_name_is_of_bounded_length():
    assert len(clean_name("x" * 100_000)) == MAX_NAME_CHARACTERS


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"10", b"10 20", b"xyz 20 name", b"10 0 name", b"-10 20 name"),
        *(b"f" * 40 + b" 1 name", b"10 20 " + b"n" * 5000, b"\xff\xfe 10 name"),
    ],
)
def test_a_line_that_is_none_is_passed_over(line):
    assert parse_line(line) is None


def test_java_writes_its_addresses_with_a_prefix():
    assert parse_line(b"0x00007f10 0x20 Interpreter") == (0x7F10, 0x7F30, "Interpreter")


def test_what_comes_later_has_the_place_of_what_it_overlaps():
    code = CodeMap()
    code.add(b"100 40 first\n200 40 second\n140 10 between\nbad line\n")
    assert [code.find(at) for at in (0xFF, 0x100, 0x13F, 0x140, 0x150, 0x200)] == [
        *(None, "first", "first", "between", None, "second"),
    ]
    code.add(b"120 100 la")
    code.add(b"ter\n")
    assert [code.find(at) for at in (0x100, 0x120, 0x21F, 0x220)] == [None, "later", "later", None]
    assert (len(code), code.bad_line_count) == (1, 1)


def test_pieces_give_what_the_whole_gives():
    whole, pieces = CodeMap(), CodeMap()
    whole.add(TRAMPOLINE)
    for at in range(len(TRAMPOLINE)):
        pieces.add(TRAMPOLINE[at : at + 1])
    assert whole.rows == pieces.rows
    assert frame_name(whole.find(0x7F9DA4FCD7BC)) == "spin (/tmp/spin.py)"


@pytest.fixture
def own_map():
    """The path of this process's own map, removed afterwards."""
    path = f"/tmp/perf-{os.getpid()}.map"
    yield path
    if os.path.lexists(path):
        os.unlink(path)


def read_on(perf_map):
    """What the probe process and its parser do together."""
    try:
        fd = open_map(os.getpid())
    except OSError:
        return False
    try:
        return perf_map.read_on(fd)
    finally:
        os.close(fd)


def refusal(pid):
    """Why a map does not count, '' when it does."""
    try:
        os.close(open_map(pid))
    except MapRefusedError as error:
        return str(error.strerror)
    return ""


def write(path, text):
    with open(path, "ab") as stream:
        stream.write(text)


def as_they_come(rows):
    """Each takes the place of what it overlaps, one after the other: slow, and plainly so."""
    kept = []
    for start, end, name in rows:
        kept = [row for row in kept if row[1] <= start or row[0] >= end]
        kept.append((start, end, name))
    return sorted(kept)


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=40),
    st.lists(st.integers(0, 40), max_size=3),
)
def test_a_piece_at_once_gives_what_its_lines_give_one_after_the_other(spans, cuts):
    rows = [(start, start + size, f"f{i}") for i, (start, size) in enumerate(spans)]
    lines = [b"%x %x %s\n" % (s, e - s, n.encode()) for s, e, n in rows]
    code = CodeMap()
    for first, last in pairwise(sorted({0, *cuts, max(40, len(lines))})):
        code.add(b"".join(lines[first:last]))
    wanted = as_they_come(rows)
    assert code.rows == wanted
    for start, end, name in wanted:
        assert (code.find(start), code.find(end - 1)) == (name, name)
    inside = {address for start, end, _ in wanted for address in range(start, end)}
    assert [a for a in range(100) if code.find(a) is not None] == sorted(inside)


def test_the_worst_order_of_addresses_is_read(own_map):
    lines = [b"%x 1 a\n" % (0x10000000 - 2 * i) for i in range(60_000)]
    write(own_map, b"".join(lines))
    found = PerfMap()
    while read_on(found):
        pass
    assert len(found) == len(lines)


def test_all_maps_of_a_process_of_probes_have_one_budget(own_map):
    write(own_map, b"".join(b"%x 10 f%d\n" % (0x1000 + 16 * i, i) for i in range(100)))
    budget = MapBudget(400)
    found = PerfMap(budget)
    other = PerfMap(budget)
    assert read_on(found)
    assert not read_on(other)
    assert budget.left_bytes == 0
    found.forget()
    assert budget.left_bytes == 400
    assert read_on(other)
    assert len(found) == 0 < len(other)


def test_a_map_is_read_on_as_it_grows(own_map):
    found = PerfMap()
    assert not read_on(found)
    write(own_map, b"1000 10 py::one:/a.py\n1010 10 py::tw")
    assert read_on(found)
    assert not read_on(found)
    write(own_map, b"o:/a.py\n")
    assert read_on(found)
    assert [found.find(at) for at in (0x1000, 0x1010)] == ["one (/a.py)", "two (/a.py)"]
    os.unlink(own_map)  # the process was replaced by another, or began anew
    write(own_map, b"1000 10 py::other:/a.py\n")
    assert read_on(found)
    assert (found.find(0x1000), found.find(0x1010)) == ("other (/a.py)", None)


def test_what_is_read_of_one_process_is_bounded(own_map, monkeypatch):
    monkeypatch.setattr(perf_map, "MAX_READ_BYTES", 100)
    monkeypatch.setattr(perf_map, "MAX_MAP_BYTES", 250)
    write(own_map, b"".join(b"%x 10 f%d\n" % (0x1000 + 16 * i, i) for i in range(100)))
    found = PerfMap()
    assert [read_on(found) for _ in range(5)] == [True, True, True, False, False]
    assert 15 < len(found) < 25


def test_a_link_and_a_pipe_are_not_read(own_map, tmp_path):
    real = tmp_path / "real.map"
    real.write_bytes(TRAMPOLINE)
    os.symlink(real, own_map)
    with pytest.raises(OSError, match="symbolic"):
        open_map(os.getpid())
    os.unlink(own_map)
    os.mkfifo(own_map)
    assert refusal(os.getpid()) == "it is not a regular file"


@pytest.mark.skipif(
    os.geteuid() != 0, reason="makes files and processes of other users: needs root"
)
def test_a_map_counts_only_of_the_process_user_or_root(own_map):
    write(own_map, TRAMPOLINE)
    os.chown(own_map, 12345, 12345)
    refused = "it belongs to user 12345, not to the process's user or root"
    assert refusal(os.getpid()) == refused
    os.chown(own_map, 0, 0)
    assert not refusal(os.getpid())
    # a process of another user: its own map and root's count
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1, user=12345) as child:
        path = f"/tmp/perf-{child.pid}.map"
        try:
            write(path, TRAMPOLINE)
            for owner, counts in ((0, True), (12345, True), (54321, False)):
                os.chown(path, owner, owner)
                assert (not refusal(child.pid)) is counts
        finally:
            os.unlink(path)
            child.kill()


SPIN_JS = """
function turn(n) { let s = 0; for (let i = 0; i < n; i++) s += Math.sqrt(i); return s; }
setInterval(() => turn(1e6), 0);
"""


@pytest.mark.node
@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_map_of_a_real_node_names_its_functions(tmp_path):
    script = tmp_path / "spin.js"
    script.write_text(SPIN_JS)
    command = ["node", "--perf-basic-prof", str(script)]
    with subprocess.Popen(command, cwd=tmp_path) as child:
        path = f"/tmp/perf-{child.pid}.map"
        user = UserSymbols()
        try:
            deadline = time.monotonic() + 60
            place = None
            while place is None:
                assert time.monotonic() < deadline, "node compiled nothing"
                time.sleep(0.02)
                lines = Path(path).read_bytes().splitlines() if os.path.exists(path) else []
                place = next((parse_line(line) for line in lines if b"JS:*turn " in line), None)
            assert user.add_process(child.pid)
            assert user.name(child.pid, place[0] + 4) == f"turn ({script}:2)_[j]"
            assert user.version(child.pid) >= 1
            # what the map does not name keeps its module and offset
            maps = Path(f"/proc/{child.pid}/maps").read_text().splitlines()
            stack = next(line for line in maps if line.endswith("[vdso]"))
            address = int(stack.split("-")[0], 16) + 5
            assert user.name(child.pid, address) in ("[vdso]+0x5", "LINUX_2.6")
        finally:
            child.kill()
            child.wait()
            if os.path.exists(path):
                os.unlink(path)
