"""The catalogue of evidence: every number that a finding may rest on. The ids are of the interface.

Code, tests, exports and ``verdict.json`` tell evidence apart by id and qualifier; the words are
made from both, here and nowhere else, so that they can be mended without anything else changing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ID = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
"""Lower case, parts joined by underscores."""

_PLACE = "{of}"

BESIDE_THE_RUN = "processes beside the run"
"""Qualifier of ``host_share``: who is neither of the run nor of its watching."""


@dataclass(frozen=True, slots=True)
class EvidenceKind:
    """What one id means.

    Attributes:
        unit: Unit of the value, '' for none.
        alone: The words without a qualifier, '' where it has to have one.
        qualified: The words with one, where ``{of}`` is put; '' where it has none.
    """

    unit: str
    alone: str = ""
    qualified: str = ""

    def words(self, of: str) -> str:
        """The name for people.

        Args:
            of: The qualifier, '' for none.

        Raises:
            ValueError: There is one and should not be, or the other way round.
        """
        template = self.qualified if of else self.alone
        if not template:
            raise ValueError(f"takes {'no' if of else 'a'} qualifier")
        return template.replace(_PLACE, of)


def _with(unit: str, qualified: str, alone: str = "") -> EvidenceKind:
    """One that has a qualifier: a call, a process, a function, an address."""
    return EvidenceKind(unit, alone, qualified)


def _call(errno_name: str) -> EvidenceKind:
    """Calls that failed with one errno; the qualifier is the call."""
    return _with(
        "count", f"{_PLACE} calls that returned {errno_name}", f"calls that returned {errno_name}"
    )


_HOSTS: dict[str, EvidenceKind] = {
    "connections_of_lost_host": _with("count", "connections that {of} was to make"),
    "lost_hosts": EvidenceKind("count", "hosts that were lost"),
}

_DESCRIPTORS: dict[str, EvidenceKind] = {
    "emfile_calls": _call("EMFILE"),
    "emfile_call_rate": _with(
        "per_s",
        "{of} calls that returned EMFILE, per second",
        "calls that returned EMFILE, per second",
    ),
    "enfile_calls": _call("ENFILE"),
    "used_up_calls": _with("count", "{of} calls that failed: what they ask for is used up"),
    "descriptors_open": _with(
        "count", "descriptors open in {of}", "descriptors open (own and connections)"
    ),
    "descriptor_limit": _with(
        "count", "soft limit of {of} (RLIMIT_NOFILE)", "soft limit (RLIMIT_NOFILE)"
    ),
    "descriptors_own": EvidenceKind("count", "descriptors of its own"),
    "descriptors_left": _with("count", "descriptors that {of} had left then"),
    "descriptors_per_connection": EvidenceKind(
        "count", "descriptors of this side for one connection"
    ),
    "descriptor_refusals": EvidenceKind("count", "calls that failed for want of a descriptor"),
    "processes_at_limit": EvidenceKind("count", "processes of this side at their limit"),
    "open_files": EvidenceKind("count", "open files of the host (file-nr)"),
    "file_max": EvidenceKind("count", "fs.file-max"),
    "spinning_workers": EvidenceKind("count", "workers that spin"),
}

_PORTS: dict[str, EvidenceKind] = {
    "eaddrinuse_calls": _call("EADDRINUSE"),
    "eaddrnotavail_calls": _call("EADDRNOTAVAIL"),
    "ports_used": _with("ports", "local ports in use from {of}"),
    "port_range_size": EvidenceKind("ports", "size of ip_local_port_range"),
    "destinations": EvidenceKind("count", "destinations that share them"),
    "fullest_destination_ports": EvidenceKind("ports", "ports in use towards the fullest of them"),
    "full_port_groups": EvidenceKind("count", "groups that were full"),
    "missing_addresses": EvidenceKind("count", "source addresses that are not local"),
    "connections_from_address": _with("count", "connections established from {of}"),
    "connections_from_others": EvidenceKind("count", "connections established from others"),
    "connect_median": _with("us", "connect with the pool {of}, median"),
    "cpu_per_connect": _with("us", "CPU of clients per connect with the pool {of}"),
    "port_search_samples": _with("pct", "client CPU samples in the port search, pool {of}"),
    "search_time_lost": EvidenceKind("s", "time that the search took of all clients"),
}

_MEMORY: dict[str, EvidenceKind] = {
    "enobufs_calls": _call("ENOBUFS"),
    "enomem_calls": _call("ENOMEM"),
    "oom_kills": EvidenceKind("count", "processes that the kernel killed"),
    "processes_affected": EvidenceKind("count", "processes that met it"),
    "memory_available": EvidenceKind("bytes", "memory available"),
    "slab": EvidenceKind("bytes", "slab"),
    "slab_growth": EvidenceKind("bytes", "growth of the slab"),
    "least_memory_available": EvidenceKind("bytes", "least memory available on the host"),
    "cgroup_memory_limit": EvidenceKind("bytes", "memory limit of the cgroup"),
    "cgroup_memory_peak": EvidenceKind("bytes", "most memory charged to it"),
    "cgroup_limit_hits": EvidenceKind("count", "allocations that met the limit"),
    "over_limit_sends": _with("count", "sends over the limit, {of} side"),
    "over_limit_receives": _with("count", "receives over the limit, {of} side"),
    "segments_dropped": EvidenceKind("count", "received segments that were dropped"),
    "tcp_memory_pressures": EvidenceKind("count", "times that TCP came under pressure"),
    "tcp_memory_aborts": EvidenceKind("count", "connections that were ended for want of memory"),
    "tcp_memory_peak": EvidenceKind("bytes", "buffer memory of TCP at its peak"),
    "tcp_memory_limit": EvidenceKind("bytes", "limit for TCP's buffers"),
    "proto_mem_drops": EvidenceKind("count", "packets dropped for PROTO_MEM"),
    "closed_windows": EvidenceKind("count", "sockets whose window is closed"),
    "receive_queue_memory": EvidenceKind("bytes", "memory of the fullest receive queue"),
    "standing_connections": EvidenceKind(
        "count", "connections whose peer takes nothing although more waits"
    ),
    "closed_window_peers": EvidenceKind("count", "of them with a closed window"),
    "standing_data": EvidenceKind("bytes", "data for them in the kernel"),
    "standing_time": EvidenceKind("s", "time that they were seen to stand"),
    "queues_not_looked_at": EvidenceKind("count", "more that may stand and were not looked at"),
    "peer_data": _with("bytes", "data in the kernel for {of}"),
    "memory_growth": EvidenceKind("bytes_per_s", "growth of its resident memory"),
    "memory_grown": EvidenceKind("bytes", "what it grew by"),
    "memory_left": _with("bytes", "left of {of}"),
    "time_to_wall": EvidenceKind("s", "time until that is used up, at this rate"),
    "receive_queue_limit": EvidenceKind("bytes", "limit of a receive queue that is not read"),
}

_QUEUES: dict[str, EvidenceKind] = {
    "listen_overflows": EvidenceKind(
        "count", "handshakes dropped because the accept queue was full (TcpExtListenOverflows)"
    ),
    "syn_drops": _with("count", "SYNs dropped, too many handshakes under way ({of})"),
    "syns_resent": EvidenceKind("count", "SYNs sent again"),
    "client_segments_resent": EvidenceKind("count", "segments that clients sent again"),
    "listener_backlog": EvidenceKind("count", "backlog of the listener"),
    "listener_drops": EvidenceKind("count", "packets that the listener dropped"),
    "longest_accept_queue": EvidenceKind("count", "longest accept queue seen"),
    "half_open_connections": EvidenceKind("count", "half-open connections of one listener"),
    "accept_queue_wait": EvidenceKind("ms", "wait in the accept queue"),
    "accept_rate": EvidenceKind("per_s", "connections it accepted meanwhile"),
    "timed_out_attempts": EvidenceKind("count", "attempts that timed out"),
    "late_attempts": EvidenceKind("count", "attempts that came through late"),
    "longest_stall": EvidenceKind("s", "longest of them"),
    "stalled_attempts": EvidenceKind("count", "attempts that timed out or waited to the end"),
    "conntrack_entries": EvidenceKind("count", "entries in the table (nf_conntrack_count)"),
    "conntrack_max": EvidenceKind("count", "size of the table (nf_conntrack_max)"),
    "conntrack_drops": EvidenceKind("count", "packets dropped for want of an entry"),
    "conntrack_early_drops": EvidenceKind("count", "flows evicted to make room"),
    "backlog_drops": EvidenceKind(
        "count", "segments of the server dropped at a core's full queue (CPU_BACKLOG)"
    ),
    "softnet_drops": EvidenceKind(
        "count", "packets of anybody dropped there, on all cores (softnet_stat)"
    ),
    "core_softnet_drops": _with("count", "of them on {of}"),
    "softnet_squeezed": EvidenceKind("count", "rounds of a core that ended with packets left"),
    "segments_resent": EvidenceKind("count", "segments that were sent again"),
    "neighbours_refused": EvidenceKind(
        "count", "neighbours of anybody that the kernel refused (table_fulls)"
    ),
    "neighbour_drops": EvidenceKind(
        "count", "segments of the server dropped for want of a neighbour (NEIGH_CREATEFAIL)"
    ),
    "abort_resets": EvidenceKind("count", "resets of the run for it (TCP_ABORT_ON_MEMORY)"),
    "time_wait_overflows": EvidenceKind(
        "count", "connections that got no TIME_WAIT (TCPTimeWaitOverflow)"
    ),
    "closed_first": EvidenceKind("count", "connections of the run that its own side closed first"),
    "netfilter_drops": EvidenceKind(
        "count", "segments of the server that netfilter dropped (NETFILTER_DROP)"
    ),
}

_CONNECTIONS: dict[str, EvidenceKind] = {
    "connections_open": EvidenceKind("count", "connections open then"),
    "connections_begun": EvidenceKind("count", "connections begun by then"),
    "connections_established": EvidenceKind("count", "connections established"),
    "connections_held": EvidenceKind("count", "connections held"),
    "connections_accepted": EvidenceKind("count", "connections that it accepted"),
    "connections_closed": EvidenceKind("count", "open connections that it closed"),
    "connections_taken": EvidenceKind("count", "connections taken while it was watched"),
    "peak_connections": EvidenceKind("count", "most connections open at once"),
    "process_connections": _with("count", "connections in {of}", "connections it held"),
    "failed_connections": EvidenceKind("count", "failed connections"),
    "never_attempted": EvidenceKind("count", "connections of the target that were never attempted"),
    "attempts_again": EvidenceKind("count", "attempts that were made again"),
    "lost_connections": EvidenceKind("count", "lost connections"),
    "lost_within_1s": EvidenceKind("count", "connections lost within a second"),
    "failed_within_1s": EvidenceKind("count", "attempts that failed within a second"),
    "time_to_last_connection": EvidenceKind("s", "time to the last connection"),
    "time_open_median": EvidenceKind("s", "time that they were open (median)"),
    "close_code": EvidenceKind("", "code of its close frame"),
    "own_timeout": _with("s", "time of {of}"),
    "time_to_answer_median": EvidenceKind("s", "time after which it answered them (median)"),
    "handshakes_refused": EvidenceKind("count", "handshakes that it refused"),
    "handshakes_unanswered": EvidenceKind("count", "handshakes without an answer"),
    "handshakes_completed": EvidenceKind("count", "handshakes it completed meanwhile"),
    "http_status": EvidenceKind("", "HTTP status instead of 101"),
    "client_patience": EvidenceKind("s", "time that a client waited"),
    "handshake_wait_median": EvidenceKind("ms", "median wait of those that got in"),
    "connects_refused": EvidenceKind("count", "connects to a port without a listener"),
    "refused_by_rst": EvidenceKind("count", "handshakes ended by RST"),
    "refused_by_eof": EvidenceKind("count", "handshakes ended by EOF"),
    "server_resets": EvidenceKind("count", "resets that the server sent"),
    "sent_away": EvidenceKind("count", "connections sent away while another worker had room"),
    "sent_away_by_rst": EvidenceKind("count", "of them by RST"),
    "all_workers_connections": EvidenceKind("count", "connections in all workers then"),
    "all_workers_capacity": EvidenceKind("count", "connections that all workers can hold"),
    "listener_processes": EvidenceKind("count", "processes that accept from the same listener"),
    "worker_established": EvidenceKind("count", "connections established by this worker"),
    "fewest_worker_established": EvidenceKind("count", "connections of the worker with fewest"),
    "even_share": EvidenceKind("count", "an even share"),
    "times_even_share": EvidenceKind("", "times its even share"),
    "sigmas_above_even_share": EvidenceKind("", "standard deviations above it"),
    "attempt_rate": EvidenceKind("per_s", "attempts of this client"),
    "siblings_attempt_rate": EvidenceKind("per_s", "attempts of its siblings, median"),
    "unmet_attempts": EvidenceKind("count", "its connections never tried, or waiting in vain"),
    "later_than_siblings": EvidenceKind("s", "done later than its siblings"),
}

_CPU: dict[str, EvidenceKind] = {
    "process_cpu": _with("pct", "CPU of {of}", "CPU of this process"),
    "process_cpu_user": EvidenceKind("pct", "of that in user mode"),
    "siblings_cpu_median": EvidenceKind("pct", "median CPU of its siblings"),
    "workers_cpu_median": EvidenceKind("pct", "median CPU of the workers"),
    "servers_idle": EvidenceKind("pct", "idle share of the server's workers"),
    "cpu_per_connection": EvidenceKind("us", "CPU per connection"),
    "cpu_per_message": EvidenceKind("us", "CPU per message"),
    "handoff_rate": EvidenceKind("per_s", "descriptors passed on"),
    "function_samples": _with("pct", "samples in {of}"),
    "siblings_function_samples": _with("pct", "samples in {of} of its siblings, at most"),
    "thread_samples": _with("pct", "samples on its {of}"),
    "unnamed_samples": EvidenceKind("pct", "samples in code without names"),
    "collector_time": EvidenceKind("pct", "time in the collector"),
    "collector_samples": EvidenceKind("pct", "CPU samples in the collector"),
    "loop_collector_samples": EvidenceKind("pct", "samples of its event loop in the collector"),
    "helper_collector_samples": EvidenceKind(
        "pct", "samples of the collector on threads of its own"
    ),
    "collection_rate": EvidenceKind("per_s", "collections"),
    "longest_pause": EvidenceKind("ms", "longest pause"),
    "longest_early_pause": EvidenceKind("ms", "longest pause in the first second"),
    "busiest_server_cpu": EvidenceKind("pct", "CPU of the server's busiest process in the ramp"),
    "busiest_client_cpu": EvidenceKind("pct", "CPU of the busiest client in the ramp"),
    "server_processes_ended": EvidenceKind("count", "processes of the server that ended"),
    "host_busy": EvidenceKind("pct", "all cores busy"),
    "host_share": _with("pct", "of all cores: {of}"),
    "core_wait": _with("pct", "time that {of} waited for a core"),
    "core_pressure": EvidenceKind("pct", "time that some task waited for a core"),
    "runq_wait_median": EvidenceKind("ms", "wait for a core, median"),
    "runq_wait_p99": EvidenceKind("ms", "wait for a core, 99th percentile"),
    "core_full_time": EvidenceKind("pct of hold", "time that its core is full"),
    "host_full_time": EvidenceKind("pct of hold", "time that no core is free"),
}

_LOOPS: dict[str, EvidenceKind] = {
    "loop_turns": EvidenceKind("count", "turns of its event loop"),
    "siblings_loop_turns": EvidenceKind("count", "turns of its siblings' loops (median)"),
    "loop_busy": EvidenceKind("pct", "time that its event loop was in a turn"),
    "loop_blocked_time": EvidenceKind("pct", "time that its event loop was blocked"),
    "longest_loop_turn": EvidenceKind("ms", "longest turn of its event loop"),
    "siblings_longest_loop_turn": EvidenceKind("ms", "longest turn of its siblings (median)"),
    "longest_blocked_turn": EvidenceKind("ms", "longest turn sampled"),
    "typical_loop_turn": EvidenceKind("s", "turn of a worker's event loop"),
    "blocked_looks": EvidenceKind("pct", "looks in which it was in a call"),
    "blocked_samples": EvidenceKind("count", "samples of blocked turns"),
    "blocked_syscall_samples": _with("pct", "blocked samples in {of}"),
    "blocked_channel_samples": _with("pct", "blocked samples with wait channel {of}"),
    "blocked_function_samples": _with("pct", "Python stacks blocked in {of}"),
    "samples_asleep": _with(
        "pct", "samples asleep in {of} outside of its poll", "samples asleep outside of its poll"
    ),
    "messages_in_rate": EvidenceKind("per_s", "messages that came in"),
    "messages_out_rate": EvidenceKind("per_s", "messages that went out"),
    "messages_out_per_in": EvidenceKind("count", "messages that went out for each that came in"),
    "cpu_wanted": EvidenceKind("pct", "CPU that it takes to send to all what came in"),
    "reached_share": EvidenceKind("pct", "share of the other connections that one reached"),
    "full_at_connections": EvidenceKind("count", "connections at which that fills the core"),
    "keepalive_rate": EvidenceKind("per_s", "keep-alive messages of this worker"),
    "keepalive_interval": EvidenceKind("s", "keep-alive interval"),
    "sent_rate": _with("per_s", "{of} sent, all processes"),
    "due_rate": _with("per_s", "{of} due, all processes"),
    "message_rate": EvidenceKind("per_s", "messages, both ways"),
    "message_interval": EvidenceKind("s", "time between two to one connection"),
    "mean_sent_size": EvidenceKind("bytes", "mean size of one sent"),
    "mean_received_size": EvidenceKind("bytes", "mean size of one received"),
}

_RUN: dict[str, EvidenceKind] = {
    "span_length": EvidenceKind("s", "length of that time"),
    "exit_signal": EvidenceKind("", "signal that ended it"),
    "exit_status": EvidenceKind("", "exit status"),
    "processes_ended": EvidenceKind("count", "processes that ended together"),
    "time_watched": EvidenceKind("s", "time watched"),
    "processes_watched": EvidenceKind("count", "processes watched"),
}

_FATES: dict[str, EvidenceKind] = {
    "left_sockets": EvidenceKind(
        "count", "sockets of the server that their clients had closed and it had not (CLOSE_WAIT)"
    ),
    "left_share": EvidenceKind("pct", "of the server's connections then"),
    "left_growth": EvidenceKind("per_s", "more of them each second"),
    "left_looks": EvidenceKind("count", "looks in a row at which there were more"),
    "closed_at_once": EvidenceKind("count", "connections that it closed at once, unanswered"),
    "closed_on_connect": EvidenceKind(
        "count", "connections that the server closed within half a second of their connect"
    ),
    "let_in": EvidenceKind("count", "connections that it let in"),
    "attempts_after": EvidenceKind("count", "attempts begun after it was met"),
    "attempts_after_let_in": EvidenceKind("count", "of them let in"),
    "standing_queue": _with("count", "connections that stood in the queue of {of}"),
    "queue_limit": _with("count", "most that may wait in the queue of {of}"),
    "quiet_in_queue": EvidenceKind("count", "of them there for a second and more"),
    "taken_meanwhile": EvidenceKind("count", "connections that it took meanwhile"),
    "asleep_looks": EvidenceKind("count", "looks in a row at which it waited for events meanwhile"),
    "told_once": EvidenceKind("count", "1: it watches its listener with EPOLLET"),
    "time_without_accept": EvidenceKind("s", "time without an accept"),
    "gap_length": EvidenceKind("s", "time without an answer"),
    "gap_waiting": EvidenceKind("count", "connections that waited then"),
    "gap_untaken": EvidenceKind("count", "connections that no process had taken at its end"),
    "gap_failed": EvidenceKind("count", "of them never answered"),
    "unread_connections": EvidenceKind("count", "connections accepted and never read"),
    "unanswered_connections": EvidenceKind("count", "connections read and never answered"),
    "served_connections": EvidenceKind("count", "connections that it served meanwhile"),
    "served_together": EvidenceKind(
        "count", "connections that all processes that wait likewise served"
    ),
    "waiting_threads": _with("count", "threads that wait in {of}"),
    "served_rate": EvidenceKind("per_s", "upgrades that it answered meanwhile"),
    "limit_setting": _with("count", "value of {of}"),
    "queue_full_refusals": EvidenceKind(
        "count", "connects refused with EAGAIN: the queue was full"
    ),
    "refused_connects": _with("count", "connects to what is behind it that returned {of}"),
}

_LIMITS: dict[str, EvidenceKind] = {
    "cpu_quota": EvidenceKind("pct", "CPU quota of the control group, of one core"),
    "throttled_share": EvidenceKind("pct", "share of periods in which the quota stopped it"),
    "throttled_periods": EvidenceKind("count", "periods in which the quota stopped it"),
    "throttled_time": EvidenceKind("s", "time that it was stopped, all cores together"),
    "handshake_cpu": EvidenceKind("us", "CPU for one handshake"),
    "handshake_rate": EvidenceKind("per_s", "handshakes that it made"),
    "work_samples": _with("pct", "samples in functions of a {of}"),
    "successor_age": EvidenceKind("s", "time that its successor had been there"),
    "lost_with_it": EvidenceKind("count", "connections lost with it"),
    "eagain_calls": _call("EAGAIN"),
    "limit_used": _with("count", "{of}: in use"),
    "limit_size": _with("count", "{of}: most"),
    "limit_used_bytes": _with("bytes", "bytes of {of} in use"),
    "limit_size_bytes": _with("bytes", "most bytes of {of}"),
    "limit_refusals": _with("count", "times that the kernel refused for {of}"),
    "process_threads": EvidenceKind("count", "threads of the process"),
    "resident_peak": EvidenceKind("bytes", "most memory resident in the process"),
    "log_lines": EvidenceKind("count", "lines of the server's log that say so"),
    "group_cpu": EvidenceKind("pct", "CPU of the server's processes"),
}

EVIDENCE_KINDS: dict[str, EvidenceKind] = {
    **_DESCRIPTORS, **_PORTS, **_MEMORY, **_QUEUES, **_CONNECTIONS, **_CPU, **_LOOPS, **_FATES,
    **_LIMITS, **_RUN, **_HOSTS,
}  # fmt: skip
"""Id to its kind."""
