"""What a client tells the supervisor when a server refuses it: no upgrade, or a close frame."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable

from harness.websocket import handshake
from harness.websocket.protocol import Close, Violation
from harness.websocket.reply_excerpt import printable
from probes.contract.live import CloseKind

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
        self._kinds: set[tuple[object, ...]] = set()

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
        if not self._is_news(error.status, error.reason):
            return
        body = error.body_excerpt
        if not body and read_more is not None:
            time.sleep(_BODY_WAIT_S)  # _KINDS_MOST times in a run at most
            body = _late_body(head, key, read_more)
        body = "; ".join(part for part in (error.header_excerpt, body) if part)
        self._report("upgrade_refused", error.status, error.reason, body)

    def tell_end(self, event: Close | Violation) -> CloseKind:
        """Reports why an open connection ends, unless its like was.

        Args:
            event: The server's close frame, or what was wrong with a frame of it.

        Returns:
            How the connection ended.
        """
        is_close = isinstance(event, Close)
        code = event.code if is_close else 0  # of a violation it is the one that we answer with
        if self._is_news(is_close, code, event.reason):
            said = printable(event.reason)
            reason = "" if is_close else f"a frame of the server: {said}"
            self._report("connection_closed", code, reason, said if is_close else "")
        return CloseKind.CLOSE if is_close else CloseKind.PROTOCOL

    def _is_news(self, *kind: object) -> bool:
        if self._report_fd < 0 or kind in self._kinds or len(self._kinds) >= _KINDS_MOST:
            return False
        self._kinds.add(kind)
        return True

    def _report(self, event: str, status: int, reason: str, body: str) -> None:
        told = {
            "pid": os.getpid(),
            "at_ns": time.monotonic_ns(),
            "status": status,
            "reason": reason,
            "body": body,
            "event": event,
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
