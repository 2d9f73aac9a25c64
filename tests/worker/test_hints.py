"""Annotations that are texts: their names are found in the functions and classes around, or the function is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Optional

import pytest

from tr_mmap import BadMessage, MissingTag, Server
from tr_mmap.worker.binding import Command

if TYPE_CHECKING:
    import torch
    from somewhere import Batch, Mode

TAGS = {"a": "tensor a", "b": "tensor b"}


def called(server: Server, name: str, parameters: str) -> Any:
    command = server._commands[name]
    arguments, named = command.bind(parameters, TAGS, lambda tag, _: TAGS[tag], "numpy")
    return command.function(*arguments, **named)


def test_an_annotation_may_name_what_the_function_around_defines() -> None:
    server = Server()
    Kind = Literal["fast", "exact"]
    Number = float

    @server.command("literal")
    def literal(x: Any, kind: Kind = "fast") -> Any:
        return x, kind

    @server.command("number")
    def number(x: Any, k: Optional[Number] = None, *more: Number) -> Any:  # noqa: UP045
        return x, k, more

    @server.command("wrapped")
    @functools.lru_cache
    def wrapped(x: Any, kind: Kind) -> Any:
        return x, kind

    assert called(server, "literal", "a exact") == ("tensor a", "exact")
    assert called(server, "number", "a 2.5 3 4") == ("tensor a", 2.5, (3.0, 4.0))
    assert called(server, "wrapped", "a exact") == ("tensor a", "exact")
    with pytest.raises(BadMessage, match="none of 'fast', 'exact'"):
        called(server, "literal", "a slow")


def test_an_annotation_may_name_what_a_class_around_defines_and_the_innermost_name_counts() -> None:
    server = Server()
    Level = int

    class Commands:
        Level = Literal["low", "high"]

        @server.command("inside")
        @staticmethod
        def inside(x: Any, level: Level) -> Any:
            return x, level

    def deeper() -> None:
        @server.command("outside")
        def outside(x: Any, level: Level) -> Any:
            return x, level

    deeper()
    assert called(server, "inside", "a high") == ("tensor a", "high")
    assert called(server, "outside", "a 3") == ("tensor a", 3)
    assert Commands.Level is not Level


def register(server: Server, function: Callable[..., Any]) -> None:
    Kind = float  # hides nothing: this function is not around the other

    server.command("do")(function)
    assert Kind


def test_a_function_around_is_found_through_a_helper_and_a_closure_after_it_has_returned() -> None:
    def make() -> Callable[..., Any]:
        Kind = Literal["fast", "exact"]

        def function(x: Any, kind: Kind) -> Any:
            return x, kind, Kind is not None

        return function

    server = Server()
    register(server, make())
    assert called(server, "do", "a exact") == ("tensor a", "exact", True)


def with_word_as_default(x: Any, mode: Mode = "fast") -> Any: ...  # type: ignore[assignment]
def with_number_as_default(x: Any, *, batch: Batch = 3) -> Any: ...  # type: ignore[assignment]
def with_a_word_type(x: Any, k: float | Batch) -> Any: ...
def with_an_optional_word(x: Any, k: Mode | str | None = None) -> Any: ...
def with_many(*modes: Literal[Mode, "fast"]) -> Any: ...  # type: ignore[valid-type]


def with_a_reference(x: Any, mode: Any = "fast") -> Any: ...


def with_a_mistake(x: Any, k: Any) -> Any: ...


with_a_mistake.__annotations__ = {"k": "int |"}
with_a_reference.__annotations__ = {"mode": Optional["Mode"]}  # as without annotations from __future__


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (with_a_reference, "mode: 'Mode' cannot be resolved"),
        (with_word_as_default, "mode: 'Mode' cannot be resolved.*write mode: str"),
        (with_number_as_default, "batch: 'Batch' cannot be resolved"),
        (with_a_word_type, r"k: 'float \| Batch' cannot be resolved"),
        (with_an_optional_word, r"k: 'Mode \| str \| None' cannot be resolved"),
        (with_a_mistake, r"k: 'int \|' cannot be resolved"),
        (with_many, r"\*modes: .* cannot be resolved"),
    ],
)
def test_an_annotation_that_cannot_be_resolved_and_is_no_tensors_is_refused_by_name(
    function: Callable[..., Any], words: str
) -> None:
    with pytest.raises(BadMessage, match=words) as caught:
        Server().command("do")(function)
    assert f"{__file__}, line {function.__code__.co_firstlineno}" in str(caught.value)


def of_tensors(x: torch.Tensor, y: torch.Tensor | float = 0.0, z: Batch | None = None, w: "an image" = None) -> Any:  # type: ignore  # noqa: F722
    return x, y, z, w


def test_the_types_of_tensors_may_exist_for_type_checkers_only() -> None:
    server = Server()
    server.command("do")(of_tensors)
    assert called(server, "do", "a b a") == ("tensor a", "tensor b", "tensor a", None)


def test_a_word_for_an_annotation_that_cannot_be_resolved_says_so() -> None:
    def function(x: Any, mode: Mode) -> Any:
        return x, mode

    command = Command("do", function)
    with pytest.raises(MissingTag, match="'exact'; send it first, or define 'Mode' where the worker runs if mode"):
        command.bind("a exact", TAGS, lambda tag, _: TAGS[tag], "numpy")
