"""Generated structs: the compiler must agree with BTF, and must object when it does not."""

import os
import subprocess
import tempfile

import pytest

from probes.bpf_loader.btf import Btf, MissingTypeError
from probes.bpf_loader.kernel_tree import header_files, kernel_tree, struct_source, version_code

pytestmark = pytest.mark.privileged

FIELDS = {
    "skc_num": ["__sk_common.skc_num"],
    "skc_state": ["__sk_common.skc_state"],
    "net": ["__sk_common.skc_net.net"],
    "rmem_alloc": ["sk_backlog.rmem_alloc.counter"],
    "sk_sndbuf": ["sk_sndbuf"],
}


@pytest.fixture(scope="module")
def btf():
    return Btf.of_kernel()


def compiled(text, tmp_path):
    """What gcc says to the text with the tree's types before it; '' when it compiles."""
    with kernel_tree() as tree:
        source = tmp_path / "t.c"
        source.write_text(f'#include "{tree}/include/linux/types.h"\n{text}')
        command = ["gcc", "-fsyntax-only", "-ffreestanding", "-std=gnu11", str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr if done.returncode else ""


def test_the_compiler_agrees_with_btf(btf, tmp_path):
    text = struct_source(btf, "sock", FIELDS)
    for name, (path,) in FIELDS.items():
        offset = btf.field("sock", path).offset_bytes
        text += f'_Static_assert(__builtin_offsetof(struct sock, {name}) == {offset}, "");\n'
    assert compiled(text, tmp_path) == ""


def test_a_wrong_padding_does_not_compile(btf, tmp_path):
    text = struct_source(btf, "sock", FIELDS)
    gap = text[text.index("_until_rmem_alloc[") :].split("[")[1].split("]")[0]
    broken = text.replace(f"_until_rmem_alloc[{gap}]", f"_until_rmem_alloc[{int(gap) + 8}]")
    assert "sock.rmem_alloc" in compiled(broken, tmp_path)


def test_the_first_spelling_that_the_kernel_has_is_taken(btf):
    text = struct_source(btf, "task_struct", {"tgid": ["no_such_field", "tgid"]})
    assert f"tgid) == {btf.field('task_struct', 'tgid').offset_bytes}" in text


def test_a_field_that_the_kernel_lacks_is_found_before_compiling(btf):
    with pytest.raises(MissingTypeError, match=r"sock\.no_such"):
        struct_source(btf, "sock", {"no_such": ["no_such"]})


@pytest.mark.parametrize(
    ("struct", "fields"),
    [
        ("sock_common", {"a": ["skc_daddr"], "b": ["skc_addrpair"]}),  # members of a union
        ("sock", {"a": ["__sk_common"]}),  # a struct
        ("sock", {"a b": ["sk_sndbuf"]}),  # no C name
        ("sock_common", {"a": ["skc_reuse"]}),  # a bit-field
    ],
)
def test_what_cannot_be_laid_out_is_refused(btf, struct, fields):
    with pytest.raises(ValueError, match=r"shares bytes|no integer|no C name|bit-field"):
        struct_source(btf, struct, fields)


def test_arrays_and_pointers_keep_their_size(btf, tmp_path):
    text = struct_source(btf, "task_struct", {"comm": ["comm"], "mm": ["mm"]})
    assert "8 comm[16];" in text
    assert "void *mm;" in text
    assert compiled(text, tmp_path) == ""


@pytest.mark.parametrize(
    ("release", "code"),
    [
        ("6.18.44-fc-v657", 0x06122C),
        ("6.1.0-56-cloud-amd64", 0x060100),
        ("5.10", 0x050A00),
        ("4.19.325+", 0x0413FF),
    ],
)
def test_version_code(release, code):
    assert version_code(release) == code


def test_the_tree_is_private_and_vanishes():
    with kernel_tree() as tree:
        assert tree.stat().st_mode & 0o777 == 0o700
        assert (tree / "include/linux/kconfig.h").is_file()
    assert not tree.exists()


def test_page_size_and_architecture_are_the_hosts():
    files = header_files("aarch64", "6.1.0", 65536)
    assert "65536" in files["include/asm/page.h"]
    assert "CONFIG_ARM64" in files["include/linux/kconfig.h"]


def test_trees_that_a_killed_compiler_left_are_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    old, fresh, victim = (tmp_path / f"connscope-tree-{name}" for name in ("old", "fresh", "link"))
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    for each in (old, fresh):
        (each / "include").mkdir(parents=True)
    victim.symlink_to(tmp_path / "precious")
    os.utime(old, (0, 0))
    os.utime(victim, (0, 0), follow_symlinks=False)
    with kernel_tree() as tree:
        assert tree.is_dir()
    assert not old.exists()
    assert fresh.is_dir()  # of somebody who compiles right now
    assert (tmp_path / "precious" / "file").exists()
