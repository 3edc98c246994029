"""The BTF reader against bpftool, on this kernel's own types."""

import json
import struct
import subprocess

import pytest

from probes.bpf_loader.btf import VMLINUX_BTF, Btf, MissingTypeError
from probes.contract.errors import ProbeUnavailableError

pytestmark = pytest.mark.privileged

STRUCTS = (
    "sock_common", "sock", "tcp_sock", "inet_connection_sock", "sk_buff", "net", "net_device",
    "task_struct", "pt_regs", "socket_alloc", "kmem_cache", "bpf_prog_info", "bpf_iter__tcp",
)  # fmt: skip


@pytest.fixture(scope="module")
def btf():
    return Btf.of_kernel()


@pytest.fixture(scope="module")
def oracle():
    done = subprocess.run(
        ["bpftool", "btf", "dump", "-j", "file", str(VMLINUX_BTF)], capture_output=True, check=True
    )
    return {each["id"]: each for each in json.loads(done.stdout)["types"]}


def by_name(oracle, name, *kinds):
    return next(each for each in oracle.values() if each["name"] == name and each["kind"] in kinds)


def behind(oracle, type_id):
    while type_id and oracle[type_id]["kind"] in (
        "TYPEDEF", "CONST", "VOLATILE", "RESTRICT", "TYPE_TAG",
    ):  # fmt: skip
        type_id = oracle[type_id]["type_id"]
    return oracle.get(type_id)


def size_of(oracle, type_id):
    each = behind(oracle, type_id)
    if each["kind"] == "PTR":
        return 8
    if each["kind"] == "ARRAY":
        return each["nr_elems"] * size_of(oracle, each["type_id"])
    return each["size"]


def flat(oracle, each, base_bits=0):
    """(name, bit offset, type, bit-field width) of every member, through anonymous ones."""
    for member in each["members"]:
        bits = base_bits + member["bits_offset"]
        if member["name"] == "(anon)":
            yield from flat(oracle, behind(oracle, member["type_id"]), bits)
        else:
            yield member["name"], bits, member["type_id"], member.get("bitfield_size", 0)


@pytest.mark.parametrize("name", STRUCTS)
def test_every_field_is_where_bpftool_says(btf, oracle, name):
    each = by_name(oracle, name, "STRUCT")
    assert btf.size_bytes(name) == each["size"]
    compared = 0
    for member, bits, type_id, width in flat(oracle, each):
        if width:
            with pytest.raises(ValueError, match="bit-field"):
                btf.field(name, member)
            continue
        found = btf.field(name, member)
        assert (found.offset_bytes, found.size_bytes) == (bits // 8, size_of(oracle, type_id))
        compared += 1
    assert compared > 0


def test_nested_path_adds_up_the_offsets(btf):
    outer = btf.field("sock", "sk_backlog")
    inner = btf.field("sock", "sk_backlog.rmem_alloc.counter")
    assert outer.offset_bytes <= inner.offset_bytes < outer.offset_bytes + outer.size_bytes
    assert (inner.kind, inner.signed, inner.size_bytes) == ("int", True, 4)


@pytest.mark.parametrize("name", ["skb_drop_reason", "bpf_prog_type", "bpf_map_type"])
def test_enum_values_are_bpftools(btf, oracle, name):
    each = by_name(oracle, name, "ENUM", "ENUM64")
    # bpftool extends the sign of a 32-bit value whether or not the enum has one
    expected = {value["name"]: value["val"] & 0xFFFFFFFF for value in each["values"]}
    assert btf.enum(name) == expected


def test_a_negative_enumerator_keeps_its_sign(btf, oracle):
    signed = next(
        each
        for each in oracle.values()
        if each["kind"] == "ENUM"
        and each["name"] != "(anon)"
        and any(value["val"] < 0 for value in each["values"])
    )
    assert min(btf.enum(signed["name"]).values()) < 0


def test_tracepoint_arguments_are_named_by_their_types(btf):
    assert btf.tracepoint_arguments("inet_sock_set_state") == ["sock", "int", "int"]
    assert btf.tracepoint_arguments("sys_exit")[0] == "pt_regs"


@pytest.mark.parametrize(
    "ask",
    [
        lambda btf: btf.size_bytes("no_such_struct"),
        lambda btf: btf.field("sock", "sk_no_such"),
        lambda btf: btf.field("sock", "sk_backlog.no_such"),
        lambda btf: btf.first_field("task_struct", "no_such", "neither"),
        lambda btf: btf.enum("no_such_enum"),
        lambda btf: btf.tracepoint_arguments("no_such_event"),
    ],
)
def test_what_is_not_there_is_said(btf, ask):
    with pytest.raises(MissingTypeError, match="this kernel has no"):
        ask(btf)


def test_first_field_takes_the_spelling_of_this_kernel(btf):
    assert btf.first_field("task_struct", "no_such", "tgid") == btf.field("task_struct", "tgid")


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"\x00" * 24,
        struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, 100, 100, 10),
        struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, 12, 12, 1)
        + struct.pack("=III", 0, 31 << 24, 0)
        + b"\0",
        struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, 12, 12, 1)
        + struct.pack("=III", 0, 4 << 24 | 9, 0)
        + b"\0",
    ],
    ids=["empty", "no magic", "cut", "unknown kind", "members cut"],
)
def test_a_damaged_blob_is_an_unavailable_probe(blob):
    with pytest.raises(ProbeUnavailableError, match="BTF"):
        Btf(blob)


def test_a_kernel_without_btf_is_an_unavailable_probe(tmp_path):
    with pytest.raises(ProbeUnavailableError) as caught:
        Btf.of_kernel(tmp_path / "vmlinux")
    assert "CONFIG_DEBUG_INFO_BTF" in caught.value.fix
