"""Processes as /proc shows them: who is whose child, what it is called, what it may open, its end.

Measures:
    Nothing by itself: the discovery that watching a server which is not ours begins with.
Hook:
    ``/proc/PID/stat``, ``/proc/PID/task/*/children`` and ``/proc/PID/cmdline`` (proc(5)); on a
    kernel without CONFIG_PROC_CHILDREN the parents that all processes name; prlimit(2), and a pidfd
    whose PIDFD_GET_INFO gives the exit status of a process that is not our child
    (include/uapi/linux/pidfd.h, Linux 6.15).
Cost:
    20 us a thread for the children, 10 us a process for the rest; without CONFIG_PROC_CHILDREN
    10 us for every process of the host. Nothing is attached or paused.
Misses:
    A child that lives shorter than the distance between two looks. A grandchild whose parent ended
    belongs to init or to the nearest subreaper. Exit statuses of strangers before Linux 6.15.
Checked against:
    Shells with known children, ends by known statuses and signals
    (tests/probes/proc/test_process_tree.py).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import resource
import select
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from probes.proc import stat_text

_PF_KTHREAD = 0x0020_0000  # include/linux/sched.h
_PIDFD_GET_INFO = 0xC0 << 24 | 64 << 16 | 0xFF << 8 | 11  # _IOWR(0xFF, 11, 64 bytes)
_PIDFD_INFO_EXIT = 1 << 3
_EXIT_CODE_AT = 60  # of struct pidfd_info

_INTERPRETERS = ("node", "python", "ruby", "php", "perl", "deno", "bun", "java")
_INTERPRETER_WORDS_MOST = 16
_WITH_VALUE = {  # options whose value is the next word
    "java": ("-cp", "-classpath", "--class-path", "-p", "--module-path", "--add-modules"),
    "python": ("-X", "-W"),
    "node": ("-r", "--require", "--import", "-C", "--conditions", "--env-file"),
    "php": ("-d", "--define", "-c", "--php-ini", "-z", "--zend-extension"),
    "ruby": ("-I", "-r", "-C", "-E"),
}
_TGID = re.compile(r"^Tgid:\s+(\d+)", re.MULTILINE)
_NOFILE_LIMIT = re.compile(r"^Max open files\s+(\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """What /proc/PID/stat says of a process.

    Attributes:
        pid: The process.
        state: R, S, D, Z (a zombie), X, ...
        ppid: Its parent.
        start_ticks: When it started, in clock ticks since boot; tells a reused pid.
        is_kernel_thread: It has no program of its own.
        comm: Its name, at most 15 bytes.
    """

    pid: int
    state: str
    ppid: int
    start_ticks: int
    is_kernel_thread: bool
    comm: str

    @property
    def is_alive(self) -> bool:
        """It has not exited; a zombie has."""
        return self.state not in ("Z", "X", "x")


def parse_stat(text: str) -> ProcessStat:
    """Reads the text of ``/proc/PID/stat``; the name may hold spaces and parentheses.

    Raises:
        ValueError: It is none.
    """
    stat = text.encode("utf-8", "replace")
    fields = stat_text.fields_of(stat)
    if len(fields) <= stat_text.START_TICKS:
        raise ValueError("not the text of /proc/PID/stat")
    return ProcessStat(
        pid=int(text.partition(" ")[0]),
        state=fields[stat_text.STATE].decode("ascii"),
        ppid=int(fields[stat_text.PARENT]),
        start_ticks=int(fields[stat_text.START_TICKS]),
        is_kernel_thread=bool(int(fields[stat_text.FLAGS]) & _PF_KTHREAD),
        comm=stat_text.name_of(stat),
    )


def start_moment_ns(start_ticks: int) -> int:
    """When a process began, on CLOCK_MONOTONIC, in ns, to 10 ms.

    Its kernel time also counts while the machine sleeps (proc(5), field 22).
    """
    asleep_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
    return start_ticks * (1_000_000_000 // os.sysconf("SC_CLK_TCK")) - asleep_ns


def read_stat(pid: int) -> ProcessStat | None:
    """One process, None when there is none of that pid."""
    try:
        return parse_stat(Path(f"/proc/{pid}/stat").read_text(errors="replace"))
    except (OSError, ValueError):
        return None


@cache
def kernel_lists_children() -> bool:
    """Whether this kernel has /proc/PID/task/TID/children (CONFIG_PROC_CHILDREN)."""
    return Path(f"/proc/self/task/{os.getpid()}/children").exists()


def children_of(pid: int) -> list[int]:
    """Children of all its threads."""
    found: list[int] = []
    if not kernel_lists_children():
        return _children_by_parent().get(pid, found)
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 - names, twice a second each
    except OSError:
        return found
    for thread in threads:
        found += _children_of_thread(pid, thread)
    return found


def own_children() -> list[int]:
    """Children of this process's first thread, where the kernel tells them apart."""
    pid = os.getpid()
    return _children_of_thread(pid, pid) if kernel_lists_children() else children_of(pid)


def _children_of_thread(pid: int, thread: int | str) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as stream:  # noqa: PTH123 - as above
            return [int(word) for word in stream.read().split()]
    except OSError:
        return []


def _children_by_parent() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - names only
        stat = read_stat(int(name)) if name.isdigit() else None
        if stat is not None:
            found.setdefault(stat.ppid, []).append(stat.pid)
    return found


def tree_of(root_pid: int) -> list[int]:
    """A process and all its living descendants, parents before their children."""
    by_parent = None if kernel_lists_children() else _children_by_parent()
    found, seen = [], {root_pid}
    waiting = [root_pid]
    while waiting:
        pid = waiting.pop(0)
        stat = read_stat(pid)
        if stat is None or not stat.is_alive:
            continue
        found.append(pid)
        children = children_of(pid) if by_parent is None else by_parent.get(pid, [])
        fresh = [child for child in sorted(children) if child not in seen]
        seen.update(fresh)
        waiting += fresh
    return found


def command_name(pid: int) -> str:
    """What people call it: the program, with its script where it is an interpreter; '' if gone."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    return name_of_command([word for word in words if word]) or getattr(read_stat(pid), "comm", "")


def name_of_command(words: list[str]) -> str:
    """``node server.js`` of ``/usr/bin/node --inspect /srv/server.js --port 9001``.

    A process that wrote a title of its own (``nginx: worker process``) is called so.
    """
    if not words:
        return ""
    if " " in words[0]:
        return words[0].strip()[:40]
    name = os.path.basename(words[0])  # noqa: PTH119 - a word, no path of this machine
    if name.startswith(_INTERPRETERS):
        with_value = _WITH_VALUE.get(name.rstrip("0123456789.t"), ())
        if name.startswith("php"):
            words = [word for word in words if word != "-f"]  # its script follows
        for index, word in enumerate(words[1:_INTERPRETER_WORDS_MOST], start=1):
            if words[index - 1] in with_value:
                continue
            if word == "-m" and len(words) > index + 1:
                return f"{name} -m {words[index + 1]}"[:40]
            if word == "-c" and "multiprocessing" in " ".join(words[index + 1 : index + 2]):
                return f"{name} multiprocessing"  # how Python's own workers are spawned
            if word in ("-c", "-e", "-jar"):
                return f"{name} {word}"
            if not word.startswith("-"):
                return f"{name} {os.path.basename(word)}"[:40]  # noqa: PTH119 - as above
    return name[:40]


def is_python(pid: int) -> bool:
    """Whether py-spy can read it: its program is a Python, or libpython is mapped into it."""
    try:
        program = os.readlink(f"/proc/{pid}/exe")  # noqa: PTH115 - hot enough, and no Path needed
    except OSError:
        return False
    if os.path.basename(program).startswith(("python", "pypy")):  # noqa: PTH119 - as above
        return True
    try:
        return "libpython3" in Path(f"/proc/{pid}/maps").read_text(errors="replace")
    except OSError:
        return False


def is_32_bit(pid: int) -> bool:
    """Its program is a 32-bit one (EI_CLASS of its ELF header, elf(5)); False when not known."""
    try:
        with open(f"/proc/{pid}/exe", "rb") as program:  # noqa: PTH123 - a link of procfs
            head = program.read(5)
    except OSError:
        return False
    return head == b"\x7fELF\x01"


def zombie_status(pid: int) -> int | None:
    """Wait status (wait(2)) of a process that has exited and whose parent has not looked yet.

    The last field of ``/proc/PID/stat`` (fs/proc/array.c, do_task_stat), shown to who may trace it.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        fields = text.rpartition(")")[2].split()
        return int(fields[-1]) if fields[0] == "Z" else None
    except (OSError, ValueError, IndexError):
        return None


def nofile_soft_count(pid: int) -> int:
    """Soft RLIMIT_NOFILE of a process; 0 when that may not be read, or it is gone.

    prlimit(2) of another user's process needs CAP_SYS_RESOURCE, which root of a container often
    lacks; /proc/PID/limits says the same to everybody.
    """
    try:
        return resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
    except (OSError, ValueError):
        pass
    try:
        text = Path(f"/proc/{pid}/limits").read_text(encoding="ascii")
    except OSError:
        return 0
    found = _NOFILE_LIMIT.search(text)
    return int(found[1]) if found else 0


def thread_group_of(tid: int) -> int:
    """The process that a thread belongs to, itself for a process; 0 when there is none.

    /proc/TID is there for threads too, though a listing of /proc does not show them (proc(5)).
    """
    try:
        text = Path(f"/proc/{tid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    found = _TGID.search(text)
    return int(found[1]) if found else 0


def user_of(pid: int) -> int:
    """Its user id, -1 when it is gone."""
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return -1


class EndWatch:
    """Says when processes end, and how, also of those that are not our children."""

    def __init__(self) -> None:
        self._fds: dict[int, int] = {}
        self._poll = select.poll()
        self._pid_of: dict[int, int] = {}

    def add(self, pid: int) -> bool:
        """Watches a process from now on; False when it is gone already or cannot be watched."""
        if pid in self._fds:
            return True
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            return False
        self._fds[pid] = fd
        self._pid_of[fd] = pid
        self._poll.register(fd, select.POLLIN)
        return True

    def ended(self) -> list[int]:
        """Those that have exited and were not forgotten yet; never waits."""
        return [self._pid_of[fd] for fd, _ in self._poll.poll(0)]

    def wait(self, timeout_s: float) -> bool:
        """Waits until one ends that was not forgotten yet; False when none does in that time."""
        return bool(self._poll.poll(max(0.0, timeout_s) * 1_000))

    def wait_status(self, pid: int) -> int | None:
        """Its wait status (wait(2)) once its parent has reaped it, None before or when unknown."""
        info = ctypes.create_string_buffer(64)
        ctypes.c_uint64.from_buffer(info).value = _PIDFD_INFO_EXIT
        try:
            fcntl.ioctl(self._fds[pid], _PIDFD_GET_INFO, info)
        except (OSError, KeyError):
            return None
        if not ctypes.c_uint64.from_buffer(info).value & _PIDFD_INFO_EXIT:
            return None
        return ctypes.c_int32.from_buffer(info, _EXIT_CODE_AT).value

    def forget(self, pid: int) -> None:
        """Ends the watch of one process."""
        fd = self._fds.pop(pid, -1)
        if fd >= 0:
            self._poll.unregister(fd)
            del self._pid_of[fd]
            os.close(fd)

    def close(self) -> None:
        """Ends the watch of all."""
        for pid in list(self._fds):
            self.forget(pid)
