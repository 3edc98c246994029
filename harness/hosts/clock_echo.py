"""Pairs of two hosts' monotonic clocks by UDP; what is made of them is ``harness.hosts.clocks``.

A question has a number and a digest with the run's key, so that nobody else is answered; the answer
has when the question came and when the answer went, by the clock of who answers.
"""

from __future__ import annotations

import asyncio
import hmac
import socket
import struct
import time

_QUESTION = struct.Struct("<Q16s")
_ANSWER = struct.Struct("<Qqq16s")
_WAIT_S = 0.1
_PAUSE_S = 0.0005


def _digest(key: bytes, *numbers: int) -> bytes:
    return hmac.digest(key, b"".join(n.to_bytes(8, "little") for n in numbers), "sha256")[:16]


class ClockEcho(asyncio.DatagramProtocol):
    """Answers on one UDP port.

    Args:
        key: Of the run.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._transport: asyncio.DatagramTransport | None = None
        self.port = 0

    @classmethod
    async def listen(cls, address: str, key: bytes) -> ClockEcho:
        """Begins to answer at an address of this host.

        Raises:
            OSError: It is no address of this host.
        """
        loop = asyncio.get_running_loop()
        transport, echo = await loop.create_datagram_endpoint(
            lambda: cls(key), local_addr=(address, 0)
        )
        echo._transport = transport
        echo.port = int(transport.get_extra_info("sockname")[1])
        return echo

    def datagram_received(self, data: bytes, addr: tuple[str | int, int]) -> None:
        """Answers one question."""
        came_ns = time.monotonic_ns()
        if len(data) != _QUESTION.size or self._transport is None:
            return
        number, digest = _QUESTION.unpack(data)
        if not hmac.compare_digest(digest, _digest(self._key, number)):
            return
        went_ns = time.monotonic_ns()
        proof = _digest(self._key, number, came_ns, went_ns)
        self._transport.sendto(_ANSWER.pack(number, came_ns, went_ns, proof), addr)

    def close(self) -> None:
        """Answers nobody any more."""
        if self._transport is not None:
            self._transport.close()


def exchange(address: str, port: int, key: bytes, count: int) -> list[list[int]]:
    """Asks another host for its clock.

    Args:
        address: Of its echo.
        port: Likewise.
        key: Of the run.
        count: How many times.

    Returns:
        Of each answer when it was asked, came, went and was there, in ns: the first and last by
        this host's clock, the two between by the other's.
    """
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.connect((address, port))
        asker.settimeout(_WAIT_S)
        for number in range(count):
            try:
                asked_ns = time.monotonic_ns()
                asker.send(_QUESTION.pack(number, _digest(key, number)))
                while True:
                    data = asker.recv(64)
                    there_ns = time.monotonic_ns()
                    if len(data) == _ANSWER.size and _ANSWER.unpack(data)[0] == number:
                        break
            except OSError:
                continue
            _, came_ns, went_ns, proof = _ANSWER.unpack(data)
            if hmac.compare_digest(proof, _digest(key, number, came_ns, went_ns)):
                found.append([asked_ns, came_ns, went_ns, there_ns])
            time.sleep(_PAUSE_S)
    return found
