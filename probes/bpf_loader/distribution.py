"""How this host's distribution installs the eBPF bindings.

Source: os-release(5); the names that the distributions give to the Python bindings of bcc.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_OS_RELEASE = (Path("/etc/os-release"), Path("/usr/lib/os-release"))
_TEXT_MOST_BYTES = 65_536


class Bindings(NamedTuple):
    """Commands for root.

    Attributes:
        install: Gets the bindings.
        again: Gets them anew where they do not load.
    """

    install: str
    again: str


_DEBIAN = Bindings("apt-get install python3-bpfcc", "apt-get install --reinstall python3-bpfcc")
_FEDORA = Bindings("dnf install python3-bcc", "dnf reinstall python3-bcc")
_SUSE = Bindings("zypper install python3-bcc", "zypper install --force python3-bcc")
_ARCH = Bindings("pacman -S python-bcc", "pacman -S python-bcc")
_ALPINE = Bindings("apk add py3-bcc", "apk fix py3-bcc")
_BY_ID = {
    "debian": _DEBIAN,
    "ubuntu": _DEBIAN,
    "fedora": _FEDORA,
    "rhel": _FEDORA,
    "centos": _FEDORA,
    "amzn": _FEDORA,
    "suse": _SUSE,
    "opensuse": _SUSE,
    "arch": _ARCH,
    "alpine": _ALPINE,
}


def bindings(paths: Iterable[Path] = _OS_RELEASE) -> Bindings:
    """The commands of this distribution; Debian's where it is not known.

    Args:
        paths: Where os-release(5) may be; the first that can be read is taken.
    """
    for path in paths:
        try:
            with path.open("rb") as stream:
                text = stream.read(_TEXT_MOST_BYTES).decode("utf-8", errors="replace")
        except OSError:
            continue
        return _of(text)
    return _DEBIAN


def _of(text: str) -> Bindings:
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    names = (values.get("ID", ""), *values.get("ID_LIKE", "").strip("\"' ").split())
    known = (_BY_ID.get(name.strip("\"' ").partition("-")[0]) for name in names)
    return next(filter(None, known), _DEBIAN)
