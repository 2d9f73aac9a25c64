"""Binds the words of a request, or values by name, to the parameters of a function. No I/O.

Words that are tags become tensors, in order. The other words go to the parameters that take words (:mod:`.annotations`
says which do), in order. If the last of these is a ``str``, it takes all words that are left, so that
``def hello(name: str)`` gets a whole sentence; ``*numbers: float`` takes all that are left one by one.

A tag may look like a parameter's value: ``2.5``, say. Such a word is the value if enough tensors are left without it,
and if a parameter still lacks a word. If the function takes no tensor, or no more of them, a tag is a word for a
parameter that takes any text.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container
from typing import Any, Final, NamedTuple, NoReturn

import numpy as np

from ..errors import BadMessage, MissingTag
from ..protocol.commands import split_words
from ..tsr.dtypes import import_torch
from ..wire.messages import ARGUMENT_TAG_PREFIX
from .annotations import Kind, check_callable, is_coroutine, kinds_of, refuse
from .hints import fixed_by_name

__all__ = ["Command"]

MAX_TENSORS: Final = 1 << 16  # in one message; more would not fit into it


class _Parameter(NamedTuple):
    name: str
    default: Any  # inspect.Parameter.empty if it has none
    kind: Kind
    is_keyword: bool  # it is passed by its name
    is_positional: bool  # it cannot be passed by its name

    @property
    def is_tensor(self) -> bool:
        return self.kind.convert is None


class Command:
    """A function that answers a command.

    Args:
        name: the command's word.
        function: takes tensors and words.

    Raises:
        BadMessage: it is no function that could be called with tensors and words; the message says what to change.

    Attributes:
        convert_text: converts the whole parameter text to the only argument; None if there are other arguments.
        is_coroutine: the function is an ``async def``.
        tensor_counts: how many tensors it takes, if it takes only tensors, and by position; else empty.
    """

    __slots__ = (
        "_has_fixed_words",
        "_least",
        "_most",
        "_parameters",
        "_rest",
        "_scalars",
        "_takes_any_name",
        "convert_text",
        "function",
        "is_coroutine",
        "name",
        "tensor_counts",
    )

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        check_callable(name, function)
        self.name = name
        self.function = function
        self.is_coroutine = is_coroutine(function)
        self._parameters: list[_Parameter] = []
        self._rest: Kind | None = None  # what *args takes
        self._takes_any_name = False
        fixed, after_fixed = fixed_by_name(function)
        self._has_fixed_words = False  # a partial fixes one that takes words, or one before it
        for parameter, kind in kinds_of(name, function):
            if parameter.kind is parameter.VAR_POSITIONAL:
                self._rest = kind
            elif parameter.kind is parameter.VAR_KEYWORD:
                self._takes_any_name = True
                if kind.convert is not None:
                    refuse(name, function, f"**{parameter.name}: words have no names; write the parameters one by one")
            elif parameter.name in fixed:
                self._has_fixed_words |= kind.convert is not None
            elif parameter.name in after_fixed and kind.convert is not None:
                if parameter.default is parameter.empty:
                    refuse(
                        name,
                        function,
                        f"no word can be given to {parameter.name}, which comes after a parameter that the partial "
                        f"gives by name; give {parameter.name} in the partial too, or those before it by position",
                    )
                self._has_fixed_words = True
            else:
                is_keyword = parameter.kind is parameter.KEYWORD_ONLY
                is_positional = parameter.kind is parameter.POSITIONAL_ONLY
                self._parameters.append(_Parameter(parameter.name, parameter.default, kind, is_keyword, is_positional))
        tensors = [each for each in self._parameters if each.is_tensor]
        self._scalars = [each for each in self._parameters if not each.is_tensor]
        if self._takes_rest_of_words() and (late := [each.name for each in self._scalars if each.is_keyword]):
            refuse(name, function, f"*args takes all words, so none is left for {late[0]}; put {late[0]} before *args")
        self._least = sum(each.default is inspect.Parameter.empty for each in tensors)  # how many tensors it must get
        takes_any = self._rest is not None and self._rest.convert is None
        self._most = None if takes_any else len(tensors)  # how many it may get; None for any number
        is_plain = not self._scalars and not self._takes_rest_of_words()
        is_plain = is_plain and not any(each.is_keyword for each in self._parameters)
        self.tensor_counts = (
            range(self._least, (MAX_TENSORS if takes_any else len(tensors)) + 1) if is_plain else range(0)
        )
        is_one_text = [each.kind.is_text and not each.is_keyword for each in self._scalars] == [True]
        is_one_text = is_one_text and self._most == 0 and self._rest is None
        self.convert_text = self._scalars[0].kind.convert if is_one_text else None

    def _takes_rest_of_words(self) -> bool:
        return self._rest is not None and self._rest.convert is not None

    def bind(
        self, parameters: str, tags: Container[str], fetch: Callable[[str, str], Any], framework: str
    ) -> tuple[list[Any], dict[str, Any]]:
        """The function's arguments for a parameter text.

        Args:
            parameters: words, separated by spaces or commas.
            tags: the tags that name a tensor.
            fetch: returns the tensor of a tag, in a framework.
            framework: ``"numpy"`` or ``"torch"``.

        Returns:
            The arguments by position, and those by name.

        Raises:
            MissingTag: the function takes a tensor, and the word is no tag.
            BadMessage: too few or too many words or tensors, or a word that has not the parameter's type.
        """
        if self.convert_text is not None:
            return [self.convert_text(parameters) if parameters else self._default_of(self._scalars[0])], {}
        words = split_words(parameters)
        if self._scalars or self._takes_rest_of_words() or self._has_fixed_words:
            tensors, others = self._split(words, tags)
            if len(tensors) < self._least and len(others) > len(self._scalars) and not self._takes_rest_of_words():
                self._refuse_tag(others[0])
        else:
            tensors, others = words, []
            for word in words:
                if word not in tags:
                    self._refuse_tag(word)
        self._check_count(len(tensors))
        values = self._convert(others)
        return self._arrange([fetch(word, framework) for word in tensors], values)

    def bind_named(self, values: dict[str, Any], framework: str) -> tuple[list[Any], dict[str, Any]]:
        """The function's arguments for values by name.

        A parameter that takes words gets a text or a number, as the word that it would be in a message. A parameter
        that is annotated as a tensor gets lists of numbers, and numbers, as a tensor; any other gets what was sent.

        Args:
            values: by parameter.
            framework: ``"numpy"`` or ``"torch"``.

        Returns:
            As :meth:`bind`.

        Raises:
            BadMessage: a name that is no parameter's, a value that does not fit, or none where one is needed.
        """
        arguments: list[Any] = []
        named: dict[str, Any] = {}
        values = dict(values)
        for each in self._parameters:
            if each.name not in values and each.default is inspect.Parameter.empty:
                raise BadMessage(f"{self.name} needs a value for {each.name}", detail=each.name)
            if each.name in values:
                named[each.name] = self._named_value(each, values.pop(each.name), framework)
            if each.is_positional:
                arguments.append(named.pop(each.name, each.default))
        if values and not self._takes_any_name:
            known = ", ".join(each.name for each in self._parameters) or "none"
            name = next(iter(values))
            raise BadMessage(f"{self.name} has no parameter {name[:80]!r}; it has {known}", detail=name[:80])
        return arguments, named | values

    def _named_value(self, parameter: _Parameter, value: Any, framework: str) -> Any:
        kind = parameter.kind
        if kind.convert is None:
            is_number = isinstance(value, list | int | float)
            return self._as_tensor(parameter, value, framework) if kind.is_array and is_number else value
        if kind.is_text and isinstance(value, str):
            return value
        if value is None and parameter.default is None:
            return None
        if value is None or isinstance(value, str | int | float):
            try:
                return kind.convert(value if isinstance(value, str) else repr(value))
            except (ValueError, KeyError):
                pass
        shown = kind.shown or "no word"
        raise BadMessage(f"{self.name}: {parameter.name} is {value!r:.80}, which is {shown}", detail=parameter.name)

    def _as_tensor(self, parameter: _Parameter, value: Any, framework: str) -> Any:
        """A tensor of numbers in lists; lists of tensors stay what they are."""
        try:
            array = np.asarray(value)
        except ValueError:
            array = None
        if array is None or array.dtype.kind not in "biuf":
            raise BadMessage(
                f"{self.name}: {parameter.name} takes a tensor, and {value!r:.80} is none: lists of numbers must be of "
                "one length",
                detail=parameter.name,
            )
        return import_torch().tensor(value) if framework == "torch" else array

    def _split(self, words: list[str], tags: Container[str]) -> tuple[list[str], list[str]]:
        """The words that name tensors, and the others."""
        kinds = [each.kind for each in self._scalars] + ([self._rest] if self._rest is not None else [])
        tagged = [index for index, word in enumerate(words) if word in tags]
        either = [index for index in tagged if any(kind.takes(words[index]) for kind in kinds)]
        if either:
            room = len(self._scalars) - (len(words) - len(tagged))
            if self._takes_rest_of_words():
                room = len(words)
            missing = self._least - (len(tagged) - len(either))
            count = min(len(either), max(0, missing, len(either) - max(0, room)))  # how many of these are tensors
            is_tensor_first = not self._parameters or self._parameters[0].is_tensor
            as_values = either[count:] if is_tensor_first else either[: len(either) - count]
            tagged = [index for index in tagged if index not in as_values]
        if self._most is not None and len(tagged) > self._most and any(kind.is_text for kind in kinds):
            named = [index for index in tagged if words[index][:1] != ARGUMENT_TAG_PREFIX]  # not tags of ours
            surplus = min(len(tagged) - self._most, len(named))
            is_tensor_first = bool(self._parameters) and self._parameters[0].is_tensor
            as_words = named[len(named) - surplus :] if is_tensor_first else named[:surplus]
            tagged = [index for index in tagged if index not in as_words]
        names = set(tagged)
        return [words[index] for index in tagged], [word for index, word in enumerate(words) if index not in names]

    def _arrange(self, tensors: list[Any], values: list[Any]) -> tuple[list[Any], dict[str, Any]]:
        arguments: list[Any] = []
        named: dict[str, Any] = {}
        for parameter in self._parameters:
            source = tensors if parameter.is_tensor else values
            has_default = parameter.default is not inspect.Parameter.empty
            if parameter.is_keyword and has_default and (not source or (parameter.is_tensor and self._most is None)):
                continue  # the function's own default; and *args takes all tensors, for they have no names
            value = source.pop(0) if source else self._default_of(parameter)
            if parameter.is_keyword:
                named[parameter.name] = value
            else:
                arguments.append(value)
        return arguments + tensors + values, named

    def _default_of(self, parameter: _Parameter) -> Any:
        if parameter.default is inspect.Parameter.empty:
            raise BadMessage(f"{self.name}: no word is left for {parameter.name}", detail=parameter.name)
        return parameter.default

    def _refuse_tag(self, word: str) -> NoReturn:
        raise MissingTag(
            f"{self.name}: there is no tensor with the tag {word!r}; send it first{self._advice()}", tag=word
        )

    def _advice(self) -> str:
        """What may be wrong if a word is no tag: a parameter that should take words has no annotation of words."""
        for each in self._parameters:
            if each.is_tensor and each.kind.shown:
                return f", or define {each.kind.shown[:80]!r} where the worker runs if {each.name} takes a word"
            if each.is_tensor and isinstance(each.default, str | int | float):
                kind = type(each.default).__name__
                return f", or annotate {each.name}: {kind} in the worker if it takes a word"
        return ""

    def _check_count(self, count: int) -> None:
        if count < self._least or (self._most is not None and count > self._most):
            wanted = str(self._least) if self._most == self._least else f"{self._least} to {self._most}"
            if self._most is None:
                wanted = f"at least {self._least}"
            noun = "tensor" if wanted in ("1", "at least 1") else "tensors"
            raise BadMessage(f"{self.name} takes {wanted} {noun} and got {count}", detail=str(count))

    def _convert(self, words: list[str]) -> list[Any]:
        """The values of words, for the parameters in order; those of ``*args`` come last."""
        scalars = self._scalars
        kinds = [(each.name, each.kind) for each in scalars]
        if len(words) > len(scalars):
            if self._rest is not None and self._rest.convert is not None:
                kinds += [("a word", self._rest)] * (len(words) - len(scalars))
            elif scalars and scalars[-1].kind.is_text:
                cut = len(scalars) - 1
                words = [*words[:cut], " ".join(words[cut:])]
            else:
                raise BadMessage(
                    f"{self.name} takes {len(scalars)} words and got {len(words)}: {' '.join(words)[:80]!r}; "
                    "a tag among them may not have been sent",
                    detail=str(len(words)),
                )
        values = []
        for (name, kind), word in zip(kinds, words, strict=False):
            assert kind.convert is not None
            try:
                values.append(kind.convert(word))
            except (ValueError, KeyError):
                raise BadMessage(f"{self.name}: {name} is {word[:80]!r}, which is {kind.shown}", detail=name) from None
        return values
