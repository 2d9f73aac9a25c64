"""Texts of the legacy dialect arrive at readers with a JSON parser, and at those that search for a quote."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tr_mmap.errors import BadMessage
from tr_mmap.protocol.legacy import (
    decode_legacy_request,
    decode_legacy_response,
    encode_legacy,
    results_of,
    silence_of,
)
from tr_mmap.protocol.messages import Failure, FailureKind, Request, Response
from tr_mmap.protocol.status import Status, StatusLine

OK = StatusLine(Status.OK)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
WORDS = st.text("abcxyz_0123456789", min_size=1)
HARD = [
    '"',
    "\\",
    '\\"',
    '\\\\"',
    'a "b" c',
    '", "params": "x',
    "\n",
    "\r\n",
    "\t",
    "\0",
    "ż😀",
    "{}",
    "C:\\temp\\new",
    "",
]


def examples(name: str) -> object:
    def add(test: object) -> object:
        for text in HARD:
            test = example(**{name: text})(test)  # type: ignore[arg-type]
        return test

    return add


def raw_read(message: bytes, key: str = "params") -> str:
    """As the reader of the original framework: from the key's quote to the next one, nothing unescaped."""
    text = message.decode()
    start = text.index(f'"{key}": "') + len(key) + 5
    return text[start : text.index('"', start)]


def raw_write(command: str, params: str) -> bytes:
    """As a writer of that time that escapes nothing."""
    return ('{"cmd": "' + command + '", "params": "' + params + '"}').encode()


def responses(text: str) -> list[Response]:
    failure = Failure(FailureKind.HANDLER, "ValueError", text, traceback=text)
    return [
        Response(1, text, text, text),
        Response(1, "say", "error", error=failure),
    ]


@given(text=TEXTS)
@examples("text")
def test_a_text_of_ours_arrives_exactly_at_a_json_parser_and_whole_at_a_searching_reader(text: str) -> None:
    for message in (Request(1, "say", text), *responses(text)):
        data = encode_legacy(message)
        found = json.loads(data)
        wanted = found["params"]
        assert wanted in (text, f"error: {text}")
        assert json.loads(f'"{raw_read(data)}"') == wanted  # nothing is cut
        if not set(wanted) & {'"', "\\"} and all(character >= " " for character in wanted):
            assert raw_read(data) == wanted
        assert len(data.splitlines()) == 1
        assert raw_read(data, "cmd") == json.dumps(found["cmd"], ensure_ascii=False)[1:-1].replace('\\"', "\\u0022")


@given(text=TEXTS)
@examples("text")
def test_what_a_json_writer_of_any_kind_writes_is_read_exactly(text: str) -> None:
    for ascii_only in (True, False):
        data = json.dumps({"cmd": "say", "params": text}, ensure_ascii=ascii_only).encode()
        assert decode_legacy_request(data) == Request(command="say", parameters=text)
        assert decode_legacy_response(data, 1, "say", OK).result == text


@given(text=TEXTS)
@examples("text")
def test_what_a_writer_that_escapes_nothing_writes_is_read_as_its_own_reader_would(text: str) -> None:
    data = raw_write("say", text)
    try:
        wanted = json.loads(data, strict=True)["params"]
    except ValueError:
        wanted = raw_read(data)
    else:
        if '"params"' in text:
            wanted = raw_read(data)
    assert decode_legacy_response(data, 1, "say", OK).result == wanted
    if '"params"' not in text and '"cmd"' not in text:  # a request that says two things is refused
        assert decode_legacy_request(data).parameters == wanted


@given(raw=st.binary() | TEXTS.map(str.encode) | TEXTS.map(lambda text: raw_write("x", text)[: len(text)]))
def test_whatever_lies_there_is_read_or_refused_and_never_breaks_the_reader(raw: bytes) -> None:
    silence_of(raw)
    assert all(isinstance(word, str) for word in results_of(raw))
    for read in (decode_legacy_request, lambda raw: decode_legacy_response(raw, 1, "x", OK)):
        try:
            message = read(raw)
        except BadMessage:
            continue
        else:
            assert message.command


@given(command=WORDS, words=st.lists(WORDS))
def test_command_words_mean_the_same_in_every_form(command: str, words: list[str]) -> None:
    wanted = Request(command=command, parameters=" ".join(words))
    plain = " ".join([command, *words])
    for text in (
        plain,
        plain + "\n",
        f" {plain}\r\n",
        f"\0{plain}\0",
        json.dumps(plain),
        json.dumps({"cmd": command, "params": " ".join(words)}),
        json.dumps({"command": command, "parameters": words}),
        json.dumps(json.dumps({"cmd": command, "parameters": words})),
    ):
        assert decode_legacy_request(text.encode()) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "{",
        '{"cmd": "x"',
        '{"params": "x"}',
        '{"cmd": ""}',
        '{"cmd": 3}',
        "[1]",
        '["hello"]',
        '"',
        '""',
        '"a',
        "\xff",
    ],
)
def test_what_begins_as_json_is_a_request_or_an_error(text: str) -> None:
    with pytest.raises(BadMessage):
        decode_legacy_request(text.encode("latin-1"))


@pytest.mark.parametrize(
    ("text", "is_at_once"),
    [
        ('{"seq": 1, "command"', True),  # ours are put in place whole
        ('{"cmd": "x"}', True),
        ('{"cmd": "x"}\n', True),
        ("hello\n", True),
        ("5\n", True),
        ('"hello"', True),
        ("hello", False),
        ('{"cmd": "say "x""}', False),
        ('{"cmd": "x"', False),
        ("", False),
        ('"hel', False),
    ],
)
def test_a_text_is_taken_at_once_only_if_no_more_of_it_can_come(text: str, is_at_once: bool) -> None:
    assert (silence_of(text.encode()) == 0) is is_at_once
