"""Arguments and answers by name: which parameter gets what, and what comes back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from support import script

from tr_mmap import BadMessage, PythonSession, RemoteError, UnsupportedTensor
from tr_mmap.worker.binding import Command

Array = np.ndarray[Any, Any]
X = np.arange(3.0)


def bound(function: Callable[..., Any], **values: Any) -> Any:
    arguments, named = Command("do", function).bind_named(values, "numpy")
    return function(*arguments, **named)


def words(text: str, count: int, factor: float = 2.0, flag: bool = False, mode: Literal["a", 1] = "a") -> Any:
    return text, count, factor, flag, mode


def either(value: int | str, other: float | None = 1.0, nothing: str | None = None) -> Any:
    return value, other, nothing


def tensors(x: Array, y: Array | None = None, rest: Any = None) -> Any:
    return x, y, rest


def positional(x: Array, /, y: Any = 1, *more: Any, key: str = "k") -> Any:
    return x, y, more, key


def open_ended(x: Any, **options: Any) -> Any:
    return x, options


@pytest.mark.parametrize(
    ("function", "values", "result"),
    [
        (words, {"text": "a b, c", "count": 3}, ("a b, c", 3, 2.0, False, "a")),
        (words, {"count": "4", "text": 2.5, "flag": True, "mode": 1, "factor": 3}, ("2.5", 4, 3.0, True, 1)),
        (words, {"text": "", "count": 0, "factor": math.inf}, ("", 0, math.inf, False, "a")),
        (either, {"value": "5"}, ("5", 1.0, None)),
        (either, {"value": 5, "other": None, "nothing": "None"}, (5, None, "None")),
        (tensors, {"x": X, "y": None, "rest": [1, "a"]}, (X, None, [1, "a"])),
        (open_ended, {"x": 1, "a": [X], "b": "c"}, (1, {"a": [X], "b": "c"})),
        (positional, {"x": X, "key": "other"}, (X, 1, (), "other")),
    ],
)
def test_each_parameter_gets_its_value(function: Callable[..., Any], values: dict[str, Any], result: Any) -> None:
    assert bound(function, **values) == result
    assert [type(each) for each in bound(function, **values)] == [type(each) for each in result]


def test_lists_of_numbers_become_tensors_where_the_annotation_says_tensor() -> None:
    x, y, rest = bound(tensors, x=[[1, 2], [3, 4]], y=2.5, rest=[[1, 2]])
    np.testing.assert_array_equal(x, [[1, 2], [3, 4]], strict=True)
    np.testing.assert_array_equal(y, np.float64(2.5))
    assert y.shape == ()
    assert rest == [[1, 2]]

    def of_torch(x: torch.Tensor) -> Any:
        return x

    _, named = Command("do", of_torch).bind_named({"x": [[1.0], [2.0]]}, "torch")
    assert torch.equal(named["x"], torch.tensor([[1.0], [2.0]]))


@pytest.mark.parametrize(
    ("function", "values", "why"),
    [
        (words, {"text": "a"}, "needs a value for count"),
        (
            words,
            {"text": "a", "count": 1, "other": 2},
            "has no parameter 'other'; it has text, count, factor, flag, mode",
        ),
        (words, {"text": "a", "count": 1.5}, "count is 1.5, which is no int"),
        (words, {"text": "a", "count": True}, "count is True, which is no int"),
        (words, {"text": "a", "count": None}, "count is None"),
        (words, {"text": ["a"], "count": 1}, r"text is \['a'\]"),
        (words, {"text": "a", "count": 1, "mode": "b"}, "none of 'a', 1"),
        (tensors, {"x": [[1], [1, 2]]}, "x takes a tensor"),
        (tensors, {"x": ["a"]}, "x takes a tensor"),
        (tensors, {}, "needs a value for x"),
    ],
)
def test_what_does_not_fit_is_refused(function: Callable[..., Any], values: dict[str, Any], why: str) -> None:
    with pytest.raises(BadMessage, match=why):
        bound(function, **values)


WORKER = """
import numpy as np
from tr_mmap import Server, TechRenaissanceServer

server = Server()

@server.command("fit")
def fit(x: np.ndarray, factor: float = 2.0, label: str = "none"):
    return {"y": x * factor, "label": label, "parts": [x, 1, None, [True, 2.5]], "nan": float("nan")}

@server.command("plain")
def plain(x):
    return '{"tensor": 0}'

@server.command("nothing")
def nothing():
    return {}

@server.command("nested")
def nested():
    return {"a": {"b": 1}}

@server.command("async_fit")
async def async_fit(x: np.ndarray, factor: float = 2.0):
    return {"y": x * factor}

server.run()
"""

BY_WORDS = """
import sys
from tr_mmap import TechRenaissanceServer

class Words(TechRenaissanceServer):
    def main_logic(self, command, parameters):
        self.write_response(command, parameters)

Words(framework="numpy").run()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("worker")


@pytest.fixture(params=[{}, {"channel": "files"}, {"auth": True}])
def session(place: Path, request: pytest.FixtureRequest) -> Iterator[PythonSession[Any]]:
    with PythonSession(script(place, WORKER), "named", quiet_mode=True, **request.param) as session:
        yield session


def test_values_by_name_cross_both_ways(session: PythonSession[Any]) -> None:
    for command in ("fit", "fit"):
        found = session.calculate(command, {"x": X, "factor": 2.5, "label": "a label: with {JSON}"})
        assert list(found) == ["y", "label", "parts", "nan"]
        np.testing.assert_array_equal(found["y"], X * 2.5)
        assert found["label"] == "a label: with {JSON}"
        np.testing.assert_array_equal(found["parts"][0], X)
        assert found["parts"][1:] == [1, None, [True, 2.5]]
        assert math.isnan(found["nan"])
    assert session.submit("fit", {"x": [[1, 2]]}).result()["y"].tolist() == [[2.0, 4.0]]
    np.testing.assert_array_equal(session.fetch_tensor("nothing") or X, X)
    session.send_tensor(X, "x")
    np.testing.assert_array_equal(session.fetch_tensor("fit x 3")["y"], X * 3)
    np.testing.assert_array_equal(session.calculate("async_fit", {"x": X})["y"], X * 2)
    assert session.calculate("nothing") == session.calculate("nothing", {}) == {}
    assert session.calculate("plain", X) == '{"tensor": 0}'
    result = session.calculate("fit", {"x": torch.ones(2)})["y"]
    assert isinstance(result, torch.Tensor)
    with pytest.raises(RemoteError, match="fit has no parameter 'z'") as caught:
        session.calculate("fit", {"x": X, "z": 1})
    assert not caught.value.remote_traceback  # no handler was called
    with pytest.raises(RemoteError, match=r"cannot be sent.*'a'.*a dict in a dict"):
        session.calculate("nested")
    with pytest.raises(BadMessage, match="words"):
        session.calculate("fit 3", {"x": X})
    with pytest.raises(UnsupportedTensor):
        session.calculate("fit", {"x": object()})
    np.testing.assert_array_equal(session.calculate("fit", {"x": X})["y"], X * 2)


def test_a_worker_of_words_refuses_arguments_by_name(tmp_path: Path) -> None:
    with PythonSession(script(tmp_path, BY_WORDS), "named", quiet_mode=True) as session:
        with pytest.raises(RemoteError, match="no arguments by name"):
            session.calculate("x", {"a": 1})
        assert session.fetch_response("x a") == "a"
