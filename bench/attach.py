"""What ``profile-attach`` costs the server that it watches: windows with and without it, in turn.

``make bench-attach`` prints the page docs/benchmarks-attach.md; ``ARGS=--write`` also writes it.
One server and one client process live through the whole bench, with each load about 8 minutes:
``ARGS='--load room --json windows.json'`` measures one of them and keeps its windows; what the
file holds already is not measured again, so that the bench can be run in pieces and broken off.

A block is two windows without a watch, the start of one, windows until it has settled, four windows
while it is, and two without it again: a machine that becomes slower or faster at an even pace meets
both kinds alike.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench import attach_document
from bench.attach_document import Measured, Setting
from bench.attach_figures import Block, undisturbed
from bench.attach_windows import Attached, Load
from bench.command import say, write
from harness.planning.host import read_host
from probes.budget import governor

SETTLE_S = governor.QUIET_AFTER_NS / 1e9 + 1.0
"""A watch then looks as often as it does for hours where nothing happens, and what it may spend at
once is spent or kept."""

PHASES_COUNT = 5
"""Its tracepoint at every call, the dearest part, is on for a moment in some ten seconds, as it is
later. So that the windows do not meet or miss it in every watch, they begin up to four windows
later from watch to watch."""

OFF_COUNT, ON_COUNT = 2, 4
START_S = 5.0
_PAUSE_S = 1.0
_NEAR_USE_SHARE = 0.95
_AT_RATE = ("p50_us", "p99_us", "server_cpu_us")
_DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks-attach.md"


@dataclass(slots=True)
class Part:
    """One kind of load.

    Attributes:
        title: Of the tables' rows.
        figures: Which are judged.
        has_room: Messages come at a rate that leaves room, not as fast as they go.
        is_near: The server has nearly all of its descriptors in use.
        rate_per_s: Messages, 0 for as fast as it goes.
        blocks: What was measured.
    """

    title: str
    figures: tuple[str, ...]
    has_room: bool
    is_near: bool = False
    rate_per_s: float = 0.0
    blocks: list[Block] = field(default_factory=list)


def parts_of(share: float) -> dict[str, Part]:
    """The loads by their names, at that share of the most messages."""
    title = f"{100 * share:.0f} % of the most"
    return {
        "room": Part(title, _AT_RATE, has_room=True),
        "near": Part(f"{title}, descriptors 95 % used", _AT_RATE, has_room=True, is_near=True),
        "full": Part("as fast as it goes", ("messages_per_s", *_AT_RATE), has_room=False),
    }


class Store:
    """The windows of a bench that is measured in pieces.

    Args:
        path: A JSON file, None to keep nothing.
        setting: How it is measured now.
        parts: Get what the file holds.
    """

    def __init__(self, path: Path | None, setting: Setting, parts: dict[str, Part]) -> None:
        self._path = path
        self._setting = asdict(setting)
        self._parts = parts
        if path is None or not path.exists():
            return
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        other = {
            name for name, value in self._setting.items() if kept["setting"].get(name) != value
        }
        if other:
            names = ", ".join(sorted(other))
            raise SystemExit(f"error: {path} was measured otherwise ({names})\nfix: rm {path}")
        for name, part in kept["loads"].items():
            parts[name].rate_per_s = part["rate_per_s"]
            parts[name].blocks = [Block(**block) for block in part["blocks"]]

    def write(self) -> None:
        """Writes all that is known."""
        if self._path is None:
            return
        loads = {
            name: {
                "rate_per_s": part.rate_per_s,
                "blocks": [block.to_dict() for block in part.blocks],
            }
            for name, part in self._parts.items()
            if part.blocks
        }
        text = json.dumps({"setting": self._setting, "loads": loads})
        self._path.write_text(text, encoding="utf-8")


def measure_block(load: Load, rate_per_s: float, setting: Setting, number: int) -> Block:
    """One watch and the windows around it; its number says how much later its windows begin."""
    block = Block()

    def measure(kind: str, watch: Attached | None = None) -> None:
        block.windows(kind).append(load.window(setting.seconds, rate_per_s, watch))

    for _ in range(OFF_COUNT):
        measure("off")
    with tempfile.TemporaryDirectory(prefix="bench-attach-") as folder:
        watches: list[Attached] = []

        def begin() -> Attached:
            watches.append(Attached(load.port, setting.probes, Path(folder)))
            return watches[0]

        try:
            block.start.append(load.window(START_S, rate_per_s, begin=begin))
            watch = watches[0]
            while time.monotonic() < watch.began_s + setting.settle_s:
                measure("settle", watch)
            for _ in range(number % PHASES_COUNT):
                measure("settle", watch)
            for _ in range(ON_COUNT):
                measure("on", watch)
        finally:
            for each in watches:
                each.end()
    load.window(_PAUSE_S, rate_per_s)
    for _ in range(OFF_COUNT):
        measure("off")
    return block


def measure(
    load: Load, part: Part, setting: Setting, share: float, blocks: int, done: Callable[[], None]
) -> None:
    """Adds blocks to a part until it has so many, and tells of each."""
    near_count = int(load.connections / _NEAR_USE_SHARE)
    load.limit_descriptors(near_count if part.is_near else load.room_limit_count)
    if part.has_room and not part.rate_per_s:
        load.window(1.0, 0)
        part.rate_per_s = share * max(load.window(1.0, 0)["messages_per_s"] for _ in range(3))
    load.window(_PAUSE_S, part.rate_per_s)
    while len(part.blocks) < blocks:
        block = measure_block(load, part.rate_per_s, setting, len(part.blocks))
        part.blocks.append(block)
        done()
        say(f"{part.title}: watch {len(part.blocks)} of {blocks}")


def parser() -> argparse.ArgumentParser:
    """The parser of ``python -m bench.attach``."""
    top = argparse.ArgumentParser(prog="make bench-attach", description=__doc__, allow_abbrev=False)
    add = top.add_argument
    add("--load", choices=tuple(parts_of(0.3)), action="append", metavar="NAME",
        help="room, near or full; may be given again; default: all three")  # fmt: skip
    add("--watches", type=int, default=10, metavar="N",
        help=f"with each load, {ON_COUNT} pairs of windows each; default 10")  # fmt: skip
    add("--seconds", type=float, default=2.5, metavar="S", help="of a window, default 2.5")
    add("--settle", type=float, default=SETTLE_S, metavar="S",
        help=f"from the begin of a watch to its first window, default {SETTLE_S:g}")  # fmt: skip
    add("--idle", type=int, default=2_000, metavar="N", help="silent connections, default 2000")
    add("--busy", type=int, default=32, metavar="N", help="connections that talk, default 32")
    add("--probes", default="auto", metavar="SET", help="as of profile-attach")
    add("--share", type=float, default=0.3, help="load with room, of the most; default 0.3")
    add("--json", type=Path, metavar="FILE", help="keeps every window; goes on where it ends")
    add("--write", action="store_true", help="also write docs/benchmarks-attach.md")
    return top


def main() -> None:
    """Measures, prints and writes."""
    options = parser().parse_args()
    host = read_host()
    setting = Setting(
        kernel=host.kernel,
        cpus=f"{host.cpu_count} cores of {host.cpu_model}",
        connections=options.idle + options.busy,
        busy_count=options.busy,
        seconds=options.seconds,
        settle_s=options.settle,
        probes=options.probes,
    )
    parts = parts_of(options.share)
    store = Store(options.json, setting, parts)
    wanted = [
        parts[name] for name in options.load or parts if len(parts[name].blocks) < options.watches
    ]
    if wanted:
        load = Load(options.idle, options.busy)
        try:
            for part in wanted:
                measure(load, part, setting, options.share, options.watches, store.write)
        finally:
            load.end()
    text = attach_document.page(
        setting,
        [
            Measured(part.title, part.figures, len(part.blocks), undisturbed(part.blocks))
            for part in parts.values()
            if part.blocks
        ],
    )
    sys.stdout.write(text)
    if options.write:
        write(_DOCUMENT, text)


if __name__ == "__main__":
    main()
