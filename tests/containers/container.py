"""Starts commands in surroundings, and finds their processes from outside."""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from harness.foreign.cgroup_members import members
from probes.proc.cgroup_memory import mounts
from tests.containers.surroundings import Surroundings
from tests.control_groups import files_of

PROJECT = Path(__file__).resolve().parents[2]
_EMPTY_S = 10.0
# A /dev of its own, so that nothing in it can harm the host's; and a /tmp, in which the project
# stays visible if it lies below that.
_SCRIPT = """
ip link set lo up || exit 90
mount -t tmpfs -o mode=1777 tmpfs "$folder" || exit 91
seen="$folder${{project#/tmp}}"
case $project in /tmp/*) mkdir -p "$seen" && mount --bind "$project" "$seen" || exit 92 ;; esac
mount --move "$folder" /tmp || exit 93
mkdir /tmp/dev && mount -t tmpfs -o mode=755 tmpfs /tmp/dev || exit 96
for each in null zero full random urandom tty; do
  : >/tmp/dev/$each && mount --bind /dev/$each /tmp/dev/$each || exit 97
done
ln -s /proc/self/fd /tmp/dev/fd && mkdir -m 1777 /tmp/dev/shm
mount --move /tmp/dev /dev && rmdir /tmp/dev || exit 98
{groups}
cd "$project" || exit 94
unset project folder seen
{setup} || exit 95
exec "$@"
"""


@contextmanager
def control_groups(limits: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, list[Path]]]:
    """The groups of a container in every hierarchy that there is.

    Args:
        limits: By controller and file of version 2.

    Yields:
        The container's id, and the folders.
    """
    container_id = secrets.token_hex(32)
    found = mounts(Path("/proc/mounts").read_text())
    wanted = ["", *(name for name in ("cpu", "cpuset", "memory", "pids") if name in found)]
    folders: dict[str, Path] = {}
    try:
        for controller in filter(found.__contains__, wanted):
            parent = found[controller] / "docker"
            parent.mkdir(exist_ok=True)
            folder = parent / container_id
            if controller == "cpuset":  # of version 1: without these nobody may enter
                for name in ("cpuset.mems", "cpuset.cpus"):
                    (parent / name).write_text((found[controller] / name).read_text())
            if not controller and set(limits) - set(found):
                _hand_down(parent, limits)
            folder.mkdir()
            folders[controller] = folder
            if controller == "cpuset":
                for name in ("cpuset.mems", "cpuset.cpus"):
                    (folder / name).write_text((parent / name).read_text())
        for controller, files in limits.items():
            is_first = controller in folders
            folder = folders[controller if is_first else ""]
            for name, value in files.items():
                for file, text in files_of(name, value, is_first_version=is_first):
                    (folder / file).write_text(text)
        yield container_id, list(folders.values())
    finally:
        for folder in folders.values():
            _remove(folder)


def _hand_down(parent: Path, limits: Mapping[str, object]) -> None:
    for above in (parent.parent, parent):
        (above / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in limits))


def _remove(folder: Path) -> None:
    end_s = time.monotonic() + _EMPTY_S
    while True:
        for pid in members([folder]):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            for path, _, _ in os.walk(folder, topdown=False):  # a run has groups of its own in it
                Path(path).rmdir()
            break
        except OSError:
            if time.monotonic() > end_s:
                raise
            time.sleep(0.01)
    with suppress(OSError):  # somebody else's containers are in it
        folder.parent.rmdir()


class Container:
    """A command in surroundings.

    Attributes:
        process: What the command was started by; its streams are the command's.
        container_id: 64 hexadecimal digits, after which its groups are called.
    """

    def __init__(
        self, process: subprocess.Popen[str], container_id: str, groups: Sequence[Path]
    ) -> None:
        self.process = process
        self.container_id = container_id
        self._groups = groups

    def network_path(self) -> str:
        """Its network namespace, from outside."""
        return f"/proc/{self._member()}/ns/net"

    def listens(self, port: int) -> bool:
        """Whether somebody in it does."""
        try:
            table = Path(f"/proc/{self._member()}/net/tcp").read_text()
        except (OSError, StopIteration):
            return False
        return f":{port:04X} 00000000:0000 0A" in table

    def _member(self) -> int:
        """One of its processes; not unshare itself, which stays outside of the namespaces."""
        return next(pid for pid in members(self._groups[:1]) if pid != self.process.pid)


@contextmanager
def started(where: Surroundings, command: Sequence[str], **options: Any) -> Iterator[Container]:
    """A command in surroundings, gone with the block with all that it started.

    Args:
        where: What it finds itself in.
        command: Its words; ``{python}`` and ``{project}`` stand for these.
        options: Of ``subprocess.Popen``.
    """
    script = _SCRIPT.format(setup=where.setup, groups=_own_view_of_groups())
    words = [
        *("unshare", *where.namespaces, "sh", "-c", script, "sh"),
        *(_filled(word) for word in (*where.rights, *command)),
    ]
    with tempfile.TemporaryDirectory(prefix="connscope-container-") as folder, ExitStack() as stack:
        container_id, groups = stack.enter_context(control_groups(where.limits))

        def enter() -> None:
            for group in groups:
                (group / "cgroup.procs").write_text("0")

        process = stack.enter_context(
            subprocess.Popen(
                words,
                env=_environment(folder),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                preexec_fn=enter,  # noqa: PLW1509  - one thread, and nothing of what it starts may be elsewhere
                **options,
            )
        )
        stack.callback(process.kill)
        yield Container(process, container_id, groups)


def _own_view_of_groups() -> str:
    """Lines that mount control groups anew, so that the container's own is their root.

    Root of a user namespace may not do so with those of version 1: there they stay the host's.
    """
    known = {line.split()[0] for line in Path("/proc/cgroups").read_text().splitlines()}
    points: dict[Path, list[str]] = {}
    for controller, point in mounts(Path("/proc/mounts").read_text()).items():
        if not controller or controller in known or controller.startswith("name="):
            points.setdefault(point, []).append(controller)
    lines = []
    for point, names in points.items():
        kind = f"cgroup -o {','.join(names)}" if any(names) else "cgroup2"
        lines.append(f"mount -t {kind} none {shlex.quote(str(point))} 2>/dev/null")
    return "\n".join(lines)


def _filled(word: str) -> str:
    return word.replace("{python}", sys.executable).replace("{project}", str(PROJECT))


def _environment(folder: str) -> dict[str, str]:
    """What a command in a container knows of its machine."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    own = {"HOME": "/tmp", "MPLCONFIGDIR": "/tmp/matplotlib", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**kept, **own, "project": str(PROJECT), "folder": folder}
