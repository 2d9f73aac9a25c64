"""What comes over HTTP and is none, or too much of it: answered with one clear error, or closed; never an effect."""

from __future__ import annotations

import gzip
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from gateways import RunningGateway, running
from raw_http import Wire, ask_raw, head, is_seen
from support import wait_until

EXECUTE = "/api/v1/python/execute"
ALGORITHMS = "/api/v1/python/algorithms"
BODY = b'{"code": "output = 42"}'
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


def resident_mb(gateway: RunningGateway) -> float:
    return float(psutil.Process(gateway.process.pid).memory_info().rss) / (1 << 20)


def faults(gateway: RunningGateway) -> list[object]:
    """What the log says of faults of the gateway's own."""
    return [each for each in gateway.logged() if each["level"] == "error"]


@pytest.fixture(autouse=True)
def _no_fault(gateway: RunningGateway) -> Iterator[None]:
    """Whatever comes, the gateway goes on, and none of it is a fault of its own."""
    before = len(faults(gateway))
    yield
    assert gateway.ask("GET", "/healthz").status_code == 200
    assert not faults(gateway)[before:]


# -- framing ---------------------------------------------------------------------------------------------------------


def test_a_request_in_six_byte_pieces_is_as_one(gateway: RunningGateway) -> None:
    data = head(gateway, "POST", EXECUTE, f"Content-Length: {len(BODY)}") + BODY
    with Wire(gateway.address) as wire:
        for at in range(0, len(data), 6):
            wire.send(data[at : at + 6])
        answer = wire.answer()
    assert answer is not None
    assert answer.json()["result"] == 42


def test_a_body_in_chunks_of_one_byte_is_as_one(gateway: RunningGateway) -> None:
    chunks = b"".join(b"1;a=b\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"
    answer = ask_raw(gateway, head(gateway, "POST", EXECUTE, "Transfer-Encoding: chunked") + chunks)
    assert answer is not None
    assert answer.json()["result"] == 42


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 4", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "Content-Length: 4"],
        ["Content-Length: 0", "Content-Length: 40"],
        ["Content-Length: 0", "Content-Length: 0"],
        ["Content-Length: 0, 40"],
        ["Content-Length: +0"],
        ["Content-Length: 0x0"],
        ["Content-Length: -1"],
        ["Content-Length: 1_0"],
        ["Content-Length: "],
        ["Content-Length: 99999999999999999999999999"],
        ["Content-Length : 0"],
        ["Transfer-Encoding: xchunked"],
        ["Transfer-Encoding: chunked, identity"],
        ["Transfer-Encoding: identity"],
        ["Transfer-Encoding: gzip, chunked"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
        ["Transfer-Encoding : chunked"],
        ["Transfer-Encoding:\x0bchunked"],
        ["Transfer-Encoding: \x0cchunked"],
        ["Transfer-Encoding:\r\n chunked"],
        ["X: folded\r\n Transfer-Encoding: chunked"],
        ["X: a\nTransfer-Encoding: chunked"],
        ["X: a\rTransfer-Encoding: chunked"],
        ["X: a\0b"],
        ["X y: a"],
        [" Transfer-Encoding: chunked"],
        ["\x00: a"],
        ["no colon"],
        ["Upgrade: websocket", "Connection: upgrade", "Content-Length: 0"],
    ],
    ids=str,
)
def test_framing_that_two_readers_could_understand_in_two_ways_is_refused(
    gateway: RunningGateway, lines: list[str], request: pytest.FixtureRequest
) -> None:
    hidden = f"smuggled.{abs(hash(request.node.name))}"
    for end in (b"", b"0\r\n\r\n"):
        smuggled = head(gateway, "GET", ALGORITHMS, f"X-Request-ID: {hidden}")
        with Wire(gateway.address) as wire:
            wire.send(head(gateway, "POST", EXECUTE, *lines) + end + smuggled)
            answer = wire.answer()
            assert answer is not None
            assert answer.status == 400
            assert answer.headers["connection"] == "close"
            assert answer.json()["status_code"] == 400
            assert wire.rest() == b""
    assert not is_seen(gateway, hidden)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /healthz HTTP/1.1\nHost: localhost\n\n", 400),
        (b"GET /healthz\r\n\r\n", 505),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost:\r\n\r\n", 400),
        (b"GET /healthz HTTP/2.0\r\nHost: localhost\r\n\r\n", 505),
        (b"GET /healthz HTTP/9.9\r\nHost: localhost\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"get /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET http://evil.example/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET http://localhost HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET \xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"\0" * 100, 400),
        (b"{}", 400),
    ],
)
def test_what_is_no_request_of_this_host_is_refused(gateway: RunningGateway, data: bytes, status: int) -> None:
    answer = ask_raw(gateway, data)
    assert answer is not None
    assert answer.status == status
    assert answer.json()["status_code"] == status


def test_a_whole_url_of_this_host_is_a_target(gateway: RunningGateway) -> None:
    answer = ask_raw(gateway, b"GET http://LocalHost/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer is not None
    assert answer.status == 200


def test_http_1_0_is_answered_and_closed(gateway: RunningGateway) -> None:
    for more, status in ((b"Host: localhost\r\n", 200), (b"", 400)):
        with Wire(gateway.address) as wire:
            wire.send(b"GET /healthz HTTP/1.0\r\n" + more + b"\r\n")
            answer = wire.answer()
            assert answer is not None
            assert answer.status == status
            assert wire.rest() == b""


def test_a_trailer_is_no_header(gateway: RunningGateway) -> None:
    raw = b"POST %s HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    trailer = b"0\r\nAuthorization: Bearer %s\r\n\r\n" % gateway.token("admin").encode()
    chunk = b"%x\r\n%s\r\n" % (len(BODY), BODY)
    answer = ask_raw(gateway, raw % EXECUTE.encode() + chunk + trailer)
    assert answer is not None
    assert answer.status == 401


def test_an_upgrade_is_not_taken(gateway: RunningGateway) -> None:
    raw = (
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    with Wire(gateway.address) as wire:
        wire.send(raw + head(gateway, "GET", ALGORITHMS, "X-Request-ID: after.upgrade"))
        answer = wire.answer()
        assert answer is not None
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert wire.rest() == b""
    assert not is_seen(gateway, "after.upgrade")


def test_pipelined_requests_are_answered_in_their_order(gateway: RunningGateway) -> None:
    with Wire(gateway.address) as wire:
        wire.send(b"".join(head(gateway, "GET", "/healthz", f"X-Request-ID: turn.{each}") for each in range(20)))
        for each in range(20):
            answer = wire.answer()
            assert answer is not None
            assert answer.headers["x-request-id"] == f"turn.{each}"


def test_what_is_wrong_behind_a_good_request_does_not_take_its_answer_s_place(gateway: RunningGateway) -> None:
    good = head(gateway, "POST", EXECUTE, f"Content-Length: {len(BODY)}") + BODY
    with Wire(gateway.address) as wire:
        wire.send(good + good + b"\0garbage\r\n\r\n")
        for _ in range(2):
            answer = wire.answer()
            assert answer is not None
            assert answer.json()["result"] == 42
        last = wire.answer()
        assert last is not None
        assert last.status == 400
        assert wire.rest() == b""


def test_thousands_of_requests_in_one_packet_are_not_queued(gateway: RunningGateway) -> None:
    with Wire(gateway.address) as wire:
        wire.send(HEALTH * 4000)
        found = []
        while (answer := wire.answer()) is not None:
            found.append(answer.status)
    assert found.count(200) < 4000
    assert found[-1] == 400


def test_a_chunk_that_is_none_ends_the_request(gateway: RunningGateway) -> None:
    for bad in (b"0x5\r\n", b"-1\r\n", b"f" * 40 + b"\r\n", b"5\nhello\n", b"5\r\nhelloX\r\n"):
        with Wire(gateway.address) as wire:
            wire.send(head(gateway, "POST", EXECUTE, "Transfer-Encoding: chunked") + bad)
            answer = wire.answer()
            assert answer is not None
            assert answer.status == 400
            assert wire.rest() == b""


# -- sizes -----------------------------------------------------------------------------------------------------------

MIB = 1 << 20
LINE = b"x" * 4096


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (b"GET /", LINE),
        (b"", b"\r\n" * 2048),
        (b"GET / HTTP/1.1\r\nX: ", LINE),
        (b"GET / HTTP/1.1\r\nX", LINE),
        (b"GET / HTTP/1.1\r\n", b"x: y\r\n" * 512),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1;", LINE),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ", LINE),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"x: y\r\n" * 512),
    ],
    ids=["url", "line breaks", "value", "name", "headers", "chunk extension", "trailer", "trailers"],
)
def test_endless_headers_are_refused_and_take_no_memory(gateway: RunningGateway, begin: bytes, piece: bytes) -> None:
    before_mb = resident_mb(gateway)
    with Wire(gateway.address) as wire:
        wire.send(begin)
        sent = 0
        while sent < 64 * MIB and wire.send(piece * 64):
            sent += 64 * len(piece)
        answers = []
        while (answer := wire.answer()) is not None:
            answers.append(answer.status)
    assert answers[-1:] == [431] or sent < 64 * MIB
    assert resident_mb(gateway) - before_mb < 16


def test_headers_just_under_the_limits_are_taken_and_above_are_not(gateway: RunningGateway) -> None:
    usual = len(head(gateway, "GET", "/healthz"))
    for nbytes, status in ((usual + 16_000, 200), (33 << 10, 431)):
        answer = ask_raw(gateway, head(gateway, "GET", "/healthz", "X: " + "y" * (nbytes - usual)))
        assert answer is not None
        assert answer.status == status
    for count, status in ((98, 200), (99, 431)):  # and two that are always there
        answer = ask_raw(gateway, head(gateway, "GET", "/healthz", *["x: y"] * count))
        assert answer is not None
        assert answer.status == status


def test_a_very_long_url_is_answered(gateway: RunningGateway) -> None:
    for length, status in ((8 << 10, 404), (64 << 10, 431)):
        answer = ask_raw(gateway, head(gateway, "GET", "/" + "a" * length))
        assert answer is not None
        assert answer.status == status
        assert len(answer.body) < 4096


@pytest.mark.parametrize("expect", [[], ["Expect: 100-continue"]])
def test_a_length_that_is_too_large_is_refused_before_the_body_comes(
    gateway: RunningGateway, expect: list[str]
) -> None:
    with Wire(gateway.address) as wire:
        wire.send(head(gateway, "POST", EXECUTE, "Content-Length: 1000000000000", *expect))
        answer = wire.answer()
        assert answer is not None
        assert answer.status == 413
        assert answer.json()["details"]["limit_nbytes"] == 256 << 20


def test_who_waits_for_100_and_is_refused_is_not_misread_afterwards(gateway: RunningGateway) -> None:
    raw = b"POST %s HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    with Wire(gateway.address) as wire:
        wire.send(raw % (EXECUTE.encode(), len(HEALTH)))
        answer = wire.answer()
        assert answer is not None
        assert answer.status == 401
        wire.send(HEALTH + HEALTH)  # its next requests; of the first, nobody can know whether it is the body
        assert wire.rest() == b""


def test_who_waits_for_100_gets_it_with_a_token(gateway: RunningGateway) -> None:
    with Wire(gateway.address) as wire:
        wire.send(head(gateway, "POST", EXECUTE, f"Content-Length: {len(BODY)}", "Expect: 100-continue"))
        first = wire.answer()
        assert first is not None
        assert first.status == 100
        wire.send(BODY)
        answer = wire.answer()
        assert answer is not None
        assert answer.json()["result"] == 42


def test_a_length_that_lies_is_no_fault_of_the_gateway(gateway: RunningGateway) -> None:
    with Wire(gateway.address) as wire:  # too large: the rest never comes
        wire.send(head(gateway, "POST", EXECUTE, "Content-Length: 500", "X-Request-ID: lying") + BODY)
        wire.socket.shutdown(socket.SHUT_WR)
        assert wire.rest() == b""
    wait_until(lambda: is_seen(gateway, "lying"))
    with Wire(gateway.address) as wire:  # too small: what is left is no request
        wire.send(head(gateway, "POST", EXECUTE, "Content-Length: 4") + BODY)
        answer = wire.answer()
        assert answer is not None
        assert answer.status == 400
        wire.rest()


# -- bodies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "empty"),
        (b"[]", "object"),
        (b"null", "object"),
        (b"[" * 1_000_000, "nested"),
        (b'{"code": "output = 1", "inputs": {"x": ' + b"[" * 5000 + b"]" * 5000 + b"}}", "nested"),
        (b'{"code": "output = 1", "inputs": {"x": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}}", "nested"),
        (b'{"code": "output = 1", "inputs": {"x": [' + b"[]," * 5_000_000 + b"1]}}", "values"),
        (b'{"code": "output = 1", "inputs": {"x": 1e400}}', "range"),
        (b'{"code": "output = 1", "inputs": {"x": NaN}}', "JSON"),
        (b'{"code": "output = 1", "inputs": {"x": 0x10}}', "JSON"),
        (b'{"code": "\xff\xfe"}', "utf-8"),
        (b'\xef\xbb\xbf{"code": "output = 1"}', "JSON"),
        (b'{"code": "\\ud800"}', "JSON"),
        (b'{"code": "output = 1"} {"code": "output = 2"}', "trailing"),
        (b'{"code": "output = 1", "code2": "output = 2"}', "code2"),
        (b'{"code": "' + b"#" * (1 << 20) + b'x"}', "1048576"),
        (b'{"algorithm": "double\\n", "inputs": {}}', "algorithm"),
        (b'{"algorithm": "../../etc/passwd"}', "algorithm"),
        (b'{"code": "output = 1", "priority": 1e30}', "priority"),
        (b'{"code": "output = 1", "priority": 99999999999999999999}', "priority"),
        (b'{"code": "output = 1", "timeout_ms": -1}', "timeout_ms"),
    ],
    ids=range(21),
)
def test_json_that_is_too_much_or_none_says_why(gateway: RunningGateway, body: bytes, said: str) -> None:
    answer = gateway.ask("POST", EXECUTE, content=body)
    assert answer.status_code == 400, answer.text[:500]
    assert said in answer.json()["error"], answer.text[:500]


def _digits(value: int) -> bytes:
    return b"1" + b"0" * 5000 if value > 10**4000 else b"%d" % value


def test_numbers_and_names_that_come_twice_have_one_meaning(gateway: RunningGateway) -> None:
    for value, status in ((2**64 - 1, 200), (-(2**63), 200), (2**64, 400), (10**400, 400), (10**5000, 400)):
        for inputs in (b'{"x": %d}', b'{"y": [{"z": %d}]}', b'{"x": {"dtype": "int64", "shape": [1], "data": [%d]}}'):
            text = inputs.replace(b"%d", _digits(value))
            answer = gateway.ask("POST", EXECUTE, content=b'{"code": "output = 1", "inputs": %s}' % text)
            assert answer.status_code in (status, 400), answer.text
    twice = gateway.ask("POST", EXECUTE, content=b'{"code": "output = 1", "code": "output = 2"}')
    assert twice.json()["result"] == 2  # the last counts


def test_a_compressed_body_is_refused_and_not_unpacked(gateway: RunningGateway) -> None:
    bomb = gzip.compress(bytes(64 * MIB))
    before_mb = resident_mb(gateway)
    for coding in ("gzip", "deflate", "br", "gzip, identity", "x", ""):
        answer = gateway.ask("POST", EXECUTE, content=bomb, headers={"content-encoding": coding})
        assert (answer.status_code, answer.json()["type"]) == (415, "UnsupportedMediaType")
    assert gateway.ask("POST", EXECUTE, content=BODY, headers={"content-encoding": "Identity"}).status_code == 200
    assert resident_mb(gateway) - before_mb < 16


@pytest.mark.parametrize("length", ["-1", "1e3", "99999999999999999999", "500", "", "²", "0x10"])
def test_a_length_of_the_json_that_lies_is_refused(gateway: RunningGateway, length: str) -> None:
    headers = {"content-type": "application/octet-stream", "tr-json-length": length.encode("latin-1")}
    answer = gateway.ask("POST", EXECUTE, content=BODY, headers=headers)
    assert answer.status_code == 400
    assert "TR-JSON-Length" in answer.json()["error"]


# -- paths and methods -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "%2e%2e",
        ".%2e",
        "%2e%2e%2f%2e%2e",
        "..%2f..%2fetc%2fpasswd",
        "%252e%252e",
        "%252e%252e%252f",
        "..%5c..",
        "%00",
        "a%00b",
        "a%0a",
        "a%0d%0aX: y".replace(" ", "%20"),
        "%7f",
        "%ff",
        "%c0%ae%c0%ae",
        "a%20b",
        "a%2fb",
        "~",
        "%7e",
        "C:",
        "a;b",
        "a" * 129,
        "%",
        "%zz",
        "aux%2e",
        "-x",
    ],
)
def test_a_name_that_is_a_way_out_names_nothing(gateway: RunningGateway, name: str) -> None:
    for method, path in (
        ("GET", ALGORITHMS),
        ("DELETE", ALGORITHMS),
        ("POST", "/api/v1/python/models"),
        ("GET", "/api/v1/store"),
        ("PUT", "/api/v1/store"),
    ):
        answer = ask_raw(gateway, head(gateway, method, f"{path}/{name}", "Content-Length: 0"))
        assert answer is not None
        assert answer.status in (400, 404)
        assert answer.json()["status_code"] == answer.status


def test_a_path_has_one_spelling_that_reaches_a_route(gateway: RunningGateway) -> None:
    for path in (
        "/api/v1/python%2falgorithms",
        "//api/v1/python/algorithms",
        "/api/v1/python/algorithms/",
        "/api/v1/./python/algorithms",
        "/api/v1/x/../python/algorithms",
        "/API/v1/python/algorithms",
    ):
        answer = ask_raw(gateway, head(gateway, "GET", path))
        assert answer is not None
        assert answer.status in (400, 404)
        assert "location" not in answer.headers


def test_methods_that_are_not_there_are_refused_and_tell_nothing(gateway: RunningGateway) -> None:
    for method in ("TRACE", "PATCH", "PROPFIND", "OPTIONS", "PUT", "LINK", "PURGE"):
        answer = ask_raw(gateway, head(gateway, method, ALGORITHMS, "X-Secret: 1234567890"))
        assert answer is not None
        assert answer.status == 405
        assert answer.headers["allow"] == "GET, HEAD, POST"
        assert b"1234567890" not in answer.body


# -- time ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway that waits for nobody."""
    with running(
        tmp_path_factory.mktemp("hasty"), server="header_timeout_s = 1\nbody_timeout_s = 1\nmax_body_mb = 1"
    ) as started:
        yield started


def test_who_sends_slowly_or_nothing_loses_the_connection(hasty: RunningGateway) -> None:
    post = f"POST {EXECUTE} HTTP/1.1\r\nHost: localhost\r\n".encode()
    slow = {
        "nothing": (b"", b""),
        "line breaks": (b"", b"\r\n"),
        "line": (b"GET /", b"a"),
        "headers": (b"GET / HTTP/1.1\r\n", b"x: y\r\n"),
        "a header": (b"GET / HTTP/1.1\r\nX: ", b"y"),
        "second": (HEALTH + b"GET /", b"a"),
        "body": (head(hasty, "POST", EXECUTE, "Content-Length: 100000"), b"x"),
        "chunks": (head(hasty, "POST", EXECUTE, "Transfer-Encoding: chunked"), b"1\r\nx\r\n"),
        "extension": (head(hasty, "POST", EXECUTE, "Transfer-Encoding: chunked") + b"1;", b"x"),
        "trailers": (head(hasty, "POST", EXECUTE, "Transfer-Encoding: chunked") + b"0\r\n", b"x: y\r\n"),
        "refused body": (post + b"Content-Length: 100000\r\n\r\n", b"x"),
    }
    wires = {name: Wire(hasty.address) for name in slow}
    for name, (begin, _) in slow.items():
        wires[name].send(begin)
    for name, status in (("second", 200), ("refused body", 401)):  # what they still owe comes slowly
        answer = wires[name].answer()
        assert answer is not None
        assert answer.status == status
    found: dict[str, int | None] = {}
    while len(found) < len(slow):
        waiting = {wire.socket: name for name, wire in wires.items() if name not in found}
        readable, _, _ = select.select(list(waiting), [], [], 0.01)
        for each in readable:
            answer = wires[waiting[each]].answer()
            found[waiting[each]] = None if answer is None else answer.status
        for each in waiting.keys() - set(readable):
            wires[waiting[each]].send(slow[waiting[each]][1])
    for wire in wires.values():
        wire.__exit__()
    assert found == {
        "nothing": None,
        "line breaks": None,
        "line": 408,
        "headers": 408,
        "a header": 408,
        "second": 408,
        "body": 408,
        "chunks": 408,
        "extension": 408,
        "trailers": 408,
        "refused body": None,
    }


def test_who_does_not_read_the_response_loses_the_connection(hasty: RunningGateway) -> None:
    body = b'{"code": "import numpy\\noutput = numpy.zeros(20 << 20, numpy.uint8)", "tensors": "base64"}'
    with Wire(hasty.address) as wire:
        wire.send(head(hasty, "POST", EXECUTE, f"Content-Length: {len(body)}") + body)
        wait_until(lambda: 'tr_refused_total{reason="slow_reader"} 1.0' in hasty.ask("GET", "/metrics").text)
        assert len(wire.rest()) < 20 << 20


def test_a_body_in_chunks_is_refused_as_soon_as_it_is_too_large(hasty: RunningGateway) -> None:
    chunk = b"%x\r\n%s\r\n" % (1 << 16, bytes(1 << 16))
    with Wire(hasty.address) as wire:
        wire.send(head(hasty, "POST", EXECUTE, "Transfer-Encoding: chunked") + chunk * 17)
        answer = wire.answer()
        assert answer is not None
        assert answer.status == 413


def test_too_many_connections_are_told_so_and_hold_nobody_up_for_long(folder: Path) -> None:
    with running(folder, server="max_connections = 4") as gateway:
        wires = [Wire(gateway.address) for _ in range(4)]
        for wire in wires:
            wire.send(HEALTH)
            assert wire.answer() is not None
        answers = [ask_raw(gateway, HEALTH) for _ in range(20)]
        for answer in answers:
            assert answer is not None
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert answer.json()["type"] == "Overloaded"
        wires[0].send(HEALTH)  # who is in goes on
        assert wires[0].answer() is not None
        for wire in wires:
            wire.__exit__()
        wait_until(lambda: (got := ask_raw(gateway, HEALTH)) is not None and got.status == 200)
        assert 'tr_refused_total{reason="connections"}' in gateway.ask("GET", "/metrics").text
