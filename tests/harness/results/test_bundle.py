"""A run as one file: what comes back, what is hidden, and what a stranger's file may not do."""

from __future__ import annotations

import io
import json
import lzma
import os
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.document import document
from analysis.frames.run_frames import load
from analysis.summary import summarise
from harness.results import archive as run_archive
from harness.results import bundle, conclusion
from harness.results.redaction import Redaction
from probes.contract import schema
from probes.contract.errors import RunDirError, ToolkitError, UsageError
from probes.contract.rundir import RunDir, create_run_dir, open_run_dir

SERVER = Path(__file__).parents[1] / "foreign" / "hiccup_server.py"
RUN, REPORT = ("-P", "-m", "harness.commands.run"), ("-P", "-m", "harness.commands.report")
SECRETS = ("zorbanka", "quixley", "10.11.12.13", "fd12:3456::9", "prometej-7")


def command(module, *words, cwd):
    done = subprocess.run(
        [sys.executable, *module, *words], capture_output=True, text=True, timeout=240, cwd=cwd
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(autouse=True)
def made_here(monkeypatch):
    """In this process, where a bound can be another; ``test_conclusion`` has root's way."""
    monkeypatch.setattr(conclusion, "is_apart", lambda: False)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A real run against a server whose folder, program and words are full of names."""
    folder = tmp_path_factory.mktemp("bundle")
    home = folder / "zorbanka"
    home.mkdir()
    (home / "upgrade.py").write_text((SERVER.parent / "upgrade.py").read_text())
    words = "ERROR quixley@zorbanka: 10.11.12.13 and fd12:3456::9 cannot reach prometej-7"
    (home / "quixley.py").write_text(
        SERVER.read_text().replace("def main():", f"def main():\n    print({words!r}, flush=True)")
    )
    server = shlex.join([sys.executable, str(home / "quixley.py"), "60", "600"]) + " {port}"
    done = command(
        RUN,
        *("--server-cmd", server, "--connections", "300", "--clients", "1", "--hold", "0.2"),
        *("--stall", "0.3", "--quiet", "--no-report", "--output", str(folder / "runs")),
        cwd=folder,
    )
    assert done.returncode == 3, done.stderr
    return (folder / "runs" / "latest").resolve()


@pytest.fixture
def small(tmp_path):
    """A run of the real writer, with a control group, addresses and a table of text."""
    run = create_run_dir(tmp_path / "runs", "small")
    run.write_manifest(
        {
            "schema_version": schema.SCHEMA_VERSION,
            "run_id": run.run_id,
            "argv": ["profile-run", "--target", "ws://quixley.zorbanka:9001/room"],
            "target_connections": 10,
            "host": {"kernel": "6.18.5-special", "cgroup": {"path": "/zorbanka/quixley.service"}},
        }
    )
    groups = run.writer("cgroups", "test")
    groups.append(1_009, 23, 0, 7, "/zorbanka/quixley.service")
    groups.append(1_009, 23, 1, 6, "/zorbanka")
    groups.close()
    listeners = run.writer("listeners", "test")
    listeners.append(1_009, "10.11.12.13", 9001, 5, 0, 128, 0, 0)
    listeners.append(1_009, "127.0.0.1", 9001, 6, 0, 128, 0, 0)
    listeners.close()
    events = run.writer("events", "test")
    events.append(1_009, "stalled", 23, "quixley of 10.11.12.13 said HTTP 503")
    events.close()
    (run.path / "logs" / "server.log").write_text("x" * 100_000 + "\nquixley was here\n")
    return run


def unpacked_bytes(file):
    with tarfile.open(file) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar.getmembers()}


@pytest.mark.shared
def test_a_redacted_bundle_means_the_same_and_names_nobody(recorded, tmp_path):
    done = command(REPORT, str(recorded), "--bundle", "b.tar.xz", "--bundle-redact", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "understood differently" not in done.stderr
    assert re.fullmatch(
        r"b\.tar\.xz: [\d,]+ bytes, [\d,]+ names and addresses replaced; numbers are kept\n",
        done.stderr,
    )
    for name, content in unpacked_bytes(tmp_path / "b.tar.xz").items():
        for secret in (*SECRETS, str(recorded.parent)):
            assert secret.encode() not in content, (secret, name)
    again = command(REPORT, "b.tar.xz", "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    found = json.loads(again.stdout)
    mine = document(summarise(load(open_run_dir(recorded))))
    assert found["verdict"]["cause"] == mine["verdict"]["cause"]
    assert found["verdict"]["side"] == mine["verdict"]["side"]
    assert [f["cause"] for f in found["findings"]] == [f["cause"] for f in mine["findings"]]
    assert found["run"]["attempts"] == mine["run"]["attempts"]
    (folder,) = [each for each in tmp_path.iterdir() if each.is_dir()]
    assert (folder / "report.html").is_file()
    assert "zorbanka" not in (folder / "report.html").read_text()


@pytest.mark.shared
def test_a_bundle_as_it_is_keeps_every_byte_of_the_tables(recorded, tmp_path):
    done = command(REPORT, str(recorded), "--bundle", "b.tar.xz", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = unpacked_bytes(tmp_path / "b.tar.xz")
    kept = {name.partition("/")[2]: content for name, content in found.items()}
    for stream in recorded.glob("raw/*/*.arrows"):
        assert kept[str(stream.relative_to(recorded))] == stream.read_bytes()
    assert b"quixley@zorbanka" in kept["logs/server.log"]


def test_names_are_the_same_stand_in_everywhere(small, tmp_path):
    bundle.make_bundle(small, tmp_path / "b.tar.xz", redact=True)
    run = bundle.open_bundle(tmp_path / "b.tar.xz")
    manifest = run.read_manifest()
    inner, outer = (r["path"] for r in run.read_table("cgroups").table.to_pylist())
    assert manifest["host"]["cgroup"]["path"] == inner
    assert re.fullmatch(r"/name\d+/name\d+\.service", inner)
    assert inner.startswith(f"{outer}/")
    assert manifest["host"]["kernel"] == "6.18.5-special"
    assert manifest["bundle"]["is_redacted"] is True
    first, second = (r["local_address"] for r in run.read_table("listeners").table.to_pylist())
    assert (first, second) == ("192.0.2.1", "127.0.0.1")
    (event,) = run.read_table("events").table.to_pylist()
    assert event["event"] == "stalled"
    assert event["detail"].endswith("of 192.0.2.1 said HTTP 503")
    stand_in = event["detail"].split()[0]
    assert manifest["argv"][2].startswith(f"ws://{stand_in}.")
    log = (run.path / "logs" / "server.log").read_text()
    assert len(log) <= bundle.LOG_TAIL_BYTES
    assert log.endswith(f"{stand_in} was here\n")


def test_what_has_no_room_is_left_out_and_said_to_be(small, tmp_path, monkeypatch):
    size = sum(each.stat().st_size for each in small.table_dir("cgroups").glob("*"))
    rest = sum(each.stat().st_size for each in small.path.glob("raw/*/*")) - size
    room = bundle.MOST_LOGS * bundle.LOG_TAIL_BYTES + (8 << 20)
    monkeypatch.setattr(bundle, "MOST_BYTES", room + rest)
    bundled = bundle.make_bundle(small, tmp_path / "b.tar.xz", redact=False)
    assert len(bundled.left_out) == 1
    assert "left out for want of room" in bundle.summary_line(tmp_path / "b", bundled)
    back = bundle.open_bundle(tmp_path / "b.tar.xz")
    assert back.read_manifest()["bundle"]["left_out"] == bundled.left_out
    monkeypatch.setattr(bundle, "MOST_BYTES", room)
    with pytest.raises(RunDirError, match="larger than"):
        bundle.make_bundle(small, tmp_path / "c.tar.xz", redact=False)
    assert not (tmp_path / "c.tar.xz").exists()


def test_the_run_that_is_packed_stays_as_it_is(small, tmp_path):
    before = {p: p.read_bytes() for p in small.path.rglob("*") if p.is_file()}
    bundle.make_bundle(small, tmp_path / "b.tar.xz", redact=True)
    assert {p: p.read_bytes() for p in small.path.rglob("*") if p.is_file()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.tar.xz", "runs"]


def test_a_bundle_is_not_unpacked_over_something(small, tmp_path):
    bundle.make_bundle(small, tmp_path / "b.tar.xz", redact=False)
    back = bundle.open_bundle(tmp_path / "b.tar.xz")
    with pytest.raises(UsageError, match="already"):
        bundle.open_bundle(tmp_path / "b.tar.xz")
    assert back.path.is_dir()


def archive_of(*members, size=None):
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(content), "/etc/passwd"
            tar.addfile(info, io.BytesIO(content))
    return lzma.compress(plain.getvalue() if size is None else bytes(size))


MANIFEST = json.dumps({"schema_version": schema.SCHEMA_VERSION}).encode()
FILE = tarfile.REGTYPE


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no archive",
        archive_of(),
        archive_of(("../x/manifest.json", FILE, MANIFEST)),
        archive_of(("/x/manifest.json", FILE, MANIFEST)),
        archive_of(("x/../manifest.json", FILE, MANIFEST)),
        archive_of(("x/manifest.json", tarfile.SYMTYPE, b"")),
        archive_of(("x/manifest.json", tarfile.LNKTYPE, b"")),
        archive_of(("x/manifest.json", tarfile.CHRTYPE, b"")),
        archive_of(("x/manifest.json", tarfile.FIFOTYPE, b"")),
        archive_of(("x/manifest.json", tarfile.GNUTYPE_SPARSE, b"")),
        archive_of(("x/manifest.json", FILE, MANIFEST), ("y/verdict.json", FILE, b"{}")),
        archive_of(("x/manifest.json", FILE, MANIFEST), ("x/manifest.json", FILE, b"{}")),
        archive_of(("x/manifest.json", FILE, MANIFEST), ("x/run.sh", FILE, b"rm")),
        archive_of(("x/manifest.json", FILE, b"[]")),
        archive_of(("x/manifest.json", FILE, b"{}")),
        archive_of(("x/verdict.json", FILE, b"{}")),
        archive_of(("x/manifest.json", FILE, MANIFEST))[:-9],
    ],
)
def test_what_is_no_bundle_is_refused_in_one_line_and_leaves_nothing_outside(content, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    (place / "b.tar.xz").write_bytes(content)
    with pytest.raises(ToolkitError) as error:
        bundle.open_bundle(place / "b.tar.xz")
    assert "\n" not in error.value.message
    assert [each.name for each in tmp_path.iterdir()] == ["place"]


@pytest.mark.parametrize(
    "lie",
    [
        {"target_connections": "many"},
        {"stages": 7},
        {"server": {"processes": [{"pid": "x"}]}},
        {"attempts": {"gave_up": 5}},
        {"host": [1]},
    ],
)
def test_a_manifest_that_no_run_has_is_no_traceback(lie, call, tmp_path):
    from harness.commands import report as cli_report

    manifest = json.loads(MANIFEST) | lie
    member = ("x/manifest.json", FILE, json.dumps(manifest).encode())
    (tmp_path / "b.tar.xz").write_bytes(archive_of(member))
    done = call(cli_report.main, tmp_path / "b.tar.xz", "--format", "json")
    assert done.returncode in (0, 5), done.stderr
    assert "Traceback" not in done.stderr
    assert [line.split(":")[0] for line in done.stderr.splitlines()] in (
        ["note"],
        ["note", "error", "fix"],
    )


def test_a_bomb_is_refused_before_it_is_large(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "MOST_BYTES", 1 << 20)
    (tmp_path / "b.tar.xz").write_bytes(archive_of(size=64 << 20))
    with pytest.raises(RunDirError, match="more than 1 MiB"):
        bundle.open_bundle(tmp_path / "b.tar.xz")
    monkeypatch.setattr(run_archive, "_DECODER_BYTES", 1 << 20)
    (tmp_path / "c.tar.xz").write_bytes(lzma.compress(b"x", preset=9))
    with pytest.raises(RunDirError, match="not a bundle"):
        bundle.open_bundle(tmp_path / "c.tar.xz")


def test_more_members_than_any_run_has_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(run_archive, "MOST_MEMBERS", 2)
    names = ["x/manifest.json", "x/verdict.json", "x/live.bin"]
    (tmp_path / "b.tar.xz").write_bytes(archive_of(*((n, FILE, MANIFEST) for n in names)))
    with pytest.raises(RunDirError, match="no part of a run"):
        bundle.open_bundle(tmp_path / "b.tar.xz")


def test_what_a_table_says_of_text_that_it_does_not_have_is_left_out(small, tmp_path):
    """Offsets that point out of the buffer would be read by whoever trusts them."""
    bundle.make_bundle(small, tmp_path / "b.tar.xz", redact=False)
    members = []
    for name, content in unpacked_bytes(tmp_path / "b.tar.xz").items():
        changed = content
        if "raw/events/" in name:
            text = b"quixley of 10.11.12.13 said HTTP 503"
            offsets = len(text).to_bytes(4, "little")
            before, lengths, after = content.rpartition(bytes(4) + offsets)
            assert lengths
            changed = before + bytes(4) + b"\xff\xff\xff\x7f" + after
        members.append((name, FILE, changed))
    (tmp_path / "bad.tar.xz").write_bytes(archive_of(*members))
    run = bundle.open_bundle(tmp_path / "bad.tar.xz")
    read = run.read_table("events")
    assert [path.parent.name for path in read.cut_files] == ["events"]
    assert not any("HTTP 503" in text for text in read.table["detail"].to_pylist())


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--bundle-redact"], "--bundle-redact is of a bundle"),
        (["--bundle", "run.zip"], "is not named FILE.tar.xz"),
        (["--bundle", "b.tar.xz", "--format", "md"], "writes one file and nothing else"),
        (["--bundle", "nowhere/b.tar.xz"], "there is no directory nowhere"),
    ],
)
def test_mistakes_are_told_in_two_lines(small, call, words, complaint, monkeypatch):
    from harness.commands import report as cli_report

    monkeypatch.chdir(small.path)
    done = call(cli_report.main, str(small.path), *words)
    assert done.returncode == 2
    error, fix = done.stderr.splitlines()
    assert complaint in error
    assert fix.startswith("fix: ")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("10.1.2.3 10.1.2.3 10.1.2.4", "192.0.2.1 192.0.2.1 192.0.2.2"),
        ("127.0.0.7:9001 0.0.0.0 ::1 ::", "127.0.0.7:9001 0.0.0.0 ::1 ::"),
        ("[2a02:8070::5]:443 ::ffff:10.1.2.3", "[2001:db8::1]:443 ::ffff:192.0.2.1"),
        ("12:34:56 took 3.5 s", "12:34:56 took 3.5 s"),
        ("/srv/quixley/quixley.py:13: POOL = 200", "/srv/name1/name1.py:13: name2 = 200"),
        ("docker-" + "ab12" * 16 + ".scope", "docker-" + f"{1:064x}" + ".scope"),
        ("20261130T011448Z-quixley-a3f9", "20261130T011448Z-name1-name2"),
        ("worker_connections 512; # Zorbanka", "worker_connections 512; # name1"),
    ],
)
def test_known_stand_ins(text, shown):
    words = ["srv", "py", "took", "s", "docker", "scope", "worker_connections"]
    assert Redaction(frozenset(words)).text(text) == shown


@given(st.text(max_size=80))
def test_what_was_redacted_once_has_no_word_that_is_not_known(text):
    redaction = Redaction(frozenset({"error"}))
    shown = redaction.text(text)
    for word in re.findall(r"\w*[^\W\d_]\w*", shown):
        known = len(word) == 1 or word.lower() == "error" or word.startswith("name")
        assert known or re.fullmatch(r"[0-9a-f]{12,}|\d{8}T\d{6}Z|db8|ffff", word), (text, shown)


def test_live_memory_of_a_run_that_was_killed_names_no_address(small, tmp_path):
    from probes.contract import live as live_memory
    from probes.contract.live import Live, Stage

    fd = live_memory.create(small.path / "live.bin", 1, 2)
    live = Live(fd)
    for record, address in enumerate((0x0A0B0C0D, 0x7F000002)):
        live.column("source_address")[record] = address
        live.column("stage")[record] = Stage.OPEN
    os.close(fd)
    bundle.make_bundle(small, tmp_path / "b.tar.xz", redact=True)
    back: RunDir = bundle.open_bundle(tmp_path / "b.tar.xz")
    with (back.path / "live.bin").open("rb") as stream:
        column = Live(stream.fileno(), writable=False).column("source_address")
        assert list(column) == [0xC0000201, 0x7F000002]
