"""How many files may be open on the host: fs.file-max (fs/file_table.c, get_empty_filp)."""

from __future__ import annotations

from probes.contract.limits.limit import Bound, HostTable, Limit

LIMIT = Limit(
    name="file_max",
    title="Open files of the host",
    words="the file table (fs.file-max)",
    unit="count",
    noun="open files",
    source="/proc/sys/fs/file-nr, fs.file-max",
    cost="two where both ends are on this host",
    raised_by="sysctl fs.file-max",
    bound=Bound.STOPS,
    labels={"host": "open files of the host"},
    is_shared=True,
    table=HostTable(
        maximum="fs/file-max",
        used="fs/file-nr",
        per_connection_count=2,
        per_process_count=8,
        note="{used} open now; a connection has both ends here",
    ),
)
