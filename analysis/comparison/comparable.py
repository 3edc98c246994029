"""Whether runs can be compared at all, and if not, why and what helps."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from probes.contract.errors import HostError, UsageError

Manifest = Mapping[str, Any]

_HOST_FACTS = (
    ("kernel", "kernel release"),
    ("machine", "machine"),
    ("cpu_model", "processor"),
    ("cpu_count", "number of CPUs"),
)
_STATUS_WORDS = {
    "running": "did not finish: it still runs, or its supervisor was killed",
    "interrupted": "was interrupted",
    "failed": "failed",
}


def check_comparable(manifests: Sequence[Manifest], *, across_hosts: bool = False) -> None:
    """Refuses runs of which a difference would say nothing about plan or settings.

    Args:
        manifests: One for each run.
        across_hosts: Compare runs of different hosts all the same.

    Raises:
        UsageError: Fewer than two runs, one named twice, other schema versions, a run that did
            not finish, or private against host network.
        HostError: Runs of different hosts.
    """
    if len(manifests) < 2:
        raise UsageError(
            f"{len(manifests)} run is nothing to compare",
            fix="name two runs or more, for example: profile-compare runs/*-accept-*",
        )
    names = [run_name(manifest) for manifest in manifests]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"run {twice} is named twice", fix="name each run once")
    _check_same(
        manifests,
        lambda m: m.get("schema_version"),
        "have different schema versions",
        "record them with one version of connscope: "
        + _again(_odd_one(manifests, lambda m: m.get("schema_version"))),
    )
    for manifest in manifests:
        _check_finished(manifest)
    _check_same(
        manifests,
        lambda m: _host(m).get("network_namespace"),
        "were made in different networks (own: a private namespace, host: the host's)",
        "record one of them again in the other's network (as root, without or with "
        "--host-network): "
        + _again(_odd_one(manifests, lambda m: _host(m).get("network_namespace"))),
    )
    if not across_hosts:
        _check_hosts(manifests)


def check_probes(
    manifests: Sequence[Manifest], ran: Sequence[frozenset[str]], *, across_probes: bool = False
) -> str:
    """Refuses runs that were watched by different probes: watching costs CPU and time.

    Args:
        manifests: One for each run.
        ran: The probes that ran in each (``probes_that_ran``).
        across_probes: Compare them all the same.

    Returns:
        The caution to show when they are compared all the same, '' when none is needed.

    Raises:
        UsageError: They differ, and ``across_probes`` is not set.
    """
    odd = next((i for i, mine in enumerate(ran) if mine != ran[0]), None)
    if odd is None:
        return ""
    first, other = manifests[0], manifests[odd]
    differing = [
        f"{', '.join(sorted(mine))} ran only in {run_name(manifest)}"
        for manifest, mine in ((first, ran[0] - ran[odd]), (other, ran[odd] - ran[0]))
        if mine
    ]
    text = (
        f"{run_name(first)} and {run_name(other)} were not watched by the same probes "
        f"({'; '.join(differing)}), and watching costs CPU: rates, times and CPU figures differ "
        "by that alone"
    )
    if across_probes:
        return f"{text}."
    lacking = other if ran[0] - ran[odd] else first
    same_asked = first.get("probes_asked") == other.get("probes_asked")
    again = (
        f"a probe that was asked for did not run; record that run again ({_again(lacking)})"
        if same_asked
        else "record both with the same --probes"
    )
    raise UsageError(
        text,
        fix=f"{again}, or add --across-probes to compare them with the probes' cost in the figures",
    )


def probes_that_ran(verdict_document: Mapping[str, Any]) -> frozenset[str]:
    """Names of the probes that ran, from ``verdict.json``."""
    probes = verdict_document.get("probes") or []
    return frozenset(str(probe["name"]) for probe in probes if probe.get("state") == "ran")


def run_name(manifest: Manifest) -> str:
    """The run's id."""
    return str(manifest.get("run_id") or "a run without an id")


def _host(manifest: Manifest) -> Mapping[str, Any]:
    host = manifest.get("host")
    return host if isinstance(host, Mapping) else {}


def _again(manifest: Manifest) -> str:
    return shlex.join(str(word) for word in manifest.get("argv") or ["profile-run"])


def _odd_one(manifests: Sequence[Manifest], fact: Callable[[Manifest], Any]) -> Manifest:
    """The first that differs from the first."""
    return next((m for m in manifests if fact(m) != fact(manifests[0])), manifests[0])


def _check_same(
    manifests: Sequence[Manifest], fact: Callable[[Manifest], Any], what: str, fix: str
) -> None:
    first, odd = manifests[0], _odd_one(manifests, fact)
    if odd is not first:
        raise UsageError(
            f"{run_name(first)} and {run_name(odd)} {what}: {fact(first)} and {fact(odd)}", fix=fix
        )


def _check_finished(manifest: Manifest) -> None:
    status = str(manifest.get("status") or "running")
    if status != "finished":
        raise UsageError(
            f"{run_name(manifest)} {_STATUS_WORDS.get(status, status)}: its figures are not those "
            "of a whole run",
            fix=f"leave it out, or record it again: {_again(manifest)}",
        )


def _check_hosts(manifests: Sequence[Manifest]) -> None:
    first = manifests[0]
    for other in manifests[1:]:
        differences = [
            f"{words} {_host(first).get(key)} and {_host(other).get(key)}"
            for key, words in _HOST_FACTS
            if _host(first).get(key) != _host(other).get(key)
        ]
        if differences:
            raise HostError(
                f"{run_name(first)} and {run_name(other)} are of different hosts: "
                + "; ".join(differences),
                fix="record both on one host, or add --across-hosts to compare the hosts as well",
            )
