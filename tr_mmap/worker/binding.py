"""Binds the words of a request to the parameters of a plain function. No I/O.

Words that are tags become tensors, in order. The other words go to the parameters annotated ``str``, ``int``, ``float``
or ``bool``, in order. If the last of these is a ``str``, it takes all words that are left, so that
``def hello(name: str)`` gets a whole sentence.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Container
from typing import Any, Final

from ..errors import BadMessage, MissingTag
from ..protocol.commands import split_words

__all__ = ["Command"]

MAX_TENSORS: Final = 1 << 16  # in one message; more would not fit into it

_TRUTHS: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _to_bool(word: str) -> bool:
    return _TRUTHS[word.lower()]


_CONVERTERS: Final[dict[Any, Callable[[str], Any]]] = {str: str, int: int, float: float, bool: _to_bool}
_NAMES: Final[dict[str, Any]] = {each.__name__: each for each in _CONVERTERS}


class Command:
    """A function that answers a command.

    Args:
        name: the command's word.
        function: takes tensors and words as positional arguments.

    Attributes:
        takes_one_text: its only argument is the parameter text.
        tensor_counts: how many tensors it takes, if it takes only tensors; empty if it takes words.
    """

    __slots__ = ("_least", "_most", "_positional", "_scalars", "function", "name", "takes_one_text", "tensor_counts")

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self.function = function
        try:
            hints = typing.get_type_hints(function)
        except Exception:
            hints = {
                key: _NAMES.get(value, value) if isinstance(value, str) else value
                for key, value in getattr(function, "__annotations__", {}).items()
            }
        self._positional: list[tuple[inspect.Parameter, bool]] = []  # each parameter, and whether it takes a tensor
        self._scalars: list[tuple[str, Any]] = []
        self._least = 0  # how many tensors it must get
        self._most: int | None = 0  # how many tensors it may get; None for any number
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is parameter.VAR_POSITIONAL:
                self._most = None
            elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                hint = hints.get(parameter.name)
                is_scalar = hint in _CONVERTERS
                self._positional.append((parameter, not is_scalar))
                if is_scalar:
                    self._scalars.append((parameter.name, hint))
                else:
                    self._least += parameter.default is parameter.empty
                    self._most = None if self._most is None else self._most + 1
        most = MAX_TENSORS if self._most is None else self._most
        self.tensor_counts = range(0) if self._scalars else range(self._least, most + 1)
        self.takes_one_text = [kind for _, kind in self._scalars] == [str] and self._most == 0

    def bind(
        self, parameters: str, tags: Container[str], fetch: Callable[[str, str], Any], framework: str
    ) -> list[Any]:
        """The function's arguments for a parameter text.

        Args:
            parameters: words, separated by spaces or commas.
            tags: the tags that name a tensor.
            fetch: returns the tensor of a tag, in a framework.
            framework: ``"numpy"`` or ``"torch"``.

        Raises:
            MissingTag: the function takes a tensor, and the word is no tag.
            BadMessage: too few or too many words or tensors, or a word that has not the parameter's type.
        """
        if not self._scalars:
            words = split_words(parameters)
            for word in words:
                if word not in tags:
                    raise MissingTag(f"{self.name}: no tensor goes by the tag {word!r}; send it first", tag=word)
            if len(words) != self._least or len(words) != self._most:
                self._check_count(len(words))
            return [fetch(word, framework) for word in words]
        if self.takes_one_text:
            return [parameters or self._default_of(self._positional[0][0])]
        words = split_words(parameters)
        tensors = [word for word in words if word in tags]
        others = [word for word in words if word not in tags]
        if len(tensors) < self._least and len(others) > len(self._scalars):
            raise MissingTag(f"{self.name}: no tensor goes by the tag {others[0]!r}; send it first", tag=others[0])
        self._check_count(len(tensors))
        values = self._convert(others)
        queue = [fetch(word, framework) for word in tensors]
        arguments: list[Any] = []
        for parameter, is_tensor in self._positional:
            source = queue if is_tensor else values
            arguments.append(source.pop(0) if source else self._default_of(parameter))
        return arguments + queue

    def _default_of(self, parameter: inspect.Parameter) -> Any:
        if parameter.default is parameter.empty:
            raise BadMessage(f"{self.name}: no word is left for {parameter.name}", detail=parameter.name)
        return parameter.default

    def _check_count(self, count: int) -> None:
        if count < self._least or (self._most is not None and count > self._most):
            wanted = str(self._least) if self._most == self._least else f"{self._least} to {self._most}"
            if self._most is None:
                wanted = f"at least {self._least}"
            raise BadMessage(f"{self.name} takes {wanted} tensors and got {count}", detail=str(count))

    def _convert(self, words: list[str]) -> list[Any]:
        scalars = self._scalars
        if len(words) > len(scalars):
            if scalars[-1][1] is not str:
                raise BadMessage(
                    f"{self.name} takes {len(scalars)} words and got {len(words)}: {' '.join(words)[:80]!r}; "
                    "a tag among them may not have been sent",
                    detail=str(len(words)),
                )
            cut = len(scalars) - 1
            words = [*words[:cut], " ".join(words[cut:])]
        values = []
        for (name, kind), word in zip(scalars, words, strict=False):
            try:
                values.append(_CONVERTERS[kind](word))
            except (ValueError, KeyError):
                raise BadMessage(
                    f"{self.name}: {name} is {word[:80]!r}, which is no {kind.__name__}", detail=name
                ) from None
        return values
