"""Reads what ``tr-mmap sandbox run`` was given, and writes results into files. Runs nothing."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..errors import TRException
from ..sandbox import Allow, Limits
from ..sandbox.kinds import find_kind

__all__ = ["Arguments", "WrongArgument", "read", "value_of", "write_outputs"]

_KINDS: Final = {".py": "contained", ".wasm": "wasm", ".so": "native", ".pt": "torch", ".pt2": "torch"}
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_TIMES: Final = {"ms": 1.0, "": 1.0, "s": 1000.0, "m": 60_000.0, "min": 60_000.0}
_LIMITS: Final = {
    "memory": "memory_nbytes",
    "wall": "wall_ms",
    "time": "wall_ms",
    "cpu": "cpu_ms",
    "stack": "stack_nbytes",
    "output": "output_nbytes",
    "disk": "disk_nbytes",
    "cores": "cpu_cores",
}
_FILE_NAME: Final = re.compile(r"\w[\w.+-]{0,99}")


class WrongArgument(Exception):
    """A wrong argument; the text says which one, why, and what to do."""


@dataclass
class Arguments:
    """The arguments of one ``tr-mmap sandbox run``.

    Attributes:
        kind: of the sandbox.
        code: of the algorithm.
        inputs: values by name.
        arguments: those of ``--arg``, as they were written.
        limits, allow: for the sandbox.
        outputs: the file of a result, by its name; under ``""`` the directory for all other results.
    """

    kind: str
    code: bytes
    inputs: dict[str, Any]
    arguments: list[str]
    limits: Limits
    allow: Allow
    outputs: dict[str, Path] = field(default_factory=dict)


def read(
    file: Path,
    kind: str | None,
    inputs: Sequence[str],
    arguments: Sequence[str],
    limits: Sequence[str],
    outputs: Sequence[str],
    env: Sequence[str],
    paths: Sequence[Path],
    syscalls: Sequence[str],
    *,
    net: bool,
    clock: bool,
    random: bool,
) -> Arguments:
    """Read and check all arguments, before anything runs.

    Raises:
        WrongArgument: one of them is wrong.
    """
    chosen = kind or _KINDS.get(file.suffix.lower())
    if chosen is None:
        raise WrongArgument(
            f"{file} has the ending of no kind ({', '.join(_KINDS)}); say which it is, for example --kind contained"
        )
    try:
        find_kind(chosen)
        allow = Allow(
            read=tuple(os.path.abspath(each) for each in paths),
            env=dict(_split("--env", each, "MODE=fast") for each in env),
            syscalls=tuple(syscalls),
            net=net,
            clock=clock,
            random=random,
        )
        code = file.read_bytes()
    except ValueError as error:
        raise WrongArgument(str(error)) from None
    except OSError as error:
        raise WrongArgument(f"{file} cannot be read: {error.strerror}") from None
    return Arguments(
        chosen,
        code,
        {name: value_of(f"--input {name}", value) for name, value in _pairs("--input", inputs, "x=a.npy")},
        list(arguments),
        _limits(limits),
        allow,
        _outputs(outputs),
    )


def _split(option: str, text: str, example: str) -> tuple[str, str]:
    name, mark, value = text.partition("=")
    if not mark or not name:
        raise WrongArgument(f"{option} {text} has no name; write for example {option} {example}")
    return name, value


def _pairs(option: str, texts: Sequence[str], example: str) -> list[tuple[str, str]]:
    pairs = [_split(option, each, example) for each in texts]
    for name, _ in pairs:
        if [each for each, _ in pairs].count(name) > 1:
            raise WrongArgument(f"{option} {name} was given twice")
    return pairs


# -- limits -----------------------------------------------------------------------------------------------------------


def _limits(texts: Sequence[str]) -> Limits:
    known = {name: name for name in Limits.__dataclass_fields__} | _LIMITS
    given: dict[str, Any] = {}
    for short, value in _pairs("--limit", texts, "memory=256M"):
        name = known.get(short)
        if name is None:
            raise WrongArgument(f"--limit {short}: there is no such limit; there are {_names_of_limits()}")
        given[name] = _size_of(short, name, value)
    try:
        return Limits(**given)
    except ValueError as error:
        raise WrongArgument(f"--limit: {error}") from None


def _names_of_limits() -> str:
    renamed = set(_LIMITS.values())
    return ", ".join([*_LIMITS, *[each for each in Limits.__dataclass_fields__ if each not in renamed]])


def _size_of(short: str, name: str, text: str) -> int | float | None:
    if text == "none" and name in ("cpu_cores", "disk_nbytes", "fuel"):
        return None
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?)\s*([A-Za-z]*)", text)
    if name.endswith("_ms"):
        if found and found[2].lower() in _TIMES:
            return float(found[1]) * _TIMES[found[2].lower()]
        raise WrongArgument(f"--limit {short}={text} is no time; write for example {short}=5s or {short}=500ms")
    unit = re.sub(r"(?<=[KMG])?i?B$", "", found[2], flags=re.IGNORECASE).upper() if found else "?"
    if found and unit in _UNITS and (name.endswith("_nbytes") or not found[2]):
        value = float(found[1]) * _UNITS[unit]
        if value == int(value):
            return int(value)
    what, example = ("size", "256M") if name.endswith("_nbytes") else ("whole number", "4")
    raise WrongArgument(f"--limit {short}={text} is no {what}; write for example {short}={example}")


# -- inputs -----------------------------------------------------------------------------------------------------------


def value_of(option: str, text: str) -> Any:
    """What an argument stands for: a tensor from a file, a JSON value, or the text itself.

    Raises:
        WrongArgument: the file cannot be read, or the text begins as JSON does and is not JSON.
    """
    if text == "-":
        return sys.stdin.read()
    for ending, load in _LOADERS.items():
        name, mark, part = text.rpartition(f"{ending}:")
        path = name + ending if mark else text
        if path.lower().endswith(ending):
            try:
                return load(path, part if mark else "")
            except OSError as error:
                raise WrongArgument(f"{option}: {path} cannot be read: {error.strerror or error}") from None
            except (ValueError, TypeError, EOFError, ArithmeticError, RecursionError, TRException) as error:
                raise WrongArgument(f"{option}: {path} is no {ending} file that can be read: {error}") from None
    try:
        return json.loads(text, parse_constant=_no_constant)
    except ValueError as error:
        if text[:1] in ("[", "{", '"'):
            raise WrongArgument(f"{option}: {text[:60]} is no JSON: {error}") from None
    if os.path.isfile(text):
        raise WrongArgument(
            f"{option}: {text} is a file of an ending that is not read here ({', '.join(_LOADERS)}); grant it with "
            f"--allow-read, or write '\"{text}\"' if that text is the value"
        )
    return text


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _load_npy(path: str, _: str) -> Any:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _load_tsr(path: str, _: str) -> Any:
    from ..tsr import load

    return load(path)


def _load_safetensors(path: str, name: str) -> Any:
    from ..tsr.safetensors import SIZE_NBYTES, parse_header, parse_size

    with open(path, "rb") as file:
        file_nbytes = os.fstat(file.fileno()).st_size
        nbytes = parse_size(file.read(SIZE_NBYTES), file_nbytes)
        start = SIZE_NBYTES + nbytes
        header = parse_header(file.read(nbytes), file_nbytes - start)
    tensors = {each.name: each for each in header.entries}
    if not name and len(tensors) == 1:
        (name,) = tensors
    if name not in tensors:
        raise ValueError(f"say which tensor, {path}:NAME; it has {', '.join(sorted(tensors))[:500]}")
    entry = tensors[name]
    data = np.fromfile(path, np.uint8, entry.end - entry.start, offset=start + entry.start)
    if data.nbytes != entry.end - entry.start:  # somebody has made it shorter meanwhile
        raise ValueError(f"it ends before {name} does")
    from ..tsr.tensors import from_buffer

    return from_buffer(data.data, entry.dtype, entry.shape, 0, "numpy")


_LOADERS: Final[Mapping[str, Callable[[str, str], Any]]] = {
    ".npy": _load_npy,
    ".tsr": _load_tsr,
    ".safetensors": _load_safetensors,
}


# -- outputs ----------------------------------------------------------------------------------------------------------


def _outputs(texts: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in texts:
        name, mark, path = text.partition("=")
        if not mark:
            name, path = "", text
        if name in found:
            raise WrongArgument(f"--output {name or path} was given twice")
        found[name] = Path(path)
        if mark and found[name].suffix not in (".npy", ".tsr", ".json"):
            raise WrongArgument(f"--output {text}: results are written as .npy, .tsr or .json; end the file's name so")
    return found


def write_outputs(outputs: Mapping[str, Any], files: Mapping[str, Path]) -> dict[str, Path]:
    """Write results into files.

    Args:
        outputs: of a run.
        files: see :class:`Arguments`.

    Returns:
        The files by the names of the results.

    Raises:
        WrongArgument: there is no result of a name in ``files``; a result's name cannot name a file; its file is in
            the directory already; or it cannot be written.
    """
    for name in files.keys() - {""} - outputs.keys():
        known = ", ".join(map(ascii, outputs)) or "none"
        raise WrongArgument(f"--output {name}={files[name]}: there is no result {name!r}; the results are {known}")
    chosen: dict[str, Path] = {}
    for name, value in outputs.items():
        if name and name in files:
            chosen[name] = files[name]
        elif "" in files:
            if not _FILE_NAME.fullmatch(name):  # which the algorithm has chosen
                raise WrongArgument(f"the result {name[:80]!a} is no name of a file; say --output NAME=FILE for it")
            path = chosen[name] = files[""] / f"{name}{_ending_for(value)}"
            if os.path.lexists(path):  # the algorithm would choose which of the user's files it replaces
                raise WrongArgument(f"{path} is there already; remove it, or say --output {name}=FILE to replace FILE")
    if "" in files:
        try:
            files[""].mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WrongArgument(f"--output {files['']} is no directory: {error.strerror}") from None
    for name, path in chosen.items():
        try:
            _write(path, outputs[name])
        except (OSError, ValueError, TypeError, TRException) as error:
            raise WrongArgument(f"the result {name[:80]!a} cannot be written to {path}: {error}") from None
    return chosen


def _ending_for(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return ".json"
    return ".npy" if value.dtype.isbuiltin == 1 else ".tsr"  # .npy would forget what bfloat16 is


def _write(path: Path, value: Any) -> None:
    from ..tsr import save

    is_tensor = isinstance(value, np.ndarray)
    if path.suffix == ".json":
        if is_tensor:
            raise ValueError("it is a tensor; write it as .npy or .tsr")
        path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    elif not is_tensor:
        raise ValueError("it is no tensor; write it as .json")
    elif path.suffix == ".tsr":
        save(path, value)
    elif value.dtype.isbuiltin != 1:
        raise ValueError(f".npy has no {value.dtype}; write it as .tsr")
    else:
        with path.open("wb") as file:
            np.save(file, value)
