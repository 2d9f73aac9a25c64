"""Which words of a request go where, if a partial has given parameters, or if a word is the tag of a tensor too."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from support import script

from tr_mmap import BadMessage, MissingTag, PythonSession, RemoteError
from tr_mmap.worker.binding import Command

TAGS = {"a": "tensor a", "w": "tensor w", "5": "tensor 5", "true": "tensor true", "$0": "tensor $0"}


def bound(function: Callable[..., Any], parameters: str) -> Any:
    arguments, named = Command("do", function).bind(parameters, TAGS, lambda tag, _: TAGS[tag], "numpy")
    return function(*arguments, **named)


# -- partial ---------------------------------------------------------------------------------------------------------


def scale(x: Any, factor: float = 2.0, bias: float = 0.0) -> Any:
    return x, factor, bias


def three_words(first: int, second: int = 2, third: int = 3, *, named: int = 4) -> Any:
    return first, second, third, named


def two_words(first: str, second: str) -> Any:
    return first, second


def tensor_last(factor: float, x: Any) -> Any:
    return factor, x


def rest(first: str, second: str = "2", *others: str) -> Any:
    return first, second, others


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        return function(*arguments, **named)

    call.__wrapped__ = function  # type: ignore[attr-defined] # what functools.wraps does, but a partial has no name
    return call


@pytest.mark.parametrize(
    ("function", "parameters", "result"),
    [
        (functools.partial(scale, factor=0.5), "a", ("tensor a", 0.5, 0.0)),
        (functools.partial(scale, bias=1.0), "a", ("tensor a", 2.0, 1.0)),
        (functools.partial(scale, bias=1.0), "a 3", ("tensor a", 3.0, 1.0)),
        (functools.partial(three_words, second=7), "1", (1, 7, 3, 4)),
        (functools.partial(three_words, second=7), "1 9", (1, 7, 3, 9)),  # a parameter by name only is as it was
        (functools.partial(three_words, named=7), "1 8 9", (1, 8, 9, 7)),
        (functools.partial(three_words, 7), "8 9", (7, 8, 9, 4)),
        (functools.partial(tensor_last, factor=0.5), "a", (0.5, "tensor a")),
    ],
)
def test_a_partial_gives_what_it_gives_and_words_go_where_a_call_could_give_them(
    function: Any, parameters: str, result: Any
) -> None:
    assert bound(function, parameters) == result


@pytest.mark.parametrize(
    ("function", "parameters", "words"),
    [
        (functools.partial(scale, factor=0.5), "a 3", "takes 0 words and got 1"),
        (functools.partial(scale, factor=0.5), "a 3 1", "takes 0 words and got 2"),
        (functools.partial(scale, bias=1.0), "a 3 6", "takes 1 words and got 2"),
        (functools.partial(functools.partial(scale, bias=1.0), factor=0.5), "a 3", "takes 0 words and got 1"),
        (wrapped(functools.partial(scale, factor=0.5)), "a 3", "takes 0 words and got 1"),
        (functools.partial(wrapped(scale), factor=0.5), "a 3", "takes 0 words and got 1"),
        (functools.partial(three_words, second=7), "1 9 9", "takes 2 words and got 3"),
        (functools.partial(tensor_last, factor=0.5), "3 a", "takes 0 words and got 1"),
    ],
)
def test_a_word_beyond_those_that_a_partial_leaves_is_one_too_many(function: Any, parameters: str, words: str) -> None:
    with pytest.raises(BadMessage, match=words):
        bound(function, parameters)


def test_a_word_that_a_partial_leaves_no_way_to_give_is_refused_when_the_function_is_registered() -> None:
    with pytest.raises(BadMessage, match=r"no word can be given to second.*give second in the partial too"):
        Command("do", functools.partial(two_words, first="1"))


# -- words that are tags ---------------------------------------------------------------------------------------------


def save(name: str, overwrite: bool = False) -> Any:
    return name, overwrite


def save_as(name: str, form: str = "tsr") -> Any:
    return name, form


def named(x: Any, name: str) -> Any:
    return x, name


def name_first(name: str, x: Any) -> Any:
    return name, x


def several(*names: str) -> Any:
    return names


def number_or_name(which: int | str, count: int = 1) -> Any:
    return which, count


def choice(which: Literal["w", "v"], count: int = 1) -> Any:
    return which, count


def numbers(count: int, times: int = 1) -> Any:
    return count, times


def labelled(label: str, *tensors: Any) -> Any:
    return label, tensors


@pytest.mark.parametrize(
    ("function", "parameters", "result"),
    [
        (save, "w", ("w", False)),
        (save, "w true", ("w", True)),
        (save, "w no", ("w", False)),
        (save_as, "w", ("w", "tsr")),
        (save_as, "w npy", ("w", "npy")),
        (save_as, "w a", ("w", "a")),
        (named, "a w", ("tensor a", "w")),
        (named, "a w and w", ("tensor a", "w and w")),
        (named, "w $0", ("tensor $0", "w")),  # calculate("named w", x)
        (name_first, "w a", ("w", "tensor a")),
        (several, "w", ("w",)),
        (several, "w x a", ("w", "x", "a")),
        (number_or_name, "w", ("w", 1)),
        (number_or_name, "5", (5, 1)),
        (number_or_name, "w 5", ("w", 5)),
        (choice, "w", ("w", 1)),
        (choice, "w 5", ("w", 5)),
        (labelled, "x w a", ("x", ("tensor w", "tensor a"))),  # it takes any number of tensors
    ],
)
def test_a_tag_is_a_word_where_the_function_takes_no_more_tensors(function: Any, parameters: str, result: Any) -> None:
    assert bound(function, parameters) == result


@pytest.mark.parametrize(
    ("function", "parameters", "words"),
    [
        (numbers, "3 w", "takes 0 tensors and got 1"),  # no parameter takes any word
        (save, "$0", "takes 0 tensors and got 1"),  # the tensor of a calculate(), which nobody has named
        (several, "x $0", "takes 0 tensors and got 1"),
        (named, "a w $0 $0 $0", "takes 1 tensor and got 3"),
        (save, "w w", "overwrite is 'w', which is no bool"),
    ],
)
def test_a_tensor_too_many_is_said_to_be_one(function: Any, parameters: str, words: str) -> None:
    with pytest.raises(BadMessage, match=words):
        bound(function, parameters)


def test_a_word_in_place_of_a_tensor_is_still_a_missing_tag() -> None:
    with pytest.raises(MissingTag, match="'b'"):
        bound(lambda x: x, "b")


WORKER = """
from tr_mmap import Server
server = Server()

@server.command("save")
def save(name: str, overwrite: bool = False):
    return f"{name} {overwrite}"

server.run()
"""


@pytest.mark.parametrize("channel", ["mapped", "files", "legacy"])
def test_a_name_stays_a_name_when_a_tensor_of_that_name_is_sent(tmp_path: Path, channel: Any) -> None:
    with PythonSession(script(tmp_path, WORKER), quiet_mode=True, channel=channel) as session:
        assert session.fetch_response("save w") == "w False"
        session.send_tensor(np.ones(2, np.float32), "w")
        assert session.fetch_response("save w") == "w False"
        assert session.fetch_response("save w true") == "w True"
        if channel != "legacy":  # where a tensor's name is as any other word
            with pytest.raises(RemoteError, match="takes 0 tensors and got 1"):
                session.calculate("save", np.ones(2, np.float32))
