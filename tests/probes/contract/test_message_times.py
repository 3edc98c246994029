"""Buckets of message times: their edges, their quantiles, and which message answers which."""

from __future__ import annotations

import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.contract.message_times import (
    BUCKET_COUNT,
    CLIENT_BYTES,
    HEAD_WORDS,
    STAMP_BYTES,
    Head,
    MessageTimes,
    bucket_from_us,
    bucket_of,
)

HOUR_NS = 3_600 * 10**9


def made(stamp_bytes: int) -> tuple[MessageTimes, memoryview]:
    words = memoryview(array.array("q", bytes(CLIENT_BYTES)))
    return MessageTimes(words, stamp_bytes), words


def counts(words: memoryview) -> dict[int, int]:
    """By the shortest time of the bucket, us."""
    found = enumerate(words[HEAD_WORDS:])
    return {bucket_from_us(bucket): count for bucket, count in found if count}


def payload(due_ns: int, size: int = 64) -> bytes:
    return due_ns.to_bytes(STAMP_BYTES, "big") + bytes(size - STAMP_BYTES)


@given(st.integers(0, HOUR_NS))
def test_a_time_is_within_its_bucket_which_is_narrow(time_ns):
    bucket = bucket_of(time_ns)
    from_us, until_us = bucket_from_us(bucket), bucket_from_us(bucket + 1)
    assert from_us <= time_ns // 1000 < until_us
    assert until_us - from_us == 1 or (until_us - from_us) / from_us < 0.01


def test_buckets_follow_each_other_without_a_gap():
    edges = [bucket_from_us(bucket) for bucket in range(BUCKET_COUNT + 1)]
    assert all(bucket_of(edge * 1000) == bucket for bucket, edge in enumerate(edges[:-1]))
    assert edges[-1] > HOUR_NS // 1000


@pytest.mark.parametrize(("time_ns", "bucket"), [(-5, 0), (10**18, BUCKET_COUNT - 1)])
def test_what_is_out_of_range_is_in_the_first_or_last(time_ns, bucket):
    assert bucket_of(time_ns) == bucket


@given(st.lists(st.integers(0, HOUR_NS), min_size=1, max_size=200))
def test_quantiles_of_buckets_are_those_of_the_times(times_ns):
    measured, words = made(64)
    for time_ns in times_ns:
        measured.received(3, payload(HOUR_NS), HOUR_NS + time_ns)
    assert words[Head.COUNTED_TOTAL] == len(times_ns)
    assert words[Head.LONGEST_NS] == max(times_ns)
    reached = np.cumsum(words[HEAD_WORDS:])
    for share in (0.5, 0.9, 0.99):
        exact_us = np.quantile(times_ns, share, method="inverted_cdf") // 1000
        bucket = int(np.searchsorted(reached, np.ceil(share * len(times_ns))))
        assert bucket_from_us(bucket) <= exact_us < bucket_from_us(bucket + 1)


def test_an_echo_is_told_by_its_stamp_and_what_is_none_is_passed_over():
    measured, words = made(64)
    measured.begin(1_000_000)
    measured.received(3, payload(2_000_000), 7_000_000)
    for other in (
        payload(2_000_000, size=65),  # of another length
        payload(999_999),  # due before the first one
        payload(8_000_000),  # due later than now
        b"hello",
        b"",
    ):
        measured.received(3, other, 7_000_000)
    assert counts(words) == {4992: 1}  # 5 ms, in a bucket that is 32 us wide
    assert words[Head.COUNTED_TOTAL] == 1


def test_without_a_stamp_the_next_message_on_the_connection_is_the_answer():
    measured, words = made(0)
    measured.sent(3, 1_000_000)
    measured.sent(3, 2_000_000)  # asked again before the answer came: the first one counts
    measured.sent(4, 1_000_000)
    measured.sent(5, 1_000_000)
    measured.forget(5)
    measured.received(3, b"some answer", 1_100_000)
    measured.received(3, b"of its own accord", 9_000_000)
    measured.received(4, b"", 1_200_000)
    measured.received(5, b"of a later connection", 9_000_000)
    assert counts(words) == {100: 1, 200: 1}
