"""How long messages took: quantiles of known buckets, and what was not answered."""

from __future__ import annotations

import pytest

from analysis.comparison.run_figures import key_figures
from analysis.summary import summarise
from reports.exports.openmetrics import to_openmetrics
from reports.terminal.terminal import message_sentence

MS = 1_000_000


@pytest.fixture
def talked(build):
    """1,000 messages; of 1,000 answers 989 take 1 ms, 10 take 20 ms and one takes 4 s."""
    build.stages(ramp_s=1.0, hold_s=3.0)
    build.manifest["target_connections"] = 23
    build.process("server", 0)
    client = build.process("client", 0)
    build.connect(23)
    build.live(client, 0.5, tx_messages_total=0)
    build.live(client, 3.9, tx_messages_total=1000)
    for at_s, time_ms, count in ((2.0, 1, 500), (3.0, 1, 489), (3.0, 20, 10), (4.0, 4000, 1)):
        build.add("message_times", at_s=at_s, from_ns=time_ms * MS - 1000, until_ns=time_ms * MS,
                  message_count=count, longest_ns=time_ms * MS - 500)  # fmt: skip
    return build


def test_quantiles_are_those_of_all_answers(talked):
    messages = summarise(talked.frames()).run["messages"]
    assert messages == {
        "sent_count": 1000,
        "answered_count": 1000,
        "unanswered_count": 0,
        "p50_ms": 1,
        "p90_ms": 1,
        "p99_ms": 20,
        "p99_9_ms": 20,
        "longest_ms": pytest.approx(3999.9995),
    }


def test_each_second_has_its_own(talked):
    times = summarise(talked.frames()).message_times
    assert list(times["at_s"]) == [2, 3, 4]
    assert list(times["message_count"]) == [500, 499, 1]
    assert list(times["p50_ms"]) == [1, 1, 4000]
    assert list(times["p99_ms"]) == [1, 20, 4000]


@pytest.mark.parametrize(("sent_count", "unanswered_count"), [(1009, 9), (500, 0)])
def test_what_was_not_answered_is_counted_unless_one_goes_to_several(
    talked, sent_count, unanswered_count
):
    for row in talked.rows["live_samples"]:
        row["tx_messages_total"] = min(1, row["tx_messages_total"]) * sent_count
    messages = summarise(talked.frames()).run["messages"]
    assert messages["unanswered_count"] == unanswered_count
    said = message_sentence(messages)
    assert ("1,000 deliveries" in said) is (sent_count == 500)
    assert ("1,000 of 1,009 answered" in said) is (sent_count == 1009)
    assert "99 % within 20 ms" in said


@pytest.mark.parametrize("count", [0, -5, 2**62])
def test_counts_that_nobody_wrote_do_no_harm(talked, count):
    for row in talked.rows["message_times"]:
        row["message_count"] = count
    assert len(summarise(talked.frames()).message_times) == 3


def test_a_server_that_answers_otherwise_has_no_times(talked):
    talked.rows["message_times"] = []
    summary = summarise(talked.frames())
    assert summary.run["messages"]["p50_ms"] is None
    assert "none answered" in message_sentence(summary.run["messages"])
    assert summary.message_times.empty


def test_clients_that_sent_nothing_have_none(talked):
    talked.rows["message_times"] = []
    for row in talked.rows["live_samples"]:
        row["tx_messages_total"] = 0
    assert summarise(talked.frames()).run["messages"] is None


def test_they_are_compared_and_exported(talked):
    summary = summarise(talked.frames())
    figures = key_figures(summary)
    assert (figures["message_p50_ms"].value, figures["message_p99_ms"].value) == (1, 20)
    lines = to_openmetrics(summary).splitlines()
    assert 'connscope_message_time_seconds{quantile="0.99"} 0.02' in lines
    assert "connscope_messages_answered_total 1000" in lines
