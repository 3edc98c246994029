"""Stock kernels of distributions that connscope is tried on: which, and of which packages.

Every kernel comes from the mirrors of Debian and Ubuntu, as its users get it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel.

    Attributes:
        key: Its version, what commands and the table call it.
        runs_in: Where people have it.
        suite: Suite of the distribution that ships it.
        packages: Patterns of package names; of each the newest version is taken.
        on_demand: Not of the two that test_kernels.py boots.
        is_ubuntu: It is Ubuntu's, not Debian's.
    """

    key: str
    runs_in: str
    suite: str
    packages: tuple[str, ...]
    on_demand: bool = True
    is_ubuntu: bool = False

    @property
    def archive(self) -> str:
        """Folder of the mirror that has the suite."""
        if self.is_ubuntu:
            return "ubuntu"
        return "debian-security" if self.suite.endswith("-security") else "debian"


KERNELS = (
    Kernel(
        "5.10",
        "Debian 11",
        "bullseye-security",
        (r"^linux-image-5\.10\.0-[0-9]+-cloud-amd64$",),
        on_demand=False,
    ),
    Kernel(
        "5.15",
        "Ubuntu 22.04",
        "jammy-updates",
        (
            r"^linux-image-5\.15\.0-[0-9]+-generic$",
            r"^linux-modules-5\.15\.0-[0-9]+-generic$",
        ),
        is_ubuntu=True,
    ),
    Kernel(
        "6.1",
        "Debian 12, Amazon Linux 2023",
        "bookworm-security",
        (r"^linux-image-6\.1\.0-[0-9]+-cloud-amd64$",),
    ),
    Kernel(
        "6.8",
        "Ubuntu 24.04",
        "noble-updates",
        (
            r"^linux-image-6\.8\.0-[0-9]+-generic$",
            r"^linux-modules-6\.8\.0-[0-9]+-generic$",
        ),
        is_ubuntu=True,
    ),
    Kernel(
        "6.12",
        "Debian 13",
        "trixie-security",
        (r"^linux-image-6\.12\.[0-9]+\+deb13-cloud-amd64$",),
    ),
    Kernel(
        "7.3",
        "Debian 13 with backports",
        "trixie-backports",
        (
            r"^linux-binary-7\.3\.[0-9]+\+deb13-cloud-amd64$",
            r"^linux-modules-7\.3\.[0-9]+\+deb13-cloud-amd64$",
        ),
        on_demand=False,
    ),
)
