"""ELF files against binutils: symbol tables, build ids, debug files, Go's function tables."""

import lzma
import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from probes.symbols import debug_files
from probes.symbols.debug_files import embedded_debug_file, is_debug_file_of
from probes.symbols.debug_places import open_candidates
from probes.symbols.demangle import demangle, without_parameters
from probes.symbols.elf import ElfFile, symbol_table
from probes.symbols.elf_symbols import ElfSymbols
from probes.symbols.go import go_table

PROGRAMS = Path(__file__).parents[1] / "programs"
NODE_MODULES = Path(__file__).parents[2] / "node_modules"
GO_VERSIONS = ("go1.2", "go1.16", "go1.18", "go1.26")  # each with another layout of its table


def opened(path):
    return ElfFile(os.open(path, os.O_RDONLY))


def named(path, mapped_as="", roots=()):
    """The names of a file, as the probe process and its parser find them together."""
    symbols = ElfSymbols(os.open(path, os.O_RDONLY))
    if symbols.wants_debug:
        offers = open_candidates(symbols.build_id, symbols.debug_name, mapped_as, roots)
        any(symbols.offer_debug(fd) for fd in offers)
    symbols.finish()
    return symbols


@pytest.fixture(scope="module")
def library():
    """A small C++ library with all its symbols, of a wheel that every environment of ours has."""
    found = find_spec("matplotlib._path")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin)


def functions_by_nm(path):
    done = subprocess.run(["nm", "-S", path], capture_output=True, text=True, check=True)
    rows = [line.split() for line in done.stdout.splitlines()]
    return [(int(r[0], 16), int(r[1], 16), r[3]) for r in rows if len(r) == 4 and r[2] in "tTwW"]


def test_every_function_of_the_symbol_table_is_found(library):
    table = symbol_table(opened(library))
    expected = {}
    for start, size, name in functions_by_nm(library):
        expected.setdefault(start, set()).add(name)
        expected.setdefault(start + size - 1, set()).add(name)
    assert len(expected) > 200
    missed = [hex(at) for at, names in expected.items() if table.find(at) not in names]
    assert not missed


def test_the_build_id_is_the_one_that_readelf_says(library):
    done = subprocess.run(["readelf", "-n", library], capture_output=True, text=True, check=True)
    assert opened(library).build_id() in done.stdout
    assert len(opened(library).build_id()) == 40


@pytest.fixture
def stripped(library, tmp_path):
    """A stripped copy of the library and its debug file, in a file system of their own."""
    place = tmp_path / "opt" / "lib.so"
    place.parent.mkdir()
    shutil.copy(library, place)
    debug = tmp_path / "lib.debug"
    subprocess.run(["objcopy", "--only-keep-debug", place, debug], check=True)
    subprocess.run(["strip", "--strip-all", place], check=True)
    assert symbol_table(opened(place)) is None
    return place, debug


def a_local_function(path):
    """Address and name of a function that nobody outside of the file can call."""
    exported = subprocess.run(["nm", "-D", path], capture_output=True, text=True, check=True).stdout
    return next((s, n) for s, size, n in functions_by_nm(path) if size > 64 and n not in exported)


def test_a_stripped_library_is_named_by_the_debug_file_of_its_build_id(library, stripped, tmp_path):
    place, debug = stripped
    start, name = a_local_function(library)
    roots = (str(tmp_path), "/nowhere")
    assert named(place, "/opt/lib.so", roots).name(start) != demangle(name)
    build_id = opened(place).build_id()
    folder = tmp_path / "usr/lib/debug/.build-id" / build_id[:2]
    folder.mkdir(parents=True)
    (folder / f"{build_id[2:]}.debug").write_bytes(library.read_bytes()[:100])  # a torn one
    assert named(place, "/opt/lib.so", roots).name(start) != demangle(name)
    shutil.copy(debug, folder / f"{build_id[2:]}.debug")
    assert named(place, "/opt/lib.so", roots).name(start) == demangle(name)


def test_a_debug_link_counts_only_with_its_checksum(library, stripped, tmp_path):
    place, debug = stripped
    linked = place.parent / ".debug" / "lib.debug"
    linked.parent.mkdir()
    shutil.copy(debug, linked)
    subprocess.run(
        ["objcopy", "--remove-section=.note.gnu.build-id", f"--add-gnu-debuglink={debug}", place],
        check=True,
    )
    elf = opened(place)
    assert elf.build_id() == ""
    assert elf.debug_link()[0] == "lib.debug"
    start, name = a_local_function(library)
    roots = (str(tmp_path),)
    assert named(place, "/opt/lib.so", roots).name(start) == demangle(name)
    with linked.open("ab") as stream:
        stream.write(b"other")
    assert not is_debug_file_of(elf, opened(linked))
    assert named(place, "/opt/lib.so", roots).name(start) != demangle(name)


def with_embedded(place, payload):
    """Puts bytes into the section in which Fedora's programs carry their names."""
    part = place.parent / "payload"
    part.write_bytes(payload)
    subprocess.run(["objcopy", "--add-section", f".gnu_debugdata={part}", place], check=True)


def test_a_program_of_fedora_is_named_by_what_it_carries_compressed(library, stripped, tmp_path):
    place, debug = stripped
    start, name = a_local_function(library)
    exported = subprocess.run(["nm", "-D", place], capture_output=True, text=True, check=True)
    others = {line.split()[-1] for line in exported.stdout.splitlines()}
    keep = tmp_path / "keep"  # the recipe of GDB's manual, "MiniDebugInfo"
    keep.write_text("\n".join({n for _, _, n in functions_by_nm(library)} - others))
    mini = tmp_path / "mini"
    shutil.copy(debug, mini)
    subprocess.run(["objcopy", "-S", f"--keep-symbols={keep}", mini], check=True)
    subprocess.run(["xz", mini], check=True)
    assert named(place).name(start) != demangle(name)
    with_embedded(place, (tmp_path / "mini.xz").read_bytes())
    symbols = named(place)
    assert symbols.name(start) == demangle(name)
    start, name = next((s, n) for s, _, n in functions_by_nm(library) if n in others)
    assert symbols.name(start) == demangle(name)  # what others may call is in .dynsym alone


@pytest.mark.parametrize("kind", ["cut", "no xz", "no ELF", "too large", "a dictionary of 1 GiB"])
def test_what_a_program_carries_is_not_trusted(library, stripped, monkeypatch, kind):
    place, _ = stripped
    monkeypatch.setattr(debug_files, "MAX_EMBEDDED_BYTES", 1 << 20)
    large = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
    with_embedded(
        place,
        {
            "cut": lzma.compress(library.read_bytes())[:1000],
            "no xz": b"\xfd7zXZ\0" + bytes(64),
            "no ELF": lzma.compress(b"names" * 1000),
            "too large": lzma.compress(library.read_bytes() + bytes(1 << 20)),
            "a dictionary of 1 GiB": lzma.compress(b"", filters=large),
        }[kind],
    )
    with pytest.raises(ValueError, match=r"gnu_debugdata|ELF"):
        embedded_debug_file(opened(place))
    start, name = a_local_function(library)
    assert named(place).name(start) != demangle(name)


def assembled(tmp_path, bits, *link):
    """A program of ``programs/``, without any library."""
    made, program = tmp_path / "turns.o", tmp_path / "turns"
    source = PROGRAMS / f"turns_{bits}.s"
    subprocess.run(["as", f"--{bits}", source, "-o", made], check=True)
    subprocess.run(["ld", *link, made, "-o", program], check=True)
    return program


@pytest.mark.parametrize(
    ("bits", "link"),
    [
        (32, ["-m", "elf_i386", "-static"]),
        (32, ["-m", "elf_i386", "-static", "-pie", "--no-dynamic-linker"]),
        (32, ["-m", "elf_i386", "-shared", "--build-id"]),
        (64, ["-static"]),
        (64, ["-static", "-pie", "--no-dynamic-linker"]),
    ],
)
def test_32_bit_and_static_programs_name_their_functions(tmp_path, bits, link):
    program = assembled(tmp_path, bits, *link)
    elf = opened(program)
    symbols = named(program)
    functions = {"_start", "turns_outer", "turns_inner"}
    nm = subprocess.run(["nm", program], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in nm.splitlines()]
    starts = {name: int(start, 16) for start, _, name in rows if name in functions}
    assert set(starts) == functions
    for name, start in starts.items():
        segment = next(s for s in elf.segments if s[2] <= start < s[2] + s[1])
        assert symbols.name(start - segment[2] + segment[0] + 2) == name
    notes = subprocess.run(["readelf", "-n", program], capture_output=True, text=True, check=True)
    assert elf.build_id() in notes.stdout
    assert bool(elf.build_id()) is ("--build-id" in link)
    exported = symbol_table(elf, is_dynamic=True)
    if "-shared" in link:
        assert exported.find(starts["_start"]) == "_start"
    else:
        assert not exported  # none, or one that is empty


@pytest.mark.node
@pytest.mark.parametrize("version", GO_VERSIONS)
def test_a_stripped_go_program_names_its_functions(version):
    path = NODE_MODULES / version / "bin" / "esbuild"
    if not path.is_file():
        pytest.skip("the npm packages of the tests are not installed (cd tests && npm ci)")
    elf = opened(path)
    assert symbol_table(elf) is None
    table = go_table(elf)
    assert len(table) > 4000
    assert table.find(elf.entry) == "_rt0_amd64_linux"
    names = {table.find(int(start)) for start in table._starts}
    assert {"main.main", "runtime.main", "runtime.goexit", "runtime.gcBgMarkWorker"} <= {
        str(name).split("·")[0] for name in names
    }
    start, end = int(table._starts[100]), int(table._starts[101])
    assert table.find(start) == table.find(end - 1) != table.find(end)
    assert table.find(int(table._starts[0]) - 1) is None
    offset, _, address = next(s for s in elf.segments if s[2] <= elf.entry < s[2] + s[1])
    assert named(path).name(elf.entry - address + offset) == "_rt0_amd64_linux"


@pytest.mark.node
@pytest.mark.parametrize("at", [4, 8, 40, 64, 72])
def test_a_go_table_that_lies_has_no_names(tmp_path, at):
    path = NODE_MODULES / "go1.18" / "bin" / "esbuild"
    if not path.is_file():
        pytest.skip("the npm packages of the tests are not installed (cd tests && npm ci)")
    raw = bytearray(path.read_bytes())
    begin = opened(path).section(".gopclntab").offset
    raw[begin + at : begin + at + 8] = b"\xfe" * 8
    broken = tmp_path / "broken"
    broken.write_bytes(raw)
    symbols = named(broken)
    names = [symbols.name(offset) for offset in range(0x1000, 0x3000, 0x100)]
    assert all(name is None or len(name) < 4096 for name in names)


def test_a_file_that_shrinks_loses_its_names_and_nothing_else(library, tmp_path):
    path = tmp_path / "lib.so"
    shutil.copy(library, path)
    symbols = named(path)
    start = functions_by_nm(library)[0][0]
    path.write_bytes(b"")
    assert symbols.name(start) is None


@pytest.mark.parametrize(
    ("mangled", "name"),
    [
        ("_ZN2v88internal4Heap14CollectGarbageEiNS0_23GarbageCollectionReasonE", None),
        ("_ZN12_GLOBAL__N_11gEi", "(anonymous namespace)::g"),
        ("_ZNK1AclEi", "A::operator()"),
        ("_ZN1AcviEv", "A::operator int"),
        ("_Z1fIcEvT_", "f<char>"),
        ("uv__server_io", "uv__server_io"),
        ("_Z", "_Z"),
        ("_ZN4core3ptr13drop_in_place17h0123456789abcdefE", "core::ptr::drop_in_place"),
        ("_Z1fi.part.0", "f"),
        ("_Z" + "9" * 5000, "_Z" + "9" * 5000),
    ],
)
def test_mangled_names_become_readable(mangled, name):
    assert demangle(mangled) == (name or "v8::internal::Heap::CollectGarbage")


def test_a_name_that_doubles_itself_again_and_again_stays_as_it_is():
    levels = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    bomb = "_Z1f4pairIiiE" + "".join(f"S_IS{x}_S{x}_E" for x in levels)
    assert demangle(bomb) == bomb


def test_demangled_names_are_those_of_cxxfilt(library):
    mangled = [name for _, _, name in functions_by_nm(library) if name.startswith("_ZN")][:300]
    done = subprocess.run(
        ["c++filt", "--no-params"],
        input="\n".join(mangled),
        capture_output=True,
        text=True,
        check=True,
    )
    pairs = list(zip(map(demangle, mangled), done.stdout.splitlines(), strict=True))
    # the demangler of libstdc++ writes std::string where that of binutils spells it out
    pairs = [pair for pair in pairs if "basic_string" not in pair[1] and "std::s" not in pair[0]]
    differ = [pair for pair in pairs if pair[0] != pair[1].split(" [clone")[0]]
    assert len(pairs) > 100
    assert not differ


def test_a_lambda_keeps_the_function_that_it_is_in():
    name = "a::f(int const&)::{lambda(void*)#1}::operator()(void*) const"
    assert without_parameters(name) == "a::f(int const&)::{lambda(void*)#1}::operator()"
