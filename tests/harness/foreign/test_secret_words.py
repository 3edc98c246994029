"""What a command line says that must be in no file of a run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.foreign.secret_words import without_query_values, without_secrets


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--header", "Authorization: Bearer eyJ"], ["--header", "Authorization: …"]),
        (["--header=Authorization: Bearer eyJ"], ["--header=Authorization: …"]),
        (["--header", "no colon"], ["--header", "…"]),
        (["--cookie", "session=12=3"], ["--cookie", "session=…"]),
        (["--subprotocol", "bearer.eyJ"], ["--subprotocol", "…"]),
        (["--message", '{"token": "eyJ"}'], ["--message", "…"]),
        (["--path", "/chat?room=1&token=2"], ["--path", "/chat?room=…&token=…"]),
        (["--target=wss://h/?t#f"], ["--target=wss://h/?…#…"]),
        (["--connections", "5", "--header"], ["--connections", "5", "--header"]),
        (["--header", "--header", "A: b"], ["--header", "…", "A: b"]),
    ],
)
def test_values_are_left_out_and_names_stay(words, shown):
    assert without_secrets(words) == shown


def test_what_is_no_secret_stays_as_it_is():
    words = ["--connections", "120000", "--server-cmd", "node server.cjs {port}", "--target",
             "ws://127.0.0.1:{port}/chat"]  # fmt: skip
    assert without_secrets(words) == words


@given(st.text("abc/?&=#", max_size=30), st.text("789", min_size=1, max_size=9))
def test_no_value_of_a_query_is_left(before, value):
    shown = without_query_values(f"/{before}?key={value}&{value}#{value}")
    assert value not in shown
