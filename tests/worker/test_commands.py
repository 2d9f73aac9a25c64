"""Binding the words of a request to the parameters of a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tr_mmap import Server
from tr_mmap.errors import BadMessage, MissingTag
from tr_mmap.worker.binding import Command

if TYPE_CHECKING:
    from somewhere import Unimportable

TAGS = {"a": "tensor a", "b": "tensor b", "c": "tensor c", "7": "tensor 7"}


def bound(function: Callable[..., Any], parameters: str) -> Any:
    """What the function returns when it is called for the text; a tensor is the text ``tensor <tag>``."""
    command = Command("do", function)
    arguments, named = command.bind(parameters, TAGS, lambda tag, _: TAGS[tag], "numpy")
    return function(*arguments, **named)


def nothing() -> Any:
    return ()


def two(x: Any, y: Any) -> Any:
    return x, y


def annotated(x: np.ndarray, y: np.ndarray) -> Any:
    return x, y


def unresolvable(x: Unimportable, factor: float, y: Unimportable) -> Any:
    return x, factor, y


def optional(x: Any, y: Any = None) -> Any:
    return x, y


def many(*tensors: Any) -> Any:
    return tensors


def one_and_more(x: Any, *more: Any) -> Any:
    return x, more


def sentence(text: str) -> Any:
    return text


def greeting(name: str = "world") -> Any:
    return name


def scale(x: Any, factor: float) -> Any:
    return x, factor


def leading(factor: int, x: Any) -> Any:
    return factor, x


def default(x: Any, factor: float = 2.0, y: Any = None) -> Any:
    return x, factor, y


def mixed(x: Any, n: int, flag: bool, label: str, y: Any) -> Any:
    return x, n, flag, label, y


def counted(n: int, *tensors: Any) -> Any:
    return n, tensors


def counted_or_not(x: Any, n: int = 5, *tensors: Any) -> Any:
    return x, n, tensors


def keyword(x: Any, *, n: int = 5) -> Any:
    return x, n


def positional_only(x: Any, n: int, /) -> Any:
    return x, n


def string_hints(x: Any, n: int) -> Any:  # every hint of this module is a string
    return x, n


@pytest.mark.parametrize(
    ("function", "parameters", "result"),
    [
        (nothing, "", ()),
        (two, "a b", ("tensor a", "tensor b")),
        (two, "b,a", ("tensor b", "tensor a")),
        (two, " a ,, a ", ("tensor a", "tensor a")),
        (annotated, "a b", ("tensor a", "tensor b")),
        (unresolvable, "a 1.5 b", ("tensor a", 1.5, "tensor b")),
        (optional, "a", ("tensor a", None)),
        (optional, "a b", ("tensor a", "tensor b")),
        (many, "", ()),
        (many, "a b c a", ("tensor a", "tensor b", "tensor c", "tensor a")),
        (one_and_more, "a", ("tensor a", ())),
        (one_and_more, "a b c", ("tensor a", ("tensor b", "tensor c"))),
        (sentence, "hello, a and b", "hello, a and b"),
        (sentence, "a", "a"),  # a sentence is text, whatever the tags
        (greeting, "", "world"),
        (greeting, "you all", "you all"),
        (scale, "a 2.5", ("tensor a", 2.5)),
        (scale, "2.5,a", ("tensor a", 2.5)),
        (scale, "a 7", ("tensor a", 7.0)),  # a number, although there is a tensor of that tag
        (scale, "7 7", ("tensor 7", 7.0)),
        (leading, "7 7", (7, "tensor 7")),
        (scale, "7 2", ("tensor 7", 2.0)),
        (scale, "a -inf", ("tensor a", float("-inf"))),
        (leading, "a 3", (3, "tensor a")),
        (default, "a", ("tensor a", 2.0, None)),
        (default, "a b", ("tensor a", 2.0, "tensor b")),  # a tensor never fills a number's place
        (default, "a 3", ("tensor a", 3.0, None)),
        (default, "b 3 a", ("tensor b", 3.0, "tensor a")),
        (mixed, "a 4 yes some more words b", ("tensor a", 4, True, "some more words", "tensor b")),
        (mixed, "a b 4 FALSE x", ("tensor a", 4, False, "x", "tensor b")),
        (counted, "3", (3, ())),
        (counted, "3 a b", (3, ("tensor a", "tensor b"))),
        (counted_or_not, "a b c", ("tensor a", 5, ("tensor b", "tensor c"))),
        (counted_or_not, "a 2 b", ("tensor a", 2, ("tensor b",))),
        (keyword, "a", ("tensor a", 5)),
        (positional_only, "a 3", ("tensor a", 3)),
        (string_hints, "a 3", ("tensor a", 3)),
        (two, "7 a", ("tensor 7", "tensor a")),
        (lambda x: x, "a", "tensor a"),
    ],
)
def test_words_go_where_they_belong(function: Callable[..., Any], parameters: str, result: Any) -> None:
    assert bound(function, parameters) == result


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (nothing, "a"),
        (two, ""),
        (two, "a"),
        (two, "a b c"),
        (optional, ""),
        (optional, "a b c"),
        (one_and_more, ""),
        (sentence, ""),
        (scale, ""),
        (scale, "a"),
        (scale, "a x"),
        (scale, "a 1 2"),
        (scale, "a b 1"),
        (leading, "a 1.5"),
        (leading, "a " + "9" * 5000),
        (mixed, "a b 4 maybe x"),
        (mixed, "a b 4 yes"),
        (counted, ""),
        (counted, "a"),
    ],
)
def test_too_few_too_many_and_no_numbers_are_bad_messages(function: Callable[..., Any], parameters: str) -> None:
    with pytest.raises(BadMessage, match=r"^do\b") as caught:
        bound(function, parameters)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("function", "parameters", "tag"),
    [(two, "a x", "x"), (two, "x y", "x"), (many, "a x", "x"), (nothing, "x", "x"), (scale, "x 2.5", "x")],
)
def test_a_tag_that_was_never_sent_is_named(function: Callable[..., Any], parameters: str, tag: str) -> None:
    with pytest.raises(MissingTag) as caught:
        bound(function, parameters)
    assert caught.value.tag == tag
    assert str(caught.value).startswith("do: ")


def test_tensors_are_fetched_only_when_all_words_fit() -> None:
    fetched: list[tuple[str, str]] = []
    for function, parameters in ((scale, "a x"), (two, "a"), (mixed, "a b 1 maybe x")):
        with pytest.raises(BadMessage):
            Command("do", function).bind(parameters, TAGS, lambda *of: fetched.append(of), "numpy")
    assert fetched == []


def test_a_bound_method_is_a_function() -> None:
    class Model:
        def run(self, x: Any, n: int) -> Any:
            return x, n

    assert bound(Model().run, "a 3") == ("tensor a", 3)


@given(st.text(max_size=40), st.sampled_from([two, many, scale, mixed, default, counted, greeting, sentence]))
@settings(deadline=None, max_examples=300)
def test_any_text_is_bound_or_refused(text: str, function: Callable[..., Any]) -> None:
    try:
        bound(function, text)
    except (BadMessage, MissingTag):
        pass


@given(st.permutations(["a", "b", "4", "yes", "word"]).filter(lambda words: words.index("4") < words.index("yes")))
@settings(deadline=None)
def test_tensors_and_other_words_may_be_interleaved_in_any_way(words: list[str]) -> None:
    tensors = [f"tensor {word}" for word in words if word in TAGS]
    others = [word for word in words if word not in TAGS]
    if others == ["4", "yes", "word"]:
        assert bound(mixed, " ".join(words)) == (tensors[0], 4, True, "word", tensors[1])


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [nothing, 3, None, b"do", ["do"]])
def test_what_is_no_name_is_refused_with_the_line_to_write(name: Any) -> None:
    with pytest.raises(BadMessage, match=r'write @server\.command\("name"\)'):
        Server().command(name)


@pytest.mark.parametrize(
    "name", ["", " ", "two words", "do ", "tab\tbed", "exit", "$release", "{do", "{", "\ud800", "a\0", "\0"]
)
def test_a_name_that_no_message_could_say_is_refused(name: str) -> None:
    with pytest.raises(BadMessage, match="cannot name a command"):
        Server().command(name)


def test_a_name_is_given_once() -> None:
    server = Server()
    server.command("do")(nothing)
    with pytest.raises(BadMessage, match=r"^'do' cannot name a command: it is taken$"):
        server.command("do")
