"""The live endpoint without a run: addresses, an empty and a filled live.bin, rude visitors."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import suppress

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from harness.supervision.metrics_endpoint import parse_address, serving
from probes.contract import live as live_memory
from probes.contract.errors import HostError, UsageError
from probes.contract.live import Counter, Header, Live, Phase, Role
from probes.contract.rundir import RunDir

LOOPBACK = ("127.0.0.1", 0)


def scrape(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("9464", ("127.0.0.1", 9464)),
        (":0", ("127.0.0.1", 0)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("[::1]:9464", ("::1", 9464)),
        ("::1:9464", ("::1", 9464)),
    ],
)
def test_addresses(text, where):
    assert parse_address(text) == where


@pytest.mark.parametrize(
    "text", ["", "x", "localhost:80", "1.2.3.4", "9464x", "70000", "-1", "a:b"]
)
def test_what_is_no_address_is_a_usage_error(text):
    with pytest.raises(UsageError, match="--metrics"):
        parse_address(text)


def test_before_live_bin_is_there_it_says_setup(tmp_path):
    with serving(LOOPBACK, RunDir(tmp_path), 23) as url:
        metrics = scrape(url)
    assert [s.value for s in metrics["connscope_target_connections"].samples] == [23]
    phases = {s.labels["phase"]: s.value for s in metrics["connscope_phase"].samples}
    assert phases == {"setup": 1, "ramp": 0, "hold": 0, "stop": 0}
    assert "connscope_connections_open" not in metrics


def test_what_the_fleet_counts_is_what_a_scrape_says(tmp_path):
    fd = live_memory.create(tmp_path / "live.bin", 3, 23)
    live = Live(fd)
    live.header[Header.PHASE] = Phase.HOLD
    for index, (role, count) in enumerate(((Role.SERVER, 14), (Role.CLIENT, 23))):
        slot = live.slot(index)
        slot[Counter.ROLE], slot[Counter.WORKER], slot[Counter.PID] = role, 0, os.getpid() - index
        slot[Counter.OPEN_COUNT] = count
        slot[Counter.ACCEPT_EMFILE_TOTAL] = 1009 * (1 - index)
        slot[Counter.LOOP_BUSY_NS_TOTAL] = 2_500_000_000
    with serving(LOOPBACK, RunDir(tmp_path), 23) as url:
        metrics = scrape(url)
        live.slot(1)[Counter.OPEN_COUNT] = 22
        again = scrape(url)
    assert [s.value for s in metrics["connscope_connections_open"].samples] == [23]
    assert [s.value for s in again["connscope_connections_open"].samples] == [22]
    (emfile,) = (
        s
        for s in metrics["connscope_process_errors"].samples
        if (s.labels["role"], s.labels["error"]) == ("server", "EMFILE")
    )
    assert (emfile.name, emfile.value) == ("connscope_process_errors_total", 1009)
    busy = metrics["connscope_process_loop_busy_seconds"]
    assert (busy.unit, [s.value for s in busy.samples]) == ("seconds", [2.5, 2.5])
    roles = [s.labels["role"] for s in metrics["connscope_process_connections_open"].samples]
    assert roles == ["server", "client"], "a slot that nobody has taken is not shown"
    rss = metrics["connscope_process_resident_memory_bytes"].samples
    assert rss[0].value > 1 << 20, "this very process"
    live.close()
    os.close(fd)


def test_a_file_that_is_being_made_is_not_there_yet(tmp_path):
    (tmp_path / "live.bin").write_bytes(b"")
    with serving(LOOPBACK, RunDir(tmp_path), 23) as url:
        assert "connscope_phase" in scrape(url)


def test_other_paths_and_methods_are_refused(tmp_path):
    with serving(LOOPBACK, RunDir(tmp_path), 23) as url:
        for request in (
            url.replace("/metrics", "/"),
            url.replace("/metrics", "/../../etc/passwd"),
            urllib.request.Request(url, method="DELETE"),
        ):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=10)
            refused.value.close()
            assert refused.value.code in (404, 501)
        head = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(head, timeout=10) as answer:
            assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
            assert answer.read() == b""


def test_a_silent_visitor_does_not_block_the_next(tmp_path, capfd):
    with serving(LOOPBACK, RunDir(tmp_path), 23) as url:
        port = int(url.split(":")[2].split("/")[0])
        with socket.create_connection(("127.0.0.1", port), timeout=10):
            assert "connscope_phase" in scrape(url)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as rude:
            rude.sendall(b"\x00\xff nonsense\r\n\r\n")
            rude.recv(100)
        assert "connscope_phase" in scrape(url)
    assert capfd.readouterr() == ("", ""), "scrapes leave no trace in the terminal"


class Dripper:
    """Sends a request that never ends, a byte at a time."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
        self.is_ended = threading.Event()
        self._thread = threading.Thread(target=self._drip, daemon=True)
        self._thread.start()

    def _drip(self):
        try:
            while not self.is_ended.wait(0.05):
                self.socket.sendall(b"x")
        except OSError:
            self.is_ended.set()

    def close(self):
        self.is_ended.set()
        self._thread.join()
        self.socket.close()


def test_who_sends_a_byte_at_a_time_hinders_nobody_and_is_ended(tmp_path):
    with serving(LOOPBACK, RunDir(tmp_path), 5) as url:
        port = int(url.rsplit(":", 1)[1].split("/")[0])
        drippers = [Dripper(port) for _ in range(3)]
        assert "connscope_phase" in scrape(url)
        for dripper in drippers:
            assert dripper.is_ended.wait(30), "it may hold its connection for ever"
            dripper.close()


def test_the_end_of_a_run_waits_for_no_visitor(tmp_path):
    with serving(LOOPBACK, RunDir(tmp_path), 5) as url:
        dripper = Dripper(int(url.rsplit(":", 1)[1].split("/")[0]))
    assert dripper.is_ended.wait(30), "it was not ended with the run"
    dripper.close()


def test_only_so_many_are_served_at_a_time(tmp_path, deadline):
    def is_served() -> bool:
        """Whose connection is closed gives its place back a moment later."""
        with suppress(OSError):
            return "connscope_phase" in scrape(url)
        return False

    with serving(LOOPBACK, RunDir(tmp_path), 5) as url:
        port = int(url.rsplit(":", 1)[1].split("/")[0])
        idle = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(12)]
        assert [each.recv(1) for each in idle] == [b""] * 12  # at once, or when its time is over
        for each in idle:
            each.close()
        deadline("others are served", is_served)


def test_a_port_that_is_taken_is_said(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(HostError) as error, serving(("127.0.0.1", port), RunDir(tmp_path), 23):
            pass
    assert f"127.0.0.1:{port}" in error.value.message
    assert "--metrics 127.0.0.1:0" in error.value.fix


def test_the_port_is_free_when_the_block_ends(tmp_path):
    with serving(LOOPBACK, RunDir(tmp_path), 23) as url:
        port = int(url.split(":")[2].split("/")[0])
    with serving(("127.0.0.1", port), RunDir(tmp_path), 23) as again:
        assert again == url


def test_it_imports_nothing_heavy():
    code = "import harness.supervision.metrics_endpoint, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"pandas", "matplotlib", "numpy", "pyarrow", "jinja2", "rich"}


def test_the_supervisor_has_no_http_server_unless_asked():
    code = "import harness.commands.run, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert "http.server" not in done.stdout.split()
