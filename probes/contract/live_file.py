"""live.bin in the run directory, or shared memory that is copied there.

A page of a file that is mapped gets its room on the disk when it is first written, and where there
is none the writer is ended by SIGBUS. ``posix_fallocate`` reserves that room before, but only on
file systems that write a reserved block where it is. btrfs, ZFS and bcachefs take a new place for
each write; NFS, FUSE and 9p ask somebody else. There the fleet shares memory of no file system,
and whoever supervises the run copies it into the run directory: what a copy has no room for costs
the copy, never a process of the fleet.

Source: linux/mm/memory.c (do_page_mkwrite), linux/fs/btrfs/file.c (btrfs_page_mkwrite), statfs(2)
and memfd_create(2).
"""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path

from probes.contract import live as live_memory
from probes.contract.errors import RunDirError
from probes.contract.rundir import LIVE, RunDir

_KEEPS_ITS_ROOM = {
    0xEF53: "ext2, ext3, ext4",
    0x58465342: "XFS",
    0x01021994: "tmpfs",
}
"""Magic numbers (linux/include/uapi/linux/magic.h) of file systems whose reserved blocks stay."""

_STATFS_BYTES = 256  # struct statfs has 120 on all 64-bit machines, its first word is f_type
_PERIOD_LEAST_S = 1.0
_SHARE_OF_A_CORE = 0.005
"""What copying may take: a copy of a million connections (33 MB) takes 10 to 20 ms."""


def keeps_reserved_room(folder: Path) -> bool:
    """Whether a mapped file there never lacks room that was reserved for it.

    False as well where it cannot be found out: memory is right everywhere.
    """
    answer = ctypes.create_string_buffer(_STATFS_BYTES)
    if ctypes.CDLL(None, use_errno=True).statfs(os.fsencode(folder), answer) != 0:
        return False
    return ctypes.c_ulong.from_buffer(answer).value in _KEEPS_ITS_ROOM


class LiveFile:
    """The memory that the processes of a run share, and its copy in the run directory.

    Args:
        run: Its ``live_path`` says afterwards where this process can open the memory.
        slot_count: Processes.
        capacity: Connections.
        timed_clients: Clients that time their messages.

    Attributes:
        fd: Open descriptor of the memory, for ``Live`` and for children.

    Raises:
        RunDirError: The file cannot be made, or there is no room for it.
    """

    def __init__(self, run: RunDir, slot_count: int, capacity: int, timed_clients: int = 0) -> None:
        self._copy_fd = -1
        self._due_s = 0.0
        path = run.path / LIVE
        self.fd = live_memory.create(path, slot_count, capacity, timed_clients)
        if keeps_reserved_room(run.path):
            return
        self._copy_fd = self.fd
        size_bytes = os.fstat(self._copy_fd).st_size
        try:
            self.fd = os.memfd_create("connscope-live", os.MFD_CLOEXEC)
            try:
                live_memory.lay_out(self.fd, slot_count, capacity, timed_clients)
            except BaseException:
                os.close(self.fd)
                raise
        except OSError as error:
            os.close(self._copy_fd)
            raise RunDirError(
                f"cannot reserve {size_bytes:,} bytes of memory: {error.strerror}",
                fix="free; fewer connections with --connections N",
            ) from error
        run.live_path = Path(f"/proc/self/fd/{self.fd}")

    def keep_now_and_then(self) -> None:
        """Copies what is shared where it is not the file itself; often enough, and not oftener."""
        now_s = time.monotonic()
        if self._copy_fd < 0 or now_s < self._due_s:
            return
        begun_s = time.thread_time()
        self._copy()
        cost_s = time.thread_time() - begun_s
        self._due_s = now_s + max(_PERIOD_LEAST_S, cost_s / _SHARE_OF_A_CORE)

    def close(self) -> None:
        """Copies once more and closes the descriptors; mappings stay until they are dropped."""
        if self._copy_fd >= 0:
            self._copy()
            os.close(self._copy_fd)
        os.close(self.fd)

    def _copy(self) -> None:
        """Over the copy before. Who finds no room for a page leaves the older one there."""
        done, size_bytes = 0, os.fstat(self.fd).st_size
        try:
            os.lseek(self._copy_fd, 0, os.SEEK_SET)
            while done < size_bytes:
                sent = os.sendfile(self._copy_fd, self.fd, done, size_bytes - done)
                if not sent:
                    return
                done += sent
        except OSError:
            return  # the tables of the end have it, and the next copy tries again
