"""The server's lean parent: ``python -P -m harness.server.main``, started by the supervisor."""

from __future__ import annotations

import _socket
import sys
from functools import partial

from harness.fleet import child
from harness.fleet.config import FleetConfig
from harness.fleet.forker import Job, begin_parent, fork_all, report_ends, stay_without_rights
from harness.server.acceptor import Acceptor
from harness.server.listeners import listen
from harness.server.worker import Worker
from probes.contract.live import Live


def main(argv: list[str]) -> int:
    """Enters the run's namespace, opens what the workers share, forks them, reports their ends.

    Args:
        argv: See ``forker.begin_parent``.
    """
    config, live, report_fd = begin_parent(argv)
    child.limit_descriptors(config.worker_nofile_count)
    jobs, shared = _jobs(config, live)
    slots = fork_all(jobs, config)
    for each in shared:
        each.close()  # a copy here would hide from the acceptor that a worker is gone
    stay_without_rights(config, int(argv[0]))
    report_ends(slots, report_fd)
    return 0


def _jobs(config: FleetConfig, live: Live) -> tuple[list[Job], list[_socket.socket]]:
    """What each process of the server does, and the sockets that the parent must not keep."""
    workers = range(config.workers)
    if config.accept == "reuseport":
        return [(i, partial(_work, config, i, live)) for i in workers], []
    listeners = [
        listen(config.server_address, port, config.backlog_count, reuseport=False)
        for port in config.destination_ports
    ]
    if config.accept != "handoff":
        return [(i, partial(_work, config, i, live, listeners)) for i in workers], []
    pairs = [_socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM) for _ in workers]

    def work(index: int) -> None:
        for listener in listeners:
            listener.close()
        for other, (ours, theirs) in enumerate(pairs):
            ours.close()
            if other != index:
                theirs.close()
        Worker(config, index, live, handoff=pairs[index][1]).run()

    def accept() -> None:
        for _, theirs in pairs:
            theirs.close()
        Acceptor(config, config.workers, live, listeners, [ours for ours, _ in pairs]).run()

    jobs: list[Job] = [(i, partial(work, i)) for i in workers]
    return [*jobs, (config.workers, accept)], [end for pair in pairs for end in pair]


def _work(
    config: FleetConfig,
    index: int,
    live: Live,
    shared_listeners: list[_socket.socket] | None = None,
) -> None:
    Worker(config, index, live, shared_listeners=shared_listeners).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
