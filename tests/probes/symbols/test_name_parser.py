"""What strangers wrote is read by a process without rights, whose end costs names and no more."""

from __future__ import annotations

import ctypes
import encodings
import mmap
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.bpf_loader.own_rights import parse_status
from probes.proc import process_tree
from probes.rights.own_user import FIRST_ID, LAST_ID
from probes.rights.seccomp import program
from probes.symbols import name_messages, name_parser_process, symbols
from probes.symbols.name_messages import Answer, Ask, Kind, Request, Status
from probes.symbols.name_parser_process import NameParserProcess, ParserGoneError
from probes.symbols.symbols import UNKNOWN, UserSymbols


@pytest.fixture
def parser():
    made = NameParserProcess()
    yield made
    made.close()


@pytest.fixture
def named(parser):
    return UserSymbols(parser)


def who_parses(parser: NameParserProcess) -> int:
    (pid,) = process_tree.children_of(parser.pid)
    return pid


def state_of(pid: int) -> str:
    """Its letter in /proc/PID/stat, X when it is gone."""
    found = process_tree.read_stat(pid)
    return found.state if found is not None else "X"


def own_address(name: str = "PyLong_FromLong") -> int:
    return ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value + 2


def status_of(pid: int) -> dict[str, str]:
    return parse_status(Path(f"/proc/{pid}/status").read_text())


def test_it_may_do_nothing_but_read_and_answer(named, parser):
    assert named.name(os.getpid(), own_address()) == "PyLong_FromLong"
    for pid in (parser.pid, who_parses(parser)):
        said = status_of(pid)
        assert {said[name] for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {"0" * 16}
        assert said["NoNewPrivs"] == "1"
        assert said["Seccomp"] == "2"
        if os.geteuid() == 0:
            (uid,) = set(map(int, said["Uid"].split()))
            assert FIRST_ID <= uid <= LAST_ID
            assert said["CapBnd"] == "0" * 16
            assert said["Groups"].split() == []
    limits = Path(f"/proc/{who_parses(parser)}/limits").read_text()
    for name in ("Max cpu time", "Max address space", "Max core file size", "Max file size"):
        line = next(line for line in limits.splitlines() if line.startswith(name))
        assert "unlimited" not in line, line
    words = Path(f"/proc/{parser.pid}/environ").read_bytes() if os.geteuid() == 0 else b""
    assert {word.partition(b"=")[0] for word in words.split(b"\0") if word} <= {
        *(b"PATH", b"LD_LIBRARY_PATH", b"PYTHONPATH", b"PYTHONHOME", b"OPENBLAS_NUM_THREADS"),
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="a folder that only root reads: needs root")
def test_it_works_where_python_itself_is_in_a_folder_of_root_alone(tmp_path, monkeypatch):
    """A Python below /root (pyenv, uv): once it is nobody, it can import no codec any more."""
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    shutil.copytree(Path(encodings.__file__).parent, hidden / "encodings")
    monkeypatch.setenv("PYTHONPATH", str(hidden))
    parser = NameParserProcess()
    try:
        assert UserSymbols(parser).name(os.getpid(), own_address()) == "PyLong_FromLong"
        assert parser.trouble == ""
    finally:
        parser.close()


CALLS = """
import ctypes, os, sys
from probes.rights import privileges
from probes.rights import seccomp
from probes.symbols.name_parser_main import _READS
privileges.gain_nothing()
assert seccomp.install(_READS)
def refused(call, *words):
    try:
        call(*words)
    except PermissionError:
        return True
    return False
seen = [
    refused(os.open, "/etc/passwd", os.O_RDONLY),
    refused(os.fork),
    refused(os.kill, os.getppid(), 0),
    refused(os.execv, "/bin/true", ["true"]),
    refused(os.write, 1, b"x"),
    refused(os.unlink, "/nowhere"),
]
os._exit(0 if all(seen) else 1)
"""


def test_other_calls_fail():
    done = subprocess.run([sys.executable, "-P", "-c", CALLS], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == b""


def test_a_filter_is_made_where_the_numbers_are_known():
    wanted = {"read", "fork", "dup2"}
    made = {each: program(wanted, each) for each in ("x86_64", "aarch64", "s390x")}
    assert [len(code) // 8 for code in made.values()] == [9, 7, 0]
    assert struct.unpack_from("=HBBI", made["aarch64"], 32)[3] == 63


@pytest.fixture
def mapped(tmp_path):
    """``mapped(content)``: a process that maps a file of that content, and an address in it."""
    children = []

    def start(content: bytes) -> tuple[int, int]:
        path = tmp_path / f"mapped{len(children)}"
        path.write_bytes(content.ljust(mmap.PAGESIZE, b"\0"))
        code = (
            "import mmap, sys\n"
            "with open(sys.argv[1], 'rb') as file:\n"
            "    kept = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE,\n"
            "                     prot=mmap.PROT_READ | mmap.PROT_EXEC)\n"
            "print('mapped', flush=True)\n"
            "sys.stdin.read()\n"
        )
        child = subprocess.Popen([sys.executable, "-c", code, path], stdin=-1, stdout=-1)
        children.append(child)
        assert child.stdout.readline() == b"mapped\n"
        lines = Path(f"/proc/{child.pid}/maps").read_text().splitlines()
        line = next(line for line in lines if line.endswith(path.name))
        return child.pid, int(line.split("-")[0], 16) + 0x10

    yield start
    for child in children:
        child.kill()
        child.communicate()


NEEDS_MEMORY = """
import os, struct, sys
from probes.symbols import name_parser_main
from probes.symbols.name_messages import Ask, Request
from probes.symbols.name_parser import NameParser
name_parser_main.MOST_MEMORY_BYTES = int(sys.argv[2])
count = 1_000_000
head = bytearray(64)
head[:6] = b"\\x7fELF\\x02\\x01"
struct.pack_into("<QQQ", head, 24, 0, 64, 128)
struct.pack_into("<HHHHH", head, 54, 56, 1, 64, 1, 0)
segment = struct.pack("<IIQQQQQQ", 1, 5, 0, 4096, 4096, 4096, 4096, 4096)
section = struct.pack("<IIQQQQIIQQ", 0, 2, 0, 0, 4096, 24 * count, 0, 0, 8, 24)
name_parser_main._warm_up()
with open(sys.argv[1], "w+b") as file:
    file.write((head + segment.ljust(64, b"\\0") + section).ljust(4096, b"\\0"))
    for _ in range(count // 1000):
        file.write(struct.pack("<IBBHQQ", 24 * count, 2, 0, 1, 4096, 64) * 1000)
    file.write(b"at_the_end\\0")
    file.flush()
    parser = NameParser()
    told = os.memfd_create("maps")
    os.write(told, b"1000-2000 r-xp 00000000 08:01 1 /bin/a")
    parser.answer(Request(1, Ask.MAPS, 1, 0), told)
    name_parser_main._limit()
    parser.answer(Request(2, Ask.FILE, 1, 0), os.dup(file.fileno()))
    print(parser.answer(Request(3, Ask.NAMES, 1, 1, (0x1010,)), -1).texts[0], flush=True)
"""


@pytest.mark.parametrize(("most_bytes", "name"), [(1 << 30, "at_the_end"), (16 << 20, "a+0x10")])
def test_a_file_that_needs_too_much_memory_has_no_names(tmp_path, most_bytes, name):
    words = [sys.executable, "-P", "-c", NEEDS_MEMORY, tmp_path / "large", str(most_bytes)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout == f"{name}\n", done.stderr


SPINS = """
import sys
from probes.symbols import name_parser
from probes.symbols import name_parser_main
real = name_parser.NameParser._file
def spins(self, request, fd):
    while b"mapped" in self._lines[request.key][request.other].path:
        pass
    return real(self, request, fd)
name_parser.NameParser._file = spins
name_parser_main._REQUEST_CPU_S = 1
sys.exit(name_parser_main.main(sys.argv[1:]))
"""


def test_a_file_without_an_end_costs_a_second_and_its_names(named, parser, mapped, monkeypatch):
    pid, address = mapped(b"\x7fELF no more")

    def start(_module, arguments, *, environment, **more):
        command = [sys.executable, "-P", "-c", SPINS, *arguments]
        return subprocess.Popen(command, env=environment, **more)

    monkeypatch.setattr(name_parser_process, "start_module", start)
    assert named.name(pid, address) == UNKNOWN
    end_s = time.monotonic() + 120
    while named.name(os.getpid(), own_address()) != "PyLong_FromLong":
        assert time.monotonic() < end_s
    assert "killed by SIGXCPU" in parser.trouble or "answer in time" in parser.trouble


def test_who_dies_costs_names_and_is_followed(named, parser, mapped, deadline):
    pid, address = mapped(b"\x7fELF no more")
    assert named.name(os.getpid(), own_address()) == "PyLong_FromLong"
    os.kill(who_parses(parser), signal.SIGKILL)
    first = [named.name(pid, address), named.name(os.getpid(), own_address("PyList_New"))]
    assert set(first) <= {UNKNOWN, "PyList_New", "mapped0+0x10"}
    # its successor knows nothing yet, and is told all again
    assert named.name(os.getpid(), own_address("PyDict_New")) == "PyDict_New"
    assert named.name(pid, address) == "mapped0+0x10"
    assert "was killed by SIGKILL (1 times)" in parser.trouble
    assert named.troubles == [parser.trouble]
    last = who_parses(parser)
    os.kill(parser.pid, signal.SIGKILL)
    deadline("it has ended with its parent", lambda: state_of(last) in "XZ")
    assert named.name(os.getpid(), own_address("PyTuple_New")) == UNKNOWN
    assert named.name(os.getpid(), own_address()) == "PyLong_FromLong"  # known before
    assert "is gone" in parser.trouble
    assert not parser.is_go(os.open(sys.executable, os.O_RDONLY))


def test_a_file_on_which_it_dies_is_not_read_again(named, parser, mapped, monkeypatch):
    pid, address = mapped(b"\x7fELF no more")
    real = NameParserProcess._asked
    files = []

    def dies_of_files(self, ask, key, other, numbers, fd):
        if ask == Ask.FILE and fd >= 0 and b"mapped" in os.readlink(f"/proc/self/fd/{fd}").encode():
            files.append(fd)
            os.kill(who_parses(parser), signal.SIGKILL)
        return real(self, ask, key, other, numbers, fd)

    monkeypatch.setattr(NameParserProcess, "_asked", dies_of_files)
    assert named.name(pid, address) == UNKNOWN
    assert named.name(pid, address) == "mapped0+0x10"
    assert len(files) == 1
    assert named.name(os.getpid(), own_address()) == "PyLong_FromLong"


def test_who_does_not_answer_is_not_waited_for_again(named, parser, monkeypatch):
    assert named.name(os.getpid(), own_address()) == "PyLong_FromLong"
    monkeypatch.setattr(name_parser_process, "ANSWER_LIMIT_S", 0.2)
    stopped = who_parses(parser)
    os.kill(stopped, signal.SIGSTOP)
    try:
        assert named.name(os.getpid(), own_address("PyList_New")) == UNKNOWN
        monkeypatch.setattr(name_parser_process, "ANSWER_LIMIT_S", 1e6)
        assert named.name(os.getpid(), own_address("PyList_New")) == UNKNOWN
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert "did not answer in time (1 times)" in parser.trouble
    end_s = time.monotonic() + 60
    while named.name(os.getpid(), own_address("PyDict_New")) != "PyDict_New":
        assert time.monotonic() < end_s


def test_it_ends_with_who_asks(parser):
    assert not parser.is_go(os.open(sys.executable, os.O_RDONLY))
    pids = {parser.pid, who_parses(parser)}
    parser.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_what_it_points_to_must_be_a_line(named, parser, monkeypatch):
    """A parser that was taken over chooses neither a path nor a part of one."""
    opened = []
    monkeypatch.setattr(symbols, "_open_mapped", lambda *_, **__: opened.append(1) or -1)
    real = NameParserProcess.ask

    def lies(self, ask, key=0, other=0, numbers=(), fd=-1):
        answer = real(self, ask, key, other, numbers, fd)
        if ask != Ask.NAMES:
            return answer
        return Answer(answer.number, answer.status, [Kind.WANTS_FILE], [line_at], [""])

    monkeypatch.setattr(NameParserProcess, "ask", lies)
    for line_at in (7, 1 << 30):  # noqa: B007 - the lie says it
        assert named.name(os.getpid(), own_address()) == UNKNOWN
    assert opened == []


def test_a_request_comes_as_it_went():
    for request in (
        Request(1, Ask.NAMES, 7, 1 << 63, (1, (1 << 64) - 1)),
        Request(2, Ask.MAPS, 1, 0),
    ):
        assert name_messages.unpack_request(name_messages.pack_request(request)) == request


def test_an_answer_comes_as_it_went():
    answer = Answer(5, Status.YES, (Kind.FUNCTION, Kind.UNKNOWN), (0, 70), ["naïve", ""])
    assert name_messages.unpack_answer(name_messages.pack_answer(answer), 2) == answer
    wanted = Answer(6, Status.WANTS_DEBUG, texts=["ab12", "lib.debug"])
    assert name_messages.unpack_answer(name_messages.pack_answer(wanted), 0) == wanted
    assert name_messages.unpack_ended(name_messages.pack_ended(-9)) == -9
    assert name_messages.unpack_ended(name_messages.pack_answer(answer)) is None


def test_the_longest_answer_fits_into_a_packet():
    count = name_messages.MOST_ADDRESSES
    longest = Answer(1, Status.YES, [2] * count, [1 << 31] * count, ["\U0001f310" * 300] * count)
    packet = name_messages.pack_answer(longest)
    assert len(packet) < name_messages.MOST_PACKET_BYTES
    assert name_messages.unpack_answer(packet, count).texts == longest.texts


@given(st.binary(max_size=400), st.integers(0, 3))
def test_any_answer_is_refused_or_is_what_was_asked_for(packet, count):
    try:
        answer = name_messages.unpack_answer(packet, count)
    except ValueError:
        return
    assert len(answer.kinds) == len(answer.lines) in (0, count)
    assert len(answer.texts) in (0, 2, count)


@given(st.data())
def test_an_answer_that_was_changed_is_refused_or_in_its_bounds(data):
    answer = Answer(9, Status.YES, (1, 3, 0), (0, 5, 9), ("first", "second", ""))
    packet = bytearray(name_messages.pack_answer(answer))
    for _ in range(data.draw(st.integers(1, 4))):
        packet[data.draw(st.integers(0, len(packet) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(packet[: data.draw(st.integers(0, len(packet)))])
    for each in (bytes(packet), cut):
        try:
            found = name_messages.unpack_answer(each, 3)
        except ValueError:
            continue
        assert all(len(text) <= name_messages.MOST_NAME_BYTES for text in found.texts)
        assert len(found.kinds) in (0, 3)


def test_nonsense_ends_it(named, parser, monkeypatch):
    assert named.name(os.getpid(), own_address()) == "PyLong_FromLong"

    def refuses(*_):
        raise ValueError("there is no such kind")

    monkeypatch.setattr(name_messages, "unpack_answer", refuses)
    with pytest.raises(ParserGoneError):
        parser.ask(Ask.FORGET_PIDS)
    monkeypatch.undo()
    with pytest.raises(ParserGoneError):
        parser.ask(Ask.FORGET_PIDS)
    assert "answered nonsense (there is no such kind)" in parser.trouble
