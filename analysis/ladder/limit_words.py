"""What the limits of the ladder are called where people read of them; their ids stay in data."""

from __future__ import annotations

LIMIT_WORDS = {
    "fds_per_process": "the descriptor limit",
    "file_max": "the file table (fs.file-max)",
    "ephemeral_ports": "the local ports",
    "tcp_mem": "TCP's memory (tcp_mem)",
    "memory": "the memory",
    "cpu_worker": "the CPU",
    "cpu_host": "the CPU",
    "accept_queue": "the accept queue",
    "conntrack": "the connection tracking table",
}
"""By ``Rung.limit``, to be followed by "of" and its subject."""

_COUNTED = ("count", "")


def limit_of(limit: str, subject: str) -> str:
    """``the descriptor limit of worker 0 (pid 812, server)``.

    Args:
        limit: ``Rung.limit``.
        subject: Whose, '' where nobody is named.
    """
    words = LIMIT_WORDS.get(limit, limit.replace("_", " "))
    return f"{words} of {subject}" if subject else words


def unit_words(unit: str) -> str:
    """A rung's unit behind a number: none where things are counted."""
    return {"pct": "%"}.get(unit, "" if unit in _COUNTED else unit)
