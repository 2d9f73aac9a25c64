"""A session's messages: every spelling means the same, text of any kind arrives as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import bits

from tr_mmap import BadMessage, PythonSession, RemoteError

A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.arange(6, 12, dtype=np.float32).reshape(2, 3)


SPELLINGS: list[tuple[str, Any]] = [
    ("words", "echo a b"),
    ("commas", "echo a,b"),
    ("commas and spaces", "echo  a , b "),
    ("json cmd params", '{"cmd": "echo", "params": "a,b"}'),
    ("json command parameters", '{"command": "echo", "parameters": "a b"}'),
    ("json mixed", ' {"cmd": "echo", "parameters": "a b"}'),
    ("json list", '{"cmd": "echo", "params": ["a", "b"]}'),
    ("dict", {"cmd": "echo", "params": "a,b"}),
    ("dict, long", {"command": "echo", "parameters": "a b"}),
]


@pytest.mark.parametrize("message", [each[1] for each in SPELLINGS], ids=[each[0] for each in SPELLINGS])
def test_a_message_means_the_same_in_every_spelling(mapped: PythonSession, message: Any) -> None:
    mapped.send_tensor(A, "a")
    mapped.send_tensor(B, "b")
    first, second = mapped.fetch_tensor(message)
    assert bits(first) == bits(A)
    assert bits(second) == bits(B)


def test_words_json_and_tensors_cross_either_channel(session: PythonSession) -> None:
    session.send_tensor(A, "a")
    assert session.fetch_response("hello my world") == "Hello My World"
    assert session.fetch_response('{"cmd": "hello", "params": "json"}') == "Hello Json"
    assert bits(session.fetch_tensor("echo a")) == bits(A)
    assert bits(session.calculate("scale 2.5", A)) == bits(A * np.float32(2.5))


def test_parameters_may_be_left_out(mapped: PythonSession) -> None:
    assert mapped.fetch_response("hello") == "Hello World"
    assert mapped.fetch_response({"cmd": "hello"}) == "Hello World"
    assert mapped.fetch_response({"cmd": "hello", "params": None}) == "Hello World"


@pytest.mark.parametrize("message", ["", "   ", "{}", '{"params": "a"}', '{"cmd": ""}', '{"cmd": 3}', '{"cmd": "echo"'])
def test_a_message_without_a_command_is_refused_before_it_is_sent(mapped: PythonSession, message: str) -> None:
    with pytest.raises(BadMessage):
        mapped.send_request(message)
    with pytest.raises(BadMessage):
        mapped.fetch_tensor(message)
    with pytest.raises(BadMessage):
        mapped.calculate(message, A)


def test_a_megabyte_of_text_goes_both_ways(session: PythonSession) -> None:
    text = "".join(f"{number:07d} " for number in range(131072))[:-1]
    assert session.fetch_response({"cmd": "say", "params": text}) == text
    assert session.fetch_response("hello small") == "Hello Small"
    assert session.fetch_response("repeat ab 500000") == "ab" * 500_000


def test_text_of_any_characters_arrives_as_it_was(mapped: PythonSession) -> None:
    odd = ['"quotes" \\ and {"braces": 1}', "zażółć 日本 😀 \u2028 \u0085", "a\nb\tc\rd", "nul \0 inside", "e\u0301"]
    for text in odd:
        assert mapped.fetch_response({"cmd": "say", "params": text}) == text


@given(text=st.text(min_size=1))
@settings(max_examples=200, deadline=None)
def test_any_text_arrives_as_it_was(shared_mapped: PythonSession, text: str) -> None:
    assert shared_mapped.fetch_response({"cmd": "say", "params": text}) == text


@pytest.mark.parametrize("message", ["fail_surrogate", "say_surrogate"])
def test_text_that_no_file_can_hold_is_an_error_not_the_workers_end(session: PythonSession, message: str) -> None:
    with pytest.raises(RemoteError):
        session.fetch_response(message)


def test_lone_surrogates_are_refused_not_lost(mapped: PythonSession) -> None:
    with pytest.raises(BadMessage):
        mapped.fetch_response({"cmd": "say", "params": "\ud800"})


@pytest.mark.parametrize("nbytes", [900, 1000, 1024, 1100, 65_400, 65_504, 65_536, 65_600])
def test_text_around_the_size_of_a_page_arrives_whole(mapped: PythonSession, nbytes: int) -> None:
    for count in range(nbytes - 40, nbytes + 40, 3):
        text = "x" * count
        assert mapped.fetch_response({"cmd": "say", "params": text}) == text
