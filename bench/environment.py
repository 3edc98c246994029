"""What a figure depends on: versions, kernel, processor, limits."""

from __future__ import annotations

import datetime
import gzip
import platform
import subprocess
import zlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from harness.planning.host import Host
from harness.planning.layout import Plan
from harness.version import tool_commit, tool_version

_IRQ_OPTION = "CONFIG_IRQ_TIME_ACCOUNTING"


def describe(host: Host, plan: Plan, foreign: dict[str, str]) -> dict[str, str]:
    """Names and values for the end of the document.

    Args:
        host: As read before the first run.
        plan: Of the runs.
        foreign: Versions of what else was measured.
    """
    return {
        **describe_host(host),
        "py-spy": _distribution_version("py-spy"),
        "python3-bpfcc": package_version("python3-bpfcc"),
        **foreign,
        "layout": f"{plan.workers} server workers, {plan.clients} clients, "
        f"{len(plan.source_addresses)} source addresses, backlog {plan.backlog_count:,}",
        "IRQ_TIME_ACCOUNTING": irq_time_accounting(),
    }


def describe_host(host: Host) -> dict[str, str]:
    """The machine, and what measures on it."""
    commit = tool_commit()
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "connscope": tool_version() + (f", commit {commit}" if commit else ""),
        "kernel": f"Linux {host.kernel} {host.machine}",
        "processor": f"{host.cpu_model}, {host.cpu_count} cores",
        "memory": f"{host.memory_total_bytes / 2**30:.1f} GiB",
        "Python": platform.python_version(),
        "RLIMIT_NOFILE": f"{host.nofile_hard_count:,} (hard)",
    }


def _distribution_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def package_version(name: str) -> str:
    """Version of a package of the operating system (dpkg)."""
    command = ["dpkg-query", "-W", "-f", "${Version}", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "not installed"


def irq_time_accounting() -> str:
    """``on`` where the kernel counts interrupts apart from what they interrupt, off, or unknown."""
    try:
        text = gzip.decompress(Path("/proc/config.gz").read_bytes()).decode(errors="replace")
    except (OSError, EOFError, zlib.error):
        try:
            text = Path(f"/boot/config-{platform.release()}").read_text(errors="replace")
        except OSError:
            return "unknown"
    return "on" if f"{_IRQ_OPTION}=y" in text else "off"
