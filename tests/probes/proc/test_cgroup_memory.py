"""Memory control groups of both versions: which bind a process, and what each counts of itself."""

from __future__ import annotations

from pathlib import Path

from probes.proc.cgroup_memory import (
    CgroupUse,
    MemoryGroups,
    cgroup_memory_folders,
    groups_of,
    mounts,
    paths_of,
    tightest,
)

PID = 1009
UNLIMITED = "9223372036854771712"


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def process(proc: Path, text: str, pid: int = PID) -> Path:
    write(proc, {f"{pid}/cgroup": text})
    return proc


def second(current: int, most: str = "max", **events: int) -> dict[str, str]:
    """Files of a group of version 2; ``own_oom`` is of memory.events.local."""
    whole = {"max": 0, "oom": 0, "oom_kill": 0} | {
        name: count for name, count in events.items() if not name.startswith("own_")
    }
    own = {"max": 0, "oom": 0, "oom_kill": 0} | {
        name.removeprefix("own_"): count
        for name, count in events.items()
        if name.startswith("own_")
    }
    return {
        "memory.current": str(current),
        "memory.max": most,
        "memory.events": "\n".join(f"{name} {count}" for name, count in whole.items()),
        "memory.events.local": "\n".join(f"{name} {count}" for name, count in own.items()),
        "memory.stat": "anon 4096\nsock 8192\nkernel 512",
    }


def below(folder: str, files: dict[str, str]) -> dict[str, str]:
    return {f"{folder}/{name}": text for name, text in files.items()}


def test_what_a_parent_counts_of_others_is_told_from_its_own_limit_in_version_2(tmp_path):
    root, proc = tmp_path / "cgroup", process(tmp_path / "proc", "0::/pod/run")
    write(root, below("pod", second(90, "1009000", max=7, oom=5, oom_kill=5)))
    write(root, below("pod/run", second(23, oom_kill=0)))
    groups = MemoryGroups(proc, root)
    assert [group.path for group in groups.add(PID)] == ["/pod/run", "/pod"]
    uses = dict(groups.read())
    pod = uses[(root / "pod").stat().st_ino]
    # a container beside the run was killed five times, at its own limit and not at that of the pod
    assert (pod.oom_kills_total, pod.own_oom_kills_total, pod.own_ooms_total) == (5, 0, 0)
    assert pod.limit_hits_total == 0
    own = uses[(root / "pod/run").stat().st_ino]
    assert (own.used_bytes, own.max_bytes, own.own_oom_kills_total) == (23, -1, 0)
    assert groups.own_ids == {(root / "pod/run").stat().st_ino}


def test_a_kernel_without_local_events_says_so(tmp_path):
    root, proc = tmp_path / "cgroup", process(tmp_path / "proc", "0::/a")
    files = second(23_000, "1009000", max=17, oom=3, oom_kill=2) | {"memory.peak": "1009000"}
    del files["memory.events.local"]
    write(root, below("a", files))
    groups = MemoryGroups(proc, root)
    groups.add(PID)
    ((_, use),) = groups.read()
    assert use == CgroupUse(23_000, 1_009_000, 1_009_000, 17, 2, 8_192, -1)


def test_a_group_of_version_1_counts_only_itself(tmp_path):
    root, proc = tmp_path / "cgroup", process(tmp_path / "proc", "4:memory:/a\n0::/")
    files = {
        "memory.limit_in_bytes": "1009000",
        "memory.usage_in_bytes": "23000",
        "memory.max_usage_in_bytes": "24000",
        "memory.failcnt": "17",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2",
        "memory.kmem.tcp.limit_in_bytes": "1009000",
        "memory.kmem.tcp.usage_in_bytes": "2300000",
    }
    write(root, below("memory/a", files))
    groups = MemoryGroups(proc, root)
    groups.add(PID)
    ((_, use),) = groups.read()
    assert use == CgroupUse(23_000, 24_000, 1_009_000, 17, 2, 2_300_000, 1_009_000, 2, -1)
    write(root, below("memory/a", {"memory.limit_in_bytes": UNLIMITED}))
    assert groups.read()[0][1].max_bytes == -1


def test_of_the_groups_above_only_the_limited_are_read(tmp_path):
    root, proc = tmp_path / "cgroup", process(tmp_path / "proc", "0::/a/b/c/d")
    for folder, most in (("a", "max"), ("a/b", "2300000"), ("a/b/c", "max"), ("a/b/c/d", "max")):
        write(root, below(folder, second(1, most)))
    groups = MemoryGroups(proc, root)
    assert [group.path for group in groups.add(PID)] == ["/a/b/c/d", "/a/b/c", "/a/b", "/a"]
    read = {cgroup_id for cgroup_id, _ in groups.read()}
    assert read == {(root / name).stat().st_ino for name in ("a/b", "a/b/c/d")}
    assert len(groups.add(PID)) == 4  # a second time, and nothing is read twice
    assert {cgroup_id for cgroup_id, _ in groups.read()} == read


def test_a_group_that_went_is_left_out(tmp_path):
    root, proc = tmp_path / "cgroup", process(tmp_path / "proc", "0::/a")
    write(root, below("a", second(1)))
    groups = MemoryGroups(proc, root)
    groups.add(PID)
    for path in (root / "a").iterdir():
        path.unlink()
    assert groups.read() == []


def test_a_container_sees_its_own_group_at_the_root(tmp_path):
    # without a cgroup namespace the path is the host's, and the mount is the container's own
    root, proc = tmp_path / "cgroup", process(tmp_path / "proc", "4:memory:/docker/23")
    write(root, below("memory", {"memory.usage_in_bytes": "23", "memory.oom_control": "x 1"}))
    assert [group.path for group in groups_of(PID, proc=proc, root=root)] == ["/"]


def test_what_is_outside_of_the_namespace_or_gone_has_no_groups(tmp_path):
    root, proc = tmp_path / "cgroup", process(tmp_path / "proc", "0::/../other")
    write(tmp_path, below("other", second(1)))
    assert groups_of(PID, proc=proc, root=root) == []
    assert groups_of(23, proc=proc, root=root) == []
    assert cgroup_memory_folders("", root) == []
    assert groups_of(PID, proc=process(tmp_path / "proc", ""), root=root) == []


def test_more_groups_than_are_read_are_counted(tmp_path):
    root, proc = tmp_path / "cgroup", tmp_path / "proc"
    groups = MemoryGroups(proc, root)
    for pid in range(1, 41):
        process(proc, f"0::/{pid}", pid)
        write(root, below(str(pid), second(1)))
        groups.add(pid)
    assert len(groups.read()) == 32
    assert groups.left_out_count == 8


def test_a_hostile_name_is_bounded_and_does_not_drive_a_terminal(tmp_path):
    name = "a\x1b[2J\x0b\u2028" + "z" * 200
    root, proc = tmp_path / "cgroup", process(tmp_path / "proc", f"0::/{name}/{name}")
    write(root, below(f"{name}/{name}", second(1)))
    (group,) = groups_of(PID, proc=proc, root=root)
    assert group.path.isprintable()
    assert len(group.path) == 256
    (tmp_path / "proc" / str(PID) / "cgroup").write_bytes(b"0::/\xff\xfe\n")
    assert groups_of(PID, proc=proc, root=root) == []


def test_the_tightest_is_the_one_with_the_least_room():
    wide, narrow = CgroupUse(900, -1, 1000), CgroupUse(10, -1, 500)
    assert tightest([wide, narrow, CgroupUse(5)]) == wide
    assert tightest([CgroupUse(5)]) is None


def test_lines_are_those_of_the_kernel():
    assert paths_of("4:cpu,cpuacct:/x\n0::/a\x0bb:c\n") == {
        "cpu": "/x", "cpuacct": "/x", "": "/a\x0bb:c",
    }  # fmt: skip
    assert mounts("none /m cgroup rw,memory 0 0\nnone /u cgroup2 rw 0 0\n")[""] == Path("/u")
