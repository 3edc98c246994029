"""A small initrd for kernels that have virtiofs as a module: busybox and those modules.

A newc archive (Documentation/driver-api/early-userspace/buffer-format.rst), made here because
mkinitramfs would want the kernel installed.
"""

from __future__ import annotations

import lzma
import shutil
import subprocess
from pathlib import Path

BUSYBOX = Path("/usr/bin/busybox")
MODULES = ("virtio_pci", "virtiofs")

_INIT = """#!/bin/busybox sh
{insmod}
/bin/busybox mount -t virtiofs -o ro rootfs /root
/bin/busybox mount -t devtmpfs dev /root/dev
exec /bin/busybox switch_root /root {init}
"""


def needed_modules(modules: Path) -> list[str]:
    """Files of ``MODULES`` that are not built in, each behind what it needs."""
    depends: dict[str, tuple[str, list[str]]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        file, _, needs = line.partition(":")
        depends[Path(file).name.partition(".ko")[0].replace("-", "_")] = (file, needs.split())
    order: list[str] = []
    for name in MODULES:
        if name in depends:
            file, needs = depends[name]
            order += [each for each in (*reversed(needs), file) if each not in order]
    return order


def make_initrd(modules: Path, init: str) -> bytes:
    """The archive.

    Args:
        modules: Folder of the kernel's modules, with modules.dep.
        init: First process of the guest, by its path in the root file system.
    """
    order = needed_modules(modules)
    names = [Path(file).name.partition(".ko")[0] + ".ko" for file in order]
    archive = _Archive()
    for folder in ("bin", "modules", "root", "dev", "proc"):
        archive.add(folder, 0o40755)
    archive.add("dev/console", 0o20600, device=(5, 1))
    archive.add("dev/null", 0o20666, device=(1, 3))
    archive.add("bin/busybox", 0o100755, BUSYBOX.read_bytes())
    for file, name in zip(order, names, strict=True):
        archive.add(f"modules/{name}", 0o100644, _unpacked(modules / file))
    insmod = "\n".join(f"/bin/busybox insmod /modules/{name}" for name in names)
    archive.add("init", 0o100755, _INIT.format(insmod=insmod, init=init).encode())
    return archive.bytes()


def _unpacked(path: Path) -> bytes:
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".zst":
        zstd = shutil.which("zstd") or "zstd"
        return subprocess.run([zstd, "-dc", path], stdout=subprocess.PIPE, check=True).stdout
    return path.read_bytes()


class _Archive:
    """Entries of a newc archive, one after the other."""

    def __init__(self) -> None:
        self._raw = bytearray()
        self._count = 0

    def add(
        self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        """One file, folder or device."""
        self._count += 1
        path = name.encode() + b"\0"
        numbers = (self._count, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
        header = "070701" + "".join(f"{number:08X}" for number in numbers)
        for part in (header.encode() + path, data):
            self._raw += part
            self._raw += bytes(-len(self._raw) % 4)

    def bytes(self) -> bytes:
        """The archive with its end."""
        self.add("TRAILER!!!", 0)
        return bytes(self._raw)
