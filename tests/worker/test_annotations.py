"""What a parameter's annotation means: a word or a tensor, or an error when the function is registered."""

from __future__ import annotations

import asyncio
import datetime
import enum
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    AnyStr,
    Final,
    Literal,
    LiteralString,
    NamedTuple,
    NewType,
    Optional,
    Protocol,
    SupportsFloat,
    SupportsIndex,
    TypedDict,
    TypeVar,
    Union,
    Unpack,
)

import numpy as np
import numpy.typing as npt
import pytest
from support import run_python

from tr_mmap import BadMessage, MissingTag, PythonSession, RemoteError, Server
from tr_mmap.worker.binding import Command

if TYPE_CHECKING:
    from somewhere import Unimportable

TAGS = {"a": "tensor a", "b": "tensor b", "7": "tensor 7", "fast": "tensor fast", "true": "tensor true"}

Metres = NewType("Metres", float)
Number = TypeVar("Number", bound=float)
T = TypeVar("T")
Constrained = TypeVar("Constrained", int, float)
ConstrainedArray = TypeVar("ConstrainedArray", np.ndarray, np.memmap)


def bound(function: Callable[..., Any], parameters: str) -> Any:
    arguments, named = Command("do", function).bind(parameters, TAGS, lambda tag, _: TAGS[tag], "numpy")
    return function(*arguments, **named)


def optional(x: Any, k: float | None = None) -> Any:
    return x, k


def required_optional(x: Any, k: float | None) -> Any:
    return x, k


def old_optional(x: Any, k: Optional[int] = None, m: Union[int, str] = 0) -> Any:  # noqa: UP007, UP045
    return x, k, m


def optional_text(text: str | None = None) -> Any:
    return text


def later_text(text: str | None, k: float) -> Any:
    return text, k


def old_optional_text(text: Optional[str] = "", *, k: int = 0) -> Any:  # noqa: UP045
    return text, k


def number_text_or_none(value: int | str | None) -> Any:
    return value


def optional_texts(*texts: str | None) -> Any:
    return texts


def literal_text(text: LiteralString, k: Final[int] = 1) -> Any:
    return text, k


def constrained(x: Any, k: Constrained, n: ConstrainedArray = None) -> Any:
    return x, k, n


def cast(x: Any, dtype: np.dtype, other: np.dtype[np.float32] | None = None) -> Any:
    return x, dtype, other


def unpacked(x: Any, *levels: *tuple[int, ...]) -> Any:
    return x, levels


def unpacked_tensors(*xs: *tuple[np.ndarray, ...]) -> Any:
    return xs


def unpacked_of_two(*xs: *tuple[int, str]) -> Any:
    return xs


def unpacked_by_name(x: Any, *levels: Unpack[tuple[int, ...]]) -> Any:  # noqa: UP044 - people write it
    return x, levels


def of_literal(value: str) -> Any:
    def function(x: Any, mode: Literal["fast", "exact"]) -> Any:
        return x, mode

    function.__annotations__["mode"] = Literal["fast", value]  # type: ignore[valid-type]
    return function


def either_number(x: Any, k: int | float) -> Any:
    return x, k


def keyword(x: Any, *, k: float, label: str = "none") -> Any:
    return x, k, label


def keyword_tensor(x: Any, *, mask: Any = None) -> Any:
    return x, mask


def literal(x: Any, mode: Literal["fast", "exact"], level: Literal[1, 2, True] = 1) -> Any:
    return x, mode, level


def annotated(x: Annotated[Any, "shape (3,)"], k: Annotated[float, "a factor"]) -> Any:
    return x, k


def new_type(x: Any, k: Metres, n: Number) -> Any:
    return x, k, n


def arrays(x: np.ndarray, y: np.memmap | None, z: npt.NDArray[np.float32] | None = None, w: T | object = 1) -> Any:
    return x, y, z, w


class HasDlpack(Protocol):
    def __dlpack__(self) -> Any: ...


def array_like(x: npt.ArrayLike, k: float = 1.0) -> Any:
    return x, k


def many_array_likes(*xs: npt.ArrayLike) -> Any:
    return xs


def array_unions(x: npt.ArrayLike | None, y: np.ndarray | float, z: HasDlpack | bytes | list[float] = b"") -> Any:
    return x, y, z


def numbers(x: Any, *weights: float) -> Any:
    return x, weights


def words_only(*words: str) -> Any:
    return words


def partly_unresolvable(x: Unimportable | None, k: int | None = None, y: Unimportable = None) -> Any:
    return x, k, y


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def bare_decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args, **kwargs):  # type: ignore[no-untyped-def]
        return function(*args, **kwargs)

    return wrapper


class Model:
    def run(self, x: Any, k: float | None = None) -> Any:
        return x, k

    def __call__(self, x: Any, n: int) -> Any:
        return x, n

    @classmethod
    def of_class(cls, x: Any, n: int) -> Any:
        return x, n

    @staticmethod
    def static(x: Any, n: int) -> Any:
        return x, n


@pytest.mark.parametrize(
    ("function", "parameters", "result"),
    [
        (optional, "a", ("tensor a", None)),
        (optional, "a 2.5", ("tensor a", 2.5)),
        (optional, "a None", ("tensor a", None)),
        (required_optional, "a 2", ("tensor a", 2.0)),
        (required_optional, "a None", ("tensor a", None)),
        (old_optional, "a 3", ("tensor a", 3, 0)),
        (old_optional, "a 3 4", ("tensor a", 3, 4)),
        (old_optional, "a 3 four or five", ("tensor a", 3, "four or five")),
        (optional_text, "", None),
        (optional_text, "None of a, b", "None of a, b"),
        (optional_text, "None", None),
        (optional_text, "a  text, as it is", "a  text, as it is"),
        (later_text, "None 2", (None, 2.0)),
        (later_text, "none 2", ("none", 2.0)),
        (old_optional_text, "None", (None, 0)),
        (old_optional_text, "None 3", (None, 3)),
        (number_text_or_none, "None", None),
        (number_text_or_none, "5", 5),
        (number_text_or_none, "5 or None", "5 or None"),
        (optional_texts, "None x None", (None, "x", None)),
        (literal_text, "x 2", ("x", 2)),
        (constrained, "a 2", ("tensor a", 2, None)),
        (constrained, "a 2.5 b", ("tensor a", 2.5, "tensor b")),
        (cast, "a float16", ("tensor a", np.dtype("float16"), None)),
        (cast, "a >f4 None", ("tensor a", np.dtype(">f4"), None)),
        (cast, "int8 a bool", ("tensor a", np.dtype("int8"), np.dtype("bool"))),
        (unpacked, "a 1 2", ("tensor a", (1, 2))),
        (unpacked_by_name, "a 1 2", ("tensor a", (1, 2))),
        (unpacked_tensors, "a b", ("tensor a", "tensor b")),
        (either_number, "a 2", ("tensor a", 2)),
        (either_number, "a 2.5", ("tensor a", 2.5)),
        (keyword, "a 2.5", ("tensor a", 2.5, "none")),
        (keyword, "2.5 a some words", ("tensor a", 2.5, "some words")),
        (keyword_tensor, "a", ("tensor a", None)),
        (keyword_tensor, "a b", ("tensor a", "tensor b")),
        (literal, "a exact", ("tensor a", "exact", 1)),
        (literal, "a fast 2", ("tensor a", "fast", 2)),  # although there is a tensor "fast"
        (literal, "a fast true", ("tensor a", "fast", True)),
        (annotated, "a 2", ("tensor a", 2.0)),
        (new_type, "a 2 3", ("tensor a", 2.0, 3.0)),
        (arrays, "a b", ("tensor a", "tensor b", None, 1)),
        (arrays, "a b 7 a", ("tensor a", "tensor b", "tensor 7", "tensor a")),
        (array_like, "a 2.5", ("tensor a", 2.5)),
        (many_array_likes, "a b", ("tensor a", "tensor b")),
        (array_unions, "a b", ("tensor a", "tensor b", b"")),
        (array_unions, "a b 7", ("tensor a", "tensor b", "tensor 7")),
        (numbers, "a", ("tensor a", ())),
        (numbers, "a 1 2.5 7", ("tensor a", (1.0, 2.5, 7.0))),
        (numbers, "7", ("tensor 7", ())),
        (words_only, "one two", ("one", "two")),
        (partly_unresolvable, "a", ("tensor a", None, None)),
        (partly_unresolvable, "a 3 b", ("tensor a", 3, "tensor b")),
        (functools.partial(optional, k=2.0), "a", ("tensor a", 2.0)),
        (functools.partial(keyword, k=2.0), "a x y", ("tensor a", 2.0, "x y")),
        (functools.partial(lambda y, x: (x, y), 5), "a", ("tensor a", 5)),
        (Model().run, "a 2.5", ("tensor a", 2.5)),
        (Model(), "a 3", ("tensor a", 3)),
        (Model.of_class, "a 3", ("tensor a", 3)),
        (Model.static, "a 3", ("tensor a", 3)),
        (decorated(optional), "a 2.5", ("tensor a", 2.5)),
        (decorated(decorated(Model().run)), "a 2.5", ("tensor a", 2.5)),
        (bare_decorated(arrays), "a b", ("tensor a", "tensor b", None, 1)),
    ],
)
def test_an_annotation_means_what_its_author_expects(
    function: Callable[..., Any], parameters: str, result: Any
) -> None:
    assert bound(function, parameters) == result


@pytest.mark.parametrize(
    ("function", "parameters", "words"),
    [
        (optional, "a x", "k is 'x', which is no float"),
        (either_number, "a x", "no int and no float"),
        (keyword, "a", "no word is left for k"),
        (literal, "a slow", "none of 'fast', 'exact'"),
        (numbers, "a 1 x", "'x', which is no float"),
        (required_optional, "a", "no word is left for k"),
        (cast, "a float17", "dtype is 'float17', which is no numpy dtype"),
        (constrained, "a x", "no int and no float"),
    ],
)
def test_a_word_that_an_annotation_does_not_take_is_named(
    function: Callable[..., Any], parameters: str, words: str
) -> None:
    with pytest.raises(BadMessage, match=words):
        bound(function, parameters)


def test_a_default_without_annotation_is_a_tensors_and_the_error_says_how_to_make_it_a_words() -> None:
    def scale(x: Any, k=2.0) -> Any:  # type: ignore[no-untyped-def]
        return x, k

    assert bound(scale, "a b") == ("tensor a", "tensor b")
    with pytest.raises(MissingTag, match="annotate k: float"):
        bound(scale, "a 2.5")


# -- refused when it is registered -----------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = 1


class Celsius(float):
    pass


class Options(TypedDict):
    k: float


class Pair(NamedTuple):
    k: float


class Named(dict):  # type: ignore[type-arg]
    pass


def a_dtype_like(x: Any, dtype: npt.DTypeLike) -> Any: ...
def a_generator_of_numbers(x: Any, rng: np.random.Generator) -> Any: ...
def any_text(x: Any, text: AnyStr) -> Any: ...
def supports_float(x: Any, k: SupportsFloat) -> Any: ...
def supports_index(x: Any, k: SupportsIndex) -> Any: ...
def a_typed_dict(x: Any, options: Options) -> Any: ...
def a_named_tuple(x: Any, pair: Pair) -> Any: ...
def a_dict_of_ones_own(x: Any, named: Named) -> Any: ...
def a_numpy_bool(x: Any, flag: np.bool_) -> Any: ...
def a_numpy_int(x: Any, k: np.int64) -> Any: ...
def a_numpy_number(x: Any, k: np.number) -> Any: ...
def a_numpy_text(x: Any, k: np.str_) -> Any: ...
def a_numpy_date(x: Any, day: np.datetime64) -> Any: ...
def a_list(x: Any, weights: list[float]) -> Any: ...
def a_bare_list(weights: list) -> Any: ...  # type: ignore[type-arg]
def a_tuple(x: Any, weights: tuple[int, ...]) -> Any: ...
def a_sequence(x: Any, weights: Sequence[float]) -> Any: ...
def a_dict(options: dict[str, float]) -> Any: ...
def a_path(path: Path) -> Any: ...
def a_date(day: datetime.date) -> Any: ...
def some_bytes(data: bytes | None) -> Any: ...
def an_enum(x: Any, colour: Colour) -> Any: ...
def a_subclass(x: Any, degrees: Celsius) -> Any: ...
def a_numpy_scalar(x: Any, k: np.float32) -> Any: ...
def a_mixture(x: Model | float) -> Any: ...
def a_sequence_of_arrays(xs: Sequence[np.ndarray]) -> Any: ...
def an_iterable(xs: Iterable) -> Any: ...  # type: ignore[type-arg]
def a_view(data: memoryview) -> Any: ...
def some_options(x: Any, **options: float) -> Any: ...
def words_and_keyword(*words: float, k: float) -> Any: ...
async def a_coroutine(x: Any) -> Any: ...
def a_generator(x: Any) -> Any:
    yield x


async def an_async_generator(x: Any) -> Any:
    yield x


class AsyncModel:
    async def run(self, x: Any) -> Any: ...
    async def __call__(self, x: Any) -> Any: ...


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (a_list, r"weights: list\[float\].*write \*weights: float"),
        (a_bare_list, r"write \*weights"),
        (a_tuple, r"write \*weights: int"),
        (a_sequence, r"weights: .*write \*weights: float"),
        (a_sequence_of_arrays, r"write \*xs$"),
        (an_iterable, r"write \*xs for tensors"),
        (a_dict, "options: "),
        (a_path, "path: Path.*write path: str"),
        (a_date, "day: "),
        (some_bytes, "data: .*write data without an annotation"),
        (a_view, "data: .*write data without an annotation"),
        (an_enum, "colour: Colour"),
        (a_subclass, "write degrees: float"),
        (a_numpy_scalar, "k: numpy.float32 is neither .*write k: float"),
        (a_numpy_bool, "flag: numpy.bool.* is neither .*write flag: bool$"),
        (a_numpy_int, "write k: int$"),
        (a_numpy_number, "write k: float$"),
        (a_numpy_text, "write k: str$"),
        (a_numpy_date, "write day: str$"),
        (a_dtype_like, "write dtype: np.dtype$"),
        (a_generator_of_numbers, "write rng: str$"),
        (any_text, "write text without an annotation for a tensor, or text: str for a word"),
        (supports_float, "write k: float$"),
        (supports_index, "write k: int$"),
        (a_typed_dict, "write options: str$"),
        (a_named_tuple, "write pair: str$"),
        (a_dict_of_ones_own, "write named: str$"),
        *[(of_literal(value), "write mode: str$") for value in ("a b", "a,b", "", " a", "\ud800")],
        (unpacked_of_two, r"write \*xs: float for words"),
        (a_mixture, "x_value: float"),
        (some_options, r"\*\*options"),
        (words_and_keyword, r"put k before \*args"),
        (a_generator, "yield.*return"),
        (an_async_generator, "yield"),
        (functools.partial(a_list, "x"), r"\*weights"),
        ("no function", "no function"),
        (max, "unknown.*register a function that calls it"),
    ],
)
def test_what_no_message_could_call_is_refused_when_it_is_registered(function: Any, words: str) -> None:
    server = Server()
    with pytest.raises(BadMessage, match=words) as caught:
        server.command("do")(function)
    assert "do" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "do" not in server._commands


def test_a_class_is_not_taken_for_its_instances_which_answer_with_coroutines() -> None:
    Server().command("do")(AsyncModel)


def test_a_dtype_of_ml_dtypes_is_one_by_its_name_before_that_is_imported() -> None:
    code = """
import sys
import numpy as np
from tr_mmap.worker.binding import Command
def cast(dtype: np.dtype): return dtype
command = Command("cast", cast)
assert "ml_dtypes" not in sys.modules
for word in ("bfloat16", "float8_e5m2", "float16"):
    print(*command.bind(word, {}, None, "numpy")[0])
"""
    assert run_python("-c", code).stdout.split() == ["bfloat16", "float8_e5m2", "float16"]


def test_the_refusal_names_the_file_and_the_line_to_change() -> None:
    with pytest.raises(BadMessage) as caught:
        Server().command("do")(decorated(a_list))
    assert f"{__file__}, line {a_list.__code__.co_firstlineno}" in str(caught.value)


@pytest.mark.parametrize(
    "function", [a_coroutine, functools.partial(a_coroutine), AsyncModel().run, AsyncModel()], ids=lambda _: ""
)
def test_what_gives_a_coroutine_is_a_handler_of_the_loop(function: Any) -> None:
    assert Command("do", function).is_coroutine


def test_a_function_that_runs_a_coroutine_itself_is_a_function() -> None:
    async def double(x: Any) -> Any:
        return x, x

    @functools.wraps(double)
    def run(x: Any) -> Any:
        return asyncio.run(double(x))

    assert bound(run, "a") == ("tensor a", "tensor a")
    assert not Command("do", run).is_coroutine


WORKER = """
from __future__ import annotations
from typing import Literal
import numpy as np
from tr_mmap import Server
s = Server()

@s.command('scale')
def scale(x, k: float | None = None):
    return x * (k or 1)

@s.command('kw')
def kw(x: np.ndarray, *, k: float, mode: Literal['up', 'down'] = 'up'):
    return x * k if mode == 'up' else x / k

@s.command('weigh')
def weigh(x, *weights: float):
    return x * sum(weights)

s.run()
"""


@pytest.mark.parametrize("channel", ["mapped", "files"])
def test_a_workers_functions_get_what_their_annotations_say(tmp_path: Path, channel: str) -> None:
    path = tmp_path / "worker.py"
    path.write_text(WORKER)
    with PythonSession(path, quiet_mode=True, channel=channel) as session:
        ones = np.ones(2)
        for message, value in (
            ("scale", 1), ("scale 2.5", 2.5), ("kw 2.5", 2.5), ("kw 2 down", 0.5), ("weigh 1 2 3", 6), ("weigh", 0),
        ):  # fmt: skip
            assert np.array_equal(session.calculate(message, ones), ones * value), message
        session.send_tensor(ones, "2.5")  # a tag that is a number takes no number away
        assert np.array_equal(session.calculate("scale 2.5", ones), ones * 2.5)
        assert np.array_equal(session.fetch_tensor("scale 2.5"), ones)
        with pytest.raises(RemoteError, match="none of 'up', 'down'"):
            session.calculate("kw 2 sideways", ones)
