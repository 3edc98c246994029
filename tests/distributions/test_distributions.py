"""What stands around the roots of distributions; trying them takes long and a mirror."""

from __future__ import annotations

import shutil

import pytest

from tests.distributions import roots
from tests.distributions.page import PROBES, keep, kept, page, problems
from tests.distributions.roots import DISTRIBUTIONS, PROJECT
from tests.kernels.fetch import CannotFetchError

RAN = {
    "exit": 0,
    "seconds": 90,
    "cause": "reached",
    "sentence": "x",
    "versions": {"python": "3.13.5", "bpfcc": "0.31.0+ds-7", "llvm-toolchain-19": "1:19.1.7-3"},
    "probes": [{"name": name, "state": "ran", "reason": ""} for name in PROBES],
}


def test_every_probe_must_have_run():
    assert problems(RAN) == []
    refused = {"name": "tcp_snapshot", "state": "failed", "reason": "off 600 size 8"}
    others = [
        probe for probe in RAN["probes"] if probe["name"] not in ("tcp_snapshot", "oom_kills")
    ]
    assert problems({**RAN, "probes": [refused, *others]}) == [
        "tcp_snapshot: failed: off 600 size 8",
        "oom_kills: it is not told what it did",
    ]
    assert problems({**RAN, "cause": "not-explained", "exit": 3}) == [
        "exit 3, the verdict is not-explained: x"
    ]
    assert problems({"error": "pip\ncould not"}) == ["pip could not"]


def test_the_page_tells_versions_and_what_went_wrong(tmp_path):
    path = tmp_path / "facts"
    keep("debian-13", RAN, kernel="6.18", commit="abc", path=path)
    keep("debian-12", {"error": "no mirror"}, kernel="6.18", commit="def", path=path)
    text = page(kept(path))
    assert (
        "| debian-13 | 3.13.5 | 0.31.0+ds-7 | 1:19.1.7-3 | 6.18 | every probe ran, in 90 s from "
        "nothing | abc |"
    ) in text
    assert "| ubuntu-22.04 | | | | | not tried | |" in text
    assert "- debian-12: no mirror" in text
    assert text.index("debian-12") < text.index("debian-13")


def test_the_page_in_the_docs_is_made_of_what_is_kept():
    assert (PROJECT / "docs" / "distributions.md").read_text() == page(kept())


def test_without_debootstrap_or_a_mirror_it_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(roots, "FOLDER", tmp_path)
    monkeypatch.setattr(roots.os, "geteuid", lambda: 0)
    monkeypatch.setattr(roots.shutil, "which", lambda *_, **__: None)
    with pytest.raises(CannotFetchError, match="apt-get install debootstrap"):
        roots.base(DISTRIBUTIONS[0])
    monkeypatch.setattr(roots.shutil, "which", lambda *_, **__: "/usr/sbin/debootstrap")
    monkeypatch.setattr(roots, "_fetching", lambda *_: ["sh", "-c", "echo E: no mirror; exit 1"])
    with pytest.raises(CannotFetchError, match=r"^debootstrap bookworm: E: no mirror$"):
        roots.base(DISTRIBUTIONS[0])
    assert not (tmp_path / "bookworm" / "complete").exists()


def test_a_suite_that_debootstrap_does_not_know_yet_has_the_script_of_all():
    newest = DISTRIBUTIONS[-1]
    words = roots._fetching(newest, PROJECT)
    assert words[-1].endswith("/gutsy")
    assert "--components=main,universe" in words  # the bindings are in universe


@pytest.mark.privileged
def test_what_a_run_writes_is_gone_and_the_root_as_it_was(monkeypatch, tmp_path):
    root = tmp_path / "root"
    for folder in ("proc", "sys", "dev", "tmp", "etc", "bin"):
        (root / folder).mkdir(parents=True)
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("needs busybox-static")
    shutil.copy(busybox, root / "bin" / "sh")
    monkeypatch.setattr(roots, "FOLDER", tmp_path)
    script = (
        'echo "$1" >/etc/written && read text </etc/written && echo "$text" && [ -e /src/Makefile ]'
    )
    done = roots.run(root, script, ["1009"], timeout_s=60)
    assert (done.returncode, done.stdout) == (0, "1009\n"), done.stderr
    assert not (root / "etc" / "written").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
