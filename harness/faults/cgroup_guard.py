"""Makes and removes a run's control groups: ``python -P -m harness.faults.cgroup_guard``.

Answers with one JSON line: the ``cgroup.procs`` files to join, or what is wrong. Then waits for
the end of its standard input, which comes also when the supervisor is killed, and removes the
groups as soon as they are empty. A link holds the connect program and ends with this process.
Groups that a killed guard left behind are removed by the next one.

Source: Documentation/admin-guide/cgroup-v1/memory.rst, cgroup-v2.rst; cgroups(7).
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from harness.faults.cgroup_folders import below, remove_stale, remove_when_empty
from harness.faults.cgroups import Wish
from harness.fleet import child
from probes.contract.errors import HostError, ToolkitError
from probes.proc.cgroup_memory import mounts, paths_of
from probes.rights import privileges

_NAME = "connscope-{pid}{suffix}"
_EMPTY_DEADLINE_S = 5.0

GUARD_KEEPS = ("dac_override",)
"""The root of a tree of control groups lets nobody remove what is in it without (mode 0555)."""


class Groups:
    """The groups of one run.

    Args:
        pid: The supervisor's: part of the names, so that a later run knows what is stale.

    Attributes:
        made: Folders, parents first.
        links: Descriptors that keep programs attached.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._mounts = mounts(Path("/proc/mounts").read_text(encoding="ascii"))
        self._memberships = paths_of(Path("/proc/self/cgroup").read_text(encoding="utf-8"))
        self.made: list[Path] = []
        self.links: list[int] = []

    def make(self, wish: Wish) -> dict[str, object]:
        """Makes what is wished for.

        Returns:
            ``join``: files for every process of the fleet; ``clients``: one more by client.

        Raises:
            HostError: Not possible here.
        """
        join = []
        if wish.memory_max_bytes or wish.tcp_memory_max_bytes:
            join.append(self._make_memory(wish.memory_max_bytes, wish.tcp_memory_max_bytes))
        clients = {}
        for client, after_count in wish.failing_clients:
            folder = self._make(self._parent_v2(), f"-client{client}")
            from harness.faults.connect_enobufs import attach  # numpy and the eBPF loader

            self.links.append(attach(folder, after_count))
            clients[str(client)] = str(folder / "cgroup.procs")
        return {"join": join, "clients": clients}

    def _make_memory(self, memory_max_bytes: int, tcp_memory_max_bytes: int) -> str:
        if "memory" in self._mounts:
            # Below our own group: whatever limits us still limits the fleet.
            folder = self._make(below(self._mounts["memory"], self._memberships.get("memory")))
            limits = {
                "memory.limit_in_bytes": memory_max_bytes,
                "memory.kmem.tcp.limit_in_bytes": tcp_memory_max_bytes,
            }
        else:
            if tcp_memory_max_bytes:
                raise HostError(
                    "a limit for TCP's memory alone needs cgroups of version 1",
                    fix="--memory-max: with version 2 socket buffers count as memory of the group",
                )
            folder = self._make(self._parent_with_memory())
            limits = {"memory.max": memory_max_bytes}
            with suppress(OSError):
                (folder / "memory.swap.max").write_text("0")
        for name, value in limits.items():
            if value:
                _write(folder / name, value)
        return str(folder / "cgroup.procs")

    def _parent_v2(self) -> Path:
        if "" not in self._mounts:
            raise HostError(
                "no cgroup tree of version 2 is mounted: connect cannot be made to fail",
                fix="mount -t cgroup2 none /sys/fs/cgroup/unified",
            )
        # A group with processes of its own may have children as long as it gives them no
        # controllers ("no internal processes" of cgroups(7)).
        return below(self._mounts[""], self._memberships.get(""))

    def _parent_with_memory(self) -> Path:
        folder, top = self._parent_v2(), self._mounts[""]
        while folder != top and "memory" not in _text(folder / "cgroup.subtree_control"):
            folder = folder.parent
        if "memory" not in _text(folder / "cgroup.subtree_control"):
            raise HostError(
                f"no group above this process hands on the memory controller (up to {top})",
                fix=f"echo +memory > {top}/cgroup.subtree_control",
            )
        return folder

    def _make(self, parent: Path, suffix: str = "") -> Path:
        remove_stale(parent)
        folder = parent / _NAME.format(pid=self._pid, suffix=suffix)
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise HostError(
                f"cannot make the control group {folder}: {error.strerror}",
                fix="run as root where /sys/fs/cgroup is writable",
            ) from error
        self.made.append(folder)
        return folder

    def remove(self) -> None:
        """Detaches, waits until the groups are empty, removes them."""
        for link in self.links:
            os.close(link)
        remove_when_empty(reversed(self.made), _EMPTY_DEADLINE_S)


def _write(path: Path, value: int) -> None:
    try:
        path.write_text(str(value), encoding="ascii")
    except OSError as error:
        raise HostError(
            f"the kernel refused {value:,} bytes in {path}: {error.strerror}",
            fix="choose a higher limit, or leave the option out",
        ) from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""


def main(argv: list[str]) -> int:
    """Makes, answers, waits, removes."""
    child.leave_terminal()
    memory_bytes, tcp_bytes, failing = json.loads(argv[1])
    groups: Groups | None = None
    try:
        groups = Groups(int(argv[0]))
        wish = Wish(memory_bytes, tcp_bytes, [(int(c), int(n)) for c, n in failing])
        answer = groups.make(wish)
        child.gain_nothing()
        privileges.keep_only(GUARD_KEEPS)  # the programs hang on descriptors
    except ToolkitError as error:
        answer = {"error": error.message, "fix": error.fix}
    try:
        with suppress(BrokenPipeError):
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
            if "join" in answer:
                sys.stdin.buffer.read()
    finally:
        if groups is not None:
            groups.remove()
    return 0 if "join" in answer else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
