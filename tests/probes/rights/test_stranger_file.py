"""What a watched process names is opened inside of its root, and only when it is a regular file."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from probes.rights import stranger_file
from probes.symbols import elf, mappings, perf_map_file, symbols
from probes.symbols.debug_places import open_elf

KMSG = os.makedev(1, 7)  # /dev/full: opening it does no harm, and is seen


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    (made / "a" / "b").mkdir(parents=True)
    (made / "a" / "file").write_text("inside")
    (made / "passwd").write_text("inside")
    os.symlink("/a/file", made / "absolute")
    os.symlink("../../../../../../passwd", made / "a" / "b" / "upwards")
    os.symlink("b", made / "a" / "folder")
    os.symlink("loop", made / "loop")
    os.symlink("/etc/hostname", made / "outside")
    os.mkfifo(made / "pipe")
    return made


def looked_at(root: Path, path: str, *, follow: bool = True, by_walk: bool) -> str:
    """What is there, or the name of the error."""
    try:
        if by_walk:
            root_fd = os.open(root, os.O_PATH)
            try:
                fd = stranger_file.walk(root_fd, path.encode(), follow=follow)
            finally:
                os.close(root_fd)
            content = Path(f"/proc/self/fd/{fd}").read_text()
        else:
            fd = stranger_file.open_regular(str(root), path, follow=follow)
            content = os.read(fd, 100).decode()
        os.close(fd)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return content


@pytest.mark.parametrize("by_walk", [False, True], ids=["openat2", "walk"])
@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("a/file", "inside"),
        ("/a//./file", "inside"),
        ("../../a/file", "inside"),
        ("absolute", "inside"),
        ("a/b/upwards", "inside"),
        ("a/folder/../file", "inside"),
        ("outside", "ENOENT"),
        ("loop", "ELOOP"),
        ("a/file/b", "ENOTDIR"),
        ("none", "ENOENT"),
    ],
)
def test_a_path_is_resolved_in_its_root(root, path, found, by_walk):
    assert looked_at(root, path, by_walk=by_walk) == found


@pytest.mark.parametrize("by_walk", [False, True], ids=["openat2", "walk"])
def test_links_can_be_refused(root, by_walk):
    assert looked_at(root, "absolute", follow=False, by_walk=by_walk) == "ELOOP"
    assert looked_at(root, "a/folder/upwards", follow=False, by_walk=by_walk) == "ELOOP"
    assert looked_at(root, "a/file", follow=False, by_walk=by_walk) == "inside"


def test_without_openat2_the_components_are_walked(root, monkeypatch):
    def refuses(root_fd: int, path: bytes, resolve: int) -> int:
        raise OSError(errno.ENOSYS, "no such call")

    monkeypatch.setattr(stranger_file, "_openat2", refuses)
    assert looked_at(root, "a/b/upwards", by_walk=False) == "inside"
    assert looked_at(root, "outside", by_walk=False) == "ENOENT"


@pytest.mark.parametrize("name", ["pipe", "a"])
def test_what_is_no_regular_file_is_not_opened(root, name):
    with pytest.raises(stranger_file.NotRegularError):
        stranger_file.open_regular(str(root), name)


@pytest.fixture
def opened(monkeypatch):
    """Names of what is opened for more than a look."""
    found = []
    real = os.open

    def record(path, flags, *more, **options):
        fd = real(path, flags, *more, **options)
        if not flags & os.O_PATH:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        return fd

    monkeypatch.setattr(os, "open", record)
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="makes device nodes: needs root")
def test_no_device_is_opened_wherever_a_stranger_puts_one(root, opened):
    node = root / "device"
    os.mknod(node, stat.S_IFCHR | 0o666, KMSG)
    for look in (
        lambda: stranger_file.open_regular(str(root), "device"),
        lambda: stranger_file.open_link(str(node)),
    ):
        with pytest.raises(stranger_file.NotRegularError):
            look()
    assert open_elf("", str(node)) == open_elf(str(root), "device") == -1
    with subprocess.Popen(["sleep", "60"]) as child:
        place = Path(f"/tmp/perf-{child.pid}.map")  # where runtimes write it
        os.mknod(place, stat.S_IFCHR | 0o666, KMSG)
        try:
            with pytest.raises(perf_map_file.MapRefusedError, match="it is not a regular file"):
                perf_map_file.open_map(child.pid)
        finally:
            place.unlink()
            child.kill()
    assert opened == []


MAPS_A_FILE = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    kept = mmap.mmap(file.fileno(), 4096, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | {prot})
print("mapped", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def mapped(tmp_path):
    """``mapped(name)``: the pid of a process that maps a file of that name, executable."""
    children = []

    def start(name: str) -> int:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * mmap.PAGESIZE)
        program = MAPS_A_FILE.format(prot="mmap.PROT_EXEC")
        words = [sys.executable, "-c", program, str(path)]
        child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        children.append(child)
        assert child.stdout.readline() == b"mapped\n"
        return child.pid

    yield start
    for child in children:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("mark", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_a_name_makes_no_line_of_its_own(mapped, mark):
    forged = "10001000-10fff000 r-xp 00000000 08:01 12345"
    pid = mapped(f"{mark}{forged} /dev/full")
    known = symbols.UserSymbols()
    assert known.add_process(pid)
    assert known.name(pid, 0x10002000) == symbols.UNKNOWN
    rows = mappings.parse_maps(Path(f"/proc/{pid}/maps").read_bytes()).rows
    assert [row.path for row in rows if b"/dev/full" in row.path and row.start == 0x10001000] == []
    assert any(forged.encode() in row.path for row in rows)


@pytest.mark.parametrize("name", ["\x0c", "\u2028x", "a \x85 b"])
def test_an_odd_name_does_not_end_the_probe(mapped, name):
    pid = mapped(name)
    known = symbols.UserSymbols()
    assert known.add_process(pid)


def test_section_names_are_bounded(tmp_path):
    """4,096 sections whose names begin one after the other in a table without an end."""
    names_bytes = 200_000
    header = bytearray(64)
    header[:6] = b"\x7fELF\x02\x01"
    count, at = 4_000, 64
    header[40:48] = at.to_bytes(8, "little")  # sections at
    header[58:60] = (64).to_bytes(2, "little")
    header[60:62] = count.to_bytes(2, "little")
    rows = bytearray(64 * count)
    names_at = at + len(rows)
    for index in range(count):
        rows[64 * index : 64 * index + 4] = index.to_bytes(4, "little")
    rows[24:32] = names_at.to_bytes(8, "little")
    rows[32:40] = names_bytes.to_bytes(8, "little")
    place = tmp_path / "names"
    place.write_bytes(header + rows + b"n" * names_bytes)
    made = elf.ElfFile(place.read_bytes())
    assert len(made.sections) == count
    assert max(len(section.name) for section in made.sections) <= 64


def test_no_other_module_opens_what_a_process_names():
    """``/proc/PID/root`` and the paths of its maps are opened in one place."""
    house = Path(__file__).parents[3]
    found = [
        str(path.relative_to(house))
        for room in ("probes", "harness", "analysis", "reports")
        for path in (house / room).rglob("*.py")
        for line in path.read_text().splitlines()
        if "/root" in line and "/proc/" in line and "samefile" not in line
        if not line.strip().startswith(("#", "*", "`")) and "``" not in line
    ]
    assert found == [str(Path(stranger_file.__file__).relative_to(house))]
