"""Everything the page and the terminal show of one run, computed in one call.

``summarise(load(run))`` is the single entry. Times in columns that end in ``_s`` are seconds since
the ramp began (``origin_ns``), negative during set-up. A frame of a probe that did not run is
empty and has its columns: nothing here is ever None but where said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.causes import NOT_EXPLAINED
from analysis.evidence import Finding
from analysis.frames import cpu, failures, memory, message_times, processes, timeline
from analysis.frames.descriptors import df_descriptors
from analysis.frames.moments import df_moments
from analysis.frames.ports import df_connect_by_use, df_ports
from analysis.frames.processes import what_is_missing
from analysis.frames.run_frames import RunFrames
from analysis.frames.run_view import RunView
from analysis.ladder.ladder import Rung, build_ladder
from analysis.server.fates import is_process_per_connection
from analysis.server.server_words import near, quotes_of, with_quotes
from analysis.signs.attempts import with_attempts
from analysis.signs.before_failure import df_before_failure
from analysis.signs.signs import Signs
from analysis.stacks.hot_thread import with_threads
from analysis.verdict.by_host import find_on_hosts, ladder_of_hosts
from analysis.verdict.hot_worker import describe_hot_worker
from analysis.verdict.not_explained import not_explained
from analysis.verdict.ranking import rank
from analysis.verdict.verdict import Verdict, conclude, run_facts
from probes.contract import schema


@dataclass(frozen=True, slots=True)
class Summary:
    """One run, understood. ``side`` is server, client or host (tcp tables: server, client, other).

    What ``summarise`` returns computes a frame when it is first asked for, and keeps it: verdict,
    findings and ladder are half of the work, and all that some commands want.

    CPU percentages of processes: 100 is one full core. Of ``host_cpu``: 100 is that core busy all
    the time; core -1 is the mean over all cores.

    Attributes:
        manifest: ``manifest.json`` as it is (host, argv, plan, settings, probes_asked, ...).
        origin_ns: CLOCK_MONOTONIC at the start of the ramp: second 0 of all times here.
        duration_s: From second 0 to the end of the hold phase (or of what was recorded).
        run: id, argv, target_connections, peak_connections, held_connections, status,
            failed_connections, lost_connections.
        verdict: The verdict.
        findings: Binding first, then contributing, warning, info.
        ladder: Next wall first; rungs without a prediction last.
        hot_worker: None when no worker was hot, else pid, role, worker, since_s, until_s,
            cpu_pct, user_pct, system_pct (means over since..until), softirq_pct (part of cpu_pct,
            NaN without samples), kernel_stack and python_stack (most sampled, '' for none),
            others_cpu_pct (median of its siblings), others (list of {pid, role, worker, cpu_pct,
            state, wait_channel, established_count}: what they did meanwhile), top_function (python
            or native, '' unknown), top_share_pct (of samples), cause (id of the finding that
            explains it, '' none), syscalls (list of {syscall, errno_name, events_per_s}, most
            first), stacks (list of {source, stack, sample_count}, most first, at most 10),
            is_ramp_only (a lone worker, at a full core while connections were opened),
            threads (list of {tid, thread, kind, label, sample_count, share_pct, function}, most
            samples first, at most 10), naming_advice (what would name its frames, '' for nothing).
        failure_window_s: (first_s, last_s) around the first failures, None when none failed.
        phases: phase (setup, ramp, hold, stop, collect), start_s, end_s, duration_s,
            established_count, failed_count, established_per_s, open_count (at its end),
            server_cpu_pct, server_user_pct, server_system_pct, client_cpu_pct, client_user_pct,
            client_system_pct, probe_cpu_pct (sums over processes), host_cpu_pct (all cores busy
            = 100).
        connections_over_time: at_s, client (-1: all together), open_count, established_total,
            failed_total, lost_total, established_per_s, failed_per_s. From the connection
            records; one row per client and 100-250 ms bin (wider for runs over a minute).
        worker_connections: at_s, pid, role, worker, open_count, established_total,
            attempted_total, failed_total, accept_emfile_total, rx_messages_per_s,
            pings_per_s. One row per server-side process and live sample.
        worker_cpu: at_s, pid, role, worker, side, user_pct, system_pct, cpu_pct, wait_pct (ready
            to run, without a core), rss_bytes, fd_count, state, wait_channel. Servers, acceptor,
            clients, probe, supervisor.
        host_cpu: at_s, core (-1 all), user_pct, system_pct, softirq_pct, irq_pct, steal_pct,
            idle_pct, busy_pct.
        host_pressure: at_s, resource, some_pct, full_pct.
        errors: side, role, worker, pid, syscall, errno, errno_name, event_count, first_s, last_s,
            source (table it comes from: failing_syscalls, connections, live_samples), benign
            (bool: EAGAIN, EINPROGRESS and such, part of normal work). Harmful first, most first.
        errors_over_time: at_s, side, role, worker, pid, syscall, errno_name, event_count,
            events_per_s. Without the benign ones.
        connection_failures: client, stage, errno, errno_name, close_kind, connection_count,
            first_s, last_s. Connections that failed or were lost.
        memory_per_connection: component (TCP, sock_inode_cache, rmem, wmem, user server, ...),
            kind (slab, buffers, user), side (server, client, both), bytes_per_connection,
            fit_error_pct (NaN when not fitted), baseline_bytes, peak_bytes. Slope by least
            squares over the run, baseline taken off.
        memory_over_time: at_s, component, kind, side, total_bytes, open_count.
        tcp_mem_over_time: at_s, tcp_mem_pages, tcp_mem_pressure_pages, tcp_mem_max_pages,
            tcp_inuse_count, tcp_timewait_count, file_nr_count, file_max_count, conntrack_count,
            conntrack_max_count.
        ports: source_address, destination_address, destination_port, ports_used_count (peak),
            range_count, used_pct, refused_count (EADDRNOTAVAIL), source (port_groups or
            connections). Fullest first.
        states: at_s, side, state, socket_count.
        state_transitions: side, old_state, new_state, event_count.
        drops: reason, location, namespace_known (0: of any network namespace of the host),
            event_count, first_s, last_s, per_connection, benign (bool).
        resets: direction (tx, rx), side, state, reason, event_count, first_s, last_s.
        retransmits: side, state, event_count, first_s, last_s.
        socket_pressure: kind, side, event_count, allocated_max_pages, first_s, last_s.
        listeners: local_address, local_port, socket_inode, backlog_count,
            accept_queue_max_count, used_pct, at_s (of the maximum).
        listeners_over_time: at_s, local_port, socket_inode, accept_queue_count, backlog_count.
        net_counters: counter, change_total, first_s (of the first change), last_s. Most telling
            first (TcpExtListenOverflows, ...).
        latency: at_s, kind (connect, handshake), connection_count, p50_ms, p90_ms, p99_ms, max_ms.
        message_times: at_s, message_count, p50_ms, p90_ms, p99_ms, p99_9_ms. From when a message
            was due until its answer was read, each second.
        loop_lag: at_s, pid, role, worker, lag_ms (turn in progress), max_lag_ms, busy_pct.
        probe_health: probe, asked_for, state, reason, fix, row_count, lost_count, seen_count (-1
            when not known), lost_pct (NaN likewise), is_loss_material (it may change the verdict),
            missed_count (runs of its eBPF programs that were skipped), run_count (-1 when unknown),
            late_count, cpu_s, bpf_run_s (NaN when not counted), failed_s (NaN when it did not, or
            when that is not known).
        probe_overhead: phase (ramp, hold), probe_cpu_pct (100 = one core, the probe process),
            bpf_cpu_pct (eBPF programs, whole run), probe_rss_bytes.
        processes: pid, role, worker, side, slot, start_s, exited_s (NaN: by the run itself),
            exit_status, exit_signal, nofile_soft_count, own_fds_count, established_total,
            failed_total, lost_total, peak_open_count, peak_fd_count, peak_rss_bytes, cpu_user_s,
            cpu_system_s, ramp_cpu_pct, hold_cpu_pct.
        flame_stacks: pid, role, worker, source (python, native), stack (root first, ';'),
            sample_count, is_hot (of the hot worker), in_failure_window.
        failure_stacks: at_s, pid, role, worker, syscall, errno_name, kernel_stack, user_stack.
        syscall_mix: pid, role, worker, syscall, event_count, failed_count, events_per_s.
        runq_latency: pid, role, worker, bucket_low_us, event_count.
        skb_allocs: cache, location, event_count, allocated_bytes.
        events: at_s, event, pid, role, worker, detail.
        missing: What could not be read or computed, for people: cut files, absent tables, a run
            that did not finish.
        latency_totals: kind (connect, handshake, open), connection_count, p50_ms, p90_ms, p99_ms,
            max_ms. Over the whole run; open is connect and handshake together.
        moments: at_s, moment, pid, role, worker, detail. Events, first failures and full port
            pools, earliest first; without phases.
        connect_by_use: used_pct, connection_count, p50_ms, p90_ms, p99_ms. Time of connect by how
            full its pool of local ports was.
        before_failure: measure, subject, unit, before, at_failure, after. What changed at the
            first failure: before it, in failure_window_s, after; NaN where nothing was sampled.
    """

    manifest: dict[str, Any]
    origin_ns: int
    duration_s: float
    run: dict[str, Any]
    verdict: Verdict
    findings: list[Finding]
    ladder: list[Rung]
    hot_worker: dict[str, Any] | None
    failure_window_s: tuple[float, float] | None
    phases: pd.DataFrame
    connections_over_time: pd.DataFrame
    worker_connections: pd.DataFrame
    worker_cpu: pd.DataFrame
    host_cpu: pd.DataFrame
    host_pressure: pd.DataFrame
    errors: pd.DataFrame
    errors_over_time: pd.DataFrame
    connection_failures: pd.DataFrame
    memory_per_connection: pd.DataFrame
    memory_over_time: pd.DataFrame
    tcp_mem_over_time: pd.DataFrame
    ports: pd.DataFrame
    states: pd.DataFrame
    state_transitions: pd.DataFrame
    drops: pd.DataFrame
    resets: pd.DataFrame
    retransmits: pd.DataFrame
    socket_pressure: pd.DataFrame
    listeners: pd.DataFrame
    listeners_over_time: pd.DataFrame
    net_counters: pd.DataFrame
    latency: pd.DataFrame
    loop_lag: pd.DataFrame
    probe_health: pd.DataFrame
    probe_overhead: pd.DataFrame
    processes: pd.DataFrame
    flame_stacks: pd.DataFrame
    failure_stacks: pd.DataFrame
    syscall_mix: pd.DataFrame
    runq_latency: pd.DataFrame
    skb_allocs: pd.DataFrame
    events: pd.DataFrame
    missing: list[str]
    latency_totals: pd.DataFrame = field(default_factory=pd.DataFrame)
    moments: pd.DataFrame = field(default_factory=pd.DataFrame)
    connect_by_use: pd.DataFrame = field(default_factory=pd.DataFrame)
    before_failure: pd.DataFrame = field(default_factory=pd.DataFrame)
    message_times: pd.DataFrame = field(default_factory=pd.DataFrame)
    _makers: Mapping[str, Callable[[], Any]] = field(
        default_factory=dict, repr=False, compare=False
    )

    if not TYPE_CHECKING:  # the fields have types; this is only how their values come

        def __getattr__(self, name: str) -> Any:
            """The value of a field that nobody has asked for yet: its slot is still empty."""
            if name == "_makers" or name not in self._makers:
                raise AttributeError(name)
            value = self._makers[name]()
            object.__setattr__(self, name, value)
            return value


def summarise(frames: RunFrames) -> Summary:
    """Understands one run.

    Args:
        frames: From ``analysis.frames.run_frames.load``.
    """
    view = RunView(frames)
    worker_cpu, host_cpu = cpu.df_worker_cpu(view), cpu.df_host_cpu(view)
    errors = failures.df_errors(view)
    ports = df_ports(view)
    listeners = timeline.df_listeners(view)
    descriptors = df_descriptors(view)
    # a process that serves one connection takes no second one as more clients come
    is_one = [is_process_per_connection(view, int(pid)) for pid in descriptors["pid"]]
    ladder = build_ladder(view, descriptors[~np.array(is_one, dtype=bool)], ports, listeners)
    signs = Signs(
        view,
        errors=errors,
        ports=ports,
        descriptors=descriptors,
        worker_cpu=worker_cpu,
        host_cpu=host_cpu,
        ladder=ladder,
    )
    if frames.hosts:
        ladder = ladder_of_hosts(signs, ladder, lambda each: _signs_of(each).ladder)
        signs = replace(signs, ladder=ladder)
    ranked = rank(signs, find_on_hosts(signs, _signs_of))
    findings = with_attempts(with_quotes(ranked, signs.words, view.first_failure_s), view)
    hot = with_threads(signs.view, describe_hot_worker(signs, findings))
    verdict = conclude(view, findings, ladder, quotes_of(near(signs.words, view.first_failure_s)))
    if verdict.cause == NOT_EXPLAINED:
        verdict = replace(verdict, unexplained=not_explained(signs, ladder))
    known = {
        "manifest": frames.manifest,
        "origin_ns": view.origin_ns,
        "duration_s": view.stop_s,
        "run": run_facts(view),
        "verdict": verdict,
        "findings": findings,
        "ladder": ladder,
        "hot_worker": hot,
        "failure_window_s": view.failure_window_s,
        "worker_cpu": worker_cpu,
        "host_cpu": host_cpu,
        "errors": errors,
        "ports": ports,
        "listeners": listeners,
    }
    summary = Summary.__new__(Summary)
    later: dict[str, Callable[[], Any]] = {
        "phases": lambda: timeline.df_phases(view, host_cpu),
        "connections_over_time": lambda: timeline.df_connections_over_time(view),
        "worker_connections": lambda: timeline.df_worker_connections(view),
        "host_pressure": lambda: cpu.df_host_pressure(view),
        "errors_over_time": lambda: failures.df_errors_over_time(view, errors),
        "connection_failures": lambda: failures.df_connection_failures(view),
        "memory_per_connection": lambda: memory.df_memory_per_connection(
            view, summary.memory_over_time
        ),
        "memory_over_time": lambda: memory.df_memory_over_time(view),
        "tcp_mem_over_time": lambda: memory.df_tcp_mem_over_time(view),
        "states": lambda: timeline.df_states(view),
        "state_transitions": lambda: failures.df_state_transitions(view),
        "drops": lambda: failures.df_drops(view),
        "resets": lambda: failures.df_resets(view),
        "retransmits": lambda: failures.df_retransmits(view),
        "socket_pressure": lambda: failures.df_socket_pressure(view),
        "listeners_over_time": lambda: timeline.df_listeners_over_time(view),
        "net_counters": lambda: failures.df_net_counters(view),
        "latency": lambda: timeline.df_latency(view),
        "loop_lag": lambda: timeline.df_loop_lag(view),
        "probe_health": lambda: processes.df_probe_health(view),
        "probe_overhead": lambda: cpu.df_probe_overhead(view),
        "processes": lambda: processes.df_processes(view),
        "flame_stacks": lambda: cpu.df_flame_stacks(view, hot["pid"] if hot else 0),
        "failure_stacks": lambda: failures.df_failure_stacks(view),
        "syscall_mix": lambda: processes.df_syscall_mix(view),
        "runq_latency": lambda: processes.df_runq_latency(view),
        "skb_allocs": lambda: processes.df_skb_allocs(view),
        "events": lambda: timeline.df_events(view),
        "missing": lambda: _missing(view),
        "message_times": lambda: message_times.df_message_times(view),
        "latency_totals": lambda: timeline.df_latency_totals(view),
        "moments": lambda: df_moments(view, errors),
        "connect_by_use": lambda: df_connect_by_use(view),
        "before_failure": lambda: df_before_failure(view, host_cpu, _pid_apart(hot, findings)),
    }
    for name, value in {**known, "_makers": later}.items():
        object.__setattr__(summary, name, value)
    return summary


def _signs_of(view: RunView) -> Signs:
    """What findings look at, of a part of a run."""
    ports, descriptors = df_ports(view), df_descriptors(view)
    return Signs(
        view,
        errors=failures.df_errors(view),
        ports=ports,
        descriptors=descriptors,
        worker_cpu=cpu.df_worker_cpu(view),
        host_cpu=cpu.df_host_cpu(view),
        ladder=build_ladder(view, descriptors, ports, timeline.df_listeners(view)),
    )


def _missing(view: RunView) -> list[str]:
    for name in schema.TABLES:
        view.frames[name]  # a stream that was cut is met when its table is read
    return what_is_missing(view)


def _pid_apart(hot: dict[str, Any] | None, findings: list[Finding]) -> int:
    """The worker to compare with its siblings: the hot one, else the one that stopped the run."""
    if hot is not None:
        return int(hot["pid"])
    first = findings[0] if findings else None
    return int(first.subject.pid or 0) if first is not None and first.side == "server" else 0
