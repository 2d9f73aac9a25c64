"""What a parameter of a command's function takes: a tensor, or a word and how it is read. Binds nothing.

An annotation that means neither is refused when the function is registered, because every call would fail.
"""

from __future__ import annotations

import array
import collections.abc
import enum
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable
from typing import Any, Final, NoReturn

from ..errors import BadMessage

__all__ = ["TENSOR", "Kind", "check_callable", "kinds_of", "place_of", "refuse"]

_TRUTHS: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _to_bool(word: str) -> bool:
    return _TRUTHS[word.lower()]


class Kind(typing.NamedTuple):
    """What a parameter takes.

    Attributes:
        convert: makes a word the parameter's value, or raises ValueError or KeyError; None if it takes a tensor.
        shown: completes "the word is ..." for a word that it does not take.
        is_text: it takes any word.
    """

    convert: Callable[[str], Any] | None
    shown: str = ""
    is_text: bool = False

    def takes(self, word: str) -> bool:
        """Whether the word can be the parameter's value, other than as a text that may be anything."""
        if self.convert is None or self.is_text:
            return False
        try:
            self.convert(word)
        except (ValueError, KeyError):
            return False
        return True


TENSOR: Final = Kind(None)
_SCALARS: Final[dict[Any, Kind]] = {
    str: Kind(str, "no str", is_text=True),
    int: Kind(int, "no int"),
    float: Kind(float, "no float"),
    bool: Kind(_to_bool, "no bool"),
}
_SEQUENCES: Final = (
    *(list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.MutableSequence, collections.abc.Set),
    *(collections.abc.Collection, collections.abc.Iterable, collections.abc.Iterator),
)
_BUFFERS: Final = (bytes, bytearray, memoryview, array.array)
_BY_NAME: Final = {each.__name__: kind for each, kind in _SCALARS.items()}
_RULE: Final = (
    "a parameter takes a word if it is annotated str, int, float, bool, a Literal of these, or one of them | None; "
    "else it takes a tensor"
)


def kinds_of(command: str, function: Callable[..., Any]) -> list[tuple[inspect.Parameter, Kind]]:
    """The function's parameters, and what each takes.

    Raises:
        BadMessage: one has an annotation that is neither a tensor's nor a word's, or the function has no signature.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
        hints = _hints_of(function)
    except (TypeError, ValueError) as error:
        raise BadMessage(
            f"command {command!r}: the parameters of {function!r:.100} are unknown ({error}); register a function that "
            "calls it",
            detail=command,
        ) from error
    kinds = []
    for parameter in parameters:
        hint = hints.get(parameter.name, parameter.annotation)
        if hint is parameter.empty:
            hint = Any
        try:
            kinds.append((parameter, _kind_of(hint)))
        except _NeitherError as error:
            stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
            stars = "**" if parameter.kind is parameter.VAR_KEYWORD else stars
            instead = str(error) or f"{parameter.name}: str"
            refuse(
                command,
                function,
                f"{stars}{parameter.name}: {_shown(hint)}, {_RULE}; write {instead.format(name=parameter.name)}",
            )
    return kinds


def check_callable(command: str, function: Any) -> None:
    """Refuse what cannot answer a command when it is called.

    Raises:
        BadMessage: it is no function, or calling it gives a coroutine or a generator.
    """
    if not callable(function):
        raise BadMessage(f"command {command!r}: {function!r:.100} is no function", detail=command)
    inner = _unwrapped_partial(function)
    for each in (inner, getattr(inner, "__call__", None)):  # noqa: B004 - not whether it has one, but which
        if inspect.iscoroutinefunction(each):
            refuse(
                command, function, "async def; write def, and asyncio.run(...) in it, because requests come one by one"
            )
        if inspect.isgeneratorfunction(each) or inspect.isasyncgenfunction(each):
            refuse(command, function, "a function with yield; write return with a list of its tensors")


def refuse(command: str, function: Callable[..., Any], why: str) -> NoReturn:
    """Raise BadMessage for a function that cannot be registered, with the line to change."""
    raise BadMessage(f"command {command!r}{place_of(function)}: {why}", detail=command)


def place_of(function: Callable[..., Any]) -> str:
    """Where a function is defined, for a message; "" if that is unknown."""
    inner = inspect.unwrap(_unwrapped_partial(function))
    call = getattr(type(inner), "__call__", None)  # noqa: B004 - not whether it has one, but which
    code = getattr(inner, "__code__", None) or getattr(call, "__code__", None)
    return f" ({code.co_filename}, line {code.co_firstlineno})" if code is not None else ""


class _NeitherError(Exception):
    """An annotation that is neither a tensor's nor a word's; the text is what to write instead."""


def _unwrapped_partial(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations by parameter, as objects; one that cannot be resolved stays a text."""
    inner = _unwrapped_partial(function)
    if inspect.isclass(inner):
        inner = inner.__init__
    elif not inspect.isroutine(inner):
        inner = type(inner).__call__
    inner = inspect.unwrap(inner)
    try:
        return typing.get_type_hints(inner)
    except Exception:
        pass  # one of them names what exists for type checkers only; the others still count
    hints = {}
    for name, hint in getattr(inner, "__annotations__", {}).items():
        try:
            alone = types.SimpleNamespace(__annotations__={name: hint})
            hints[name] = typing.get_type_hints(alone, getattr(inner, "__globals__", {}))[name]
        except Exception:
            hints[name] = hint
    return hints


def _kind_of(hint: Any) -> Kind:
    if isinstance(hint, str):
        return _BY_NAME.get(hint, TENSOR)
    if hint is Any or hint is object:
        return TENSOR
    try:
        if (scalar := _SCALARS.get(hint)) is not None:
            return scalar
    except TypeError:
        return TENSOR  # not hashable, so no type of ours
    if (inner := getattr(hint, "__supertype__", None)) is not None:  # typing.NewType
        return _kind_of(inner)
    if type(hint).__name__ == "TypeAliasType":
        return _kind_of(hint.__value__)
    if isinstance(hint, typing.TypeVar):
        return _kind_of(hint.__bound__ or Any)
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _kind_of(typing.get_args(hint)[0])
    if origin is typing.Literal:
        return _literal(typing.get_args(hint))
    if origin in (typing.Union, types.UnionType):
        return _union(typing.get_args(hint))
    return _of_class(hint if origin is None else origin, typing.get_args(hint))


def _literal(values: tuple[Any, ...]) -> Kind:
    by_word: dict[str, Any] = {}
    for value in values:
        if not isinstance(value, str | int | bool | None) or isinstance(value, enum.Enum):
            raise _NeitherError("{name}: str")
        by_word.setdefault(str(value), value)
        if isinstance(value, bool):
            by_word.setdefault(str(value).lower(), value)
    return Kind(by_word.__getitem__, "none of " + ", ".join(map(repr, values)))


def _union(members: tuple[Any, ...]) -> Kind:
    if any(map(_is_of_arrays, members)):
        return TENSOR  # numpy.typing.ArrayLike, say, whose other members only say what could become an array
    kinds = [_kind_of(member) for member in members if member is not type(None)]
    tensors = [kind for kind in kinds if kind.convert is None]
    if len(tensors) == len(kinds):
        return TENSOR
    if tensors:
        raise _NeitherError("two parameters, {name} for the tensor and {name}_value: float | None = None for the word")
    texts = [kind for kind in kinds if kind.is_text]
    others = [kind for kind in kinds if not kind.is_text]
    if type(None) in members and not texts:
        others.append(_literal((None,)))
    if not others:
        return texts[0]

    def convert(word: str) -> Any:
        for kind in [*others, *texts]:
            try:
                return typing.cast(Callable[[str], Any], kind.convert)(word)
            except (ValueError, KeyError):
                continue
        raise ValueError(word)

    return Kind(convert, " and ".join(kind.shown for kind in others), is_text=bool(texts))


def _is_of_arrays(hint: Any) -> bool:
    """Whether an annotation is an array type of numpy or torch, or a protocol, which an array may fulfil."""
    each = typing.get_origin(hint) or hint
    if not isinstance(each, type):
        return False
    root = each.__module__.partition(".")[0]
    return (root in ("numpy", "torch") and not _is_numpy_scalar(each)) or getattr(each, "_is_protocol", False)


def _is_numpy_scalar(hint: type) -> bool:
    return hint.__module__.partition(".")[0] == "numpy" and any(base.__name__ == "generic" for base in hint.__mro__)


def _of_class(hint: Any, arguments: tuple[Any, ...]) -> Kind:
    if not isinstance(hint, type):
        return TENSOR
    root = hint.__module__.partition(".")[0]
    if hint in _SEQUENCES:
        raise _NeitherError(_instead_of_sequence(arguments))
    if hint in _BUFFERS or (hint.__name__, root) == ("Buffer", "collections"):
        raise _NeitherError("{name} without an annotation for a tensor, or {name}: str for a word")
    for scalar in (bool, int, float, str):
        if issubclass(hint, scalar):
            raise _NeitherError(f"{{name}}: {scalar.__name__}")
    if issubclass(hint, enum.Enum) or (root in sys.stdlib_module_names and not hasattr(hint, "_is_protocol")):
        raise _NeitherError("{name}: str")
    if _is_numpy_scalar(hint):
        raise _NeitherError("{name}: float")
    return TENSOR


def _instead_of_sequence(arguments: tuple[Any, ...]) -> str:
    first = next(iter(arguments), None)
    kind = next((name for name, each in _BY_NAME.items() if _SCALARS.get(_hashable(first)) is each), "")
    if kind:
        return f"*{{name}}: {kind}"
    return "*{name}" if _is_of_arrays(first) else "*{name} for tensors, or *{name}: float for words"


def _hashable(hint: Any) -> Any:
    return hint if isinstance(hint, collections.abc.Hashable) else None


def _shown(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)[:100]
