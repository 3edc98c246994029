"""The oldest and the newest kernel, booted; and what stands around them, without booting."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.kernels import fetch, guest, judge
from tests.kernels.__main__ import attempt
from tests.kernels.catalogue import KERNELS, Kernel
from tests.kernels.checks import CHECKS
from tests.kernels.fetch import CannotFetchError
from tests.kernels.initrd import make_initrd, needed_modules
from tests.kernels.page import keep, kept, page, parse

EACH_TIME = ["doctor"]
"""Every probe is loaded, attached and read once; ``make test-kernels`` does all checks."""
MOST_S = 175
"""For one kernel, so that both are done within six minutes: 60 s of a core's time by itself."""
BY_KEY = {kernel.key: kernel for kernel in KERNELS}


@pytest.mark.privileged
@pytest.mark.boots
@pytest.mark.timeout(600)
@pytest.mark.parametrize("key", [kernel.key for kernel in KERNELS if not kernel.on_demand])
def test_kernel(key):
    try:
        tried = attempt(BY_KEY[key], EACH_TIME, timeout_s=MOST_S)
    except CannotFetchError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"Linux {key} cannot be booted here: {error}")
    assert tried.problems() == []
    assert list(tried.facts) == EACH_TIME
    assert tried.release.startswith(f"{key}.")


def ran(*names):
    return [{"name": name, "state": "ran", "reason": ""} for name in names]


REACHED = {"cause": "reached", "sentence": "ok", "confidence": "high", "findings": [], "exit": 0}


def told(state="available", **others):
    return {
        "check": "doctor",
        "kernel_lacks": [{"what": "reasons of drops", "since": "5.17"}],
        "probes": [
            {"name": name, "state": others.get(name, state), "reason": "why", "fix": "newer"}
            for name in judge.PROBES
        ],
    }


def test_what_a_kernel_cannot_carry_must_be_told():
    old, new = BY_KEY["5.10"], BY_KEY["7.3"]
    assert judge.problems(new, told()) == []
    assert judge.problems(old, told(skb_allocs="unavailable")) == []
    (problem,) = judge.problems(old, told())
    assert "skb_allocs: available, which this kernel cannot carry" in problem
    (problem,) = judge.problems(new, told(tcp_snapshot="failed"))
    assert problem == "tcp_snapshot: failed: why"


def test_a_cause_must_be_named_and_every_probe_must_run():
    new = BY_KEY["7.3"]
    facts = {**REACHED, "check": "run", "probes": ran(*judge.PROBES)}
    assert judge.problems(new, facts) == []
    problems = judge.problems(new, {**facts, "probes": ran(*set(judge.PROBES) - {"oom_kills"})})
    assert problems == ["oom_kills: it is not told what it did"]
    (problem,) = judge.problems(new, {**facts, "check": "worker-crash"})
    assert "not named" in problem
    assert (
        judge.problems(new, {**facts, "check": "worker-crash", "findings": ["worker-crash"]}) == []
    )
    broken = [{"name": "cpu_stacks", "state": "failed", "reason": "boom"}]
    assert judge.problems(new, {**facts, "check": "server-cmd", "probes": broken}) == [
        "cpu_stacks: failed: boom"
    ]
    assert judge.problems(new, {"check": "run", "exit": 5, "stderr": "no\n"}) == ["exit 5: no"]
    assert judge.problems(new, {"check": "run", "error": "x\nOSError: y\n"}) == ["OSError: y"]


def output_of(*lines):
    return "guest 7.3.4 is up after 4 s\nnoise\n" + "\n".join(map(json.dumps, lines))


RAN = {**REACHED, "check": "run", "probes": ran(*judge.PROBES)}


def test_the_page_tells_what_went_wrong(tmp_path):
    newest = parse(BY_KEY["7.3"], output_of(told(), RAN))
    assert newest.problems() == []
    oldest = parse(
        BY_KEY["5.10"],
        output_of(told(oom_kills="failed"), {"check": "run", "exit": 5, "stderr": "no\n"}),
    )
    path = tmp_path / "facts"
    keep([newest, oldest], "abc", path)
    text = page(kept(path))
    between = " | not tried" * 4
    assert f"| `tcp_snapshot` | starts{between} | ran |" in text
    assert f"| `oom_kills` | **no**{between} | ran |" in text
    assert "| `skb_allocs` | needs 6.1 | needs 6.1 | not tried | not tried |" in text
    assert f"| 1,000 connections | **no**{between} | yes |" in text
    assert f"| `profile-doctor` | **wrong**{between} | true |" in text
    assert "| *commits* | `abc` |  |  |  |  | `abc` |" in text
    assert "reasons of drops: since Linux 5.17; missing on 5.10, 7.3" in text
    assert "- 5.10: run: exit 5: no" in text
    assert "6.1: it was not tried" not in text


def test_what_was_tried_again_replaces_what_was_kept(tmp_path):
    path, new = tmp_path / "facts", BY_KEY["7.3"]
    keep([parse(new, output_of(told(), {"check": "run", "exit": 5}))], "abc", path)
    keep([parse(new, output_of(RAN))], "def", path)
    tried = {each.kernel.key: each for each in kept(path)}["7.3"]
    assert {check: facts["commit"] for check, facts in tried.facts.items()} == {
        "doctor": "abc",
        "run": "def",
    }
    assert tried.problems() == []
    assert tried.release == "7.3.4"


def test_a_probe_that_came_later_is_not_missing_in_what_is_older(tmp_path):
    path, new = tmp_path / "facts", BY_KEY["7.3"]
    older = told()
    older["probes"] = [probe for probe in older["probes"] if probe["name"] != "send_queues"]
    keep([parse(new, output_of(older))], "abc", path)
    keep([parse(new, output_of(RAN))], "def", path)
    text = page(kept(path))
    assert f"| `profile-doctor`{' | not tried' * 5} | true |" in text
    assert "What went wrong" not in text
    keep([parse(new, output_of(older, RAN))], "ghi", path)
    assert "7.3: doctor: send_queues: not told" in page(kept(path))


def test_the_page_in_the_docs_is_made_of_what_is_kept():
    assert (guest.PROJECT / "docs" / "kernels.md").read_text() == page(kept())


def test_a_machine_without_qemu_says_so_in_one_line(monkeypatch):
    monkeypatch.setattr(guest, "missing_programs", lambda: ["qemu-system-x86", "kmod"])
    with pytest.raises(CannotFetchError) as caught:
        guest.run(BY_KEY["6.1"], Path("x"), [], timeout_s=1)
    assert str(caught.value) == "to boot kernels: apt-get install qemu-system-x86 kmod"


def test_a_mirror_that_is_not_there_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(fetch, "FOLDER", tmp_path)
    monkeypatch.setattr(fetch, "mirror", lambda: "http://127.0.0.1:9")
    with pytest.raises(CannotFetchError) as caught:
        fetch.kernel_image(BY_KEY["6.1"])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "6.1" / "complete").exists()


def test_versions_are_compared_as_numbers():
    names = ["linux-image-5.10.0-9-cloud-amd64", "linux-image-5.10.0-46-cloud-amd64"]
    assert max(names, key=fetch._version_key) == names[1]


def test_an_initrd_has_modules_in_the_order_of_need(tmp_path):
    (tmp_path / "modules.dep").write_text(
        "kernel/virtiofs.ko: kernel/fuse.ko kernel/virtio.ko\n"
        "kernel/fuse.ko:\nkernel/virtio.ko:\nkernel/virtio_pci.ko: kernel/virtio.ko\n"
    )
    assert [Path(name).stem for name in needed_modules(tmp_path)] == [
        "virtio", "virtio_pci", "fuse", "virtiofs",
    ]  # fmt: skip
    if guest.missing_programs():
        pytest.skip("needs busybox-static")
    (tmp_path / "kernel").mkdir()
    for name in ("virtio", "virtio_pci", "fuse", "virtiofs"):
        (tmp_path / "kernel" / f"{name}.ko").write_bytes(name.encode())
    packed = make_initrd(tmp_path, "/sbin/init")
    listed = subprocess.run(
        ["busybox", "cpio", "-t"], input=packed, stdout=subprocess.PIPE, check=True
    )
    names = listed.stdout.decode().splitlines()
    assert "init" in names
    assert "modules/virtiofs.ko" in names


def test_every_check_is_known():
    assert set(EACH_TIME) <= set(CHECKS)
    assert all(isinstance(kernel, Kernel) for kernel in KERNELS)
