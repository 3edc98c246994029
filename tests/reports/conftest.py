"""A summary of a run that never was: so shaped that every section has something to show.

``make_summary`` gives the analysis' output as its docstring declares it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from markupsafe import Markup

from analysis.evidence import Evidence, Finding, Fix, Subject
from analysis.ladder.ladder import Rung
from analysis.summary import Summary
from analysis.verdict.verdict import Verdict
from reports.elements.tables import Chart
from reports.sections.view import Draw, View

COLUMNS: dict[str, str] = {
    "phases": "phase start_s end_s duration_s established_count failed_count established_per_s "
    "open_count server_cpu_pct server_user_pct server_system_pct client_cpu_pct client_user_pct "
    "client_system_pct probe_cpu_pct host_cpu_pct",
    "connections_over_time": "at_s client open_count established_total failed_total lost_total "
    "established_per_s failed_per_s",
    "worker_connections": "at_s pid role worker open_count established_total attempted_total "
    "failed_total accept_emfile_total rx_messages_per_s pings_per_s",
    "worker_cpu": "at_s pid role worker side user_pct system_pct cpu_pct wait_pct rss_bytes "
    "fd_count state wait_channel",
    "host_cpu": "at_s core user_pct system_pct softirq_pct irq_pct steal_pct idle_pct busy_pct",
    "host_pressure": "at_s resource some_pct full_pct",
    "errors": "side role worker pid syscall errno errno_name event_count first_s last_s source "
    "benign",
    "errors_over_time": "at_s side role worker pid syscall errno_name event_count events_per_s",
    "connection_failures": "client stage errno errno_name close_kind connection_count first_s "
    "last_s",
    "memory_per_connection": "component kind side bytes_per_connection fit_error_pct "
    "baseline_bytes peak_bytes",
    "memory_over_time": "at_s component kind side total_bytes open_count",
    "tcp_mem_over_time": "at_s tcp_mem_pages tcp_mem_pressure_pages tcp_mem_max_pages "
    "tcp_inuse_count tcp_timewait_count file_nr_count file_max_count conntrack_count "
    "conntrack_max_count",
    "ports": "source_address destination_address destination_port ports_used_count range_count "
    "used_pct refused_count source",
    "states": "at_s side state socket_count",
    "state_transitions": "side old_state new_state event_count",
    "drops": "reason location namespace_known event_count first_s last_s per_connection benign",
    "resets": "direction side state reason event_count first_s last_s",
    "retransmits": "side state event_count first_s last_s",
    "socket_pressure": "kind side event_count allocated_max_pages first_s last_s",
    "listeners": "local_address local_port socket_inode backlog_count accept_queue_max_count "
    "used_pct at_s",
    "listeners_over_time": "at_s local_port socket_inode accept_queue_count backlog_count",
    "net_counters": "counter change_total first_s last_s",
    "latency": "at_s kind connection_count p50_ms p90_ms p99_ms max_ms",
    "loop_lag": "at_s pid role worker lag_ms max_lag_ms busy_pct",
    "probe_health": "probe asked_for state reason fix row_count lost_count seen_count "
    "lost_pct is_loss_material late_count missed_count run_count cpu_s bpf_run_s failed_s",
    "probe_overhead": "phase probe_cpu_pct bpf_cpu_pct probe_rss_bytes",
    "processes": "pid role worker side slot start_s exited_s exit_status exit_signal "
    "nofile_soft_count own_fds_count established_total failed_total lost_total peak_open_count "
    "peak_fd_count peak_rss_bytes cpu_user_s cpu_system_s ramp_cpu_pct hold_cpu_pct",
    "flame_stacks": "pid role worker source stack sample_count is_hot in_failure_window",
    "failure_stacks": "at_s pid role worker syscall errno_name kernel_stack user_stack",
    "syscall_mix": "pid role worker syscall event_count failed_count events_per_s",
    "runq_latency": "pid role worker bucket_low_us event_count",
    "skb_allocs": "cache location event_count allocated_bytes",
    "events": "at_s event pid role worker detail",
    "latency_totals": "kind connection_count p50_ms p90_ms p99_ms max_ms",
    "moments": "at_s moment pid role worker detail",
    "connect_by_use": "used_pct connection_count p50_ms p90_ms p99_ms",
    "before_failure": "measure subject unit before at_failure after",
}
BPF_FRAMES = (
    "states", "state_transitions", "drops", "resets", "retransmits", "socket_pressure",
    "listeners", "listeners_over_time", "failure_stacks", "syscall_mix", "runq_latency",
    "skb_allocs",
)  # fmt: skip
_STEP_S = 0.25


def _frame(name: str, rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=COLUMNS[name].split())


def build_summary(
    *,
    target: int = 120_000,
    workers: int = 7,
    clients: int = 7,
    spin: bool = False,
    bpf: bool = True,
    status: str = "finished",
    hostile: str = "",
) -> Summary:
    """One synthetic run.

    Args:
        target: Connections asked for; with ``spin`` two thirds of them are reached.
        workers: Server processes.
        clients: Client processes.
        spin: Worker 1 meets its descriptor limit and spins on accept4.
        bpf: Whether the eBPF probes ran.
        status: Of the manifest.
        hostile: Text that is put wherever a stranger's text can come in.
    """
    random = np.random.default_rng(7)
    # Only the manifest can hold what is not UTF-8 (JSON escapes it); tables are Arrow text.
    in_argv, hostile = hostile, hostile.encode("utf-8", "replace").decode("utf-8")
    ramp_s, hold_s = 5.1, 10.0
    reached = target * 2 // 3 if spin else target
    times = np.arange(0, ramp_s + hold_s, _STEP_S)
    share = np.clip(times / ramp_s, 0, 1) ** 0.9
    if spin:
        share = np.minimum(share, 2 / 3) * 1.5
    opened = np.round(share * reached).astype(int)
    hot = min(1, workers - 1)
    limit_s = 3.3
    f: dict[str, list[tuple[Any, ...]]] = {name: [] for name in COLUMNS}
    previous = 0
    for at_s, total in zip(times, opened, strict=True):
        failing = int(1800 * random.random()) if spin and at_s > limit_s else 0
        rate = (total - previous) / _STEP_S
        f["connections_over_time"].append(
            (at_s, -1, total, total, failing, 0, rate, failing / _STEP_S)
        )
        for c in range(clients):
            own = int(total / clients * (1 + 0.02 * math.sin(c + at_s)))
            f["connections_over_time"].append(
                (at_s, c, own, own, failing // clients, 0, rate / clients, failing / clients)
            )
        busy = 1.0 if at_s <= ramp_s else 0.04
        for w in range(workers):
            pid = 1000 + w
            spinning = spin and w == hot and at_s > limit_s
            held = int(total / workers * (1.12 if spinning else 1))
            cpu = 99.6 if spinning else busy * (16 + 6 * random.random())
            emfile = int((at_s - limit_s) * 210_000) if spinning else 0
            f["worker_connections"].append(
                (at_s, pid, "server", w, held, held, held, 0, emfile, busy * 900, 0.0)
            )
            f["worker_cpu"].append(
                (
                    at_s, pid, "server", w, "server", cpu * 0.2, cpu * 0.8, cpu, cpu / 9,
                    5_200_000 + held * 90, held + 12, "running" if cpu > 50 else "sleeping",
                    "" if cpu > 50 else "ep_poll",
                )
            )  # fmt: skip
            lag = 4.0 if spinning else busy * 6 * random.random()
            f["loop_lag"].append((at_s, pid, "server", w, lag, lag * 2, cpu))
        for c in range(clients):
            cpu = busy * (11 + 3 * random.random())
            f["worker_cpu"].append(
                (at_s, 2000 + c, "client", c, "client", cpu * 0.1, cpu * 0.9, cpu, 1.0, 6_000_000,
                 int(total / clients) + 9, "sleeping", "ep_poll")
            )  # fmt: skip
        f["worker_cpu"].append(
            (at_s, 3000, "probe", -1, "host", 2.0, 1.5, 3.5, 0.0, 190 << 20, 60, "sleeping", "")
        )
        for core in (-1, 0, 1):
            used = 97 * busy if at_s <= ramp_s else (55.0 if spin else 5.0)
            f["host_cpu"].append(
                (at_s, core, used * 0.1, used * 0.6, used * 0.3, 0.0, 0.0, 100 - used, used)
            )
        for component, kind, side, per, base in (
            ("TCP", "slab", "both", 4608, 200_000), ("sock_inode_cache", "slab", "both", 1792, 9e6),
            ("filp", "slab", "both", 512, 4e6), ("dentry", "slab", "both", 384, 60e6),
            ("rmem", "buffers", "both", 0, 0), ("wmem", "buffers", "both", 12, 0),
            ("user server", "user", "server", 88, 36e6),
            ("user client", "user", "client", 910, 4e7),
        ):  # fmt: skip
            f["memory_over_time"].append((at_s, component, kind, side, base + per * total, total))
        f["tcp_mem_over_time"].append(
            (at_s, total // 60, 380_000, 571_000, total * 2, 0, 9000 + 2 * total, 2_466_170, -1, -1)
        )
        if bpf:
            for side in ("server", "client"):
                f["states"].append((at_s, side, "ESTABLISHED", int(total)))
                f["states"].append((at_s, side, "SYN_SENT", int(busy * 400 * random.random())))
            for w in range(workers):
                f["listeners_over_time"].append(
                    (at_s, 9000, 70 + w, int(busy * 300 * random.random()), 4096)
                )
        if total > previous:
            for kind, base_ms in (("connect", 0.4), ("handshake", 3.0)):
                wave = base_ms * (1 + at_s)
                f["latency"].append(
                    (at_s, kind, total - previous, wave, wave * 2, wave * 5, wave * 9)
                )
        previous = int(total)
    for component, kind, side, per in (
        ("TCP", "slab", "both", 4608.0), ("sock_inode_cache", "slab", "both", 1792.0),
        ("filp", "slab", "both", 512.0), ("dentry", "slab", "both", 384.0),
        ("rmem", "buffers", "both", 0.0), ("wmem", "buffers", "both", 12.0),
        ("user server", "user", "server", 88.0), ("user client", "user", "client", 910.0),
    ):  # fmt: skip
        f["memory_per_connection"].append(
            (component, kind, side, per, 1.3, 200_000.0, per * reached)
        )
    for phase, start, end, cpu in (
        ("setup", -1.2, 0.0, 0.0), ("ramp", 0.0, ramp_s, 110.0), ("hold", ramp_s, 15.1, 4.0),
    ):  # fmt: skip
        count = reached if phase == "ramp" else 0
        f["phases"].append(
            (phase, start, end, end - start, count, 0, count / (end - start), reached, cpu,
             cpu * 0.2, cpu * 0.8, cpu * 0.7, cpu * 0.07, cpu * 0.63, 3.0, cpu * 0.9)
        )  # fmt: skip
    for w in range(workers):
        held = reached // workers
        f["processes"].append(
            (1000 + w, "server", w, "server", w, -0.8, math.nan, -1, 0, 20_000, 12, held, 0, 0,
             held, held + 12, 5_200_000 + 90 * held, 0.9, 2.6, 55.0, 3.0)
        )  # fmt: skip
    for c in range(clients):
        held = reached // clients
        f["processes"].append(
            (2000 + c, "client", c, "client", 64 + c, -0.7, math.nan, -1, 0, 20_000, 9, held, 0, 0,
             held, held + 9, 6_000_000, 0.3, 2.0, 40.0, 1.0)
        )  # fmt: skip
    for c in range(max(1, clients * 2)):
        used = reached // max(1, clients * 2)
        f["ports"].append(
            (f"127.0.0.{c + 2}", "127.0.0.1", 9000, used, 28_232, used / 282.32, 0, "port_groups")
        )
    most_used_pct = int(max(row[5] for row in f["ports"]))
    for used_pct in np.arange(2.5, max(5.0, most_used_pct), 5.0):
        slow = 1.0 if used_pct < 50 else 8.0
        f["connect_by_use"].append((used_pct, 900, 0.02 * slow, 0.05 * slow, 0.4 * slow))
    f["latency_totals"] += [
        ("connect", reached, 0.4, 0.9, 2.1, 9.0), ("handshake", reached, 3.0, 6.0, 15.0, 27.0),
        ("open", reached, 3.4, 6.7, 16.0, 30.0),
    ]  # fmt: skip
    hot_worker: dict[str, Any] | None = None
    findings: list[Finding] = []
    name = hostile or "worker.py"
    for w in range(min(workers, 12)):
        pid, is_hot = 1000 + w, spin and w == hot
        for stack, samples in (
            (f"<module> ({name}:410);main ({name}:388);run ({name}:210);accept_all ({name}:140)",
             900 if is_hot else 80),
            (f"<module> ({name}:410);main ({name}:388);run ({name}:221);read ({name}:98)", 60),
            (f"<module> ({name}:410);main ({name}:388);run ({name}:190)", 14),
        ):  # fmt: skip
            f["flame_stacks"].append((pid, "server", w, "python", stack, samples, is_hot, False))
            f["flame_stacks"].append(
                (pid, "server", w, "python", stack, samples // 2, is_hot, True)
            )
        for number in range(300 if bpf else 0):
            stack = f"_start;main;accept4;entry_SYSCALL_64_[k];__sys_accept4_[k];f{number % 37}_[k]"
            stack += f";alloc_{number}_[k]"
            f["flame_stacks"].append(
                (pid, "server", w, "native", stack, 1 + number % 9, is_hot, number % 2 == 0)
            )
    f["events"] += [(0.0, "phase_ramp", 0, "", -1, ""), (ramp_s, "phase_hold", 0, "", -1, "")]
    if spin:
        pid = 1000 + hot
        f["errors"].append(
            ("server", "server", hot, pid, "accept4", 24, "EMFILE", 2_461_133, limit_s, 15.1,
             "failing_syscalls", False)
        )  # fmt: skip
        f["errors"].append(
            ("client", "client", 2, 2002, "read", 104, "ECONNRESET", 311, 3.4, 15.0,
             "failing_syscalls", False)
        )  # fmt: skip
        f["connection_failures"].append((2, "handshake", 104, "ECONNRESET", "rst", 311, 3.4, 15.0))
        for at_s in times[times > limit_s]:
            f["errors_over_time"].append(
                (at_s, "server", "server", hot, pid, "accept4", "EMFILE", 52_000, 210_000.0)
            )
        f["events"].append(
            (limit_s, "first_emfile", pid, "server", hot, hostile or "accept4 EMFILE")
        )
        f["moments"].append(
            (limit_s, "first_failure", pid, "server", hot, hostile or "accept4 EMFILE: first of 9")
        )
        f["before_failure"] += [
            ("new connections", "", "per s", 26_000.0, 900.0, 0.0),
            ("CPU", f"worker {hot} (pid {pid}, server)", "% of a core", 22.0, 99.0, math.nan),
            (f"in accept_all ({name}:140)", f"worker {hot}", "% of its samples", 8.0, 92.0, 93.0),
        ]  # fmt: skip
        hot_worker = {
            "pid": pid, "role": "server", "worker": hot, "since_s": limit_s, "until_s": 15.1,
            "cpu_pct": 99.6, "user_pct": 20.0, "system_pct": 79.6, "others_cpu_pct": 3.1,
            "top_function": f"accept_all ({name}:140)", "top_share_pct": 92.1,
            "cause": "accept-spin",
            "syscalls": [{"syscall": "accept4", "errno_name": "EMFILE", "events_per_s": 210_000.0},
                         {"syscall": "epoll_wait", "errno_name": "", "events_per_s": 1_900.0}],
            "stacks": [{"source": "python", "stack": f"main ({name}:388);accept_all ({name}:140)",
                        "sample_count": 900}],
        }  # fmt: skip
        subject = Subject("server", pid, hot)
        findings.append(
            Finding(
                "accept-spin", "binding", "server", subject, limit_s, 15.1,
                (Evidence("emfile_calls", 2_461_133,
                          "failing_syscalls", limit_s),
                 Evidence("process_cpu", 99.6, "process_samples", 9.0),
                 Evidence("descriptors_open", 20_000, "process_samples", limit_s)),
                "The listener stays readable while accept4 fails, so the event loop never sleeps.",
                (Fix(f"profile-run --connections {target} --at-fd-limit pause",
                     "worker 1 falls from 100 % to under 5 % of a core"),
                 Fix("ulimit -n 40000", "room for 20,000 more connections in each worker")),
                at_connections=reached,
            )
        )  # fmt: skip
        findings.append(
            Finding(
                "fd-limit-process",
                "contributing",
                "server",
                subject,
                limit_s,
                15.1,
                (Evidence("descriptors_open", 20_000, "process_samples", limit_s),),
                hostile or "Worker 1 has no descriptor left.",
                (Fix("ulimit -n 40000", "room for 20,000 more"),),
            )
        )
        verdict = Verdict(
            "accept-spin", "server",
            f"Worker 1 (pid {pid}, server) is at its descriptor limit of 20,000 and spins on "
            f"accept4: 210,000 failing calls per second, 100 % of a core. {hostile}".strip(),
            reached, limit_s, "high", "ephemeral_ports at about 395,000 connections",
        )  # fmt: skip
    else:
        findings.append(
            Finding("reached", "info", "host", Subject(), 0.0, 15.1,
                    (Evidence("connections_held", target, "connections", 15.1),),
                    "Every connection was established and held.")
        )  # fmt: skip
        verdict = Verdict(
            "reached", "host", f"{target:,} connections were established and held for 10 s "
            "without one failure.", target, ramp_s, "high", "fds_per_process at 139,916",
        )  # fmt: skip
    per_worker = 1 / workers
    ladder = [
        Rung("fds_per_process", "process", f"server {hot} (pid {1000 + hot})", 20_000,
             20_000 if spin else reached * per_worker + 12, "count", per_worker, 0.4,
             int(19_988 * workers), "getrlimit(RLIMIT_NOFILE), /proc/PID/fd",
             "ulimit -n 40000", spin),
        Rung("ephemeral_ports", "port_group", hostile or "127.0.0.2 to 127.0.0.1:9000", 28_232,
             reached / max(1, clients * 2), "count", 1 / max(1, clients * 2), None,
             28_232 * clients * 2, "ip_local_port_range, iter/tcp"),
        Rung("file_max", "host", "the host", 2_466_170, 9000 + 2 * reached, "count", 2.0, 0.0,
             1_228_585, "/proc/sys/fs/file-nr"),
        Rung("memory", "host", "the host", 25.2e9, 1.1e9 + 8400 * reached, "bytes", 8400.0, 2.1,
             2_200_000, "/proc/meminfo"),
        Rung("cpu_host", "host", "the host", 200.0, 194.0, "pct", None, None, None,
             "/proc/stat", "CPU follows the ramp rate, not the connections held"),
        Rung("conntrack", "host", "the host", None, None, "count", None, None, None,
             "nf_conntrack_count", "this namespace tracks no connections"),
    ]  # fmt: skip
    unavailable = (
        "unavailable",
        "needs root and python3-bpfcc",
        "sudo apt-get install python3-bpfcc",
    )
    for probe in ("failing_syscalls", "tcp_events", "cpu_stacks", "tcp_snapshot"):
        state, reason, fix = ("ran", "", "") if bpf else unavailable
        rows = 900 if bpf else 0
        f["probe_health"].append((probe, True, state, reason, fix, rows, 0, rows, 0.0, False,
                                  0, 0, -1, 0.04, 0.02, math.nan))  # fmt: skip
    for probe in ("process_samples", "host_counters", "python_stacks", "live_samples"):
        f["probe_health"].append((probe, True, "ran", "", "", 4000, 0, 4000, 0.0, False,
                                  1, 0, -1, 0.2, math.nan, math.nan))  # fmt: skip
    f["probe_overhead"] += [("ramp", 9.1, 1.2, 190 << 20), ("hold", 3.5, 0.1, 192 << 20)]
    if bpf:
        f["state_transitions"] += [
            ("client", "CLOSE", "SYN_SENT", reached),
            ("server", "SYN_RECV", "ESTABLISHED", reached),
        ]
        f["drops"] += [
            ("TCP_OVERWINDOW", "tcp_rcv_established", 1, 17, 1.1, 4.0, 17 / reached, False),
            ("SKB_CONSUMED", "__tcp_ack", 1, 8 * reached, 0.0, 15.0, 8.0, True),
        ]
        f["resets"].append(("rx", "client", "ESTABLISHED", "TCP_ABORT_ON_DATA", 311, 3.4, 15.0))
        f["retransmits"].append(("client", "SYN_SENT", 4, 1.2, 2.0))
        for w in range(workers):
            f["listeners"].append(("0.0.0.0", 9000, 70 + w, 4096, 280, 6.8, 1.5))
        f["syscall_mix"].append((1000, "server", 0, "accept4", 50_000, 41_000, 10_000.0))
        f["failure_stacks"].append(
            (limit_s, 1000 + hot, "server", hot, "accept4", "EMFILE",
             "entry_SYSCALL_64_[k];__x64_sys_accept4_[k];alloc_fd_[k]", "_start;main;accept4")
        )  # fmt: skip
        f["skb_allocs"].append(("skbuff_head_cache", "tcp_stream_alloc_skb", 400_000, 92_000_000))
        f["runq_latency"].append((1000, "server", 0, 64, 3100))
    f["net_counters"].append(("TcpExtTCPTimeouts", 4, 1.2, 2.0))
    run_id = f"20261123T214659Z-{'spin' if spin else 'main'}-0a1b"
    manifest = {
        "schema_version": 2, "tool_version": "0.1.0", "tool_commit": "abcdef1", "run_id": run_id,
        "name": "main",
        "argv": ["profile-run", "--connections", str(target), *([in_argv] if in_argv else [])],
        "status": status, "target_connections": target,
        "settings": {"accept": "reuseport", "at_fd_limit": "spin" if spin else "pause",
                     "server_mode": "echo", "nofile": 20_000, "keepalive_s": None, "hold_s": 10},
        "plan": {"workers": workers, "clients": clients, "backlog_count": 4096,
                 "port_range": [32768, 60999], "source_addresses": ["127.0.0.2", "127.0.0.3"]},
        "host": {"kernel": "6.18.0", "machine": "x86_64", "cpu_count": 2, "cpu_model": "Example",
                 "memory_total_bytes": 25_200_000_000, "python": "3.11.2",
                 "sysctls": {"net.ipv4.ip_local_port_range": "32768 60999",
                             "net.core.somaxconn": "4096", "fs.file-max": "2466170"},
                 "limits": {"nofile_soft_count": 1024, "nofile_hard_count": 20_000},
                 "cgroup": {}, "is_root": bpf, "network_namespace": "own"},
        "clock": {"start": {"monotonic_ns": 5_000_000_000, "wall_ns": 1_795_470_419_000_000_000,
                            "uncertainty_ns": 900}},
        "stages": [], "server": {"address": "127.0.0.1", "ports": [9000]},
        "probes_asked": ["failing_syscalls", "python_stacks"],
    }  # fmt: skip
    frames = {key: _frame(key, rows) for key, rows in f.items()}
    if not bpf:
        for key in BPF_FRAMES:
            frames[key] = _frame(key, [])
    return Summary(
        manifest=manifest,
        origin_ns=6_200_000_000,
        duration_s=15.1,
        run={
            "id": run_id, "argv": manifest["argv"], "target_connections": target,
            "peak_connections": reached, "held_connections": reached, "status": status,
            "failed_connections": 311 if spin else 0, "lost_connections": 0,
        },
        verdict=verdict,
        findings=findings,
        ladder=ladder,
        hot_worker=hot_worker,
        failure_window_s=(3.0, 5.0) if spin else None,
        missing=["the run did not finish: its supervisor ended before it wrote the last status"]
        if status == "interrupted"
        else [],
        **frames,
    )  # fmt: skip


@pytest.fixture(scope="session")
def make_summary() -> Any:
    """The builder itself: ``make_summary(spin=True)``."""
    return build_summary


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of which the words alone are looked at: drawing takes nine tenths of their time."""

    def chart(_: View, chart_id: str, question: str, window: str, said: str, draw: Draw) -> Chart:
        return Chart(chart_id, question, window, said, Markup(""), Markup(""))

    monkeypatch.setattr(View, "chart", chart)
