"""What is kept of a compiled object: that it does the same, and whose file is passed over."""

import json
import os

import pytest

from probes.bpf_loader import cache as bpf_cache
from probes.bpf_loader import program as bpf_program
from probes.bpf_loader.btf import Btf
from probes.bpf_loader.program import RAW_TRACEPOINT, TRACING, BpfObject, BpfSource, MapType
from probes.bpf_loader.syscalls import map_layout, read_iterator
from probes.contract.probe import Target
from probes.ebpf import shared as bpf_shared
from probes.ebpf import sources as bpf_sources

pytestmark = pytest.mark.privileged

BUILDERS = (bpf_sources.failing_syscalls, bpf_sources.cpu_stacks, bpf_sources.tcp_snapshot)


@pytest.fixture(scope="module")
def btf():
    return Btf.of_kernel()


@pytest.fixture
def folder(monkeypatch, tmp_path):
    folder = tmp_path / "kept"
    monkeypatch.setattr(bpf_cache, "FOLDER", folder)
    return folder


@pytest.fixture
def compilers(monkeypatch):
    """The requests that came to the compiler."""
    asked = []
    ask = bpf_program._ask_compiler

    def noted(request):
        asked.append(request)
        return ask(request)

    monkeypatch.setattr(bpf_program, "_ask_compiler", noted)
    return asked


def shape(loaded):
    maps = {name: map_layout(each.fd) for name, each in loaded.maps.items()}
    return maps, list(loaded.programs), loaded.refused


def work(loaded, table_of_files):
    """Points it at this process and takes what its programs then see."""
    bpf_shared.aim(loaded, Target(None, {}, frozenset({80}), None), [os.getpid()])
    link = loaded.attach_raw_tracepoint("failing_syscalls", "sys_exit")
    for _ in range(23):
        with pytest.raises(FileNotFoundError):
            os.stat(table_of_files)
    os.close(link)
    keys, counts = loaded.maps["failures"].items()
    link = loaded.attach_iterator("bpf_iter__tcp")
    read_iterator(link, 4096)
    os.close(link)
    sockets = loaded.maps["snapshot_sums"].get(0)["by"]["sockets"].sum()
    return {int(k["errno"]): int(c["count"].sum()) for k, c in zip(keys, counts, strict=True)}, (
        sockets > 0
    )


def test_what_is_kept_does_the_same_without_a_compiler(btf, folder, compilers, tmp_path):
    seen = []
    for _ in range(2):
        loaded = bpf_shared.load(BUILDERS, btf)
        try:
            clocks = loaded.attach_cpu_clock("cpu_sample", 9)
            for fd in clocks:
                os.close(fd)
            seen.append((shape(loaded), work(loaded, tmp_path / "gone")))
        finally:
            loaded.close()
    assert len(compilers) == 1
    assert seen[0] == seen[1]
    errors, has_sockets = seen[1][1]
    assert errors[2] >= 23
    assert has_sockets
    (kept,) = folder.iterdir()
    assert (folder.stat().st_mode & 0o777, kept.stat().st_mode & 0o777) == (0o700, 0o600)


@pytest.fixture
def small(btf, folder, monkeypatch, tmp_path):
    """Loads a small object; ``load(text)`` says what it is."""
    monkeypatch.setattr(bpf_program, "_C_DIRECTORY", tmp_path)
    counts = 'BPF_TABLE("hash", u32, u64, counts, 100);\n'

    def load(text="int f(unsigned long long *ctx) { u32 k = 7; counts.increment(k); return 0; }"):
        (tmp_path / "t.c").write_text(counts + text)
        source = BpfSource("t.c", {}, {}, {"f": RAW_TRACEPOINT}, {"counts": MapType("<u4", "<u8")})
        loaded = BpfObject.load(btf, [source])
        try:
            return dict(loaded.refused)
        finally:
            loaded.close()

    return load


def spoil_owner(kept):
    os.chown(kept, 65534, 65534)


def spoil_mode(kept):
    kept.chmod(0o666)


def spoil_folder(kept):
    kept.parent.chmod(0o777)


def spoil_content(kept):
    kept.write_text(kept.read_text()[:-9])


def spoil_code(kept):
    content = json.loads(kept.read_text())
    content["programs"][0]["code"] = "ff" * 16
    kept.write_text(json.dumps(content))


def spoil_link(kept):
    real = kept.rename(kept.parent.parent / "elsewhere.json")
    kept.symlink_to(real)


@pytest.mark.parametrize(
    "spoil", [spoil_owner, spoil_mode, spoil_folder, spoil_content, spoil_code, spoil_link]
)
def test_what_is_not_roots_alone_or_not_whole_is_compiled_anew(small, folder, compilers, spoil):
    small()
    small()
    assert len(compilers) == 1
    (kept,) = folder.iterdir()
    spoil(kept)
    assert small() == {}
    assert len(compilers) == 2


def test_another_text_is_another_object(small, folder, compilers):
    small()
    small("int f(unsigned long long *ctx) { return 0; }")
    assert len(compilers) == 2
    assert len(list(folder.iterdir())) == 2


def test_a_program_that_was_refused_is_told_each_time(small, folder, compilers):
    for _ in range(2):
        assert "f" in small("int f(unsigned long long *ctx) { return *(int *)(*(void **)0); }")
    assert len(compilers) == 2
    assert not folder.exists()


def test_without_a_place_to_keep_it_everything_works(small, folder, compilers):
    folder.write_text("a file where the folder would be")
    for _ in range(2):
        assert small() == {}
    assert len(compilers) == 2


def test_the_oldest_are_dropped(small, folder, monkeypatch):
    small()
    for index in range(bpf_cache.MOST_FILES):
        old = folder / f"{index}.json"
        old.write_text("{}")
        os.utime(old, (index, index))
    small("int f(unsigned long long *ctx) { return 0; }")
    names = {path.name for path in folder.iterdir()}
    assert len(names) == bpf_cache.MOST_FILES
    assert "0.json" not in names
    assert f"{bpf_cache.MOST_FILES - 1}.json" in names


def test_a_kernel_function_is_found_by_its_name(btf):
    assert btf.function_id("bpf_iter_tcp") > 0
    assert bpf_sources.tcp_snapshot(btf).programs == {"bpf_iter__tcp": TRACING}
