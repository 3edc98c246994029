"""The parser of names: ``python -P -m probes.symbols.name_parser_main PARENT DESCRIPTOR``.

It reads what strangers wrote (``probes.symbols.name_parser``), so it has no rights: a user of its
own, no capabilities, no_new_privs, no system calls but those that read and answer (seccomp), limits
of memory and CPU time. It imports all that it needs before, while it can read its own files, and
opens nothing after that: descriptors come with the requests.

This process reads nothing of a stranger's. It forks the one that does, and another one when that
ended: a file on which it died costs what it had read, which is read anew. Both die with the probe
process, and end when that closes its socket.
"""

from __future__ import annotations

import array
import math
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path

from probes.rights import privileges, seccomp
from probes.rights.own_user import become, own_user
from probes.rights.parent_death import die_with_parent
from probes.symbols.demangle import demangle
from probes.symbols.name_messages import (
    MOST_PACKET_BYTES,
    READY,
    Answer,
    Ask,
    Request,
    Status,
    pack_answer,
    pack_ended,
    pack_request,
    unpack_request,
)
from probes.symbols.name_parser import MOST_FILES, NameParser

MOST_MEMORY_BYTES = 1 << 30
"""Of all that it has read, or a quarter of the host's memory where that is less."""
MOST_TURNS_COUNT = 8
"""So often one that ended is followed by another."""
_REQUEST_CPU_S, _WHOLE_CPU_S = 5, 900
_READS = frozenset(
    {
        *(
            "read",
            "pread64",
            "fstat",
            "newfstatat",
            "lseek",
            "fcntl",
            "close",
            "recvmsg",
            "sendmsg",
        ),
        *("mmap", "munmap", "mremap", "mprotect", "madvise", "brk", "futex", "sched_yield"),
        *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "restart_syscall", "clock_gettime"),
        *("getpid", "gettid", "getrandom", "prlimit64", "setrlimit", "exit", "exit_group"),
    }
)
_FORKS = _READS | {
    *("fork", "clone", "wait4", "set_robust_list", "rseq", "getppid", "prctl", "dup2", "dup3"),
}


def main(argv: list[str]) -> int:
    """Gives up all that it may do, and looks after the process that parses."""
    parent_pid, asked = int(argv[0]), socket.socket(fileno=int(argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _warm_up()
    user = own_user()
    privileges.gain_nothing()
    privileges.bound_by()
    if user is not None:
        become(user)
    privileges.keep_only()
    privileges.be_undumpable()
    die_with_parent(parent_pid)
    _limit()
    seccomp.install(_FORKS)
    for _ in range(MOST_TURNS_COUNT):
        this_pid = os.getpid()
        pid = os.fork()
        if pid == 0:
            die_with_parent(this_pid)
            seccomp.install(_READS)
            _serve(asked)
        _, status = os.waitpid(pid, 0)
        if status == 0:
            return 0
        asked.sendmsg([pack_ended(os.waitstatus_to_exitcode(status))])
    return 1


def _serve(asked: socket.socket) -> None:
    """Answers until who asks is gone; ends the process."""
    status = 1
    try:
        parser = NameParser()
        asked.sendmsg([pack_answer(Answer(READY, Status.YES))])
        _, hard_s = resource.getrlimit(resource.RLIMIT_CPU)
        while True:
            packet, fd = _received(asked)
            if not packet:
                status = 0
                return
            soft_s = math.ceil(time.process_time()) + _REQUEST_CPU_S
            resource.setrlimit(resource.RLIMIT_CPU, (min(soft_s, hard_s), hard_s))
            asked.sendmsg([pack_answer(parser.answer(unpack_request(packet), fd))])
    except BrokenPipeError:
        status = 0
    finally:
        os._exit(status)


def _received(asked: socket.socket) -> tuple[bytes, int]:
    packet, ancillary, _, _ = asked.recvmsg(MOST_PACKET_BYTES, socket.CMSG_SPACE(4))
    fds = array.array("i")
    for _, _, data in ancillary:
        fds.frombytes(data[: len(data) // 4 * 4])
    return packet, fds[0] if fds else -1


def _limit() -> None:
    pages_count = int(Path("/proc/self/statm").read_bytes().split()[0])
    host_bytes = os.sysconf("SC_PHYS_PAGES") * resource.getpagesize()
    most_bytes = pages_count * resource.getpagesize() + min(MOST_MEMORY_BYTES, host_bytes // 4)
    for number, most in (
        (resource.RLIMIT_AS, most_bytes),
        (resource.RLIMIT_CPU, _WHOLE_CPU_S),
        (resource.RLIMIT_NOFILE, 2 * MOST_FILES + 64),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        _, hard = resource.getrlimit(number)
        kept = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(number, (kept, kept))


def _warm_up() -> None:
    """Does everything once: what is imported at its first use cannot be opened later."""
    demangle("_ZN1AclEi")
    parser = NameParser()
    maps = Path("/proc/self/maps").read_bytes()
    for request, content in (
        (Request(1, Ask.MAPS, 1, 0), maps),
        (Request(2, Ask.PERF_MAP, 1, 0), b"20 10 b\n10 20 a\nno line\n18 10 c\n"),
        (Request(3, Ask.IS_GO, 0, 0), b"no ELF file"),
        (Request(4, Ask.NAMES, 1, 1, (0x12, 1 << 40, maps_start(maps))), b""),
    ):
        fd = os.memfd_create("warm-up", os.MFD_CLOEXEC) if content else -1
        if content:
            os.write(fd, content)
        pack_answer(parser.answer(unpack_request(pack_request(request)), fd))
    line_at = next(iter(parser.lines_of(1)))
    fd = os.open("/proc/self/exe", os.O_RDONLY | os.O_CLOEXEC)
    answer = parser.answer(Request(5, Ask.FILE, 1, line_at), fd)
    if answer.status == Status.WANTS_DEBUG:
        parser.answer(Request(6, Ask.FINISH, 1, line_at), -1)
    pack_answer(parser.answer(Request(7, Ask.NAMES, 1, 1, (maps_start(maps),)), -1))


def maps_start(maps: bytes) -> int:
    """The first executable address of a text."""
    line = next(line for line in maps.split(b"\n") if b" r-x" in line)
    return int(line.partition(b"-")[0], 16)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
