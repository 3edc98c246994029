"""Every table of the run directory: columns, types, units, meaning, source. The interface.

Rules, checked by ``tests/probes/contract/test_schema.py``:

* Time is int64 nanoseconds of CLOCK_MONOTONIC in columns that end in ``_ns``; ``at_ns`` is the
  moment of the row, and for counts over an interval its end.
* A quantity carries its unit as suffix. A ``_count`` is the number in that interval, a ``_total``
  is cumulative since the start of its source.
* ``pid`` is the user's pid (kernel tgid), ``tid`` the kernel's pid.
* ``side`` is ``server``, ``client`` or ``other``; ``role`` is ``server``, ``acceptor``,
  ``backend``, ``client``, ``supervisor``, ``probe``.
* A stack is one string, frames joined by ``;``, root first; a kernel frame ends in ``_[k]``.
* A column that came later within a schema version (``absent``) has -1, not known, in recordings
  that are older than it.
"""

from __future__ import annotations

from dataclasses import dataclass

SCHEMA_VERSION = 2

SERVER_ROLES = ("server", "acceptor", "backend")
"""Roles of the server's side; a backend works behind the processes that hold its connections."""

I64, F64, TEXT, BOOL = "int64", "float64", "string", "bool"


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its type (int64, float64, string, bool), unit ('' for none) and meaning.

    ``absent`` is what an older recording of this schema version, which lacks it, has for it; None
    where every recording has the column.
    """

    name: str
    type: str
    unit: str
    meaning: str
    absent: int | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """One table: who writes it, what a row is, how many rows to expect, and its columns."""

    name: str
    producer: str
    row: str
    volume: str
    source: str
    columns: tuple[Column, ...]

    @property
    def probe(self) -> str:
        """The probe that writes it, '' for a table of the fleet and of those who collect."""
        package, _, module = self.producer.rpartition(".")
        return module if package else ""

    @property
    def column_names(self) -> tuple[str, ...]:
        """The names in order."""
        return tuple(column.name for column in self.columns)


def _at(meaning: str = "moment of the row, for an interval its end") -> Column:
    return Column("at_ns", I64, "ns", meaning)


def _n(name: str, unit: str, meaning: str) -> Column:
    return Column(name, I64, unit, meaning)


def _later(name: str, unit: str, meaning: str) -> Column:
    return Column(name, I64, unit, f"{meaning}; -1 not known", absent=-1)


def _t(name: str, meaning: str) -> Column:
    return Column(name, TEXT, "", meaning)


_PID = _n("pid", "", "process (kernel tgid)")
_TID = _n("tid", "", "thread (kernel pid)")
_SIDE = _t("side", "server, client or other, by the socket's ports")
_COUNT = _n("event_count", "count", "events in the interval")

_ALL: tuple[Table, ...] = (
    Table(
        "events",
        "harness",
        "one moment of the run",
        "tens",
        "harness/supervision/supervisor.py",
        (
            _at("when it happened"),
            _t(
                "event",
                "phase_ramp, phase_hold, phase_stop, process_exited, stalled, interrupted, …",
            ),
            _n("pid", "", "process it is about, 0 for none"),
            _t("detail", "free text for people"),
        ),
    ),
    Table(
        "processes",
        "harness",
        "one process of the run",
        "as many as processes",
        "wait4(2), live",
        (
            _PID,
            _n(
                "start_ns",
                "ns",
                "when it reported for work; of an external server, when the process began",
            ),
            _t("role", "server, acceptor, client, supervisor, probe"),
            _n("slot", "", "its slot in live.bin, -1 for none"),
            _n("worker", "", "number within its role, from 0"),
            _n("nofile_soft_count", "count", "its RLIMIT_NOFILE at start (getrlimit(2))"),
            _n("own_fds_count", "count", "descriptors it held before the first connection"),
            _n("exited_ns", "ns", "when it was reaped, 0 when it was stopped by the run itself"),
            _n("exit_status", "", "exit status, -1 when it did not exit by itself"),
            _n("exit_signal", "", "signal that killed it, 0 for none"),
        ),
    ),
    Table(
        "connections",
        "harness",
        "one attempted connection",
        "one per connection",
        "live.bin",
        (
            _n("connection", "", "index within the run, from 0"),
            _n("client", "", "number of the client process"),
            _n("start_ns", "ns", "before socket(2)"),
            _n("connected_ns", "ns", "TCP established, as the client saw it; 0 when never"),
            _n("established_ns", "ns", "valid 101 response read; 0 when never"),
            _n("closed_ns", "ns", "closed or failed; 0 when still open at the end of the run"),
            _t("stage", "where it is or ended: socket, bind, connect, handshake, open, closed"),
            _n("errno", "", "errno of the failure (Linux numbers), 0 for none"),
            _t("close_kind", "none, eof, rst, local, timeout, protocol, refused, error, close"),
            _t("source_address", "address the client bound, dotted"),
            _n("destination_port", "", "server port"),
        ),
    ),
    Table(
        "live_samples",
        "probes.samplers.live_samples",
        "one fleet process at one moment",
        "processes x 4 per s",
        "live.bin (probes/contract/live.py)",
        (
            _at(),
            _PID,
            _t("role", "server, acceptor, client"),
            _n("slot", "", "slot in live.bin"),
            _n("worker", "", "number within its role"),
            _n("open_count", "count", "connections open now"),
            _n("established_total", "count", "handshakes completed"),
            _n("attempted_total", "count", "connects begun (client) or accepts (server)"),
            _n("failed_total", "count", "attempts that failed"),
            _n("lost_total", "count", "established connections that ended before the stop phase"),
            _n("in_flight_count", "count", "connects begun and not yet established or failed"),
            _n("rx_messages_total", "count", "data messages received"),
            _n("tx_messages_total", "count", "data messages sent"),
            _n("rx_pings_total", "count", "pings received"),
            _n("tx_pings_total", "count", "pings sent"),
            _n("rx_pongs_total", "count", "pongs received"),
            _n(
                "accept_emfile_total", "count", "accept4 calls of this process that returned EMFILE"
            ),
            _n("loop_iterations_total", "count", "event-loop turns"),
            _n("loop_busy_ns_total", "ns", "time between epoll_wait's return and its next call"),
            _n("loop_lag_ns", "ns", "how long the current turn has lasted, 0 while waiting"),
            _n("loop_max_lag_ns", "ns", "longest turn since the previous row"),
            _n("write_buffered_bytes", "bytes", "bytes queued in user space for slow readers"),
            _n("gc_ns_total", "ns", "time in the runtime's collector (gc.callbacks)"),
            _n("gc_collections_total", "count", "collections of any generation"),
            _n("gc_max_pause_ns", "ns", "longest collection of the run so far"),
        ),
    ),
    Table(
        "message_times",
        "probes.samplers.live_samples",
        "answers whose time is in one bucket, of all clients, since the row before",
        "with --message-rate: tens to hundreds per s, else none",
        "live.bin (probes/contract/message_times.py)",
        (
            _at(),
            _n("from_ns", "ns", "shortest time of the bucket, from when the message was due"),
            _n("until_ns", "ns", "where the bucket ends: it is 1 us wide, or less than 1 % of it"),
            _n("message_count", "count", "answers read in the interval"),
            _n("longest_ns", "ns", "longest time of the run so far, of any client"),
        ),
    ),
    Table(
        "failing_syscalls",
        "probes.ebpf.failing_syscalls",
        "(pid, syscall, errno) in one interval",
        "few per s",
        "raw_tracepoint sys_exit; errno from the return value",
        (
            _at(),
            _PID,
            _t("syscall", "name"),
            _n("errno", "", "positive errno"),
            _t("errno_name", "EMFILE, …"),
            _COUNT,
            _n("first_ns", "ns", "first event of this key in the run"),
            _n("last_ns", "ns", "last event of this key so far"),
        ),
    ),
    Table(
        "connection_fates",
        "probes.ebpf.connection_fates",
        "(pid, fate) that changed since the last row",
        "few per s",
        "raw_tracepoint sys_exit: accept, read, write, close",
        (
            _at(),
            _PID,
            _t(
                "fate",
                "accepted, closed_unread, closed_unanswered, closed_answered, closed_after_peer",
            ),
            _n("connection_total", "count", "connections with this fate since it was watched"),
            _n("at_once_total", "count", "of them closed within 50 ms of their accept"),
            _n("first_ns", "ns", "the first of them"),
            _n("last_ns", "ns", "the last of them"),
        ),
    ),
    Table(
        "open_fates",
        "probes.samplers.open_fates",
        "(pid, port, fate) at one look",
        "few per look; looks at a sign of trouble and at the end",
        "sock_diag(7): queues, struct tcp_info",
        (
            _at(),
            _n("pid", "", "process that has them; 0: none yet, or not known"),
            _n("local_port", "", "port of the server"),
            _t(
                "fate",
                "unaccepted, unread (accepted, its request lies there), unanswered (read), "
                "answered, silent (it sent nothing)",
            ),
            _n("socket_count", "count", "connections with this fate now"),
            _n("unsent_count", "count", "of them with data that could not be sent yet"),
            _n("send_queue_bytes", "bytes", "data that their peers have not acknowledged"),
            _later("quiet_count", "count", "of them whose peer has sent nothing for a second"),
            _later("left_count", "count", "of them whose peer has closed (CLOSE_WAIT)"),
        ),
    ),
    Table(
        "send_queues",
        "probes.samplers.send_queues",
        "(pid, port) at one look at which some peer takes nothing, and at the one after",
        "few per look; looks where TCP holds data at all",
        "sock_diag(7): queues, timers, struct tcp_info of those whose queue stands",
        (
            _at(),
            _n("pid", "", "process that has them; 0: not known"),
            _n("local_port", "", "port of the server"),
            _n("queued_count", "count", "connections with data that their peer has not yet taken"),
            _n("queued_bytes", "bytes", "that data"),
            _n(
                "standing_count",
                "count",
                "of them those whose peer took nothing since an earlier look, with more to send",
            ),
            _n("standing_bytes", "bytes", "their data in the kernel"),
            _n("closed_window_count", "count", "of them those whose peer closed its window"),
            _n("longest_standing_ns", "ns", "since when one of them was seen to stand, at most"),
            _n("unlooked_count", "count", "connections whose queue may stand, not looked at"),
        ),
    ),
    Table(
        "standing_sockets",
        "probes.samplers.send_queues",
        "a connection whose peer takes nothing, of those that hold most, at one look",
        "at most 8 per look",
        "sock_diag(7), struct tcp_info",
        (
            _at(),
            _n("pid", "", "process that has it; 0: not known"),
            _n("local_port", "", "port of the server"),
            _t("remote_address", "of its peer"),
            _n("remote_port", "", "of its peer"),
            _n("send_queue_bytes", "bytes", "data in the kernel that the peer has not taken"),
            _n("not_sent_bytes", "bytes", "of it what was never sent; -1 not known"),
            _n("acked_bytes_total", "bytes", "what the peer took before"),
            _n("peer_window_bytes", "bytes", "its window: what it would take; -1 not known"),
            _n("since_ns", "ns", "moment of the first look at which it stood"),
        ),
    ),
    Table(
        "unix_listeners",
        "probes.samplers.open_fates",
        "one listening Unix socket of the server at one look",
        "few per look",
        "sock_diag(7), UNIX_DIAG_RQLEN",
        (
            _at(),
            _PID,
            _n("socket_inode", "", "inode of the socket"),
            _t("path", "its name; an abstract one begins with @"),
            _n("accept_queue_count", "count", "connections that wait for accept"),
            _n("backlog_count", "count", "most that may wait"),
        ),
    ),
    Table(
        "listener_watches",
        "probes.samplers.open_fates",
        "one listening socket of one process, at a look at which connections wait in its queue",
        "few per look; the first looks at each",
        "/proc/PID/fdinfo of the process's epoll descriptors",
        (
            _at(),
            _PID,
            _n("socket_inode", "", "inode of the socket"),
            _n("local_port", "", "its port, 0 of a Unix socket"),
            _t(
                "watch",
                "edge (EPOLLET), level, off (without EPOLLIN), none (in no epoll of it)",
            ),
        ),
    ),
    Table(
        "thread_waits",
        "probes.samplers.open_fates",
        "threads of a process that wait for the same, at one look",
        "at most 32 per process and look",
        "/proc/PID/task/*/syscall, /proc/PID/fd, sock_diag(7)",
        (
            _at(),
            _PID,
            _t("thread_name", "comm without the digits at its end"),
            Column("is_main", BOOL, "", "the process's first thread"),
            _t("syscall", "call that they sleep in, '' for none"),
            _t(
                "waits_for",
                "own_connection, remote, name_server, unix, lock, event_loop, accept, listener, "
                "sleep, pipe, running, other",
            ),
            _t("address", "address or path of the other end, '' for none"),
            _n("thread_count", "count", "threads"),
        ),
    ),
    Table(
        "failure_stacks",
        "probes.ebpf.failing_syscalls",
        "one of the first few failures of a key",
        "at most 4 per (pid, syscall, errno)",
        "bpf_get_stackid at sys_exit",
        (
            _at("when it failed"),
            _PID,
            _TID,
            _t("syscall", "name"),
            _n("errno", "", "positive"),
            _t("kernel_stack", "frames"),
            _t("user_stack", "native frames"),
        ),
    ),
    Table(
        "limit_readings",
        "probes.ebpf.failing_syscalls",
        "one limit of a process, its groups, its user or the host, when a call of it was refused",
        "10 per failing kind of call and s",
        "pids.max, getrlimit(2), /proc/sys; struct mm_struct at sys_exit",
        (
            _at("when it was read"),
            _PID,
            _t("limit", "mappings_count, group_tasks_count, …; its end is the unit of the next"),
            _t("scope", "control group, user, or option that it is of; '' for process or host"),
            _n("used", "", "what was used, -1 when not known"),
            _n("capacity", "", "the limit, -1 for none"),
            _n("hits_total", "count", "how often it refused, by the kernel's count; -1 unknown"),
        ),
    ),
    Table(
        "runtime_limits",
        "probes.samplers.runtime_limits",
        "a heap that the runtime of a server process was told to keep to",
        "at most 2 a process",
        "/proc/PID/cmdline, /proc/PID/environ",
        (
            _at("when it was read"),
            _PID,
            _t("limit", "v8_old_space, jvm_heap, jvm_direct_memory, php_memory, go_memory, …"),
            _t("option", "the option or variable that says so"),
            _n("size_bytes", "bytes", "how large it may be"),
        ),
    ),
    Table(
        "server_words",
        "probes.samplers.server_words",
        "a kind of line that the server wrote of an error, in one interval",
        "at most 200 kinds a run",
        "logs/server.log, files that the server writes to, the journal",
        (
            _at("when it was read"),
            _n("pid", "", "who wrote it, 0 when that is not known"),
            _t("source", "name of the file, or journal"),
            _t("line", "the first of its kind: at most 300 printable characters"),
            _COUNT,
            _n("first_ns", "ns", "when the first of its kind was read"),
        ),
    ),
    Table(
        "syscall_mix",
        "probes.ebpf.syscall_mix",
        "(pid, syscall) in one interval",
        "tens per s",
        "raw_tracepoint sys_exit; full set, or the hottest worker",
        (
            _at(),
            _PID,
            _t("syscall", "name"),
            _COUNT,
            _n("failed_count", "count", "of them with a negative return"),
        ),
    ),
    Table(
        "tcp_state_transitions",
        "probes.ebpf.tcp_events",
        "(old, new) in one interval",
        "tens per s",
        "raw_tracepoint inet_sock_set_state",
        (_at(), _SIDE, _t("old_state", "SYN_SENT, …"), _t("new_state", "ESTABLISHED, …"), _COUNT),
    ),
    Table(
        "tcp_states",
        "probes.ebpf.tcp_snapshot",
        "(side, state) at one snapshot",
        "tens per snapshot",
        "iter/tcp",
        (_at(), _SIDE, _t("state", "ESTABLISHED, …"), _n("socket_count", "count", "sockets in it")),
    ),
    Table(
        "tcp_resets",
        "probes.ebpf.tcp_events",
        "(direction, side, state, reason) in one interval",
        "few per s",
        "tracepoints tcp_send_reset, tcp_receive_reset",
        (
            _at(),
            _t("direction", "tx: this side's socket sent it; rx: received it"),
            _SIDE,
            _t("state", "socket state, '' when there was no socket"),
            _t("reason", "sk_rst_reason of this kernel, '' before 6.10"),
            _COUNT,
            _n("first_ns", "ns", "first of this key in the run"),
        ),
    ),
    Table(
        "tcp_retransmits",
        "probes.ebpf.tcp_events",
        "(side, state) in one interval",
        "few per s",
        "tracepoint tcp_retransmit_skb",
        (_at(), _SIDE, _t("state", "SYN_SENT, …"), _COUNT),
    ),
    Table(
        "skb_drops",
        "probes.ebpf.tcp_events",
        "(reason, place, namespace_known, of_server) in one interval",
        "few per s",
        "raw_tracepoint kfree_skb (skb_drop_reason of this kernel)",
        (
            _at(),
            _t("reason", "TCP_OVERWINDOW, …"),
            _t("location", "kernel function"),
            _COUNT,
            _later(
                "namespace_known",
                "",
                "1 of the run's network namespace; 0 of any: the packet had neither socket nor "
                "device (before Linux 6.11)",
            ),
            _later("of_server", "", "1 a TCP segment to or from a port of the server, 0 any other"),
        ),
    ),
    Table(
        "socket_pressure",
        "probes.ebpf.tcp_events",
        "(kind, side) in one interval",
        "few per s",
        "tracepoints sock_exceed_buf_limit, sock_rcvqueue_full",
        (
            _at(),
            _t("kind", "exceed_buf_limit_rx, exceed_buf_limit_tx, rcvqueue_full"),
            _SIDE,
            _COUNT,
            _n("allocated_max_pages", "pages", "largest protocol memory seen, 0 when not given"),
            _n("first_ns", "ns", "first of this key in the run"),
        ),
    ),
    Table(
        "socket_memory",
        "probes.ebpf.tcp_snapshot",
        "(side, state) at one snapshot",
        "tens per snapshot",
        "iter/tcp: struct sock",
        (
            _at(),
            _SIDE,
            _t("state", "ESTABLISHED, …"),
            _n("socket_count", "count", "sockets"),
            _n("rmem_alloc_bytes", "bytes", "sum of sk_rmem_alloc"),
            _n("wmem_alloc_bytes", "bytes", "sum of sk_wmem_alloc - 1"),
            _n("wmem_queued_bytes", "bytes", "sum of sk_wmem_queued"),
            _n("forward_alloc_bytes", "bytes", "sum of sk_forward_alloc"),
            _n("sndbuf_bytes", "bytes", "sum of sk_sndbuf (limit, not reservation)"),
            _n("rcvbuf_bytes", "bytes", "sum of sk_rcvbuf (limit, not reservation)"),
            _n("rmem_alloc_max_bytes", "bytes", "largest sk_rmem_alloc"),
            _n("wmem_queued_max_bytes", "bytes", "largest sk_wmem_queued"),
        ),
    ),
    Table(
        "socket_traffic",
        "probes.ebpf.tcp_snapshot",
        "(side) at one snapshot",
        "few per snapshot",
        "iter/tcp: struct tcp_sock",
        (
            _at(),
            _SIDE,
            _n("socket_count", "count", "established sockets; a closed one takes its sums along"),
            _n("tx_segments_total", "count", "sum of data_segs_out: segments with data"),
            _n("tx_bytes_total", "bytes", "sum of bytes_sent: what they carried"),
            _n("rx_segments_total", "count", "sum of data_segs_in"),
            _n("rx_bytes_total", "bytes", "sum of bytes_received"),
        ),
    ),
    Table(
        "listeners",
        "probes.ebpf.tcp_snapshot",
        "one listening socket at one snapshot",
        "listeners per snapshot",
        "iter/tcp: sk_ack_backlog, sk_max_ack_backlog, icsk_accept_queue.qlen, sk_drops",
        (
            _at(),
            _t("local_address", "dotted"),
            _n("local_port", "", "port"),
            _n("socket_inode", "", "inode of the socket, 0 when unknown"),
            _n("accept_queue_count", "count", "connections that wait for accept"),
            _n("backlog_count", "count", "most that may wait"),
            _n("syn_queue_count", "count", "half-open connections: SYN seen, handshake not over"),
            _n("dropped_total", "count", "SYNs and handshakes that it dropped since it listens"),
        ),
    ),
    Table(
        "listener_owners",
        "probes.ebpf.tcp_snapshot",
        "a listening socket of one process",
        "listeners x processes that share one",
        "/proc/PID/fd at the first snapshot after the process came",
        (
            _at(),
            _PID,
            _n("socket_inode", "", "inode of the socket"),
        ),
    ),
    Table(
        "port_groups",
        "probes.ebpf.tcp_snapshot",
        "(source, destination, port) at one snapshot",
        "groups per snapshot",
        "iter/tcp, client side sockets",
        (
            _at(),
            _t("source_address", "dotted"),
            _t("destination_address", "dotted"),
            _n("destination_port", "", "port"),
            _n("ports_used_count", "count", "local ports in use for it"),
            _n("range_low_port", "", "ip_local_port_range, low"),
            _n("range_high_port", "", "ip_local_port_range, high"),
        ),
    ),
    Table(
        "sockstat",
        "probes.samplers.host_counters",
        "one moment",
        "2 per s",
        "/proc/net/sockstat, /proc/sys/fs/file-nr, netlink (RTM_GETNEIGHTBL)",
        (
            _at(),
            _n("tcp_inuse_count", "count", "TCP sockets in use in the run's namespace"),
            _n("tcp_orphan_count", "count", "of the host: closed by their owner, still alive"),
            _n("tcp_timewait_count", "count", "in TIME_WAIT"),
            _n("tcp_alloc_count", "count", "TCP sockets allocated on the host"),
            _n("tcp_mem_pages", "pages", "buffer memory of all of TCP (host wide)"),
            _n("tcp_mem_pressure_pages", "pages", "second value of tcp_mem"),
            _n("tcp_mem_max_pages", "pages", "third value of tcp_mem"),
            _n("file_nr_count", "count", "open files of the host"),
            _n("file_max_count", "count", "fs.file-max"),
            _n("conntrack_count", "count", "nf_conntrack_count, -1 when there is none"),
            _n("conntrack_max_count", "count", "nf_conntrack_max, -1 when there is none"),
            _later("tcp_timewait_max_count", "count", "tcp_max_tw_buckets of the namespace"),
            _later("arp_entries_count", "count", "IPv4 neighbours of the host"),
            _later("arp_max_count", "count", "net.ipv4.neigh.default.gc_thresh3"),
            _later("ndisc_entries_count", "count", "IPv6 neighbours of the host"),
            _later("ndisc_max_count", "count", "net.ipv6.neigh.default.gc_thresh3"),
        ),
    ),
    Table(
        "host_memory",
        "probes.samplers.host_counters",
        "one moment",
        "2 per s",
        "/proc/meminfo, cgroup memory.max/current where limited",
        (
            _at(),
            _n("total_bytes", "bytes", "MemTotal"),
            _n("available_bytes", "bytes", "MemAvailable"),
            _n("slab_bytes", "bytes", "Slab"),
            _n(
                "cgroup_used_bytes",
                "bytes",
                "of the tightest cgroup of the run's processes, -1 when unlimited",
            ),
            _n("cgroup_max_bytes", "bytes", "its limit, -1 when unlimited"),
            _n("oom_kills_total", "count", "oom_kill of /proc/vmstat: of anybody on the host"),
            _later("swap_total_bytes", "bytes", "SwapTotal"),
            _later("swap_free_bytes", "bytes", "SwapFree"),
        ),
    ),
    Table(
        "cgroups",
        "probes.samplers.host_counters",
        "a memory cgroup that a process of the run is in, or that is above it",
        "processes x depth",
        "/proc/PID/cgroup when it was first seen (cgroups(7))",
        (
            _at("when the process was first seen"),
            _PID,
            _n("level", "", "0 its own group, 1 the parent of that, …"),
            _n("cgroup_id", "", "inode of the folder"),
            _t("path", "below the mount; what does not print is replaced"),
        ),
    ),
    Table(
        "cgroup_memory",
        "probes.samplers.host_counters",
        "one cgroup of the run's processes, or a limited one above, at one moment",
        "groups x 2 per s",
        "memory.current/max/events/stat, or memory.*_in_bytes/failcnt/oom_control of version 1",
        (
            _at(),
            _n("used_bytes", "bytes", "memory charged to it, -1 unknown"),
            _n("peak_bytes", "bytes", "most that was charged so far, -1 unknown"),
            _n("max_bytes", "bytes", "its limit, -1 when unlimited"),
            _n("limit_hits_total", "count", "allocations that met its limit, -1 unknown"),
            _n(
                "oom_kills_total",
                "count",
                "its processes that were killed for memory, with those of the groups below it "
                "(version 2) or without (version 1), -1 unknown",
            ),
            _n("tcp_used_bytes", "bytes", "TCP buffers charged to it, -1 unknown"),
            _n("tcp_max_bytes", "bytes", "their own limit (version 1), -1 when unlimited"),
            _later("cgroup_id", "", "inode of its folder; older: the tightest of the servers"),
            _later("own_oom_kills_total", "count", "its own processes that were killed for memory"),
            _later(
                "own_ooms_total",
                "count",
                "allocations that failed at this very group's limit (version 2)",
            ),
        ),
    ),
    Table(
        "oom_kills",
        "probes.ebpf.oom_kills",
        "one process that the kernel killed for memory; of processes that are neither of the run "
        "nor in a cgroup of it, all of an interval",
        "few per run",
        "raw_tracepoint mark_victim (mm/oom_kill.c, mark_oom_victim)",
        (
            _at("when it was killed; of others the end of the interval"),
            _n("pid", "", "process (kernel tgid), 0 for others"),
            _n("cgroup_id", "", "inode of its memory cgroup, -1 not known"),
            _n("killed_count", "count", "processes"),
        ),
    ),
    Table(
        "cgroup_cpu",
        "probes.samplers.host_counters",
        "one control group of a server with a CPU quota, or one above it, at one moment",
        "2 per s and group that has a quota",
        "cpu.max, cpu.stat, or cpu.cfs_quota_us, cpu.cfs_period_us, cpu.stat of version 1",
        (
            _at(),
            _n("pid", "", "a process in it, the first that was seen"),
            _t("cgroup", "its folder"),
            _later("version", "", "of its files: 1 or 2"),
            _n("quota_ns", "ns", "CPU time that it may use in a period"),
            _n("period_ns", "ns", "length of a period"),
            _n("periods_total", "count", "periods in which it wanted to run"),
            _n("throttled_periods_total", "count", "of them, those in which it was stopped"),
            _n("throttled_ns_total", "ns", "how long, summed over cores"),
        ),
    ),
    Table(
        "slab_caches",
        "probes.samplers.host_counters",
        "one cache at one moment",
        "20 per 2 s",
        "/proc/slabinfo",
        (
            _at(),
            _t("cache", "TCP, sock_inode_cache, …"),
            _n("active_objects_count", "count", "objects in use"),
            _n("object_size_bytes", "bytes", "size of one"),
            _n("total_bytes", "bytes", "pages of the cache"),
        ),
    ),
    Table(
        "net_counters",
        "probes.samplers.host_counters",
        "one counter that changed, at one moment",
        "tens per s",
        "/proc/net/netstat, snmp, stat/nf_conntrack (Conntrack*) of the run's namespace; of the "
        "host: softnet_stat (Softnet*), neighbours refused (ArpTableFulls, NdiscTableFulls)",
        (_at(), _t("counter", "TcpExtListenOverflows, …"), _n("value_total", "count", "its value")),
    ),
    Table(
        "host_cpu",
        "probes.samplers.host_counters",
        "one core at one moment",
        "cores x 2 per s",
        "/proc/stat",
        (
            _at(),
            _n("core", "", "number, -1 for all together"),
            _n("user_ns_total", "ns", "user and nice"),
            _n("system_ns_total", "ns", "system"),
            _n("softirq_ns_total", "ns", "softirq"),
            _n("irq_ns_total", "ns", "irq"),
            _n("idle_ns_total", "ns", "idle and iowait"),
            _n("steal_ns_total", "ns", "taken by the hypervisor"),
        ),
    ),
    Table(
        "host_pressure",
        "probes.samplers.host_counters",
        "one resource at one moment",
        "3 per s",
        "/proc/pressure/*",
        (
            _at(),
            _t("resource", "cpu, memory, io"),
            _n("some_ns_total", "ns", "time some task waited"),
            _n("full_ns_total", "ns", "time all tasks waited"),
        ),
    ),
    Table(
        "process_samples",
        "probes.samplers.process_samples",
        "one process at one moment",
        "processes x 2 per s",
        "psutil; probes.proc.descriptor_count; /proc/PID/schedstat, task/*/schedstat",
        (
            _at(),
            _PID,
            _t("role", "server, acceptor, client, supervisor, probe"),
            _n("worker", "", "number within its role, -1 for none"),
            _n("cpu_user_ns_total", "ns", "utime"),
            _n("cpu_system_ns_total", "ns", "stime"),
            _n("rss_bytes", "bytes", "resident set"),
            _n("fd_count", "count", "open descriptors, -1 when not known"),
            _n("voluntary_switches_total", "count", "context switches by waiting"),
            _n("involuntary_switches_total", "count", "context switches by preemption"),
            _t("state", "psutil status: running, sleeping, disk-sleep, …"),
            _t("wait_channel", "/proc/PID/wchan, '' when running"),
            Column(
                "run_queue_wait_ns_total",
                I64,
                "ns",
                "time that it was ready to run and waited for a core; of several threads the one "
                "that waited longest from row to row; -1 when not known",
                absent=-1,
            ),
        ),
    ),
    Table(
        "blocked_samples",
        "probes.samplers.blocked_samples",
        "one process whose event loop is in a turn and on no CPU, at one moment",
        "10 per s and blocked process; none when nothing is blocked",
        "live.bin; /proc/PID/{stat,wchan,syscall,stack}; py-spy dump",
        (
            _at(),
            _PID,
            _n("turn_ns", "ns", "when the turn of its event loop began"),
            _n("lag_ns", "ns", "how long the turn had lasted"),
            _t("state", "S sleeping, D uninterruptible, T stopped (proc(5))"),
            _t("wait_channel", "/proc/PID/wchan"),
            _t("syscall", "name, '' when not known"),
            _t("kernel_stack", "frames"),
            _t("python_stack", "frames: function (file:line); '' where none was taken"),
            _n("period_ns", "ns", "wall time that one sample stands for"),
        ),
    ),
    Table(
        "cpu_stacks",
        "probes.ebpf.cpu_stacks",
        "(pid, tid, stack) in one interval",
        "at most a few hundred per s",
        "perf event cpu-clock, 49 Hz a core",
        (
            _at(),
            _PID,
            _TID,
            _t("thread", "comm"),
            _t("kernel_stack", "frames, '' in user mode"),
            _t("user_stack", "native frames"),
            _n("sample_count", "count", "samples"),
            _n("period_ns", "ns", "CPU time that one sample stands for"),
        ),
    ),
    Table(
        "python_stacks",
        "probes.python_stacks.python_stacks",
        "(pid, thread, stack) in one interval",
        "tens per s",
        "py-spy",
        (
            _at(),
            _PID,
            _t("thread", "name"),
            _t("stack", "frames: function (file:line)"),
            _n("sample_count", "count", "samples"),
            _n("period_ns", "ns", "wall time that one sample stands for"),
        ),
    ),
    Table(
        "runq_latency",
        "probes.ebpf.runq_latency",
        "(pid, bucket) in one interval",
        "tens per s",
        "tracepoints sched_wakeup, sched_switch; full set",
        (_at(), _PID, _n("bucket_low_ns", "ns", "lower bound, a power of two"), _COUNT),
    ),
    Table(
        "skb_allocs",
        "probes.ebpf.skb_allocs",
        "(cache, place) in one interval",
        "tens per s",
        "tracepoint kmem_cache_alloc; full set",
        (
            _at(),
            _t("cache", "skbuff_head_cache, …"),
            _t("location", "kernel function"),
            _COUNT,
            _n("allocated_bytes", "bytes", "bytes in the interval"),
        ),
    ),
    Table(
        "probe_health",
        "every probe",
        "one probe",
        "one per probe",
        "probes/collect/registry.py",
        (
            _at("when it stopped"),
            _t("probe", "name"),
            Column("asked_for", BOOL, "", "in the set of this run"),
            _t("state", "ran, unavailable, failed, not_asked"),
            _t("reason", "why it did not run; of one that ran, what it could not see, or ''"),
            _t("fix", "command that makes it run, '' when it did"),
            _n("row_count", "count", "rows written"),
            _n("lost_count", "count", "events seen and not recorded: full maps, ring buffers"),
            _n("late_count", "count", "samples that came more than a period late"),
            _n("cpu_ns", "ns", "CPU time of the probe's user side"),
            _n("bpf_run_ns", "ns", "CPU time in its eBPF programs, -1 when not counted"),
            Column(
                "seen_count",
                I64,
                "count",
                "events or samples in all, those lost among them; rows of a probe that can lose "
                "nothing else; -1 when not known",
                absent=-1,
            ),
            Column(
                "failed_ns",
                I64,
                "ns",
                "when it failed after it had begun: what came later it did not see; 0 when it did "
                "not; -1 when not known",
                absent=-1,
            ),
            Column(
                "missed_count",
                I64,
                "count",
                "runs of its eBPF programs that the kernel skipped, whosever event it was; of a "
                "probe that does not count their runs they are in lost_count; -1 when not known",
                absent=-1,
            ),
            Column(
                "run_count",
                I64,
                "count",
                "runs of its eBPF programs for the whole host, those skipped among them; -1 when "
                "not counted",
                absent=-1,
            ),
            Column(
                "unwatched_ns",
                I64,
                "ns",
                "time in which it did not watch, to cost a server in service no more than it may; "
                "-1 when not known",
                absent=-1,
            ),
        ),
    ),
)

TABLES: dict[str, Table] = {table.name: table for table in _ALL}
