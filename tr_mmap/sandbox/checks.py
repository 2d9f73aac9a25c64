"""Checks the arguments that users give to a sandbox. An error names the mistake and says what to write instead."""

from __future__ import annotations

import importlib.util
import math
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import MissingPackage
from .interface import Allow, Limits, check_path
from .layers import LAYERS

__all__ = [
    "bytes_of",
    "check_inputs",
    "check_layers",
    "check_modules",
    "check_packages",
    "check_paths",
    "check_request",
    "check_sizes",
    "check_text",
    "check_texts",
    "check_types",
]


def check_types(limits: Limits | None, allow: Allow | None) -> None:
    """Refuse limits and grants of another type.

    Raises:
        TypeError: one of them is something else.
    """
    for name, value, its in (("limits", limits, Limits), ("allow", allow, Allow)):
        if value is not None and not isinstance(value, its):
            raise TypeError(f"{name} is {its.__name__}(...), and no {type(value).__name__}")


def check_paths(allow: Allow) -> None:
    """Refuse grants of paths that do not exist.

    Raises:
        ValueError: a granted path does not exist.
    """
    for path in (*allow.read, *[each.host_path for each in allow.mounts]):
        if not os.path.exists(path):
            raise ValueError(f"{path!r} is no directory or file of this machine, and cannot be granted; make it first")


def check_layers(names: Iterable[str]) -> tuple[str, ...]:
    """Check the names of layers, and return them.

    Raises:
        ValueError: there is no layer of one of these names.
    """
    found = check_texts("required_layers", names)
    unknown = sorted(set(found) - set(LAYERS))
    if unknown:
        raise ValueError(f"there is no layer {', '.join(unknown)}; known are {', '.join(LAYERS)}")
    return found


def check_modules(names: Iterable[str]) -> tuple[str, ...]:
    """Check the names of modules to preload, and return them.

    Raises:
        MissingPackage: a module is not installed.
    """
    found = check_texts("preload", names)
    for each in found:
        if importlib.util.find_spec(each.partition(".")[0]) is None:
            raise MissingPackage(f"preload names {each!r}, which is not installed here", package=each)
    return found


def check_packages(paths: Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    """Check directories of packages, and return them as texts.

    Raises:
        ValueError: one of them is not a directory, or must not be granted; see :func:`.interface.check_path`.
    """
    if isinstance(paths, str | os.PathLike):
        raise ValueError(f"packages takes several directories, and {paths!r} is one: give ({paths!r},)")
    found = tuple(map(check_path, paths))
    for each in found:
        if not os.path.isdir(each):
            raise ValueError(f"packages names {each!r}, which is no directory; see pip install --target")
    return found


def check_inputs(inputs: Mapping[str, Any] | None) -> None:
    """Check the names of inputs.

    Raises:
        TypeError: the inputs are not a mapping whose keys are texts.
        ValueError: a name has a surrogate.
    """
    if inputs is not None and not isinstance(inputs, Mapping):
        raise TypeError(f"inputs is a dictionary of values by name, as {{'x': array}}, and no {type(inputs).__name__}")
    for name in inputs or ():
        check_text("an input's name", name)


def check_texts(name: str, value: Iterable[str]) -> tuple[str, ...]:
    """Check that a value is several texts, and return them.

    Raises:
        ValueError: it is a single text.
        TypeError: one of them is not a text.
    """
    if isinstance(value, str):
        raise ValueError(f"{name} takes several, and {value!r} is one text: give ({value!r},)")
    found = tuple(value)
    for each in found:
        check_text(f"each of {name}", each)
    return found


def check_text(name: str, value: str) -> None:
    """Check that a value is a text that UTF-8 can hold.

    Raises:
        TypeError: it is not a text.
        ValueError: it has half a surrogate pair.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} is a text, and {value!r:.80} is none")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name}, {value!r:.80}, has half a surrogate pair, which UTF-8 lacks") from None


def check_request(*, id: str | None = None, priority: int = 0, deadline_s: float | None = None, **_: Any) -> None:
    """Check the fields of a request.

    Raises:
        TypeError: one of them is of another type.
        ValueError: the deadline is NaN.
    """
    if id is not None:
        check_text("request_id", id)
    if not isinstance(priority, int):
        raise TypeError(f"priority is a whole number, and {priority!r:.80} is none")
    if deadline_s is None:
        return
    if not isinstance(deadline_s, int | float):
        raise TypeError(f"deadline_s is a number of seconds, as time.monotonic() + 60, and {deadline_s!r:.80} is none")
    if math.isnan(deadline_s):
        raise ValueError("deadline_s=nan is no time; give one, as time.monotonic() + 60")


def check_sizes(shape: int | Sequence[int]) -> tuple[int, ...]:
    """The sizes of an array as a tuple.

    Raises:
        TypeError: a size is not a whole number.
        ValueError: a size is negative.
    """
    try:
        sizes = tuple(map(operator.index, shape if isinstance(shape, Iterable) else (shape,)))
    except TypeError:
        raise TypeError(f"a shape is one whole number or several, and {shape!r:.80} is none") from None
    if min(sizes, default=0) < 0:
        raise ValueError(f"there is no array of shape {sizes}: a size is negative")
    return sizes


def bytes_of(code: str | bytes | os.PathLike[str], *, has_source: bool) -> bytes:
    """Source or a module, as bytes; a path is read.

    Args:
        code: the source or the module itself, or a path to it.
        has_source: whether a text is source; else it is a path.

    Raises:
        TypeError: it is neither text, nor bytes, nor a path.
        OSError: the file cannot be read.
    """
    if isinstance(code, os.PathLike) or (isinstance(code, str) and not has_source):
        with open(code, "rb") as file:
            return file.read()
    if isinstance(code, str):
        return code.encode()
    if isinstance(code, bytes | bytearray | memoryview):
        return bytes(code)
    raise TypeError(
        f"code is the source or the module itself, as text or bytes, or a path to it, and no {type(code).__name__}; "
        "for a function, see inspect.getsource"
    )
