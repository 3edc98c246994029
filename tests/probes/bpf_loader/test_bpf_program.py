"""The loader: what is refused, by whom, in which words; maps in bulk."""

import numpy as np
import pytest

from probes.bpf_loader import cache as bpf_cache
from probes.bpf_loader import program as bpf_program
from probes.bpf_loader import syscalls as bpf_kernel
from probes.bpf_loader.btf import Btf
from probes.bpf_loader.program import (
    RAW_TRACEPOINT,
    BpfObject,
    BpfSource,
    MapType,
    check_bpf,
    compose,
)
from probes.contract.errors import ProbeUnavailableError
from probes.contract.probe import Target
from probes.ebpf import shared as bpf_shared
from probes.ebpf import sources as bpf_sources

pytestmark = pytest.mark.privileged

PAIR = np.dtype([("low", "<u4"), ("high", "<u4")])


@pytest.fixture(scope="module")
def btf():
    return Btf.of_kernel()


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(bpf_cache, "FOLDER", tmp_path / "kept")


def source(name, *, structs=None, constants=None, programs=None, maps=None):
    return BpfSource(name, structs or {}, constants or {}, programs or {}, maps or {})


@pytest.fixture
def write(monkeypatch, tmp_path):
    monkeypatch.setattr(bpf_program, "_C_DIRECTORY", tmp_path)

    def write(text):
        (tmp_path / "t.c").write_text(text)
        return "t.c"

    return write


def test_two_sources_share_one_struct_with_the_fields_of_both(btf, write):
    name = write("")
    text, _ = compose(
        btf,
        [
            source(name, structs={"sock": {"a": ["sk_sndbuf"]}}),
            source(name, structs={"sock": {"b": ["sk_rcvbuf"]}}),
        ],
    )
    assert text.count("struct sock {") == 1
    assert " a;" in text
    assert " b;" in text


def test_contradicting_constants_are_refused(btf, write):
    name = write("")
    with pytest.raises(ValueError, match="contradicts"):
        compose(btf, [source(name, constants={"A": 1}), source(name, constants={"A": 2})])
    with pytest.raises(ValueError, match="no C"):
        compose(btf, [source(name, constants={"A=1 -include/etc/passwd": 1})])


def test_a_missing_field_is_an_unavailable_probe(btf, write):
    with pytest.raises(ProbeUnavailableError, match=r"sock\.sk_gone"):
        BpfObject.load(btf, [source(write(""), structs={"sock": {"x": ["sk_gone"]}})])


def test_the_compilers_words_are_kept(btf, write):
    with pytest.raises(ProbeUnavailableError, match="no_such_thing"):
        BpfObject.load(btf, [source(write("int f(void *ctx) { return no_such_thing; }"))])


def test_a_program_that_the_verifier_refuses_leaves_the_others(btf, write):
    name = write(
        "int good(unsigned long long *ctx) { return 0; }\n"
        "int bad(unsigned long long *ctx) { return *(int *)(*(void **)0); }\n"
    )
    loaded = BpfObject.load(
        btf, [source(name, programs={"bad": RAW_TRACEPOINT, "good": RAW_TRACEPOINT})]
    )
    try:
        assert loaded.program("good") >= 0
        with pytest.raises(ProbeUnavailableError, match="refused the program bad"):
            loaded.program("bad")
        with pytest.raises(ProbeUnavailableError, match="no_such_event"):
            loaded.attach_raw_tracepoint("good", "no_such_event")
    finally:
        loaded.close()
        loaded.close()


@pytest.fixture
def table(btf, write):
    name = write(
        "struct pair { u32 low; u32 high; };\n"
        'BPF_TABLE("hash", struct pair, u64, pairs, 5000);\n'
        "BPF_PERCPU_ARRAY(each_cpu, u64, 3);\n"
        "int f(unsigned long long *ctx) { return 0; }\n"
    )
    loaded = BpfObject.load(
        btf,
        [source(name, maps={"pairs": MapType(PAIR, "<u8"), "each_cpu": MapType("<i4", "<u8")})],
    )
    yield loaded.maps
    loaded.close()


def test_more_entries_than_one_batch_come_back_exactly(table):
    for low in range(3009):
        table["pairs"].put((low, low + 1), low * 3)
    keys, values = table["pairs"].items()
    assert dict(zip(keys.tolist(), values[:, 0].tolist(), strict=True)) == {
        (low, low + 1): low * 3 for low in range(3009)
    }
    assert table["pairs"].get((7, 8)).tolist() == [21]
    assert table["pairs"].get((7, 7)) is None
    assert table["pairs"].delete((7, 8))
    assert not table["pairs"].delete((7, 8))
    keys, _ = table["pairs"].items(delete=True)
    assert len(keys) == 3008
    assert len(table["pairs"].items()[0]) == 0


def test_a_full_map_says_so(table):
    for low in range(5000):
        table["pairs"].put((low, 0), 1)
    with pytest.raises(OSError, match="too long"):  # E2BIG: max_entries
        table["pairs"].put((5000, 0), 1)


def test_a_per_cpu_map_has_a_value_per_cpu(table):
    table["each_cpu"].put(1, 23)
    _, values = table["each_cpu"].items()
    assert values.shape[0] == 3
    assert (values[1] == 23).all()
    assert (values[0] == 0).all()


def test_before_5_13_a_per_cpu_array_has_no_batches(table, monkeypatch):
    real = bpf_kernel.bpf

    def without_batches(command, attributes):
        if command in (bpf_kernel.LOOKUP_BATCH, bpf_kernel.LOOKUP_AND_DELETE_BATCH):
            raise OSError(524, "Unknown error 524")
        return real(command, attributes)

    table["each_cpu"].put(2, 23)
    expected = table["each_cpu"].items()
    monkeypatch.setattr(bpf_kernel, "bpf", without_batches)
    keys, values = table["each_cpu"].items()
    assert keys.tolist() == expected[0].tolist() == [0, 1, 2]
    assert values.tolist() == expected[1].tolist()
    with pytest.raises(OSError, match="524"):
        table["pairs"].items()


def test_types_must_have_the_sizes_of_the_map(btf, write):
    name = write("BPF_HASH(t, u32, u64);\nint f(unsigned long long *ctx) { return 0; }\n")
    with pytest.raises(ValueError, match="not 8 and 8"):
        BpfObject.load(btf, [source(name, maps={"t": MapType("<u8", "<u8")})])


def test_without_root_the_fix_is_sudo(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(ProbeUnavailableError, match="root") as caught:
        check_bpf()
    assert "sudo" in caught.value.fix


def test_without_btf_the_fix_names_the_kernel_option(monkeypatch, tmp_path):
    monkeypatch.setattr(bpf_program, "VMLINUX_BTF", tmp_path / "vmlinux")
    with pytest.raises(ProbeUnavailableError) as caught:
        check_bpf()
    assert "CONFIG_DEBUG_INFO_BTF" in caught.value.fix


def test_without_bcc_the_fix_is_the_package(monkeypatch):
    monkeypatch.setattr(bpf_program, "package_directories", list)
    with pytest.raises(ProbeUnavailableError) as caught:
        check_bpf()
    assert caught.value.fix == "apt-get install python3-bpfcc"


def test_the_layouts_are_those_of_the_c_and_the_object_is_shared():
    target = Target(None, {}, frozenset({80, 65535}), None)
    first = bpf_shared.acquire("first", target, bpf_sources.tcp_events)
    second = bpf_shared.acquire("second", target, bpf_sources.tcp_snapshot)
    assert first is second
    assert not first.refused
    ports = first.maps["config"].get(0)[0]["server_ports"]
    assert [port for port in range(65536) if ports[port >> 3] >> (port & 7) & 1] == [80, 65535]
    bpf_shared.release("first", first)
    assert second.programs
    bpf_shared.release("second", second)
    assert not second.programs


def test_two_targets_have_objects_of_their_own():
    one, other = (Target(None, {}, frozenset({port}), None) for port in (1, 2))
    first = bpf_shared.acquire("first", one, bpf_sources.tcp_events)
    second = bpf_shared.acquire("second", other, bpf_sources.tcp_events)
    assert first is not second
    bpf_shared.release("second", second)
    assert first.programs
    bpf_shared.release("first", first)


def test_a_kernel_that_lacks_a_field_loses_that_probe_only(monkeypatch):
    real = Btf.field

    def without_listener_backlog(self, struct, path):
        return real(self, struct, "no_such" if path == "sk_ack_backlog" else path)

    monkeypatch.setattr(Btf, "field", without_listener_backlog)
    target = Target(None, {}, frozenset({80}), None)
    events = bpf_shared.acquire("events", target, bpf_sources.tcp_events)
    try:
        with pytest.raises(ProbeUnavailableError, match="sk_ack_backlog"):
            bpf_shared.acquire("snapshot", target, bpf_sources.tcp_snapshot)
    finally:
        bpf_shared.release("events", events)
