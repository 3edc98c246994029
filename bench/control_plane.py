"""``python -m bench.control_plane``: the planner and Dask's control plane with more and more hosts.

Agents are workers in this one process, each with its own connection to a real scheduler, and do
nothing: what is measured is what the command that starts a run has to do, not the hosts.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from dataclasses import replace
from pathlib import Path

from bench.command import say
from harness.hosts import agent
from harness.hosts.dask_settings import turn_off
from harness.hosts.hosts_file import HostEntry, HostsFile
from harness.hosts.layout import lay_out
from harness.planning.host import Host, read_host
from harness.planning.request import PlanRequest

ROUNDS_COUNT = 5
TARGET = 10_000_000


def large(host: Host) -> Host:
    """A host of a rack: 32 cores, 256 GB, descriptors for a million connections a process."""
    return replace(
        host,
        cpu_count=32,
        nofile_hard_count=1_048_576,
        effective_capabilities=(1 << 41) - 1,
        memory_total_bytes=256 * 10**9,
        memory_available_bytes=250 * 10**9,
        file_max_count=10**9,
        tcp_mem_pages=(3_000_000, 4_000_000, 6_000_000),
        conntrack_max_count=None,
        epoll_max_user_watches_count=60_000_000,
        port_range=(32_768, 60_999),
        reserved_ports=(),
        listening_ports=(),
    )


def planned(count: int) -> None:
    """Lays ten million connections over so many client hosts, and says what binds."""
    clients = (
        HostEntry(name=f"c{i}", address=f"10.{1 + i // 250}.0.{1 + i % 250}") for i in range(count)
    )
    hosts = HostsFile((HostEntry(name="s", address="10.0.0.1", role="server"), *clients))
    host = large(read_host())
    begun_s = time.perf_counter()
    request = PlanRequest(connections=TARGET, force=True)
    plan = lay_out(request, hosts, {each.name: host for each in hosts.hosts})
    took_s = time.perf_counter() - begun_s
    part, server = plan.loads[0], plan.server.plan
    walls = sorted({f"{p.entry.role} {rung.limit}" for p in plan.parts for rung in p.rungs})
    say(
        f"plan {count:,} client hosts: {took_s:.2f} s; {part.share:,} each to "
        f"{len(server.destination_ports)} ports; server {server.memory_needed_bytes / 1e9:.1f} GB, "
        f"client {part.plan.memory_needed_bytes / 1e9:.2f} GB; walls: {', '.join(walls) or 'none'}"
    )


async def controlled(count: int) -> None:
    """Starts a scheduler and so many agents that do nothing, and asks them all in turns."""
    from distributed import Client, Scheduler, Worker

    turn_off()
    before_bytes, begun_s = _rss_bytes(), time.perf_counter()
    quiet = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
    async with Scheduler(host="127.0.0.1", port=0, **quiet) as scheduler:
        made = [
            Worker(scheduler.address, host="127.0.0.1", nthreads=1, memory_limit=0, **quiet)
            for _ in range(count)
        ]
        await asyncio.gather(*made)
        client = await Client(scheduler.address, asynchronous=True, set_as_default=False)
        started_s = time.perf_counter() - begun_s
        took = []
        for _ in range(ROUNDS_COUNT):
            begun_s = time.perf_counter()
            await asyncio.gather(
                *(client.run(agent.now_ns, workers=[each.address]) for each in made)
            )
            took.append(time.perf_counter() - begun_s)
        cpu_s, at_s = time.process_time(), time.perf_counter()
        await asyncio.sleep(5.0)
        idle_pct = 100 * (time.process_time() - cpu_s) / (time.perf_counter() - at_s)
        each_bytes = (_rss_bytes() - before_bytes) / count
        say(
            f"control {count:,} agents: start {started_s:.1f} s, a round {1e3 * min(took):.0f} ms, "
            f"{each_bytes / 1e6:.2f} MB each, idle {idle_pct / count:.3f} % of a core each"
        )
        await client.close()
        await asyncio.gather(*(each.close() for each in made))


def _rss_bytes() -> int:
    words = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    """All sizes, one line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, nargs="+", default=[10, 50, 100, 200])
    parser.add_argument("--plans", type=int, nargs="+", default=[25, 100, 1000])
    options = parser.parse_args()
    for count in options.plans:
        planned(count)
    for count in options.hosts:
        asyncio.run(controlled(count))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
