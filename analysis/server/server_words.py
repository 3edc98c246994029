"""The server's own words: what its log said of errors, and which of it names a cause of ours.

A line is evidence of a stranger: it is quoted as it stands, and only a well-known one, of a program
whose source says when it is written, is taken to mean a cause. An unknown one means nothing here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import pandas as pd

from analysis.evidence import Finding, Quote
from analysis.frames.run_view import RunView
from analysis.stats.thresholds import LATE_LIVE_S

MOST_QUOTES_COUNT = 3
_NEAR_BEFORE_S, _NEAR_AFTER_S = 3.0, 3.0
"""How far from the first failure a line may stand and still be quoted beside it."""


_PROCESS_NAMES = {"httpd": "apache2"}
"""Where the process of a program is called otherwise."""

NODE_WORKER = "worker thread of node"
"""Its heap has a limit of its own."""


class KnownLine(NamedTuple):
    """A line whose meaning is known.

    Attributes:
        program: Who writes it.
        pattern: What it looks like.
        cause: What it means, an id of the catalogue.
    """

    program: str
    pattern: re.Pattern[str]
    cause: str


def _known(program: str, pattern: str, cause: str) -> KnownLine:
    return KnownLine(program, re.compile(pattern), cause)


KNOWN_LINES: tuple[KnownLine, ...] = (
    # src/event/ngx_event.c, src/core/ngx_connection.c, src/http/ngx_http_upstream.c
    _known("nginx", r"\d+ worker_connections are not enough", "own-limit"),
    # src/http/modules/ngx_http_limit_conn_module.c, ngx_http_limit_req_module.c
    _known("nginx", r"limiting (?:connections by zone|requests, excess)", "own-limit"),
    _known("nginx", r"accept4?\(\) failed \(24: Too many open files\)", "fd-limit-process"),
    _known("nginx", r"socket\(\) failed \(24: Too many open files\)", "fd-limit-process"),
    _known("nginx", r"accept4?\(\) failed \(23: ", "fd-limit-system"),
    _known("nginx", r"no live upstreams while connecting", "backend-unavailable"),
    _known("nginx", r"connect\(\) failed \((?:111|113|110): ", "backend-unavailable"),
    _known("nginx", r"connect\(\) to unix:\S+ failed \(11: ", "unix-queue-full"),
    _known("nginx", r"connect\(\) to unix:\S+ failed \((?:2|111): ", "backend-unavailable"),
    _known("nginx", r"upstream timed out \(110: ", "backend-unavailable"),
    _known("nginx", r"upstream prematurely closed connection", "backend-unavailable"),
    _known("nginx", r"\(99: (?:Cannot assign requested address|Address not available)\)",
           "ephemeral-ports-exhausted"),
    _known("nginx", r"worker process \d+ exited on signal \d+", "worker-crash"),
    # server/mpm/event, worker and prefork
    _known("httpd", r"AH\d{5}: server reached MaxRequestWorkers setting", "own-limit"),
    _known("httpd", r"AH\d{5}: server is within MinSpareThreads of MaxRequestWorkers", "own-limit"),
    # src/proxy.c, src/frontend.c, src/server.c, src/fd.c
    _known("haproxy", r"reached the configured maximum connection limit", "own-limit"),
    _known("haproxy", r"reached (?:process|system) FD limit", "fd-limit-process"),
    _known("haproxy", r"has no server available", "backend-unavailable"),
    _known("haproxy", r"Server \S+ is DOWN", "backend-unavailable"),
    # modules/proxy/proxy_util.c, mod_proxy_http.c
    _known("httpd", r"AH00957: .*attempt to connect to .* failed", "backend-unavailable"),
    _known("httpd", r"AH01102: error reading status line|AH00898: Error reading from remote",
           "backend-unavailable"),
    # src/server.c; src/gw_backend.c
    _known("lighttpd", r"sockets disabled, (?:connection limit reached|out-of-fds)", "own-limit"),
    _known("lighttpd", r"all handlers for .* are down|backend died; we'll disable it",
           "backend-unavailable"),
    # xinetd/log.c, service.c; of a socket unit: src/core/socket.c
    _known("xinetd", r"FAIL: \S+ (?:service|per_source|process)_limit\b", "own-limit"),
    _known("xinetd", r"Deactivating service \S+ due to excessive incoming connections",
           "own-limit"),
    _known("systemd", r"Too many incoming connections \(\d+\)", "own-limit"),
    # libwebsocketd/http.go
    _known("websocketd", r"Max of possible forks already active", "own-limit"),
    # net/http/httputil/reverseproxy.go
    _known("Go", r"http: proxy error: (?:dial|read) tcp .*: (?:connection refused|i/o timeout)",
           "backend-unavailable"),
    # source/common/http/codes.cc and the response flags of its access log
    _known("envoy", r"no healthy upstream", "backend-unavailable"),
    _known("envoy", r"upstream connect error or disconnect/reset before headers",
           "backend-unavailable"),
    _known("envoy", r"upstream (?:max )?(?:connection )?overflow|\bUO\b.*\boverflow", "own-limit"),
    # src/node_errors.cc (OOMErrorHandler), deps/v8/src/api/api.cc
    _known("node", r"(?:Reached heap limit|Ineffective mark-compacts near heap limit"
           r"|CALL_AND_RETRY_LAST|JavaScript heap out of memory)", "runtime-heap-limit"),
    # lib/internal/errors.js: of a Worker with resourceLimits
    _known(NODE_WORKER, r"ERR_WORKER_OUT_OF_MEMORY|terminated due to reaching memory limit",
           "runtime-heap-limit"),
    _known("node", r"Error: accept EMFILE|Error: EMFILE|connect EMFILE", "fd-limit-process"),
    _known("node", r"connect (?:ECONNREFUSED|ETIMEDOUT|EHOSTUNREACH)\b", "backend-unavailable"),
    _known("node", r"connect EADDRNOTAVAIL", "ephemeral-ports-exhausted"),
    _known("node", r"spawn \S+ EAGAIN|uv_thread_create.*EAGAIN", "task-limit"),
    # src/hotspot/share/memory, os/posix/os_posix.cpp; java.nio.Bits
    _known("JVM", r"OutOfMemoryError: (?:Java heap space|GC overhead limit exceeded|Metaspace"
           r"|Compressed class space|Requested array size)", "runtime-heap-limit"),
    _known("JVM", r"OutOfMemoryError: (?:Direct buffer memory|Cannot reserve \d+ bytes of direct)",
           "runtime-heap-limit"),
    _known("JVM", r"unable to create (?:new )?native thread", "task-limit"),
    _known("JVM", r"Failed to start (?:thread|the native thread).*EAGAIN", "task-limit"),
    _known("JVM", r"OutOfMemoryError: Map failed|Failed to map memory", "mapping-limit"),
    _known("JVM", r"(?:IOException|SocketException): Too many open files", "fd-limit-process"),
    # Zend/zend_alloc.c; ext/standard/streamsfuncs.c
    _known("PHP", r"Allowed memory size of \d+ bytes exhausted", "runtime-heap-limit"),
    _known("PHP", r"recompile PHP with a larger value of FD_SETSIZE", "own-limit"),
    _known("PHP", r"reached (?:pm\.)?max_children setting", "own-limit"),
    # erts/emulator/beam/erl_alloc.c, erts/emulator/beam/erl_process.c, io.c
    _known("Erlang", r"\w+_alloc: Cannot (?:re)?allocate \d+ bytes", "runtime-heap-limit"),
    _known("Erlang", r"maximum heap size reached|max_heap_size", "runtime-heap-limit"),
    _known("Erlang", r"Too many processes|system_limit|Too many ports", "own-limit"),
    _known("Erlang", r"\bemfile\b", "fd-limit-process"),
    # gunicorn/arbiter.py, gunicorn/workers/base.py
    _known("gunicorn", r"WORKER TIMEOUT", "worker-blocked"),
    _known("gunicorn", r"Autorestarting worker after current request", "worker-replaced"),
    _known("gunicorn", r"Worker \(pid:\d+\) was sent SIGKILL", "worker-crash"),
    # uvicorn/server.py, uvicorn/protocols/http
    _known("uvicorn", r"Maximum request limit of \d+ exceeded\. Terminating process",
           "worker-replaced"),
    _known("uvicorn", r"Exceeded concurrency limit", "own-limit"),
    # src/runtime/proc.go, malloc.go, os_linux.go, runtime/cgo
    _known("Go", r"failed to create new OS thread \(have \d+ already; errno=11\)", "task-limit"),
    _known("Go", r"pthread_create failed: Resource temporarily unavailable", "task-limit"),
    _known("Go", r"program exceeds \d+-thread limit", "own-limit"),
    _known("Go", r"http: Accept error: accept \S+ \S+ accept4?: too many open files",
           "fd-limit-process"),
    _known("Go", r"fatal error: (?:runtime: )?(?:out of memory|cannot allocate memory)",
           "mapping-limit"),
    # Modules/_threadmodule.c, Modules/selectmodule.c, Lib/asyncio/selector_events.py
    _known("Python", r"RuntimeError: can't start new thread", "task-limit"),
    _known("Python", r"BlockingIOError: \[Errno 11\] Resource temporarily unavailable: .*fork",
           "task-limit"),
    # debug/fdelt_chk.c and debug/chk_fail.c of glibc 2.41 and newer
    _known("glibc", r"\*\*\* bit out of range 0 - FD_SETSIZE on fd_set \*\*\*", "own-limit"),
    _known("Python", r"filedescriptor out of range in select\(\)", "own-limit"),
    _known("Python", r"OSError: \[Errno 24\] Too many open files", "fd-limit-process"),
    # socketmodule.c; asyncio/selector_events.py; redis/connection.py
    _known("Python", r"ConnectionRefusedError: \[Errno 111\]|Connect call failed"
           r"|Error 111 connecting to", "backend-unavailable"),
    # java.net, src/net/dial.go, libpq
    _known("JVM", r"ConnectException: Connection refused", "backend-unavailable"),
    _known("Go", r"dial tcp \S+: connect: connection refused", "backend-unavailable"),
    _known("libpq", r"connection to server .* failed: Connection refused", "backend-unavailable"),
    _known("shell", r"fork: (?:retry: )?Resource temporarily unavailable", "task-limit"),
    _known("Ruby", r"can't create Thread: Resource temporarily unavailable", "task-limit"),
    _known(".NET", r"System\.OutOfMemoryException|Out of memory\.$", "runtime-heap-limit"),
)  # fmt: skip
"""A cause that is not in the catalogue of this version belongs to no finding: it is quoted."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """One kind of line of the log, over the whole run.

    Attributes:
        first_s: When the first was read, at most a quarter of a second after it was written.
        last_s: When the last was.
        count: How many there were.
        pid: Who wrote it, 0 when that is not known.
        source: Name of the file, or journal.
        line: The first.
        program: Who writes such lines, '' for an unknown one.
        cause: What it means, '' for an unknown one.
    """

    first_s: float
    last_s: float
    count: int
    pid: int
    source: str
    line: str
    program: str = ""
    cause: str = ""

    @property
    def quote(self) -> Quote:
        """As a finding has it."""
        return Quote(self.first_s, self.source, self.line, self.count)


def meaning_of(line: str) -> tuple[str, str]:
    """Program and cause of a well-known line, both '' of any other."""
    for known in KNOWN_LINES:
        if known.pattern.search(line):
            return known.program, known.cause
    return "", ""


def spoken(view: RunView) -> list[Spoken]:
    """All that the server said until the run began to stop, the first first."""
    rows = view.frames["server_words"]
    if rows.empty:
        return []
    at_s = pd.Series(view.seconds_of(rows["at_ns"]), index=rows.index)
    first_s = pd.Series(view.seconds_of(rows["first_ns"]), index=rows.index)
    rows = rows.assign(at_s=at_s, first_s=first_s)[first_s <= view.stop_s + LATE_LIVE_S]
    found = []
    for (source, line), part in rows.groupby(["source", "line"], sort=False):
        found.append(
            Spoken(
                first_s=float(part["first_s"].min()),
                last_s=float(part["at_s"].max()),
                count=int(part["event_count"].sum()),
                pid=int(part["pid"].iloc[0]),
                source=str(source),
                line=str(line),
            )
        )
    found.sort(key=lambda each: each.first_s)
    return [_understood(each) for each in found]


def _understood(said: Spoken) -> Spoken:
    program, cause = meaning_of(said.line)
    return replace(said, program=program, cause=cause)


def near(said: Sequence[Spoken], moment_s: float | None) -> list[Spoken]:
    """What was first said within seconds of a moment; nothing when there was none."""
    if moment_s is None:
        return []
    return [each for each in said if -_NEAR_BEFORE_S <= each.first_s - moment_s <= _NEAR_AFTER_S]


def quotes_of(said: Sequence[Spoken]) -> tuple[Quote, ...]:
    """The first few, as a finding has them."""
    return tuple(each.quote for each in said[:MOST_QUOTES_COUNT])


def with_quotes(
    findings: Sequence[Finding], said: Sequence[Spoken], first_failure_s: float | None
) -> list[Finding]:
    """The findings, each with the lines that belong to it.

    A well-known line belongs to the finding of its cause. What else was said within seconds of the
    first failure belongs to the finding that stopped the run, uninterpreted.

    Args:
        findings: Ranked.
        said: From ``spoken``.
        first_failure_s: When the first connection failed or was lost, None for never.
    """
    causes = {finding.cause for finding in findings}
    loose = near([each for each in said if each.cause not in causes], first_failure_s)
    done = []
    for finding in findings:
        lines = [each for each in said if each.cause == finding.cause]
        if finding.severity == "binding":
            lines += loose
        quotes = quotes_of([each for each in lines if _may_be_of(each, finding)])
        done.append(replace(finding, quotes=quotes) if quotes else finding)
    return done


def _may_be_of(said: Spoken, finding: Finding) -> bool:
    """A server's line says nothing of a client, nor one process's of another."""
    if finding.side == "client":
        return False
    if said.pid in (0, finding.subject.pid) or not finding.subject.pid:
        return True
    # a parent opens the log that its workers write to; a proxy speaks of who is behind it
    program = _PROCESS_NAMES.get(said.program, said.program)
    is_of_proxy = said.cause == finding.cause == "backend-unavailable"
    return is_of_proxy or bool(program and finding.subject.command.startswith(program))
