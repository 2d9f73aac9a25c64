"""Messages: every spelling is read, nothing but BadMessage comes of garbage, all come back as they were."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from outcomes import outcome
from support import ROOT

from tr_mmap.errors import BadMessage
from tr_mmap.protocol.commands import parse_command, split_words
from tr_mmap.protocol.messages import (
    Failure,
    FailureKind,
    Request,
    Response,
    TensorRef,
    decode_request,
    decode_response,
    encode,
    now_ms,
)
from tr_mmap.wire.messages import MAX_MESSAGE_SEQ

DEPTHS = (50, 500, 900, 990, 1000, 10_000, 100_000)

# --- commands ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "command", "parameters"),
    [
        ("matmul a b", "matmul", "a b"),
        ("matmul", "matmul", ""),
        ("  matmul  a,b  ", "matmul", "a,b"),
        ("matmul\ta\nb", "matmul", "a\nb"),
        ("matmul\n", "matmul", ""),
        ("hello  two  spaces", "hello", "two  spaces"),
        ("größe 漢字 🙂", "größe", "漢字 🙂"),
        ('say {"cmd": "x"}', "say", '{"cmd": "x"}'),
        ("[a] b", "[a]", "b"),
        ('{"cmd": "matmul", "params": "a,b"}', "matmul", "a,b"),
        ('{"command": "matmul", "parameters": "a,b"}', "matmul", "a,b"),
        ('{"cmd": "matmul", "parameters": "a,b"}', "matmul", "a,b"),
        ('{"command": "matmul", "params": "a,b"}', "matmul", "a,b"),
        (' \n{"cmd": "matmul"}\n', "matmul", ""),
        ('{"cmd": " matmul ", "params": null}', "matmul", ""),
        ('{"cmd": "matmul", "params": ""}', "matmul", ""),
        ('{"cmd": "matmul", "params": []}', "matmul", ""),
        ('{"cmd": "matmul", "params": ["a", "b", 3, 0.5, true]}', "matmul", "a b 3 0.5 True"),
        ('{"cmd": "matmul", "params": 3}', "matmul", "3"),
        ('{"cmd": "matmul", "params": -0.5}', "matmul", "-0.5"),
        ('{"cmd": "a", "command": "a", "params": "b", "parameters": "b"}', "a", "b"),
        ('{"cmd": "a", "more": {"x": [1, 2]}, "seq": 5}', "a", ""),
    ],
)
def test_every_spelling_of_a_command_is_read(message: str, command: str, parameters: str) -> None:
    assert parse_command(message) == (command, parameters)
    if message.strip().startswith("{"):
        assert parse_command(json.loads(message)) == (command, parameters)
        asked = decode_request(message.encode())
        assert (asked.command, asked.parameters) == (command, parameters)


@pytest.mark.parametrize("word", ["", " ", "a b", "a  b,c", "a,b", ",", " a", "a\n", "a\u00a0b", "a\u2003b", "\x1c"])
@pytest.mark.parametrize("kind", [list, tuple])
def test_an_element_of_a_list_is_one_word_or_refused_by_what_it_is(word: str, kind: Any) -> None:
    for message in ({"cmd": "f", "params": kind(["x", word])}, json.dumps({"cmd": "f", "params": ["x", word]})):
        with pytest.raises(BadMessage, match="is not one word") as caught:
            parse_command(message)
        assert repr(word) in str(caught.value)
    assert parse_command({"cmd": "f", "params": word}) == ("f", word)


def test_scalars_of_numpy_are_numbers() -> None:
    numbers = [np.int64(5), np.float32(2), np.float64(0.1), np.uint8(7), np.bool_(True), np.float32(0.1)]
    assert parse_command({"cmd": "f", "params": numbers}) == ("f", "5 2.0 0.1 7 True 0.1")
    assert parse_command({"cmd": "f", "params": np.int16(-3)}) == ("f", "-3")
    for other in (np.complex64(1), np.array([1]), np.datetime64(1, "s"), b"a"):
        with pytest.raises(BadMessage):
            parse_command({"cmd": "f", "params": [other]})


def test_a_mapping_may_hold_a_tuple_of_words() -> None:
    assert parse_command({"cmd": "matmul", "params": ("a", "b")}) == ("matmul", "a b")


@pytest.mark.parametrize(
    "message",
    [
        '{"cmd": "a", "command": "b"}',
        '{"cmd": null, "command": "b"}',
        '{"cmd": "a", "params": "b", "parameters": "c"}',
        '{"cmd": "a", "params": null, "parameters": "c"}',
        '{"cmd": "a", "params": ["b"], "parameters": "b"}',
        '{"params": "a"}',
        "{}",
        '{"cmd": ""}',
        '{"cmd": " "}',
        '{"cmd": null}',
        '{"cmd": 3}',
        '{"cmd": ["a"]}',
        '{"cmd": "a", "params": {"b": 1}}',
        '{"cmd": "a", "params": [["b"]]}',
        '{"cmd": "a", "params": [null]}',
        '{"cmd": "a", "params": [{"b": 1}]}',
        '{"Command": "a"}',
    ],
)
def test_an_object_without_one_clear_command_is_refused(message: str) -> None:
    for action in (
        lambda: parse_command(message),
        lambda: parse_command(json.loads(message)),
        lambda: decode_request(message.encode()),
    ):
        with pytest.raises(BadMessage):
            action()


@pytest.mark.parametrize(
    "message",
    [
        "",
        " \t\n",
        "{",
        "{]",
        '{"cmd": "a"',
        '{"cmd": "a"} {"cmd": "b"}',
        '{"cmd": "a", "params": NaN}',
        '{"cmd": "a", "params": Infinity}',
        '{"cmd": "a", "params": 1e999}',
        "{'cmd': 'a'}",
        '{"cmd": "\\ud800"}',
        '{"cmd": "\ud800"}',
        '{"cmd": "a", "params": %s}' % ("9" * 5000),
        '{"cmd": "a", "params": [%s]}' % ("9" * 5000),
        '{"cmd": "a\nb"}',
    ],
    ids=range(15),
)
def test_text_that_is_no_message_is_refused(message: str) -> None:
    with pytest.raises(BadMessage):
        parse_command(message)
    with pytest.raises(BadMessage):
        decode_request(message.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize(
    "value", [10**5000, [10**5000], [b"a"], b"a", object(), {"a": 1}, [None], math.nan, 1j], ids=range(9)
)
def test_a_mapping_of_other_things_is_refused_or_written(value: Any) -> None:
    try:
        command, parameters = parse_command({"cmd": "a", "params": value})
    except BadMessage:
        return
    assert (command, parameters) == ("a", "nan")


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(
    "form", ['{"cmd":"a","params":%s%s}', '{"command":"a","x":%s%s}', "%s%s", '{"seq":1,"tensors":%s%s}']
)
def test_deep_nesting_is_never_more_than_a_bad_message(form: str, depth: int) -> None:
    for opening, closing in ("[]", ('{"x":', "}")):
        inner = "" if opening == "[" else "1"
        text = form % (opening * depth + inner, closing * depth)
        for action in (
            lambda text=text: decode_request(text.encode()),
            lambda text=text: decode_response(text.encode()),
            lambda text=text: parse_command(text),
        ):
            found = outcome(action)
            assert not isinstance(found, BadMessage) or len(str(found)) < 1000


def test_a_deep_mapping_is_a_bad_message() -> None:
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    with pytest.raises(BadMessage):
        parse_command({"cmd": "a", "params": deep})
    while deep:  # freeing it all at once would recurse
        deep = deep.pop()


@given(st.text() | st.from_regex(r"\{.*\}"))
@settings(deadline=None, max_examples=300)
@example("{")
def test_any_text_is_a_command_or_a_bad_message(text: str) -> None:
    try:
        command, parameters = parse_command(text)
    except BadMessage:
        return
    assert command
    assert command == command.strip()
    assert command in text or text.lstrip().startswith("{")
    assert parameters.strip() == parameters or text.lstrip().startswith("{")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["seq", "command", "cmd", "parameters", "params", "timestamp", "tensors", "drops", "result", "message", "error"]
)
OBJECTS = st.dictionaries(FIELDS, JSON | st.sampled_from(["a", "a b", ["a"], [["a", "s", 1]], {"kind": "handler"}]))


@given(st.binary() | st.binary().map(lambda raw: b'{"cmd":"' + raw + b'"}') | OBJECTS.map(json.dumps).map(str.encode))
@settings(deadline=None, max_examples=500)
@example(b'{"command":"\xff"}')
@example(b'{"x":"\xff","cmd":"a"}')
@example(b"\xef\xbb\xbf{}")
@example(b"")
def test_any_bytes_are_a_message_or_a_bad_message(raw: bytes) -> None:
    for decode in (decode_request, decode_response):
        found = outcome(lambda decode=decode: decode(raw))
        if isinstance(found, BadMessage):
            assert len(str(found)) < 1000
        else:
            assert decode(encode(found)) == found


@given(OBJECTS)
@settings(deadline=None, max_examples=300)
def test_any_mapping_is_a_command_or_a_bad_message(fields: dict[str, Any]) -> None:
    try:
        command, parameters = parse_command(fields)
    except BadMessage:
        return
    assert command.strip() == command != ""
    assert isinstance(parameters, str)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ("", []),
        (" , ,, ", []),
        ("a b", ["a", "b"]),
        ("a,b", ["a", "b"]),
        (" a ,\tb\n, c ", ["a", "b", "c"]),
        ("a\tb  c", ["a", "b", "c"]),
    ],
)
def test_words_are_separated_by_spaces_or_commas(parameters: str, words: list[str]) -> None:
    assert split_words(parameters) == words


@given(st.lists(st.text(st.characters(exclude_categories=["Z", "C"], exclude_characters=","), min_size=1)))
@settings(deadline=None)
def test_words_come_back_from_either_separator(words: list[str]) -> None:
    for separator in (" ", ",", ", ", " , "):
        assert split_words(separator.join(words)) == words


# --- round trips ------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
WORD = TEXT.filter(lambda text: text.strip() == text != "")
REFS = st.lists(st.builds(TensorRef, TEXT, TEXT, st.integers(0, 2**64 - 1)), max_size=4)
SEQ = st.integers(0, MAX_MESSAGE_SEQ)
WHEN = st.integers(0, 2**62)


@given(st.builds(Request, SEQ, WORD, TEXT, WHEN, REFS, st.lists(TEXT, max_size=4)))
@settings(deadline=None, max_examples=200)
def test_requests_come_back_as_they_were(request: Request) -> None:
    raw = encode(request)
    assert decode_request(raw) == request
    fields = json.loads(raw)
    assert fields.get("command") == request.command
    assert fields.get("parameters", "") == request.parameters
    if request.seq:
        assert raw.startswith(b'{"seq":%d' % request.seq)  # where the mapped channel looks for it


FAILURES = st.builds(Failure, st.sampled_from(FailureKind), TEXT, TEXT, TEXT)


@given(st.builds(Response, SEQ, TEXT, TEXT, TEXT, WHEN, REFS, st.none() | FAILURES))
@settings(deadline=None, max_examples=200)
def test_responses_come_back_as_they_were(response: Response) -> None:
    raw = encode(response)
    assert decode_response(raw) == response
    assert json.loads(raw).get("result", "") == response.result


@given(st.builds(Request, st.just(1), WORD, TEXT, WHEN, REFS))
@settings(deadline=None)
def test_a_request_in_the_other_spelling_is_the_same_request(request: Request) -> None:
    fields = json.loads(encode(request))
    other = {{"command": "cmd", "parameters": "params"}.get(key, key): value for key, value in fields.items()}
    assert decode_request(json.dumps(other).encode()) == request


def test_unknown_members_are_passed_over() -> None:
    assert decode_request(b'{"command":"a","later":[1]}') == Request(command="a")
    assert decode_response(b'{"result":"a","later":[1]}') == Response(result="a")


@pytest.mark.parametrize("field", ["command", "parameters"])
def test_what_is_no_text_cannot_be_sent(field: str) -> None:
    with pytest.raises(BadMessage):
        encode(Request(1, **{field: os.fsdecode(b"\xff")}))


def test_messages_do_not_share_their_lists() -> None:
    decode_request(b'{"command":"a"}').tensors.append(TensorRef("a", "b", 1))
    Request().drops.append("a")
    assert decode_request(b'{"command":"a"}') == Request(command="a")
    assert Request().drops == []


def test_timestamps_are_milliseconds_since_1970() -> None:
    before = time.time()
    assert int(before * 1000) <= now_ms() <= time.time() * 1000


SHORT_OF_MEMORY = """
import resource, sys
from tr_mmap.errors import SystemLimit
from tr_mmap.protocol.messages import Request, Response, encode
text = "x" * (8 << 20)
message = Request(command="hello", parameters=text) if sys.argv[1] == "request" else Response(result=text)
mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + (int(sys.argv[2]) << 20), -1))
try:
    print(len(encode(message)) > len(text))
except SystemLimit as error:
    print(error.limit)
"""


@pytest.mark.parametrize("what", ["request", "response"])
@pytest.mark.parametrize("left", [1, 4, 9, 12, 15, 20, 26, 200])
def test_a_long_text_that_has_no_memory_is_refused_by_the_limit_it_met(what: str, left: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY, what, str(left)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.strip() == ("True" if left == 200 else "RLIMIT_AS")
