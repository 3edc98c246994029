"""The opening handshake, clause by clause of RFC 6455 section 4 and the HTTP below it."""

from __future__ import annotations

import base64

import pytest
import wsproto
from hypothesis import example, given
from hypothesis import strategies as st
from wsproto.events import AcceptConnection, RejectConnection, Request

from harness.websocket.handshake import (
    HEAD_LIMIT_BYTES,
    HandshakeCache,
    HandshakeError,
    accept_key,
    check_response,
    client_request,
    new_key,
    server_response,
    switching_protocols,
)

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
VALID = {
    "Host": "server.example.com",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY.decode(),
    "Sec-WebSocket-Version": "13",
}


def request(line: str = "GET /chat HTTP/1.1", **changes: str | None) -> bytes:
    """A valid request with headers changed (``_`` for ``-``) or, with None, left out."""
    fields = dict(VALID)
    for name, value in changes.items():
        if value is None:
            del fields[name.replace("_", "-")]
        else:
            fields[name.replace("_", "-")] = value
    head = [line, *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(head).encode("latin-1")


def refusal(data: bytes) -> tuple[int, bytes]:
    with pytest.raises(HandshakeError) as caught:
        server_response(data)
    status, response = caught.value.status, caught.value.response
    head, _, body = response.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nContent-Length: %d" % len(body) in head
    assert b"\r\nConnection: close" in head
    assert body == caught.value.reason.encode() + b"\n"
    return status, head


def test_1_3_sample_nonce_gives_the_sample_accept_value():
    assert accept_key(KEY) == ACCEPT


def test_4_2_2_valid_request_is_switched_with_its_accept_value():
    response, head_bytes = server_response(request())
    assert response == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + ACCEPT + b"\r\n\r\n"
    )
    assert head_bytes == len(request())


def test_4_2_2_frames_that_came_with_the_request_stay_behind_the_head():
    data = request()
    assert server_response(data + b"\x89\x80abcd")[1] == len(data)


@given(cut=st.integers(0, len(request()) - 1))
def test_4_2_1_every_incomplete_prefix_waits(cut):
    assert server_response(request()[:cut]) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"Connection": "keep-alive, Upgrade"},  # Firefox
        {"Connection": "UPGRADE"},
        {"Connection": ", upgrade ,"},
        {"Upgrade": "WebSocket"},  # older Safari
        {"Upgrade": "h2c, websocket"},
        {"Sec_WebSocket_Key": "  \t" + KEY.decode() + " \t "},
        {"Host": "[::1]:8080"},
        {"Content_Length": "0"},
        {"User_Agent": "caf\xe9"},
    ],
)
def test_4_2_1_real_variations_of_header_values_are_accepted(changes):
    assert ACCEPT in server_response(request(**changes))[0]


@pytest.mark.parametrize("change_case", [str.upper, str.lower, str.swapcase])
def test_4_2_1_header_names_match_in_any_case(change_case):
    data = request()
    for name in VALID:
        data = data.replace(name.encode() + b":", change_case(name).encode() + b":")
    assert ACCEPT in server_response(data)[0]


def test_4_2_1_connection_tokens_may_be_spread_over_header_lines():
    data = request().replace(b"Connection: Upgrade", b"Connection: close\r\nConnection: upgrade")
    assert ACCEPT in server_response(data)[0]


@pytest.mark.parametrize("target", ["/", "/a?b=c%20d", "ws://server.example.com/", "http://a/b"])
def test_4_2_1_item_1_target_in_origin_or_absolute_form(target):
    assert server_response(request(f"GET {target} HTTP/1.1"))


def test_rfc9112_2_2_one_empty_line_before_the_request_is_ignored():
    data = b"\r\n" + request()
    assert server_response(data)[1] == len(data)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("POST /chat HTTP/1.1", 405),
        ("get /chat HTTP/1.1", 405),
        ("GET /chat HTTP/1.0", 505),
        ("PRI * HTTP/2.0", 505),
        ("GET  /chat HTTP/1.1", 400),
        ("GET /a b HTTP/1.1", 400),
        ("GET * HTTP/1.1", 400),
        ("GET /caf\xe9 HTTP/1.1", 400),
        ("GET /chat HTTP/11", 400),
        ("GET /chat", 400),
        ("", 400),
        (" GET /chat HTTP/1.1", 400),
    ],
)
def test_4_2_1_item_1_method_and_http_version(line, status):
    assert refusal(request(line))[0] == status


def test_rfc9110_15_5_6_a_405_names_the_method_allowed():
    assert b"\r\nAllow: GET" in refusal(request("PUT / HTTP/1.1"))[1]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"Host": None}, 400),
        ({"Host": ""}, 400),
        ({"Host": "a b"}, 400),
        ({"Upgrade": None}, 426),
        ({"Upgrade": "h2c"}, 400),
        ({"Upgrade": "websocket2"}, 400),
        ({"Connection": None}, 400),
        ({"Connection": "keep-alive"}, 400),
        ({"Connection": "notupgrade"}, 400),
        ({"Sec_WebSocket_Version": None}, 400),
        ({"Sec_WebSocket_Version": "8"}, 426),
        ({"Sec_WebSocket_Version": "13, 8"}, 426),
        ({"Sec_WebSocket_Version": "013"}, 426),
        ({"Sec_WebSocket_Key": None}, 400),
        ({"Sec_WebSocket_Key": ""}, 400),
        ({"Sec_WebSocket_Key": base64.b64encode(bytes(15)).decode()}, 400),
        ({"Sec_WebSocket_Key": base64.b64encode(bytes(17)).decode()}, 400),
        ({"Sec_WebSocket_Key": base64.b64encode(bytes(18)).decode()}, 400),
        ({"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ="}, 400),
        ({"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25j*Q=="}, 400),
        ({"Content_Length": "5"}, 400),
        ({"Transfer_Encoding": "chunked"}, 400),
    ],
)
def test_4_2_1_items_2_to_6_each_header_is_required_and_checked(changes, status):
    assert refusal(request(**changes))[0] == status


@pytest.mark.parametrize("name", ["Host", "Sec-WebSocket-Key", "Content-Length"])
def test_11_3_1_a_header_that_must_be_single_is_refused_twice(name):
    line = f"\r\n{name}: {VALID.get(name, '0')}".encode()
    data = request(Content_Length="0") if name == "Content-Length" else request()
    assert refusal(data.replace(line, line + line))[0] == 400


def test_4_4_version_mismatch_names_the_version_that_is_spoken():
    head = refusal(request(Sec_WebSocket_Version="8"))[1]
    assert b"\r\nSec-WebSocket-Version: 13" in head
    assert b"\r\nUpgrade: websocket" in head  # RFC 9110 section 15.5.22
    assert b"\r\nConnection: close, Upgrade" in head


def test_4_4_a_plain_page_request_learns_that_an_upgrade_is_required():
    status, head = refusal(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert status == 426
    assert b"\r\nUpgrade: websocket" in head


@pytest.mark.parametrize("fold", ["\r\n ", "\r\n\t", " \r\n   \t", "\r\n \r\n "])
def test_rfc9112_5_2_folded_values_are_joined(fold):
    folded = request(
        Sec_WebSocket_Key=f"{fold}{KEY.decode()}",
        Connection=f"keep-alive,{fold}Upgrade",
        User_Agent=f"one{fold}two",
    )
    assert ACCEPT in server_response(folded)[0]


def test_rfc9112_5_2_a_fold_cannot_smuggle_a_header():
    data = request(Connection=None).replace(
        b"\r\n\r\n", b"\r\nX: y\r\n Connection: Upgrade\r\n\r\n"
    )
    assert refusal(data)[0] == 400


def test_rfc9112_5_2_a_fold_inside_the_key_breaks_the_key():
    assert refusal(request(Sec_WebSocket_Key="dGhlIHNhbXBs\r\n ZSBub25jZQ=="))[0] == 400


@pytest.mark.parametrize(
    "line",
    [
        b" Folded: first",
        b"No-Colon",
        b"Space : before",
        b": empty name",
        b"B\xc3\xa4d: name",
        b"Null: a\x00b",
        b"Return: a\rb",
        b"Feed: a\nConnection: b",
        b"Bell: \x07",
    ],
)
def test_rfc9112_5_malformed_header_lines_are_refused(line):
    data = request().replace(b"\r\n", b"\r\n" + line + b"\r\n", 1)
    assert refusal(data)[0] == 400


def test_rfc9112_2_2_bare_line_feeds_are_refused_at_once():
    assert refusal(request().replace(b"\r\n", b"\n"))[0] == 400


def test_a_tls_hello_is_refused_without_waiting_for_more():
    assert refusal(b"\x16\x03\x01\x02\x00\x01")[0] == 400


@pytest.mark.parametrize("head_bytes", [HEAD_LIMIT_BYTES, HEAD_LIMIT_BYTES + 1])
def test_rfc6585_5_head_limit_is_16_kib(head_bytes):
    padding = head_bytes - len(request(Cookie=""))
    data = request(Cookie="a" * padding)
    assert len(data) == head_bytes
    if head_bytes <= HEAD_LIMIT_BYTES:
        assert server_response(data)[1] == head_bytes
    else:
        assert refusal(data)[0] == 431
        assert refusal(data[:-1])[0] == 431  # no wait for an end that cannot be allowed


@given(st.binary(max_size=300))
def test_any_bytes_are_incomplete_or_refused_with_a_whole_reply(data):
    assert outcome(server_response, data) in (None, 400)


@given(
    name=st.sampled_from([*VALID, "X-Other"]),
    value=st.text(st.characters(max_codepoint=255), max_size=60),
)
def test_no_byte_of_a_request_reaches_a_refusal(name, value):
    fields = {**VALID, name: f"INJECTED{value}"}
    head = "".join(f"{key}: {text}\r\n" for key, text in fields.items())
    data = f"GET /INJECTED HTTP/1.1\r\n{head}\r\n".encode("latin-1")
    if isinstance(outcome(server_response, data), int):
        head = refusal(data)[1]
        assert b"INJECTED" not in head
        assert {line.partition(b": ")[0] for line in head.split(b"\r\n")[1:]} <= {
            b"Connection",
            b"Content-Type",
            b"Content-Length",
            b"Sec-WebSocket-Version",
            b"Upgrade",
        }
    else:
        answer = server_response(data)
        assert answer is None or answer[0] == switching_protocols(KEY)


class TestCache:
    def test_another_key_in_a_known_request_gets_its_own_accept_value(self):
        cache = HandshakeCache()
        for _ in range(23):
            key = new_key()
            data = client_request("127.0.0.1:9001", "/", key)
            assert cache.server_response(data) == server_response(data)

    @given(st.binary(max_size=30))
    @example(b"abc\r\nX-Injected: header!!")
    @example(b"dGhlIHNhbXBsZSBub25j*Q==")
    @example(b"AAAAAAAAAAAAAAAAAAAAAAA=")
    def test_no_known_request_lets_a_bad_key_through(self, key):
        cache = HandshakeCache()
        cache.server_response(request())
        data = request().replace(KEY, key)
        assert outcome(cache.server_response, data) == outcome(server_response, data)

    def test_a_key_header_that_is_text_inside_another_header_is_no_key(self):
        cache = HandshakeCache()
        data = request(
            Sec_WebSocket_Key=None, X="y\r\n Sec-WebSocket-Key: " + new_key().decode()
        ).replace(b"\r\n\r\n", b"\r\nsec-websocket-key: " + KEY + b"\r\n\r\n")
        for _ in range(2):
            assert cache.server_response(data)[0] == switching_protocols(KEY)

    def test_a_path_that_looks_like_a_key_is_no_key(self):
        # With the header's name in lower case the cache finds no key and must not take bytes from
        # elsewhere: these paths differ in 24 bytes that are well-formed base64.
        cache = HandshakeCache()
        for start in range(12, 24):
            for number in range(2):
                path = "/" + "x" * start + base64.b64encode(bytes([number] * 16)).decode()
                data = request(f"GET {path} HTTP/1.1").replace(b"-Key", b"-key")
                assert cache.server_response(data) == server_response(data)

    def test_frames_behind_the_head_are_never_swallowed(self):
        cache = HandshakeCache()
        for data in (request() + b"abc", request(), request() + b"abc"):
            assert cache.server_response(data) == server_response(data)

    def test_hostile_variety_fills_no_memory(self):
        cache = HandshakeCache(shapes_max_count=3)
        for number in range(23):
            assert cache.server_response(request(f"GET /{number} HTTP/1.1"))
        assert len(cache._shapes) == 3


def outcome(function, data):
    try:
        return function(data)
    except HandshakeError as error:
        return error.status


def test_4_1_request_has_every_required_header():
    data = client_request("127.0.0.1:9001", "/chat?a=b", KEY, [("Origin", "http://a")])
    assert data.startswith(b"GET /chat?a=b HTTP/1.1\r\nHost: 127.0.0.1:9001\r\n")
    assert b"\r\nOrigin: http://a\r\n" in data
    assert server_response(data) == (switching_protocols(KEY), len(data))


def test_4_1_item_7_keys_are_fresh_and_hold_16_bytes():
    keys = {new_key() for _ in range(23)}
    assert len(keys) == 23
    assert {len(base64.b64decode(key, validate=True)) for key in keys} == {16}


@pytest.mark.parametrize(
    ("host", "path", "headers"),
    [
        ("a\r\nX: y", "/", []),
        ("", "/", []),
        ("a", "/\r\nX: y", []),
        ("a", "/a b", []),
        ("a", "chat", []),
        ("a", "/", [("X", "a\r\nY: b")]),
        ("a", "/", [("X", "a\nb")]),
        ("a", "/", [("X\r\n", "a")]),
        ("a", "/", [("X Y", "a")]),
        ("a", "/", [("host", "b")]),
    ],
)
def test_4_1_request_values_cannot_break_out_of_their_line(host, path, headers):
    with pytest.raises(ValueError, match=r"must (start|be a)|of the handshake itself"):
        client_request(host, path, KEY, headers)


def reply(status: str = "101 Switching Protocols", **changes: str | None) -> bytes:
    fields: dict[str, str | None] = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Accept": ACCEPT.decode(),
    }
    fields.update({name.replace("_", "-"): value for name, value in changes.items()})
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value is not None)
    return f"HTTP/1.1 {status}\r\nServer: other\r\n{head}\r\n".encode()


def test_4_1_valid_reply_gives_the_offset_of_the_first_frame():
    for data in (reply(), switching_protocols(KEY), reply(Connection="upgrade, keep-alive")):
        assert check_response(data, KEY) == len(data)
        assert check_response(data + b"\x89\x00", KEY) == len(data)


@given(cut=st.integers(0, len(reply()) - 1))
def test_4_1_every_incomplete_reply_waits(cut):
    assert check_response(reply()[:cut], KEY) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"Upgrade": None},
        {"Upgrade": "h2c"},
        {"Connection": None},
        {"Connection": "close"},
        {"Sec_WebSocket_Accept": None},
        {"Sec_WebSocket_Accept": accept_key(b"another").decode()},
        {"Sec_WebSocket_Accept": ACCEPT.decode().lower()},
        {"Sec_WebSocket_Extensions": "permessage-deflate"},
        {"Sec_WebSocket_Protocol": "chat"},
        {"Bad Name": "x"},
    ],
)
def test_4_1_items_2_to_6_of_the_reply_are_checked(changes):
    with pytest.raises(HandshakeError) as caught:
        check_response(reply(**changes), KEY)
    assert caught.value.status == 101
    assert caught.value.response == b""


def test_4_1_item_6_an_offered_subprotocol_may_be_chosen():
    data = reply(Sec_WebSocket_Protocol="chat")
    assert check_response(data, KEY, subprotocols=[b"chat"]) == len(data)


@pytest.mark.parametrize(
    ("body", "excerpt"),
    [
        (
            b"<html>\r\n<head><title>500 No room</title></head>\r\n<body>\r\n<center><h1>"
            b"500 No room</h1></center>\r\n<hr><center>nginx/1.22.1</center>\r\n</body>\r\n"
            b"</html>\r\n",
            "500 No room nginx/1.22.1",
        ),
        (b"<!DOCTYPE html><html><head><title>Blocked</title><meta na", "Blocked"),
        (b"a < b, and so <html> it goes", "a < b, and so <html> it goes"),
    ],
)
def test_of_a_page_people_read_the_text(body, excerpt):
    response = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 9\r\n\r\n" + body
    with pytest.raises(HandshakeError) as caught:
        check_response(response, KEY)
    assert caught.value.body_excerpt == excerpt


@pytest.mark.parametrize(
    ("head", "body", "header_excerpt", "body_excerpt"),
    [
        (b"302 Found\r\nLocation: /v2", b"", "Location: /v2", ""),
        (b"401 No\r\nWWW-Authenticate: Bearer", b"log in", "WWW-Authenticate: Bearer", "log in"),
        (b"426 No\r\nSec-WebSocket-Version: 8", b"", "Sec-WebSocket-Version: 8", ""),
        (b"404 No\r\nLocation: /elsewhere", b"no", "", "no"),
        (b"404 No\r\nTransfer-Encoding: chunked",
         b"8;x=1\r\n<!doctyp\r\n9\r\ne html>no\r\n0\r\n\r\n", "", "no"),
        (b"404 No\r\nTransfer-Encoding: chunked", b"5\r\nno", "", "no"),
        (b"404 No\r\nTransfer-Encoding: chunked", b"", "", ""),
        (b"302 Found\r\n Location: bad", b"", "", ""),
    ],
)  # fmt: skip
def test_a_refusal_keeps_the_header_that_says_what_helps(head, body, header_excerpt, body_excerpt):
    with pytest.raises(HandshakeError) as caught:
        check_response(b"HTTP/1.1 " + head + b"\r\n\r\n" + body, KEY)
    assert caught.value.header_excerpt == header_excerpt
    assert caught.value.body_excerpt == body_excerpt


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x15\x03\x01\x00\x02\x02\x46", "the reply is TLS"),
        (bytes([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100]), "the reply is HTTP/2"),
        (bytes([0, 0, 8, 7, 0, 0, 0, 0, 0]) + bytes(8), "the reply is HTTP/2"),
        (b"220 mail\r\n", "the reply is not HTTP"),
    ],
)
def test_other_protocols_are_told_by_their_first_bytes(data, reason):
    with pytest.raises(HandshakeError) as caught:
        check_response(data, KEY)
    assert (caught.value.status, caught.value.reason) == (0, reason)


def test_4_1_item_1_a_refusal_tells_status_and_body():
    data = (
        b"HTTP/1.1 503 Busy\r\nContent-Length: 30\r\n\r\nno room\x1b[31m\r\n\xe2\x80\xae"
        + b"x" * 999
    )
    with pytest.raises(HandshakeError) as caught:
        check_response(data, KEY)
    assert caught.value.status == 503
    assert caught.value.body_excerpt.startswith("no room [31m")
    assert caught.value.body_excerpt.isprintable()
    assert len(caught.value.body_excerpt) <= 200


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x88\x02\x03\xea",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n" + b"X: y\r\n" * 3000,
    ],
)
def test_4_1_what_is_no_http_response_fails_with_status_0(data):
    with pytest.raises(HandshakeError) as caught:
        check_response(data, KEY)
    assert caught.value.status == 0


def test_4_1_http_1_0_cannot_switch():
    with pytest.raises(HandshakeError):
        check_response(reply().replace(b"HTTP/1.1", b"HTTP/1.0"), KEY)


def test_wsproto_client_accepts_our_server():
    peer = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
    response, _ = server_response(peer.send(Request(host="a:1", target="/chat")))
    peer.receive_data(response)
    assert [type(event) for event in peer.events()] == [AcceptConnection]


def test_wsproto_client_sees_our_refusal():
    peer = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
    data = peer.send(Request(host="a:1", target="/chat")).replace(b"Version: 13", b"Version: 12")
    with pytest.raises(HandshakeError) as caught:
        server_response(data)
    peer.receive_data(caught.value.response)
    event = next(iter(peer.events()))
    assert isinstance(event, RejectConnection)
    assert event.status_code == 426


def test_wsproto_server_accepts_our_client():
    peer = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
    peer.receive_data(client_request("a:1", "/chat", KEY))
    event = next(iter(peer.events()))
    assert isinstance(event, Request)
    assert (event.host, event.target) == ("a:1", "/chat")
    response = peer.send(AcceptConnection())
    assert check_response(response, KEY) == len(response)
