"""Names of addresses, against nm and known files."""

import ctypes
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from probes.symbols.elf_symbols import ElfSymbols
from probes.symbols.kernel import KernelSymbols
from probes.symbols.mappings import parse_maps
from probes.symbols.stacks import frames_of, join_stack
from probes.symbols.symbols import UserSymbols

KALLSYMS = """\
ffffffff81000000 T _stext
ffffffff81000040 t first_function
ffffffff81000080 D some_data
ffffffff81000100 T second_function
ffffffffc0000000 t of_a_module\t[nf_conntrack]
ffffffff81000060 W weak_function
"""


@pytest.fixture
def kernel(tmp_path):
    path = tmp_path / "kallsyms"
    path.write_text(KALLSYMS)
    return KernelSymbols(path)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (0xFFFFFFFF81000040, "first_function"),
        (0xFFFFFFFF8100005F, "first_function"),
        (0xFFFFFFFF81000060, "weak_function"),
        (0xFFFFFFFF81000090, "weak_function"),  # data is no function
        (0xFFFFFFFF81000100, "second_function"),
        (0xFFFFFFFFC0000010, "of_a_module"),
        (0x1000, "0x1000"),
    ],
)
def test_an_address_belongs_to_the_function_before_it(kernel, address, name):
    assert kernel.name(address) == name


def test_a_caller_is_looked_up_before_its_return_address(kernel):
    # 0x...100 as a return address: the call is the last instruction of the function before
    stack = kernel.stack([0xFFFFFFFF81000040, 0xFFFFFFFF81000100])
    assert stack == "weak_function_[k];first_function_[k]"


def test_hidden_addresses_are_no_names(tmp_path):
    path = tmp_path / "kallsyms"
    path.write_text("0000000000000000 T a\n0000000000000000 T b\n")
    assert KernelSymbols(path).name(0xFFFFFFFF81000000) == "0xffffffff81000000"
    assert KernelSymbols(tmp_path / "none").name(5) == "0x5"


def test_frames_come_root_first_and_keep_the_separator():
    assert join_stack(["leaf", "a;b", "root"]) == "root;a,b;leaf"
    assert frames_of([3, 2, 1, 0, 0]) == [3, 2, 1]
    assert frames_of([3, 2]) == [3, 2]


def test_every_function_that_nm_lists_is_found():
    path = Path(zlib_path())
    done = subprocess.run(["nm", "-D", "-S", path], capture_output=True, text=True, check=True)
    symbols = symbols_of(path)
    functions = [line.split() for line in done.stdout.splitlines() if " T " in line]
    sizes = {int(value, 16): int(size, 16) for value, size, _, _ in functions}
    names = {}
    for value, _, _, name in functions:
        names.setdefault(int(value, 16), set()).add(name.split("@")[0])
    assert len(sizes) > 50
    for value, size in sizes.items():
        # libz is linked so that offsets in its text are addresses; the segments say so
        assert symbols.name(value) in names[value]
        assert symbols.name(value + size - 1) in names[value]


def symbols_of(path):
    symbols = ElfSymbols(os.open(path, os.O_RDONLY))
    symbols.finish()
    return symbols


def zlib_path():
    zlib.adler32(b"")
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "/libz.so" in line:
            return line.split()[-1]
    raise AssertionError("zlib is not a shared library here")


def test_the_own_process_is_named():
    user = UserSymbols()
    assert user.add_process(os.getpid())
    address = ctypes.cast(ctypes.pythonapi.PyLong_FromLong, ctypes.c_void_p).value
    assert user.name(os.getpid(), address + 2) == "PyLong_FromLong"
    assert user.stack(os.getpid(), [address, 0x10, 0x20, 0x30]) == "[unknown];PyLong_FromLong"


def test_a_process_that_ended_keeps_its_names():
    code = "print('up', flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    child.stdout.readline()
    user = UserSymbols()
    user.add_process(child.pid)
    start = next(
        int(line.split("-")[0], 16)
        for line in Path(f"/proc/{child.pid}/maps").read_text().splitlines()
        if "r-xp" in line and "libc" in line
    )
    child.communicate("\n")
    assert (
        "libc" in user.name(child.pid, start + 1) or user.name(child.pid, start + 1).isidentifier()
    )
    assert not user.add_process(child.pid)


def test_maps_keep_the_executable_ones():
    text = (
        b"1000-2000 r--p 00000000 08:01 1 /bin/a b\n"
        b"2000-3000 r-xp 00001000 08:01 1 /bin/a b\n"
        b"5000-6000 r-xp 00000000 00:00 0\n"
    )
    maps = parse_maps(text)
    assert maps.starts == [0x2000, 0x5000]
    rows = [(row.end, row.file_offset, row.path, row.is_file) for row in maps.rows]
    assert rows == [(0x3000, 0x1000, b"/bin/a b", True), (0x6000, 0, b"[anon]", False)]


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"\x7fELF\x02\x01" + b"\xff" * 80, b"text"])
def test_what_is_no_elf_has_no_names(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert symbols_of(path).name(0) is None
    assert ElfSymbols(content).name(0) is None
