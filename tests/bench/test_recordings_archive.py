"""Archives of runs: the same bytes always, no path of this machine, nothing but parts of a run."""

from __future__ import annotations

import io
import lzma
import os
import tarfile

import pytest

from bench.recordings import archive
from probes.contract import schema
from probes.contract.errors import RunDirError
from probes.contract.rundir import create_run_dir, open_run_dir

SECRET = "/home/somebody/connscope"


@pytest.fixture
def run(tmp_path):
    """A run of the real writer that names a path of this machine."""
    run = create_run_dir(tmp_path / "runs", "small")
    run.write_manifest(
        {
            "schema_version": schema.SCHEMA_VERSION,
            "argv": ["profile-run", "--output", f"{SECRET}/runs"],
            "host": {"cgroup": {"path": "/a/group"}},
        }
    )
    writer = run.writer("events", "test")
    writer.append(1_009, "stalled", 23, f"{SECRET}/server.py said so")
    writer.close()
    (run.path / "live.bin").write_bytes(b"live")
    (run.path / "logs" / "server.log").write_text("what a server said")
    return run


def test_a_run_comes_back_without_what_nobody_reads(run, tmp_path):
    hidden = archive.stand_ins({SECRET: "/srv/connscope"})
    size = archive.pack(run.path, tmp_path / "a.tar.xz", hidden, with_live=False)
    back = archive.unpack(tmp_path / "a.tar.xz", tmp_path / "back")
    assert size == (tmp_path / "a.tar.xz").stat().st_size
    names = {path.name for path in back.rglob("*") if path.is_file()}
    assert names == {"manifest.json", f"test-{os.getpid()}.arrows"}
    (row,) = open_run_dir(back).read_table("events").table.to_pylist()
    assert row["at_ns"] == 1_009
    assert row["detail"] == "/srv/connscope----------/server.py said so"
    assert SECRET.encode() not in (back / "manifest.json").read_bytes()


def test_packing_twice_gives_the_same_bytes(run, tmp_path):
    for name in ("a", "b"):
        archive.pack(run.path, tmp_path / f"{name}.tar.xz", {}, with_live=True)
        for path in run.path.rglob("*"):
            os.utime(path, (name == "a", 1))
    assert (tmp_path / "a.tar.xz").read_bytes() == (tmp_path / "b.tar.xz").read_bytes()


def test_a_stream_that_was_cut_keeps_its_length(run, tmp_path):
    (stream,) = run.path.glob("raw/events/*.arrows")
    os.truncate(stream, stream.stat().st_size - 30)
    hidden = archive.stand_ins({SECRET: "/srv/connscope"})
    archive.pack(run.path, tmp_path / "a.tar.xz", hidden, with_live=False)
    back = archive.unpack(tmp_path / "a.tar.xz", tmp_path)
    (cut,) = back.glob("raw/events/*.arrows")
    assert cut.stat().st_size == stream.stat().st_size


@pytest.mark.parametrize(
    ("hidden", "shown"),
    [
        ("/home/me/connscope", b"/srv/connscope----"),
        ("/a", b"/s"),
        ("/srv/connscope", b"/srv/connscope"),
    ],
)
def test_a_stand_in_is_as_long_as_what_it_stands_for(hidden, shown):
    assert archive.stand_ins({hidden: "/srv/connscope"}) == {hidden.encode(): shown}


def test_the_longer_path_is_replaced_first():
    assert list(archive.stand_ins({"/a": "/x", "/a/b": "/y"})) == [b"/a/b", b"/a"]


def test_no_control_group_of_the_machine_is_left_and_their_order_is(run, tmp_path):
    writer = run.writer("cgroups", "test")
    for level, path in enumerate(("/a/group/of-a-shop", "/a/group", "/a", "/")):
        writer.append(1_009, 23, level, 7 + level, path)
    writer.append(1_010, 23, 1, 9, "/system.slice/shop-front.service")
    writer.close()
    writer = run.writer("events", "other")
    writer.append(1_010, "process_exited", 23, "killed in /a/group/of-a-shop")
    writer.close()
    groups = archive.control_groups(run.path)
    assert set(groups) == {"/a", "/group", "/of-a-shop", "/shop-front.service"} - {"/a"}
    archive.pack(run.path, tmp_path / "a.tar.xz", archive.stand_ins(groups), with_live=False)
    back = archive.unpack(tmp_path / "a.tar.xz", tmp_path / "back")
    packed_bytes = b"".join(each.read_bytes() for each in back.rglob("*") if each.is_file())
    for name in (b"of-a-shop", b"/group", b"shop-front"):
        assert name not in packed_bytes
    rows = open_run_dir(back).read_table("cgroups").table.to_pylist()
    inner, middle, outer, root, _ = (row["path"] for row in rows)
    assert inner.startswith(f"{middle}/")
    assert middle.startswith(f"{outer}/")
    assert (outer, root) == ("/a", "/")
    (told,) = [
        row["detail"]
        for row in open_run_dir(back).read_table("events").table.to_pylist()
        if row["event"] == "process_exited"
    ]
    assert told == f"killed in {inner}"
    manifest = open_run_dir(back).read_manifest()
    assert manifest["host"]["cgroup"]["path"] == middle


def packed(*members):
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    return lzma.compress(plain.getvalue())


def member(name, kind=tarfile.REGTYPE, size=0):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    "content",
    [
        b"no archive",
        packed(member("../outside")),
        packed(member("/etc/cron.d/x")),
        packed(member("raw/events/../../x.arrows")),
        packed(member("raw/events/a.arrows", tarfile.SYMTYPE)),
        packed(member("manifest.json", tarfile.LNKTYPE)),
        packed(member("verdict.json")),
        packed(member("manifest.json"), member("manifest.json")),
        packed(member("manifest.json", tarfile.CONTTYPE)),
        packed(member("manifest.json", tarfile.CHRTYPE)),
        packed(member("manifest.json", tarfile.GNUTYPE_SPARSE)),
        packed(member("manifest.json", size=10))[:-20],
    ],
)
def test_what_is_no_recording_is_refused_in_one_line(content, tmp_path):
    path = tmp_path / "bad.tar.xz"
    path.write_bytes(content)
    with pytest.raises(RunDirError) as error:
        archive.unpack(path, tmp_path / "back")
    assert "\n" not in error.value.message
    assert list(tmp_path.rglob("*.arrows")) == []


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MOST_BYTES", 100_000)
    path = tmp_path / "large.tar.xz"
    path.write_bytes(lzma.compress(bytes(200_000)))
    with pytest.raises(RunDirError, match="MiB"):
        archive.unpack(path, tmp_path)
