"""Histograms of message times in the run's shared memory: log-linear, each bucket within 1 %.

A client that sends messages at a rate counts here how long each took, from when it was due to be
sent until its answer was read. "Was due", not "was sent": a client that stands still with its
server sends late, and what it did not send in time has waited (coordinated omission: Tene, "How NOT
to Measure Latency", 2013). A message that is in no bucket was not answered.

Buckets are those of HdrHistogram with two significant digits and microseconds (its Java source,
``AbstractHistogram``): values below 256 us have one each, beyond that each power of two has 128.
Standard library only, and few of it: the measured processes import this module.

Layout of one client: HEAD_WORDS int64 (see Head), then BUCKET_COUNT int64.
"""

from __future__ import annotations

from enum import IntEnum

_HALF = 128
_LONGEST_US = 3_600_000_000
"""One hour; what takes longer is in the last bucket."""

BUCKET_COUNT = (_LONGEST_US.bit_length() - 6) * _HALF
HEAD_WORDS = 8
CLIENT_BYTES = 8 * (HEAD_WORDS + BUCKET_COUNT)
STAMP_BYTES = 8
"""At the start of a payload: when the message was due, ns of CLOCK_MONOTONIC, big endian."""


class Head(IntEnum):
    """int64 words before the buckets of a client."""

    COUNTED_TOTAL = 0  # answers that are in the buckets
    LONGEST_NS = 1  # of them, exact


def bucket_of(time_ns: int) -> int:
    """The bucket of a time; negative ones count as 0, and all beyond an hour as the last."""
    time_us = time_ns // 1000
    if time_us < 256:
        return max(0, time_us)
    shift = time_us.bit_length() - 8
    return min((shift << 7) + (time_us >> shift), BUCKET_COUNT - 1)


def bucket_from_us(bucket: int) -> int:
    """The shortest time that is in a bucket, us; that of the next one is where it ends."""
    if bucket < 2 * _HALF:
        return bucket
    shift = (bucket >> 7) - 1
    return (bucket - (shift << 7)) << shift


class MessageTimes:
    """What one client counts.

    Args:
        words: Its part of the shared memory, HEAD_WORDS + BUCKET_COUNT int64.
        stamp_bytes: Length of the payloads that carry a stamp; 0 where they have none, and the next
            message on a connection counts as the answer.
    """

    __slots__ = ("_asked", "_begun_ns", "_stamp_bytes", "_words")

    def __init__(self, words: memoryview[int], stamp_bytes: int) -> None:
        self._words = words
        self._stamp_bytes = stamp_bytes
        self._asked: dict[int, int] = {}
        self._begun_ns = 0

    def begin(self, now_ns: int) -> None:
        """No message was due before."""
        self._begun_ns = now_ns

    def sent(self, fd: int, due_ns: int) -> None:
        """A message went out on a connection; of several that wait there the first one counts."""
        if not self._stamp_bytes:
            self._asked.setdefault(fd, due_ns)

    def received(self, fd: int, payload: bytes, now_ns: int) -> None:
        """The server's message: counted when it answers one, passed over when it does not."""
        words = self._words
        if self._stamp_bytes:
            due_ns = int.from_bytes(payload[:STAMP_BYTES], "big")
            is_answer = len(payload) == self._stamp_bytes and self._begun_ns <= due_ns <= now_ns
        else:
            due_ns = self._asked.pop(fd, 0)
            is_answer = due_ns > 0
        if not is_answer:
            return
        took_ns = now_ns - due_ns
        words[Head.COUNTED_TOTAL] += 1
        words[Head.LONGEST_NS] = max(words[Head.LONGEST_NS], took_ns)
        words[HEAD_WORDS + bucket_of(took_ns)] += 1

    def forget(self, fd: int) -> None:
        """The connection is gone: what was asked there is never answered."""
        self._asked.pop(fd, None)
