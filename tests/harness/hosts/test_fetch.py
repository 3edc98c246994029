"""What a host sends back: nothing that it says is believed."""

import asyncio
import hashlib
import zlib

import pytest

from harness.hosts import agent
from harness.hosts.cluster import NoAnswerError
from harness.hosts.fetch import fetch
from probes.contract.errors import RunDirError

DATA = bytes(range(256)) * 50_000  # more than one piece


class Sender:
    """A host that has files, and may lie."""

    def __init__(self, files, told=None, failures=0, bomb=False):
        self.files, self.failures, self.bomb = files, failures, bomb
        self.told = told or [
            (name, len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()
        ]

    async def call(self, _host, function, *words, within_s=0.0):
        if function is agent.files_of:
            return self.told
        if self.failures:
            self.failures -= 1
            raise NoAnswerError("late")
        _, name, offset = words
        if self.bomb:
            return zlib.compress(bytes(agent.CHUNK_BYTES + 1))
        return zlib.compress(self.files[name][offset : offset + agent.CHUNK_BYTES])


def fetched(sender, tmp_path):
    return asyncio.run(fetch(sender, "a", "run", tmp_path))


def test_it_comes_as_it_was_also_when_a_piece_is_late(tmp_path):
    name = "raw/events/harness-1.arrows"
    assert fetched(Sender({name: DATA}, failures=2), tmp_path) == len(DATA)
    path = tmp_path / "hosts" / "a" / name
    assert path.read_bytes() == DATA
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "name",
    [
        "../manifest.json",
        "/etc/passwd",
        "raw/../../x.arrows",
        "raw/events/a/b.arrows",
        "verdict.json",
        "raw/events/harness-1.arrows\n",
    ],
)
def test_another_name_is_refused(tmp_path, name):
    with pytest.raises(RunDirError, match="does not write"):
        fetched(Sender({name: b"x"}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_content_than_was_told_is_refused(tmp_path):
    told = [("manifest.json", 3, hashlib.sha256(b"abc").hexdigest())]
    with pytest.raises(RunDirError, match="digest"):
        fetched(Sender({"manifest.json": b"abd"}, told), tmp_path)


def test_a_piece_that_becomes_gigabytes_is_refused(tmp_path):
    told = [("manifest.json", 1 << 30, "")]
    with pytest.raises(RunDirError, match="larger than was told"):
        fetched(Sender({}, told, bomb=True), tmp_path)


def test_a_host_that_is_gone_is_said(tmp_path):
    with pytest.raises(NoAnswerError):
        fetched(Sender({"manifest.json": b"x"}, failures=9), tmp_path)
