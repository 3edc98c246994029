"""What a client tells the supervisor when a server answers with anything but the upgrade."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable

from harness import handshake

_KINDS_MOST = 8
_BODY_WAIT_S = 0.02
"""A body is often a write of its own, right behind the head."""


class RefusalReport:
    """Reports each kind of refusal once, as a line on the pipe to the supervisor.

    Args:
        report_fd: The pipe, -1 for none.
    """

    __slots__ = ("_kinds", "_report_fd")

    def __init__(self, report_fd: int) -> None:
        self._report_fd = report_fd
        self._kinds: set[tuple[int, str]] = set()

    def tell(
        self,
        error: handshake.HandshakeError,
        head: bytes = b"",
        key: bytes = b"",
        read_more: Callable[[], bytes] | None = None,
    ) -> None:
        """Reports a refusal unless its like was.

        Args:
            error: What the handshake's check said.
            head: What came; with ``key`` and ``read_more`` for a body that is still on its way.
            key: Of the request.
            read_more: Reads what came since; may raise OSError.
        """
        kind = error.status, error.reason
        if self._report_fd < 0 or kind in self._kinds or len(self._kinds) >= _KINDS_MOST:
            return
        self._kinds.add(kind)
        body = error.body_excerpt
        if not body and read_more is not None:
            time.sleep(_BODY_WAIT_S)  # _KINDS_MOST times in a run at most
            body = _late_body(head, key, read_more)
        told = {
            "pid": os.getpid(),
            "at_ns": time.monotonic_ns(),
            "status": error.status,
            "reason": error.reason,
            "body": "; ".join(part for part in (error.header_excerpt, body) if part),
        }
        os.write(self._report_fd, json.dumps({"refusal": told}).encode() + b"\n")


def _late_body(head: bytes, key: bytes, read_more: Callable[[], bytes]) -> str:
    try:
        handshake.check_response(head + read_more(), key)
    except handshake.HandshakeError as error:
        return error.body_excerpt
    except OSError:
        pass
    return ""
