"""The catalogue of causes: every id that a finding may name. The ids are part of the interface.

``verdict.json``, the page, the tests and the documentation use these words.
"""

from __future__ import annotations

CAUSES: dict[str, str] = {
    "fd-limit-process": "a process is at its descriptor limit (RLIMIT_NOFILE)",
    "fd-limit-system": "the host's file table is full (fs.file-max)",
    "server-resets-when-full": "a full server accepts and closes at once",
    "full-worker-on-shared-listener": "one worker is full while its sibling has room",
    "accept-spin": "a full worker calls accept4 for ever without progress",
    "ephemeral-ports-exhausted": "no local port is left for one destination",
    "bind-ports-exhausted": "no local port is left at bind",
    "source-address-missing": "a source address is not local to this host",
    "port-search-cost": "connect slows as the port pool fills",
    "enobufs": "the kernel could not get a buffer or object",
    "tcp-memory-pressure": "TCP as a whole is over tcp_mem",
    "receive-buffer-full": "one socket's own receive buffer is full",
    "memory-exhausted": "the host or its cgroup is out of memory",
    "accept-queue-overflow": "the application accepts too slowly for its backlog",
    "syn-backlog-overflow": "the queue of half-open connections is full",
    "conntrack-full": "the connection tracking table has no room for a new flow",
    "neighbour-table-full": "the kernel's table of neighbours has no room for a new address",
    "softnet-drops": "a core's queue of arriving packets is full",
    "orphans-or-time-wait": "too many closed sockets are left that no process has any more",
    "keepalive-storm": "pings to all connections fill a core",
    "hot-worker-code": "one worker is at 100 % in its own code",
    "worker-blocked": "a worker's event loop stands still off the CPU",
    "garbage-collection": "the runtime's collector takes the core",
    "hot-acceptor": "one process accepts for all and is full",
    "accept-imbalance": "connections are unevenly spread over the workers",
    "upgrade-refused": "the server answers the handshake with something else",
    "upgrade-unanswered": "the server accepts and never answers the handshake",
    "closed-by-server": "the server closes connections that were open",
    "own-limit": "the server, or what is behind it, lets in so many connections and no more",
    "waits-for-slot": "connections are accepted, then wait for a thread, a lock or somebody else",
    "slow-consumers": "unsent data piles up in the server for clients that do not read",
    "message-amplification": "each message goes to all, and what goes out fills a core",
    "unix-queue-full": "the accept queue of a Unix socket behind the server is full",
    "backend-unavailable": "the proxy reaches nobody behind it",
    "worker-crash": "a worker died and its connections with it",
    "cpu-quota": "the CPU quota of a control group stops the server",
    "task-limit": "a limit on processes and threads refuses one more",
    "mapping-limit": "a limit on mappings or address space refuses memory that is free",
    "runtime-heap-limit": "the heap of the server's runtime is full",
    "worker-replaced": "a worker ended in good order and took its connections along",
    "handshake-cost": "handshakes take the whole core of the thread that makes them",
    "host-cpu-saturated": "no core is free",
    "client-is-the-limit": "the load generator, not the server, is out",
    "reached": "the target was reached",
    "no-limit-met": "no limit was met while it was watched",
}
"""Cause id to one plain line about what happens."""

GOOD_CAUSES = ("reached", "no-limit-met")
"""Verdicts of a run that nothing stopped: of one that loaded a server, of one that only watched."""

NOT_EXPLAINED = "not-explained"
"""The verdict's cause when the target was missed and no finding explains it. Never a finding."""

INTERRUPTED = "interrupted"
"""The verdict's cause when somebody stopped the run before a limit did. Never a finding."""
