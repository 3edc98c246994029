"""Hosts for tests: network namespaces joined by veth pairs and a bridge, each with its own /tmp.

Every name has the pid of who made it, so that what a killed one left is found and removed by the
next. Nothing is put into this machine's own network namespace.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_NAMES = Path("/run/netns")
_OURS = re.compile(r"cs(\d+)-[a-z0-9]+")
_NETWORK = "10.213.0"


def _ip(*words: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")


class Lab:
    """Namespaces of one laboratory: a switch, the controller, a server and some clients.

    Attributes:
        folder: Of files; each host's /tmp is in it.
    """

    def __init__(self, clients: int, folder: Path) -> None:
        self._prefix = f"cs{os.getpid()}-"
        self.folder = folder
        self.names = ["server", *(f"client{number}" for number in range(1, clients + 1))]

    def __enter__(self) -> Lab:
        sweep()
        try:
            self._make("switch")
            self.inside("switch", "ip", "link", "add", "br0", "type", "bridge")
            self.inside("switch", "ip", "link", "set", "br0", "up")
            for number, name in enumerate(["controller", *self.names]):
                self._make(name)
                (self.folder / name).mkdir()
                there, here = f"v{number}", self.namespace(name)
                self.inside(
                    *("switch", "ip", "link", "add", there, "type", "veth"),
                    *("peer", "name", "eth0", "netns", here),
                )
                self.inside("switch", "ip", "link", "set", there, "master", "br0", "up")
                self.inside(name, "ip", "address", "add", f"{self.address(name)}/24", "dev", "eth0")
                self.inside(name, "ip", "link", "set", "eth0", "up")
                self.inside(name, "ip", "link", "set", "lo", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in ("controller", *self.names, "switch"):
            _remove(self.namespace(name))

    def _make(self, name: str) -> None:
        _ip("netns", "add", self.namespace(name))

    def namespace(self, name: str) -> str:
        """Name of a host's namespace."""
        return self._prefix + name

    def address(self, name: str) -> str:
        """IPv4 of a host."""
        return f"{_NETWORK}.{['controller', *self.names].index(name) + 1}"

    def prefix(self, name: str) -> list[str]:
        """Words before a command that runs on a host. ip-netns(8) would hide /sys/fs/cgroup."""
        return [
            *("nsenter", f"--net=/run/netns/{self.namespace(name)}"),
            *("env", f"TMPDIR={self.folder / name}"),
        ]

    def inside(self, name: str, *command: str) -> None:
        """Runs a command on a host."""
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{self.namespace(name)}", *command],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")

    def cut(self, name: str) -> None:
        """Takes a host off the network."""
        number = ["controller", *self.names].index(name)
        self.inside("switch", "ip", "link", "set", f"v{number}", "down")

    def pids(self, name: str) -> list[int]:
        """Processes in a host's namespace."""
        try:
            wanted = os.stat(_NAMES / self.namespace(name)).st_ino
        except FileNotFoundError:
            return []
        return [pid for pid in _all_pids() if _namespace_of(pid) == wanted]

    def hosts_file(self, extra: dict[str, Sequence[str]] | None = None) -> Path:
        """Writes ``hosts.toml``.

        Args:
            extra: Further lines by host; a line of ``start`` takes the place of the usual one.
        """
        lines = []
        for name in self.names:
            more = list((extra or {}).get(name, ()))
            role = "server" if name == "server" else "client"
            lines += ["[[host]]", f'name = "{name}"', f'address = "{self.address(name)}"']
            lines += [f'role = "{role}"']
            if not any(line.startswith("start") for line in more):
                more.append(f"start = {self.prefix(name)!r}".replace("'", '"'))
            lines += [*more, ""]
        path = self.folder / "hosts.toml"
        path.write_text("\n".join(lines))
        return path

    def command(self, *words: str) -> list[str]:
        """A command of the family as the controller starts it."""
        folder = Path(sys.executable).parent
        return [*self.prefix("controller"), str(folder / words[0]), *words[1:]]


@contextmanager
def lab(clients: int) -> Iterator[Lab]:
    """A laboratory that leaves nothing behind."""
    folder = Path(tempfile.mkdtemp(prefix="connscope-lab-"))
    try:
        with Lab(clients, folder) as made:
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep() -> None:
    """Removes what laboratories left whose maker is gone."""
    for path in _NAMES.glob("cs*-*") if _NAMES.is_dir() else ():
        found = _OURS.fullmatch(path.name)
        if found and not Path(f"/proc/{found[1]}").exists():
            _remove(path.name)


def _remove(namespace: str) -> None:
    try:
        wanted = os.stat(_NAMES / namespace).st_ino
    except FileNotFoundError:
        return
    for pid in _all_pids():
        if _namespace_of(pid) == wanted:
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                pass
    _ip("netns", "delete", namespace, check=False)


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _namespace_of(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return 0
