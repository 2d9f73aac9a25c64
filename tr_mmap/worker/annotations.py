"""What a parameter of a command's function takes: a tensor, or a word and how it is read. Binds nothing.

An annotation that means neither is refused when the function is registered, because every call would fail.
"""

from __future__ import annotations

import array
import ast
import collections.abc
import enum
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable
from typing import Any, Final, NoReturn

import numpy as np

from ..errors import BadMessage, MissingPackage, UnsupportedTensor
from ..protocol.commands import split_words
from ..tsr import dtypes
from .hints import hints_of, unwrapped_partial

__all__ = ["TENSOR", "Kind", "check_callable", "code_of", "is_coroutine", "kinds_of", "place_of", "refuse"]

_TRUTHS: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _to_bool(word: str) -> bool:
    return _TRUTHS[word.lower()]


def _to_dtype(word: str) -> np.dtype[Any]:
    try:
        return np.dtype(word)
    except Exception:  # numpy's parser has errors of many kinds
        pass
    try:
        return dtypes.by_name(word).numpy  # bfloat16, say, which numpy knows only once ml_dtypes is imported
    except UnsupportedTensor as error:
        raise ValueError(word) from error


class Kind(typing.NamedTuple):
    """What a parameter takes.

    Attributes:
        convert: converts a word to the parameter's value, or raises ValueError or KeyError; None if the parameter takes
            a tensor.
        shown: completes "the word is ..." for a word that the parameter does not take. For a tensor: the annotation, if
            that cannot be resolved.
        is_text: it takes any word.
        is_array: it is annotated as a tensor, so a list of numbers, given by name, becomes one.
    """

    convert: Callable[[str], Any] | None
    shown: str = ""
    is_text: bool = False
    is_array: bool = False

    def takes(self, word: str) -> bool:
        """Whether the word fits the parameter. False for one that takes any text, because every word fits that."""
        if self.convert is None or self.is_text:
            return False
        try:
            self.convert(word)
        except (ValueError, KeyError):
            return False
        except MissingPackage:  # a dtype of ml_dtypes
            return True
        return True


TENSOR: Final = Kind(None)
_ARRAY: Final = Kind(None, is_array=True)
_SCALARS: Final[dict[Any, Kind]] = {
    str: Kind(str, "no str", is_text=True),
    int: Kind(int, "no int"),
    float: Kind(float, "no float"),
    bool: Kind(_to_bool, "no bool"),
}
_ARRAYS: Final = (("numpy", "ndarray"), ("torch", "Tensor"), ("torch", "TensorBase"))
_SEQUENCES: Final = (
    *(list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.MutableSequence, collections.abc.Set),
    *(collections.abc.Collection, collections.abc.Iterable, collections.abc.Iterator),
)
_DTYPE: Final = Kind(_to_dtype, "no numpy dtype")
_BUFFERS: Final = (bytes, bytearray, memoryview, array.array)
_BY_NAME: Final = {each.__name__: kind for each, kind in _SCALARS.items()}
_CONTAINERS: Final = (dict, list, tuple, set, frozenset)
_NUMPY_SCALARS: Final = ((np.bool_, "bool"), (np.integer, "int"), (np.floating, "float"))  # others are texts
_QUALIFIERS: Final = (typing.Final, typing.ClassVar, typing.Required, typing.NotRequired)
_mentions_an_array = re.compile(r"\b(Tensor|ndarray|NDArray|ArrayLike)\b").search
_NAMES_OF_WORDS: Final = frozenset({"str", "int", "float", "bool", "Literal"})
_RULE: Final = (
    "is neither a tensor nor a word: words are annotated str, int, float, bool, np.dtype, a Literal, or one of them "
    "| None"
)


def kinds_of(command: str, function: Callable[..., Any]) -> list[tuple[inspect.Parameter, Kind]]:
    """The function's parameters, and what each takes.

    Raises:
        BadMessage: one has an annotation that is neither a tensor's nor a word's, or the function has no signature.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
        hints = hints_of(function)
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
        stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
        stars = "**" if parameter.kind is parameter.VAR_KEYWORD else stars
        unresolved = _unresolved(hint)
        if unresolved and _is_meant_for_words(unresolved, parameter.default):
            refuse(
                command,
                function,
                f"{stars}{parameter.name}: {unresolved[:100]!r} cannot be resolved where the worker runs; define what "
                f"it names before this function, and not under TYPE_CHECKING, or write {stars}{parameter.name}: str",
            )
        try:
            kinds.append((parameter, _kind_of_rest(hint) if stars == "*" else _kind_of(hint)))
        except _NeitherError as error:
            instead = str(error) or f"{parameter.name}: str"
            refuse(
                command,
                function,
                f"{stars}{parameter.name}: {_shown(hint)} {_RULE}; write {instead.format(name=parameter.name)}",
            )
    return kinds


def check_callable(command: str, function: Any) -> None:
    """Refuse what cannot answer a command when it is called.

    Raises:
        BadMessage: it is no function, or calling it gives a generator.
    """
    if not callable(function):
        raise BadMessage(f"command {command!r}: {function!r:.100} is no function", detail=command)
    inner = unwrapped_partial(function)
    call = None if inspect.isclass(inner) else getattr(inner, "__call__", None)  # noqa: B004 - which, not whether
    for each in (inner, call):
        if inspect.isgeneratorfunction(each) or inspect.isasyncgenfunction(each):
            refuse(command, function, "a function with yield; write return with a list of its tensors")


def is_coroutine(function: Any) -> bool:
    """Whether calling the function gives a coroutine."""
    inner = unwrapped_partial(function)
    call = None if inspect.isclass(inner) else getattr(inner, "__call__", None)  # noqa: B004 - as above
    return any(map(inspect.iscoroutinefunction, (inner, call)))


def refuse(command: str, function: Callable[..., Any], why: str) -> NoReturn:
    """Raise BadMessage for a function that cannot be registered, with the line to change."""
    raise BadMessage(f"command {command!r}{place_of(function)}: {why}", detail=command)


def place_of(function: Callable[..., Any]) -> str:
    """Where a function is defined, for a message; "" if that is unknown."""
    code = code_of(function)
    return f" ({code.co_filename}, line {code.co_firstlineno})" if code is not None else ""


def code_of(function: Callable[..., Any]) -> types.CodeType | None:
    """The code of a function, without its wrappers and partials; None if it has none."""
    inner = inspect.unwrap(unwrapped_partial(function))
    call = getattr(type(inner), "__call__", None)  # noqa: B004 - not whether it has one, but which
    return getattr(inner, "__code__", None) or getattr(call, "__code__", None)


class _NeitherError(Exception):
    """An annotation that is neither a tensor's nor a word's; the text is what to write instead."""


def _unresolved(hint: Any) -> str:
    """What of an annotation cannot be resolved; "" if all can."""
    if isinstance(hint, str):
        return "" if hint in _BY_NAME else hint
    if isinstance(hint, typing.ForwardRef):
        return hint.__forward_arg__
    members = [each for each in typing.get_args(hint) if not isinstance(each, str)]  # texts are a Literal's
    return next(filter(None, map(_unresolved, members)), "")


def _is_meant_for_words(hint: str, default: Any) -> bool:
    """Whether an annotation that cannot be resolved means a word, not a tensor."""
    if _mentions_an_array(hint):
        return False
    if isinstance(default, str | int | float):
        return True
    try:
        nodes = list(ast.walk(ast.parse(hint, mode="eval")))
    except (SyntaxError, ValueError):  # a mistake, or a remark for the reader
        return not _NAMES_OF_WORDS.isdisjoint(re.findall(r"\w+", hint))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}  # not a string's words
    return not _NAMES_OF_WORDS.isdisjoint(names | {node.attr for node in nodes if isinstance(node, ast.Attribute)})


def _is_word(text: str) -> bool:
    """Whether a message can have that text as one word."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return split_words(text) == [text]


def _kind_of_rest(hint: Any) -> Kind:
    """What ``*args`` takes, one by one."""
    if typing.get_origin(hint) is typing.Unpack:  # *args: Unpack[tuple[int, ...]]
        (hint,) = typing.get_args(hint)
    elif not getattr(hint, "__unpacked__", False):  # *args: *tuple[int, ...]
        return _kind_of(hint)
    if isinstance(hint, typing.TypeVarTuple):
        return TENSOR
    members = typing.get_args(hint)
    if _origin_of(hint) is tuple and len(members) == 2 and members[1] is Ellipsis:
        return _kind_of(members[0])
    raise _NeitherError("*{name}: float for words, or *{name} for tensors")


def _kind_of(hint: Any) -> Kind:
    if isinstance(hint, typing.ForwardRef):
        hint = hint.__forward_arg__
    if isinstance(hint, str):
        return _BY_NAME.get(hint) or Kind(None, hint)
    if hint is Any or hint is object:
        return TENSOR
    if hint is typing.LiteralString:
        hint = str
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
        return _union(hint.__constraints__) if hint.__constraints__ else _kind_of(hint.__bound__ or Any)
    origin = typing.get_origin(hint)
    if origin is typing.Annotated or origin in _QUALIFIERS:
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
        if not _is_word(str(value)):  # Literal["a b"]: no word of a message is that
            raise _NeitherError("{name}: str")
        by_word.setdefault(str(value), value)
        if isinstance(value, bool):
            by_word.setdefault(str(value).lower(), value)
    return Kind(by_word.__getitem__, "none of " + ", ".join(map(repr, values)))


def _union(members: tuple[Any, ...]) -> Kind:
    if any(map(_is_of_arrays, members)):
        return _ARRAY  # numpy.typing.ArrayLike, say, whose other members only say what could become an array
    try:
        kinds = [_kind_of(member) for member in members if member is not type(None)]
    except _NeitherError:
        if any(_origin_of(member) is np.dtype for member in members):  # numpy.typing.DTypeLike
            raise _NeitherError("{name}: np.dtype") from None
        raise
    tensors = [kind for kind in kinds if kind.convert is None]
    if len(tensors) == len(kinds):
        return TENSOR
    if tensors:
        raise _NeitherError("two parameters, {name} for the tensor and {name}_value: float | None = None for the word")
    texts = [kind for kind in kinds if kind.is_text]
    others = [kind for kind in kinds if not kind.is_text]
    if type(None) in members:
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
    each = _origin_of(hint)
    if not isinstance(each, type):
        return False
    if getattr(each, "_is_protocol", False):
        return each.__module__ != "typing" and "DType" not in each.__name__  # no SupportsFloat, no dtype's
    is_array = any((_root_of(base), base.__name__) in _ARRAYS for base in each.__mro__)
    return is_array or type(each).__name__ == "tensortype"  # torch.FloatTensor


def _origin_of(hint: Any) -> Any:
    return typing.get_origin(hint) or hint


def _root_of(hint: type) -> str:
    return hint.__module__.partition(".")[0]


def _of_class(hint: Any, arguments: tuple[Any, ...]) -> Kind:
    if isinstance(hint, type) and _is_of_arrays(hint):
        return _ARRAY
    if not isinstance(hint, type):
        return TENSOR
    if hint is np.dtype:
        return _DTYPE
    root = _root_of(hint)
    if hint in _SEQUENCES:
        raise _NeitherError(_instead_of_sequence(arguments))
    if hint in _BUFFERS or (hint.__name__, root) == ("Buffer", "collections"):
        raise _NeitherError("{name} without an annotation for a tensor, or {name}: str for a word")
    for scalar in (bool, int, float, str):
        if issubclass(hint, scalar):
            raise _NeitherError(f"{{name}}: {scalar.__name__}")
    for numpy_scalar, instead in _NUMPY_SCALARS:
        if issubclass(hint, numpy_scalar):
            raise _NeitherError(f"{{name}}: {instead}")
    if root == "numpy" and issubclass(np.floating, hint):  # np.number, say
        raise _NeitherError("{name}: float")
    if root == "typing":  # a protocol of numbers
        raise _NeitherError("{name}: int" if hint.__name__ in ("SupportsInt", "SupportsIndex") else "{name}: float")
    is_of_torch = any(_root_of(base) == "torch" for base in hint.__mro__)  # a module, say
    if is_of_torch or root == "numpy" or root in sys.stdlib_module_names or issubclass(hint, (enum.Enum, *_CONTAINERS)):
        raise _NeitherError("{name}: str")
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
    if not isinstance(hint, type) or typing.get_args(hint):
        return str(hint)[:100]
    root = _root_of(hint)
    return f"{root}.{hint.__name__}" if root in ("numpy", "torch") else hint.__name__  # numpy.bool is not bool
