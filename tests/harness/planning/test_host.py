"""Reading the host: any host in a folder, and this one for real."""

import errno
import json
import os
import resource
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness.planning.host import format_ranges, parse_ranges, read_host
from probes.contract.errors import HostError

CALL_FILTER = Path(__file__).parents[2] / "containers" / "call_filter.py"
TCP_TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:2329 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1
   2: 0100007F:8000 0100007F:2329 01 00000000:00000000 00:00000000 00000000     0        0 3 1
   3: 0100007F:2710 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4 1
"""

FILES = {
    "proc/sys/kernel/osrelease": "6.1.0-28-amd64\n",
    "proc/sys/fs/file-max": "9223372036854775807\n",
    "proc/sys/fs/file-nr": "1009\t0\t9223372036854775807\n",
    "proc/sys/fs/nr_open": "1048576\n",
    "proc/sys/fs/epoll/max_user_watches": "1763041\n",
    "proc/sys/net/ipv4/ip_local_port_range": "32768\t60999\n",
    "proc/sys/net/ipv4/ip_local_reserved_ports": "8080,40000-40009\n",
    "proc/sys/net/ipv4/tcp_mem": "90723\t120966\t181446\n",
    "proc/sys/net/core/somaxconn": "4096\n",
    "proc/sys/net/netfilter/nf_conntrack_max": "65536\n",
    "proc/sys/net/netfilter/nf_conntrack_count": "23\n",
    "proc/meminfo": "MemTotal:  8000000 kB\nMemFree: 1000000 kB\nMemAvailable: 6000000 kB\nHP: 0\n",
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: Some CPU @ 2.0GHz\n",
    "proc/self/status": "Name:\tx\nCapEff:\t0000000001000000\n",
    "proc/net/tcp": TCP_TABLE,
}

CGROUP_V2 = {
    "proc/self/cgroup": "0::/user.slice/box\n",
    "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n",
    "sys/fs/cgroup/user.slice/memory.max": "3000000000\n",
    "sys/fs/cgroup/user.slice/memory.current": "900000000\n",
    "sys/fs/cgroup/user.slice/memory.stat": "anon 5\ninactive_file 400000000\n",
    "sys/fs/cgroup/user.slice/box/memory.max": "max\n",
    "sys/fs/cgroup/user.slice/box/memory.current": "800000000\n",
    "sys/fs/cgroup/user.slice/box/cpu.max": "max 100000\n",
}

CGROUP_V1 = {
    "proc/self/cgroup": "5:memory:/docker/0af1\n4:cpu,cpuacct:/docker/0af1\n0::/\n",
    "proc/self/mountinfo": (
        "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
        "32 31 0:29 /docker/0af1 /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
        "35 31 0:32 /docker/0af1 /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    ),
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000000000\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "700000000\n",
    "sys/fs/cgroup/memory/memory.stat": "cache 9\ntotal_inactive_file 200000000\n",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
}


@pytest.fixture
def host_at(tmp_path):
    def write(*trees, without=()):
        for tree in (FILES, *trees):
            for name, text in tree.items():
                if name not in without:
                    path = tmp_path / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(text)
        return read_host(tmp_path)

    return write


def test_every_file_is_read_below_the_root(host_at):
    host = host_at()
    assert host.kernel == "6.1.0-28-amd64"
    assert host.kernel_version == (6, 1)
    assert host.cpu_model == "Some CPU @ 2.0GHz"
    assert host.file_max_count == 2**63 - 1
    assert host.file_used_count == 1009
    assert host.port_range == (32768, 60999)
    assert host.reserved_ports == ((8080, 8080), (40000, 40009))
    assert host.tcp_mem_pages == (90723, 120966, 181446)
    assert (host.conntrack_max_count, host.conntrack_used_count) == (65536, 23)
    assert host.epoll_max_user_watches_count == 1763041
    assert host.memory_total_bytes == 8_000_000 * 1024
    assert host.memory_room_bytes == host.memory_available_bytes == 6_000_000 * 1024
    assert host.cgroup.version == 0
    assert not host.has_btf


def test_listeners_are_read_until_the_first_other_socket(host_at):
    # The kernel lists listeners first; one after an established socket cannot come.
    assert host_at().listening_ports == (22, 9001)


def test_listeners_on_ipv6_count_too(host_at):
    table = TCP_TABLE.replace("0100007F:2329", "0" * 32 + ":2711", 1)
    assert 10_001 in host_at({"proc/net/tcp6": table}).listening_ports


def test_capabilities_decide_and_not_the_uid(host_at):
    host = host_at()  # CapEff has bit 24 alone
    assert host.may_raise_nofile
    assert not host.may_own_namespace
    assert host.nofile_ceiling_count == max(host.nofile_hard_count, 1048576)
    weak = replace(host, effective_capabilities=1 << 21 | 1 << 12)
    assert weak.may_own_namespace
    assert weak.nofile_ceiling_count == weak.nofile_hard_count


def test_a_refused_namespace_is_none_whatever_the_capabilities(host_at):
    able = replace(host_at(), effective_capabilities=1 << 21 | 1 << 12)
    assert not replace(able, namespace_errno=errno.EPERM).may_own_namespace


ASK = (
    "from harness.planning.host import read_host; host = read_host(); "
    "print(host.namespace_errno, host.may_own_namespace)"
)


def asked(*before):
    command = [*before, sys.executable, "-P", "-c", ASK]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.privileged
def test_who_refuses_a_namespace_is_found_by_trying():
    assert asked() == "0 True"
    filtered = (sys.executable, "-P", str(CALL_FILTER))
    assert asked(*filtered) == f"{errno.EPERM} False"
    # the number that is allowed belongs to the user namespace, so this host keeps its own
    none_left = 'echo 0 >/proc/sys/user/max_net_namespaces && exec "$@"'
    inner = ("unshare", "--user", "--map-root-user", "sh", "-c", none_left, "sh")
    assert asked(*inner) == f"{errno.ENOSPC} False"


def test_what_the_kernel_does_not_have_is_none_and_the_rest_is_read(host_at):
    gone = (
        "proc/sys/net/netfilter/nf_conntrack_max",
        "proc/sys/net/netfilter/nf_conntrack_count",
        "proc/sys/fs/epoll/max_user_watches",
        "proc/sys/net/ipv4/tcp_mem",
        "proc/net/tcp",
        "proc/cpuinfo",
    )
    host = host_at(without=gone)
    assert host.conntrack_max_count is None
    assert host.conntrack_used_count is None
    assert host.epoll_max_user_watches_count is None
    assert host.tcp_mem_pages is None
    assert host.listening_ports == ()
    assert host.cpu_model == ""
    assert host.file_used_count == 1009


def test_without_proc_there_is_one_clear_line(tmp_path):
    with pytest.raises(HostError, match="no Linux /proc") as caught:
        read_host(tmp_path)
    assert caught.value.fix


def test_the_tightest_cgroup_v2_limit_may_be_an_ancestors(host_at):
    host = host_at(CGROUP_V2)
    assert host.cgroup.version == 2
    assert host.cgroup.path == "/user.slice/box"
    assert host.cgroup.memory_limit_bytes == 3_000_000_000
    assert host.cgroup.memory_used_bytes == 500_000_000  # inactive file cache is given back
    assert host.memory_room_bytes == 2_500_000_000
    assert host.cgroup.cpu_quota_cores is None


def test_cgroup_v1_of_a_container_that_sees_its_group_as_the_mount(host_at):
    host = host_at(CGROUP_V1)
    assert host.cgroup.version == 1
    assert (host.cgroup.memory_limit_bytes, host.cgroup.memory_used_bytes) == (
        2_000_000_000,
        500_000_000,
    )
    assert host.cgroup.cpu_quota_cores == 0.5
    assert host.cpu_count == 1


def test_cgroup_v1_without_limits(host_at):
    unlimited = {
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
    }
    host = host_at(CGROUP_V1, unlimited)
    assert host.cgroup.memory_limit_bytes is None
    assert host.cgroup.cpu_quota_cores is None
    assert host.memory_room_bytes == host.memory_available_bytes


@pytest.mark.parametrize("path", ["/../outside", "/elsewhere"])
def test_a_group_outside_the_namespace_falls_back_to_the_mount(host_at, path):
    outside = {
        "proc/self/cgroup": f"0::{path}\n",
        "sys/fs/cgroup/memory.max": "1000000000\n",
        "sys/fs/cgroup/memory.current": "0\n",
        "sys/fs/outside/memory.max": "5\n",
    }
    assert host_at(CGROUP_V2, outside).cgroup.memory_limit_bytes == 1_000_000_000


@pytest.mark.parametrize("text", ["8080,9000-9010", "", "1024"])
def test_port_lists_go_there_and_back(text):
    assert format_ranges(parse_ranges(text + "\n")) == text


def test_this_host_agrees_with_the_operating_system():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = read_host()
        assert listener.getsockname()[1] in host.listening_ports
    assert host.kernel == os.uname().release
    assert host.machine == os.uname().machine
    assert host.is_root == (os.geteuid() == 0)
    assert (host.nofile_soft_count, host.nofile_hard_count) == resource.getrlimit(
        resource.RLIMIT_NOFILE
    )
    assert host.page_size_bytes == os.sysconf("SC_PAGE_SIZE")
    assert host.memory_total_bytes == os.sysconf("SC_PHYS_PAGES") * host.page_size_bytes
    assert 1 <= host.cpu_count <= len(os.sched_getaffinity(0))
    assert host.has_btf == Path("/sys/kernel/btf/vmlinux").exists()
    assert host.memory_room_bytes <= host.memory_available_bytes <= host.memory_total_bytes
    assert host.file_used_count >= len(os.listdir("/proc/self/fd")) - 1


@pytest.mark.privileged
def test_the_right_to_raise_the_hard_limit_is_what_the_kernel_says():
    host = read_host()
    code = (
        f"import resource as r\nr.setrlimit(r.RLIMIT_NOFILE, (64, {host.nofile_hard_count} + 1))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    at_most = host.nofile_hard_count < host.nr_open_count
    assert (done.returncode == 0) == (host.may_raise_nofile and at_most)


def test_the_manifests_host_object():
    host = read_host()
    shown = json.loads(json.dumps(host.to_dict("own")))
    assert shown["network_namespace"] == "own"
    assert shown["limits"]["nofile_hard_count"] == host.nofile_hard_count
    assert shown["sysctls"]["fs.file-max"] == host.file_max_count
    assert shown["cgroup"]["version"] == host.cgroup.version
    assert {"kernel", "machine", "cpu_count", "cpu_model", "memory_total_bytes", "python"} <= set(
        shown
    )
