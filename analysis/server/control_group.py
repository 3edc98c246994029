"""Whose a control group is, by its path: a unit, a container, a pod; and the commands that move it.

Source: systemd.unit(5), systemd.resource-control(5); the names that Docker, Podman, containerd and
CRI-O give their groups with both cgroup drivers; systemd.exec(5) and docker-run(1) for limits.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Literal

Kind = Literal["unit", "container", "pod", "group"]

_CONTAINER_ID = r"[0-9a-f]{64}"
_DOCKER = re.compile(rf"(?:^|/)(?:docker/|docker-)({_CONTAINER_ID})(?:\.scope)?(?:/|$)")
_PODMAN = re.compile(rf"(?:^|/)libpod-({_CONTAINER_ID})(?:\.scope)?(?:/|$)")
_POD = re.compile(r"(?:^|/)kubepods")
_UNIT = re.compile(r"([A-Za-z0-9:_.\\@-]+\.(?:service|scope|slice))$")
_SHORT_ID = 12


@dataclass(frozen=True, slots=True)
class Owner:
    """Who made a control group.

    Attributes:
        kind: What it is.
        name: How it is called there: a unit, a container's id; else the last part of its path.
        tool: Its command, '' for a pod and a bare group.
    """

    kind: Kind
    name: str
    tool: str = ""

    def __str__(self) -> str:
        if self.kind == "container":
            return f"container {self.name}"
        if self.kind == "pod":
            return f"pod {self.name}"
        return self.name if self.kind == "unit" else f"control group {self.name}"


def owner_of(cgroup: str) -> Owner:
    """The owner of a group.

    Args:
        cgroup: Its folder.
    """
    if _POD.search(cgroup):  # whoever runs its containers: the limit is the pod's
        return Owner("pod", cgroup.rpartition("/")[2])
    for pattern, tool in ((_DOCKER, "docker"), (_PODMAN, "podman")):
        if found := pattern.search(cgroup):
            return Owner("container", found[1][:_SHORT_ID], tool)
    if found := _UNIT.search(cgroup):
        return Owner("unit", found[1], "systemctl")
    return Owner("group", cgroup.rpartition("/")[2] or cgroup)


def cpu_quota_command(cgroup: str, version: int, cores: float, period_us: int) -> str:
    """The command that gives a group so many cores.

    Args:
        cgroup: Its folder.
        version: Of its files, 1 or 2.
        cores: CPU time that it may use per time.
        period_us: Length of its period in microseconds.
    """
    owner = owner_of(cgroup)
    if owner.kind == "unit":
        return f"systemctl set-property {shlex.quote(owner.name)} CPUQuota={100 * cores:.0f}%"
    if owner.kind == "container":
        return f"{owner.tool} update --cpus {cores:g} {owner.name}"
    if owner.kind == "pod":
        return f"kubectl set resources DEPLOYMENT --limits=cpu={cores:g}  # the pod's own"
    quota_us = round(cores * period_us)
    if version == 1:
        return f"echo {quota_us} > {shlex.quote(f'{cgroup}/cpu.cfs_quota_us')}"
    return f'echo "{quota_us} {period_us}" > {shlex.quote(f"{cgroup}/cpu.max")}'


def tasks_command(cgroup: str, tasks_count: int) -> str:
    """The command that gives a group so many tasks; both versions have the same file.

    Args:
        cgroup: Its folder.
        tasks_count: Processes and threads together.
    """
    owner = owner_of(cgroup)
    if owner.kind == "unit":
        return f"systemctl set-property {shlex.quote(owner.name)} TasksMax={tasks_count}"
    if owner.kind == "container":
        return f"{owner.tool} update --pids-limit {tasks_count} {owner.name}"
    if owner.kind == "pod":
        return f"podPidsLimit: {tasks_count}  # in the kubelet's configuration of that node"
    return f"echo {tasks_count} > {shlex.quote(f'{cgroup}/pids.max')}"


def nofile_command(cgroup: str, nofile_count: int) -> str:
    """How the processes of a group get another RLIMIT_NOFILE when they are started again.

    Args:
        cgroup: Its folder, '' when not known.
        nofile_count: The limit.
    """
    owner = owner_of(cgroup)
    if owner.kind == "container":
        return (
            f"{owner.tool} run --ulimit nofile={nofile_count}:{nofile_count}  # container "
            f"{owner.name} made again: {owner.tool} update cannot"
        )
    if owner.kind == "pod":
        return (
            f"LimitNOFILE={nofile_count}  # in the unit of that node's container runtime "
            "(containerd.service, crio.service)"
        )
    name = owner.name if owner.name.endswith(".service") else "NAME.service"
    return f"systemctl edit {shlex.quote(name)}  # [Service] LimitNOFILE={nofile_count}"
