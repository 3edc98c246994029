"""Numbers that a server was started with: what is kept of them, and what is not."""

from __future__ import annotations

import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.server.own_limits import name_limit
from harness.foreign import server_settings
from harness.foreign.server_settings import (
    files_named,
    of_arguments,
    of_text,
    of_words,
    settings_of,
    settings_of_command,
)


def numbers(found):
    return [(each["name"], each["value"]) for each in found]


def test_options_and_lines_keep_their_names_and_places():
    words = ["gunicorn", "--threads", "50", "-w", "4", "--max-requests=1000", "app:app"]
    assert numbers(of_words(words)) == [("threads", 50), ("max-requests", 1000)]
    text = "events {\n  worker_connections 1024;\n}\nLIMIT = 200  # most\nPOOL, QUEUE = 200, 32\n"
    found = of_text(text, "/x.conf")
    assert ("worker_connections", 1024) in numbers(found)
    assert [each["line"] for each in found if each["value"] == 200] == [4, 5]
    assert found[-1]["text"] == "POOL, QUEUE = 200, 32"


def test_an_argument_without_an_option_names_a_limit():
    words = ["/srv/app", "9001", "sem", "120", "--threads", "50", "pin", "4711"]
    found = of_arguments(words)
    assert numbers(found) == [("", 9001), ("", 120)]
    limit = name_limit("app", {"settings": found}, 120, 140, 500)
    assert limit.where == "its command line"
    assert limit.raise_it == "550 instead of 120 as an argument of app"


def test_a_long_line_ends_where_it_was_cut():
    (told,) = of_text("x" * 70 + ".serve(120).run()", "/a.py")
    assert told["text"].endswith("…")
    assert len(told["text"]) == 80


def test_what_may_be_a_secret_is_not_kept():
    assert of_text("password = 12345678\nAPI_TOKEN: 987654\nport_key 4242\n", "/x") == []
    assert of_words(["server", "--auth-pin", "123456", "--secret=999999"]) == []


def test_a_server_that_was_not_started_by_a_command_has_no_words():
    assert of_words([]) == []
    assert server_settings.settings_of_command((), "/") == []


def test_scripts_and_configurations_are_found_by_their_words(tmp_path):
    assert files_named(["python3", "app.py"], "/srv") == ["/srv/app.py"]
    assert files_named(["gunicorn", "-b", "x:80", "shop.wsgi:app"], "/srv") == ["/srv/shop/wsgi.py"]
    nginx = ["nginx:", "master", "process", "nginx", "-p", "/etc/n", "-c", "nginx.conf"]
    assert files_named(nginx, "/") == ["/etc/n/nginx.conf"]
    assert files_named(["nginx:", "worker"], "/") == ["/etc/nginx/nginx.conf"]


def test_what_a_launcher_says_is_kept_before_it_becomes_another_program(tmp_path):
    (tmp_path / "run.sh").write_text('#!/bin/sh\nulimit -n 300\nexec python3 app.py "$1"\n')
    (told,) = settings_of_command(["sh", "run.sh", "9001"], str(tmp_path))
    assert (told["value"], told["file"], told["line"]) == (300, str(tmp_path / "run.sh"), 2)
    assert told["text"] == "ulimit -n 300"
    (told,) = settings_of_command(["sh", "-c", "ulimit -n 300; exec app"], "/")
    assert (told["value"], told["file"], told["text"]) == (300, "", "ulimit -n 300; exec app")


def test_a_worker_has_no_usual_file_where_its_parent_names_one():
    assert files_named(["nginx:", "worker", "process"], "/", with_usual=False) == []


def test_a_device_or_pipe_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.conf")
    (tmp_path / "link.conf").symlink_to("/dev/full")
    for name in ("pipe.conf", "link.conf"):
        found = server_settings.stranger_file.read_start(os.getpid(), str(tmp_path / name), 99)
        assert found == b""
    (tmp_path / "file.conf").write_bytes(b"maxconn 77")
    read = server_settings.stranger_file.read_start(os.getpid(), str(tmp_path / "file.conf"), 7)
    assert read == b"maxconn"


def test_this_process_and_one_that_is_gone():
    assert all(each["value"] or each["value_s"] for each in settings_of(os.getpid()))
    assert settings_of(1 << 22) == []
    assert server_settings.program_of(os.getpid()).startswith(os.path.dirname(sys.base_prefix)[:1])


@given(st.text(max_size=300))
def test_any_text_is_read_and_bounded(text):
    for each in of_text(text, "/f"):
        is_count = server_settings.LEAST <= each["value"] <= server_settings.MOST
        assert is_count or (each["value"] == 0 and each["value_s"] > 0)
        assert len(each["name"]) <= 60
        assert len(each["text"]) <= 80


def test_a_known_limit_is_named_where_it_stands_or_by_its_default():
    setting = {
        "name": "worker_connections",
        "value": 1024,
        "file": "/n.conf",
        "line": 6,
        "text": "",
    }
    named = name_limit("nginx: worker process", {"settings": [setting]}, 509, 1030, 1000)
    assert (named.setting, named.value, named.where) == ("worker_connections", 1024, "/n.conf:6")
    assert "2200" in named.raise_it
    named = name_limit("systemd-socket-proxyd", {}, 256, 600, 500)
    assert (named.value, named.where) == (256, "its default")
    assert name_limit("systemd-socket-proxyd", {}, 90, 600, 500) is None
    assert name_limit("php server.php", {}, 1018, 1025, 1500).setting == "FD_SETSIZE"
    other = {"name": "", "value": 200, "file": "/app.py", "line": 13, "text": "A, B = 200, 32"}
    named = name_limit("python3 app.py", {"settings": [other]}, 200, 210, 600)
    assert "/app.py:13" in named.where
    assert name_limit("python3 app.py", {"settings": [other]}, 150, 210, 600) is None


@pytest.mark.parametrize(
    ("line", "name", "value_s"),
    [
        ("  timeout tunnel 3s", "tunnel", 3.0),
        ("proxy_read_timeout 5m;", "proxy_read_timeout", 300.0),
        ("pingTimeout: 2500ms,", "pingTimeout", 2.5),
        ("ping_timeout=5", "ping_timeout", 5.0),
    ],
)
def test_a_time_is_kept_with_its_unit(line, name, value_s):
    found = [each for each in of_text(line, "/a.conf") if "value_s" in each]
    assert [(each["name"], each["value_s"], each["value"]) for each in found] == [
        (name, value_s, 0)
    ]


@pytest.mark.parametrize("line", ["client_max_body_size 1m;", "timeout_token 3s", "size 5"])
def test_a_size_or_a_secret_is_no_time(line):
    assert not [each for each in of_text(line, "/a.conf") if "value_s" in each]


def test_a_time_of_the_command_line_is_kept():
    (found,) = of_words(["app", "--idle-timeout", "3s"])
    assert (found["name"], found["value_s"], found["file"]) == ("idle-timeout", 3.0, "")
    (found,) = of_words(["app", "--idle-timeout=250ms"])
    assert found["value_s"] == 0.25


def test_of_a_configuration_each_statement_is_looked_at_by_itself():
    """`proxy_pass` names no secret of the timeout beside it."""
    line = "location / { proxy_pass http://127.0.0.1:80; proxy_read_timeout 2s; max_conns 80; }"
    found = of_text(f"{line}\nset $password 12345678; limit 90;", "/etc/n.conf")
    assert [(each["name"], each["text"]) for each in found if each["value"] in (80, 90, 0)] == [
        ("proxy_read_timeout", "proxy_read_timeout 2s;"),
        ("max_conns", "max_conns 80;"),
        ("limit", "limit 90;"),
    ]
    assert 12_345_678 not in [each["value"] for each in found]
    assert of_text(f"{line} secret", "/a.js") == []


@pytest.mark.parametrize(("words", "name", "value"), [
    (["socat", "TCP-LISTEN:9001,fork,max-children=50", "TCP:h:1"], "max-children", 50),
    (["puma", "-t", "20:32"], "t", 32),
])  # fmt: skip
def test_options_within_a_word_are_read(words, name, value):
    assert (name, value) in [(each["name"], each["value"]) for each in of_words(words)]
