"""Gets kernels by apt into a folder that is kept, without touching this machine's package lists.

apt works with a folder, lists and a cache of its own; packages are unpacked and not installed. What
is there already is not asked for again: ``rm -r`` of the folder fetches newer ones.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.kernels.catalogue import Kernel

FOLDER = Path(os.environ.get("CONNSCOPE_KERNELS", "/var/cache/connscope-kernels"))
"""Where kernels are kept; not below a folder that the guest covers (guest.COVERED)."""

_TIMEOUT_S = 240
_DEBIAN_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_UBUNTU_KEYRING = Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg")  # of ubuntu-keyring
_VERSION = re.compile(r"[0-9]+|[^0-9]+")


class CannotFetchError(Exception):
    """One line that says why there is no kernel."""


def kernel_image(kernel: Kernel) -> Path:
    """The image of a kernel, fetched unless it is there.

    Raises:
        CannotFetchError: This machine cannot get it.
    """
    root = FOLDER / kernel.key
    FOLDER.mkdir(parents=True, exist_ok=True)
    with _lock(FOLDER / f"{kernel.key}.lock"):
        if not (root / "complete").exists():
            _fetch(kernel, root)
    images = [*root.glob("boot/vmlinuz*"), *root.glob("usr/lib/modules/*/vmlinuz")]
    if not images:
        raise CannotFetchError(f"the packages of Linux {kernel.key} hold no image: rm -r {root}")
    return images[0]


def modules_folder(kernel: Kernel) -> Path:
    """The modules of a kernel that was fetched; its name is the kernel's release."""
    root = FOLDER / kernel.key
    found = [*root.glob("lib/modules/*"), *root.glob("usr/lib/modules/*")]
    return found[0]


def _fetch(kernel: Kernel, root: Path) -> None:
    for program in ("apt-get", "dpkg-deb", "depmod"):
        if shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
            raise CannotFetchError(f"no {program} here: kernels come as packages of Debian")
    shutil.rmtree(root, ignore_errors=True)
    work = root / "apt"
    for folder in ("lists/partial", "archives/partial"):
        (work / folder).mkdir(parents=True)
    (work / "status").touch()
    options = _apt_options(kernel, work)
    _run(["apt-get", *options, "update"])
    found = _run(["apt-cache", *options, "search", "--names-only", "linux-"])
    names = [line.split(" ", 1)[0] for line in found.split("\n")]
    wanted = []
    for pattern in kernel.packages:
        matching = sorted(filter(re.compile(pattern).search, names), key=_version_key)
        if not matching:
            raise CannotFetchError(f"{kernel.suite} of the mirror has no package {pattern}")
        wanted.append(matching[-1])
    _run(["apt-get", *options, "download", *wanted], cwd=work)
    for package in work.glob("*.deb"):
        _run(["dpkg-deb", "--extract", str(package), str(root)])
    _run(["depmod", "-b", _module_base(root), modules_folder(kernel).name])
    shutil.rmtree(work)
    (root / "complete").touch()


def _module_base(root: Path) -> str:
    """depmod looks below lib/modules of it."""
    return str(root if (root / "lib/modules").exists() else root / "usr")


def _apt_options(kernel: Kernel, work: Path) -> list[str]:
    keyring = _UBUNTU_KEYRING if kernel.is_ubuntu else _DEBIAN_KEYRING
    trust = f"signed-by={keyring}" if keyring.exists() else "trusted=yes"
    server = "http://archive.ubuntu.com" if kernel.is_ubuntu else mirror()
    line = f"deb [{trust}] {server}/{kernel.archive} {kernel.suite} main\n"
    (work / "sources.list").write_text(line)
    values = {
        "APT::Sandbox::User": "root",
        "APT::Architecture": "amd64",
        "APT::Architectures": "amd64",
        "Dir::Etc::SourceList": work / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State": work,
        "Dir::State::Lists": work / "lists",
        "Dir::State::Status": work / "status",
        "Dir::Cache": work,
        "Acquire::Languages": "none",
        # an archived suite is as good as it ever was
        "Acquire::Check-Valid-Until": "false",
    }
    return ["-q=2", *(word for name, value in values.items() for word in ("-o", f"{name}={value}"))]


def mirror() -> str:
    """The mirror of this machine's own sources, which is known to be reachable; else Debian's."""
    texts = [
        path.read_text(errors="replace")
        for path in (Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*"))
        if path.is_file()
    ]
    found = re.search(r"(https?://[^\s/]+(?:/[^\s]*?)?)/debian/?(?:\s|$)", "\n".join(texts))
    return found[1] if found else "http://deb.debian.org"


def _version_key(name: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in _VERSION.findall(name)]


def _run(command: Sequence[str], cwd: Path | None = None) -> str:
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            cwd=cwd,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise CannotFetchError(f"{command[0]} did not end within {_TIMEOUT_S} s") from error
    if done.returncode:
        words = [line for line in done.stderr.split("\n") if line.strip()]
        reason = next((line for line in words if line.startswith("E:")), (words or [""])[-1])
        raise CannotFetchError(f"{command[0]} {command[-1]}: {reason.strip()}")
    return done.stdout


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
