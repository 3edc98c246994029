"""The clients' lean parent: ``python -P -m harness.client.main``, started by the supervisor."""

from __future__ import annotations

import sys
from functools import partial

from harness.client.client import Client
from harness.fleet import child
from harness.fleet.config import FleetConfig
from harness.fleet.forker import Job, begin_parent, fork_all, report_ends, stay_without_rights
from probes.contract.live import Live


def main(argv: list[str]) -> int:
    """Enters the run's namespace, forks the clients, reports their ends.

    Args:
        argv: See ``forker.begin_parent``.
    """
    config, live, report_fd = begin_parent(argv)
    child.limit_descriptors(config.client_nofile_count)
    jobs: list[Job] = []
    record_base = 0
    for index, groups in enumerate(config.client_groups):
        slot = config.first_client_slot() + index
        jobs.append((slot, partial(_work, config, index, live, record_base, report_fd)))
        record_base += sum(group.connections for group in groups)
    slots = fork_all(jobs, config)
    stay_without_rights(config, int(argv[0]))
    report_ends(slots, report_fd)
    return 0


def _work(config: FleetConfig, index: int, live: Live, record_base: int, report_fd: int) -> None:
    kind = Client
    if config.tls:
        from harness.client.tls import TlsClient  # ssl is heavy: only where it is needed

        kind = TlsClient
    kind(config, index, live, record_base, report_fd).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
