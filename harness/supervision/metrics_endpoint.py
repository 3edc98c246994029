"""Live OpenMetrics while a run goes on: ``profile-run --metrics [ADDR:]PORT``.

Scrapes are answered from the run's live.bin and ``/proc``, so nothing is asked of the measured
processes, and the supervisor imports the standard library only. The listener belongs to the host's
network namespace, also when the run has its own. Whoever connects has ``_REQUEST_S`` for all of a
request, few may be there at a time, and nobody of them is waited for when the run ends.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from socket import AF_INET, AF_INET6, SHUT_RDWR, socket
from socketserver import TCPServer
from typing import Any

from probes.contract.errors import HostError, RunDirError, UsageError
from probes.contract.live import Counter, Header, Live, Phase, Role
from probes.contract.rundir import RunDir
from probes.proc import stat_text
from reports.exports.openmetrics_text import CONTENT_TYPE, Family, exposition

PATH = "/metrics"
_REQUEST_S = 2.0
"""From its connect until a request must be over, however slowly its bytes come."""
_CONNECTIONS_MOST = 8
_POLL_S = 0.1
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

# (metric, counter of the slot, help); all are totals since the process started
_TOTALS = (
    ("connections_established", Counter.ESTABLISHED_TOTAL, "WebSocket handshakes completed."),
    (
        "connections_attempted",
        Counter.ATTEMPTED_TOTAL,
        "Connections begun (client), accepted (server).",
    ),
    ("connections_failed", Counter.FAILED_TOTAL, "Connections that never were established."),
    ("connections_lost", Counter.LOST_TOTAL, "Established connections that ended by themselves."),
    ("messages_received", Counter.RX_MESSAGES_TOTAL, "WebSocket messages received."),
    ("messages_sent", Counter.TX_MESSAGES_TOTAL, "WebSocket messages sent."),
    ("pings_received", Counter.RX_PINGS_TOTAL, "WebSocket pings received."),
    ("pings_sent", Counter.TX_PINGS_TOTAL, "WebSocket pings sent."),
)
_ERRORS = (
    ("EMFILE", Counter.ACCEPT_EMFILE_TOTAL),
    ("reset", Counter.RESET_TOTAL),
    ("eof", Counter.EOF_TOTAL),
    ("protocol", Counter.PROTOCOL_ERROR_TOTAL),
    ("reset_at_limit", Counter.ACCEPT_RESET_TOTAL),
)


def parse_address(text: str) -> tuple[str, int]:
    """``ADDR:PORT``, ``[ADDR6]:PORT``, ``:PORT`` or ``PORT``; the address is loopback by default.

    Returns:
        Address and port; port 0 lets the kernel choose.

    Raises:
        UsageError: Neither.
    """
    address, _, port_text = text.rpartition(":")
    address = address.removeprefix("[").removesuffix("]") or "127.0.0.1"
    try:
        found = str(ip_address(address))
        port = int(port_text) if port_text.isascii() and port_text.isdigit() else -1
    except ValueError:
        found, port = "", -1
    if not (found and 0 <= port <= 65_535):
        raise UsageError(
            f"--metrics {text!r} is not an address and a port", fix="--metrics 127.0.0.1:9464"
        )
    return found, port


@contextmanager
def serving(where: tuple[str, int], run: RunDir, target_connections: int) -> Iterator[str]:
    """Serves the metrics of a run while the block runs; gives their URL.

    Args:
        where: From ``parse_address``.
        run: The run.
        target_connections: Of the plan.

    Raises:
        HostError: Nobody can listen there.
    """
    address, port = where
    metrics = LiveMetrics(run, target_connections)
    try:
        server = _Server(where, metrics)
    except OSError as error:
        raise HostError(
            f"cannot listen on {address}:{port} for --metrics: {error.strerror}",
            fix=f"--metrics {address}:0 takes a free port; ss -ltnp shows who has {port}",
        ) from error
    thread = threading.Thread(
        target=server.serve_forever, args=(_POLL_S,), name="metrics", daemon=True
    )
    thread.start()
    try:
        host = f"[{address}]" if ":" in address else address
        yield f"http://{host}:{server.server_address[1]}{PATH}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        server.end_requests()
        metrics.close()


class _Server(ThreadingHTTPServer):
    """A thread for each scraper, of which there are few, and none for long."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, where: tuple[str, int], metrics: LiveMetrics) -> None:
        self.address_family = AF_INET6 if ":" in where[0] else AF_INET
        self.metrics = metrics
        self._lock = threading.Lock()
        self._end_s: dict[socket, float] = {}  # when each connection must be over
        super().__init__(where, _Handler)

    def verify_request(self, request: object, client_address: object) -> bool:
        """One too many is closed at once."""
        with self._lock:
            return len(self._end_s) < _CONNECTIONS_MOST

    def process_request(self, request: Any, client_address: Any) -> None:
        """Its time runs from here."""
        with self._lock:
            self._end_s[request] = time.monotonic() + _REQUEST_S
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Closes a connection, answered or not."""
        with self._lock:
            self._end_s.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Ends what takes too long: its thread reads an end of file then."""
        self._end(time.monotonic())

    def end_requests(self) -> None:
        """Ends all of them, without waiting for anybody."""
        self._end(float("inf"))

    def _end(self, now_s: float) -> None:
        with self._lock:
            for request, end_s in self._end_s.items():
                if end_s <= now_s:
                    with suppress(OSError):
                        request.shutdown(SHUT_RDWR)

    def server_bind(self) -> None:
        """Binds without asking a name server for this host's name, as HTTPServer does."""
        TCPServer.server_bind(self)

    def handle_error(self, request: object, client_address: object) -> None:
        """A scraper that went away is no news for the terminal."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def version_string(self) -> str:
        """The Server header, without the interpreter's version."""
        return "connscope"

    def do_GET(self) -> None:
        """Gives the metrics."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Likewise without them."""
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        if self.path.partition("?")[0] != PATH:
            self.send_error(404, explain=f"the metrics are at {PATH}")
            return
        body = self.server.metrics.text().encode()
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Scrapes are not logged: the terminal shows the run."""


class LiveMetrics:
    """Reads what the fleet counts.

    Args:
        run: The run; its live memory is there when it begins.
        target_connections: Of the plan.
    """

    def __init__(self, run: RunDir, target_connections: int) -> None:
        self._run = run
        self._target_connections = target_connections
        self._live: Live | None = None
        self._lock = threading.Lock()

    def close(self) -> None:
        """Drops the mapping."""
        with self._lock:
            if self._live is not None:
                self._live.close()
                self._live = None

    def text(self) -> str:
        """The exposition of now; before live.bin is there it has the target and the phase only."""
        with self._lock:
            return self._text()

    def _text(self) -> str:
        target = Family("connscope_target_connections", "gauge", "", "Connections asked for.")
        target.add(self._target_connections)
        info = Family("connscope_run_info", "gauge", "", "Always 1; its labels name the run.")
        info.add(1, {"run_id": self._run.path.name})
        live = self._opened()
        phase = live.phase if live else Phase.START
        phases = Family("connscope_phase", "gauge", "", "1 for the phase of now, else 0.")
        for each in Phase:
            phases.add(float(each == phase), {"phase": "setup" if each == 0 else each.name.lower()})
        families = [info, target, phases]
        return exposition(families + (_of_fleet(live) if live else []))

    def _opened(self) -> Live | None:
        if self._live is None:
            try:
                fd = os.open(self._run.live_path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return None
            try:
                self._live = Live(fd, writable=False)
            except RunDirError:  # it is being made just now
                return None
            finally:
                os.close(fd)
        return self._live


def _of_fleet(live: Live) -> list[Family]:
    now_ns = time.monotonic_ns()
    elapsed = _gauge("elapsed_seconds", "seconds", "Time since the ramp began.")
    if ramp_ns := live.header[Header.PHASE_RAMP_NS]:
        elapsed.add((now_ns - ramp_ns) / 1e9)
    open_all = _gauge("connections_open", "", "Connections open now, as the clients count them.")
    open_each = _gauge("process_connections_open", "", "Connections open now, by process.")
    in_flight = _gauge("process_connections_in_flight", "", "Connections under way, by process.")
    fds_limit = _gauge("process_max_fds", "", "RLIMIT_NOFILE of the process.")
    fds_own = _gauge("process_own_fds", "", "Descriptors that hold no connection.")
    totals = [_counter(f"process_{name}", "", text) for name, _, text in _TOTALS]
    errors = _counter("process_errors", "", "Errors by kind; connections that ended are included.")
    lag = _gauge("process_loop_lag_seconds", "seconds", "Age of the event loop's turn in progress.")
    max_lag = _gauge("process_loop_max_lag_seconds", "seconds", "Longest turn of the event loop.")
    busy = _counter("process_loop_busy_seconds", "seconds", "Time the event loop did not wait.")
    cpu = _counter("process_cpu_seconds", "seconds", "Processor time by mode.")
    rss = _gauge("process_resident_memory_bytes", "bytes", "Resident memory.")
    open_count = 0
    for index in range(live.slot_count):
        slot = live.slot(index)
        if not slot[Counter.PID]:
            continue
        role = _role(slot[Counter.ROLE])
        who = {"role": role, "worker": slot[Counter.WORKER], "pid": slot[Counter.PID]}
        open_count += slot[Counter.OPEN_COUNT] if role == "client" else 0
        open_each.add(slot[Counter.OPEN_COUNT], who)
        in_flight.add(slot[Counter.IN_FLIGHT_COUNT], who)
        fds_limit.add(slot[Counter.NOFILE_SOFT_COUNT], who)
        fds_own.add(slot[Counter.OWN_FDS_COUNT], who)
        for family, (_, counter, _) in zip(totals, _TOTALS, strict=True):
            family.add(slot[counter], who)
        for kind, counter in _ERRORS:
            errors.add(slot[counter], {**who, "error": kind})
        entered_ns = slot[Counter.LOOP_ENTERED_NS]
        lag.add(max(0, now_ns - entered_ns) / 1e9 if entered_ns else 0.0, who)
        max_lag.add(slot[Counter.LOOP_MAX_LAG_NS] / 1e9, who)
        busy.add(slot[Counter.LOOP_BUSY_NS_TOTAL] / 1e9, who)
        has_ended = slot[Counter.STOPPED_NS] > 0  # its pid may be another one's
        if not has_ended and (used := _used(slot[Counter.PID])) is not None:
            user_s, system_s, rss_bytes = used
            cpu.add(user_s, {**who, "mode": "user"})
            cpu.add(system_s, {**who, "mode": "system"})
            rss.add(rss_bytes, who)
    open_all.add(open_count)
    return [
        *(elapsed, open_all, open_each, in_flight, fds_limit, fds_own),
        *totals,
        *(errors, lag, max_lag, busy, cpu, rss),
    ]


def _gauge(name: str, unit: str, text: str) -> Family:
    return Family(f"connscope_{name}", "gauge", unit, text)


def _counter(name: str, unit: str, text: str) -> Family:
    return Family(f"connscope_{name}", "counter", unit, text)


def _role(word: int) -> str:
    try:
        return Role(word).name.lower()
    except ValueError:
        return "other"


def _used(pid: int) -> tuple[float, float, int] | None:
    """User s, system s, resident bytes of proc(5) stat; None when the process is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:  # noqa: PTH123 - every scrape, each process
            fields = stat_text.fields_of(stream.read())
    except OSError:
        return None
    return (
        int(fields[stat_text.USER_TICKS]) / _TICKS_PER_S,
        int(fields[stat_text.SYSTEM_TICKS]) / _TICKS_PER_S,
        int(fields[stat_text.RESIDENT_PAGES]) * _PAGE_BYTES,
    )
