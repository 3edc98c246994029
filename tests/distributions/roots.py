"""Root file systems of distributions: fetched once, and each time as they were at first.

debootstrap makes the smallest system that has a package manager; what a run then writes goes into
an overlay that is gone with it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.kernels.fetch import CannotFetchError, mirror

PROJECT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("CONNSCOPE_ROOTS", "/var/cache/connscope-roots"))
"""Where roots are kept."""
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
"""Whom this machine trusts; a mirror in its network may be known to nobody else."""

_FETCH_TIMEOUT_S = 900
_SCRIPTS = Path("/usr/share/debootstrap/scripts")
_UBUNTU_SCRIPT = "gutsy"  # of all later ones too, which an older debootstrap does not know
_UBUNTU_MIRROR = "http://archive.ubuntu.com/ubuntu"
_UBUNTU_KEYRING = Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg")


@dataclass(frozen=True, slots=True)
class Distribution:
    """One release.

    Attributes:
        key: What commands and the table call it.
        suite: What its mirror calls it.
        is_ubuntu: It is Ubuntu's, not Debian's.
    """

    key: str
    suite: str
    is_ubuntu: bool = False


DISTRIBUTIONS = (
    Distribution("debian-12", "bookworm"),
    Distribution("debian-13", "trixie"),
    Distribution("ubuntu-22.04", "jammy", is_ubuntu=True),
    Distribution("ubuntu-24.04", "noble", is_ubuntu=True),
)


def base(distribution: Distribution) -> Path:
    """The root of a distribution, fetched unless it is there.

    Raises:
        CannotFetchError: This machine cannot get it.
    """
    if os.geteuid() != 0:
        raise CannotFetchError("a root file system is made by root: run it with sudo")
    root = FOLDER / distribution.suite
    if not (root / "complete").exists():
        _fetch(distribution, root)
    if distribution.is_ubuntu:  # as on every Ubuntu that is installed: newer Pythons come there
        suites = [distribution.suite, f"{distribution.suite}-updates"]
        lines = [f"deb {_UBUNTU_MIRROR} {suite} main universe\n" for suite in suites]
        (root / "etc/apt/sources.list").write_text("".join(lines))
    return root


def _fetch(distribution: Distribution, root: Path) -> None:
    if shutil.which("debootstrap", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None:
        raise CannotFetchError("to get root file systems: apt-get install debootstrap")
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    done = subprocess.run(
        _fetching(distribution, root),
        capture_output=True,
        text=True,
        timeout=_FETCH_TIMEOUT_S,
    )
    if done.returncode:
        reason = (done.stdout + done.stderr).strip().splitlines()[-1:]
        raise CannotFetchError(f"debootstrap {distribution.suite}: {' '.join(reason)}")
    (root / "complete").touch()


def _fetching(distribution: Distribution, root: Path) -> list[str]:
    words = ["debootstrap", "--variant=minbase"]
    if not distribution.is_ubuntu:
        return [*words, distribution.suite, str(root), f"{mirror()}/debian"]
    trust = f"--keyring={_UBUNTU_KEYRING}" if _UBUNTU_KEYRING.exists() else "--no-check-gpg"
    words += ["--components=main,universe", trust, distribution.suite, str(root)]
    return [*words, _UBUNTU_MIRROR, str(_SCRIPTS / _UBUNTU_SCRIPT)]


def run(
    root: Path, script: str, arguments: Sequence[str], *, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Runs a script in an overlay of a root, with a copy of this project's commit in /src.

    Args:
        root: See ``base``; it is not changed.
        script: Of sh.
        arguments: Its arguments.
        timeout_s: For all of it.

    Raises:
        subprocess.TimeoutExpired: It took longer.
    """
    with tempfile.TemporaryDirectory(prefix="overlay-", dir=FOLDER) as name:
        work = shlex.quote(name)
        for folder in ("upper", "work", "root", "src"):
            Path(name, folder).mkdir()
        _copy_project(Path(name, "src"))
        lines = [  # all of its mounts go with its namespace
            f"cd {work}",
            f"mount -t overlay -o lowerdir={shlex.quote(str(root))},upperdir=upper,workdir=work "
            "overlay root",
            "mkdir -p root/src && mount --bind src root/src",
            "mount -t proc proc root/proc && mount --rbind /sys root/sys",
            "mount -t tmpfs -o mode=755 tmpfs root/dev",  # what it does to /dev is not the host's
            "for each in null zero full random urandom tty; do "
            ": >root/dev/$each && mount --bind /dev/$each root/dev/$each; done",
            "ln -s /proc/self/fd root/dev/fd && mkdir -m 1777 root/dev/shm",
            "mount -t tmpfs -o mode=1777 tmpfs root/tmp",
            "cp /etc/resolv.conf root/etc/resolv.conf",
            f"[ ! -e {AUTHORITIES} ] || cp {AUTHORITIES} root/etc/authorities.crt",
            'exec chroot root sh -c "$@"',
        ]
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-e", "-c"]
        return subprocess.run(
            [*command, "\n".join(lines), "sh", script, "sh", *arguments],
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )


def _copy_project(folder: Path) -> None:
    archive = subprocess.run(
        ["git", "-C", str(PROJECT), "archive", "HEAD"], stdout=subprocess.PIPE, check=True
    )
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)


def _environment() -> dict[str, str]:
    known = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "DEBIAN_FRONTEND": "noninteractive",
    }
    if AUTHORITIES.exists():
        known |= dict.fromkeys(("PIP_CERT", "SSL_CERT_FILE"), "/etc/authorities.crt")
    return known
