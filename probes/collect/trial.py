"""Whether a probe runs here, told by running it for a moment: ``profile-doctor`` and nothing else.

A check that only looks for files says what ought to work. Here a probe starts as it does in a run,
with nobody to watch: its programs are compiled, loaded and attached, its maps and files are read
once, and all is given back. The tables go to a folder that is deleted.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from pathlib import Path

from probes.collect.registry import PROBES, ProbeCheck, ProbeEntry, make
from probes.contract import live as live_memory
from probes.contract.clock import now_ns
from probes.contract.errors import ProbeUnavailableError
from probes.contract.live import Live
from probes.contract.probe import Probe, Target
from probes.contract.rundir import create_run_dir


class Trial:
    """A target without processes that several probes are tried on; made by ``trial``."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def run(self, probe: Probe) -> list[str]:
        """Starts a probe, takes one sample and stops it.

        Returns:
            What it sees less of than elsewhere, a line each.

        Raises:
            ProbeUnavailableError: It cannot run here.
            Exception: It broke, which it would do in a run, too.
        """
        self._target.notes.clear()
        probe.check()
        try:
            probe.prepare()
            probe.start(self._target)
            probe.sample(now_ns())
        finally:
            try:
                probe.stop(now_ns())
            finally:
                for writer in probe.writers:
                    writer.close()
        return [*self._target.notes, *([probe.note] if probe.note else [])]


@contextlib.contextmanager
def trial() -> Iterator[Trial]:
    """What probes are tried on; the object that the default probes share is compiled once."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="connscope-trial-")))
        run = create_run_dir(folder, "trial")
        live_fd = live_memory.create(folder / "live.bin", slot_count=1, capacity=1)
        stack.callback(os.close, live_fd)
        live = Live(live_fd)
        stack.callback(live.close)
        target = Target(run, {}, frozenset(), live)
        stack.enter_context(_shared_object_is_kept(target))
        yield Trial(target)


@contextlib.contextmanager
def _shared_object_is_kept(target: Target) -> Iterator[None]:
    """Until the end; each probe would have it compiled anew otherwise."""
    with ExitStack() as stack:
        with contextlib.suppress(ProbeUnavailableError, ImportError):
            # numpy, which listing the probes does without
            from probes.ebpf import shared as bpf_shared
            from probes.ebpf import sources as bpf_sources

            loaded = bpf_shared.acquire(stack, target, bpf_sources.common)
            stack.callback(bpf_shared.release, stack, loaded)
        yield


def check_all(names: Collection[str] = tuple(PROBES)) -> list[ProbeCheck]:
    """Tries probes, in order of start.

    Args:
        names: Which; all by default.
    """
    with trial() as on:
        return [_check(entry, on) for entry in PROBES.values() if entry.name in names]


def _check(entry: ProbeEntry, on: Trial) -> ProbeCheck:
    try:
        notes = on.run(make(entry.name))
    except ProbeUnavailableError as error:
        return ProbeCheck(entry.name, entry.sets, "unavailable", error.message, error.fix)
    except Exception as error:  # noqa: BLE001  # one broken check must not hide the others
        reason = f"{type(error).__name__}: {error}"
        return ProbeCheck(entry.name, entry.sets, "failed", reason, "please report this")
    return ProbeCheck(entry.name, entry.sets, "available", "", "", tuple(notes))
