"""The gateway's words for what the sandbox says: what a client can ask for, and what an operator can configure.

The sandbox speaks to programs that have made it, about its own arguments. All of that is translated here, and nowhere
else. Knows no HTTP.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from ..errors import MissingPackage
from ..sandbox import AlgorithmError, DeadlineExceeded, LimitExceeded, NotAllowed

__all__ = ["in_own_words", "limit_of", "missing_module"]


@dataclass(frozen=True, slots=True)
class _Limit:
    """What a field of the sandbox's limits is here.

    Attributes:
        name: of the option.
        scale: how many of the sandbox's units are one of the option's.
        advice: what whoever needs more can do.
    """

    name: str
    scale: float
    advice: str


_MIB: Final = 1 << 20
_LIMITS: Final = {
    "memory_nbytes": _Limit(
        "memory_mb",
        _MIB,
        "register it with more resource_requirements.memory_mb; [sandbox] memory_mb and most_memory_mb, of kind wasm "
        "[python.wasm] max_memory_mb, are what it has without that, and the most",
    ),
    "wall_ms": _Limit(
        "timeout_ms",
        1,
        "register it with more timeout_ms; [sandbox] wall_ms, of kind wasm [python.wasm] max_execution_time, is what "
        "it has without that, and the most",
    ),
    "cpu_ms": _Limit("cpu_ms", 1, "[sandbox] cpu_ms says how much processor time it may have, for each core"),
    "output_nbytes": _Limit("output_mb", _MIB, "[sandbox] output_mb says how much it may give"),
    "disk_nbytes": _Limit("disk_mb", _MIB, "no option gives its /tmp more; keep it in memory, or return less at once"),
    "stack_nbytes": _Limit("max_stack_size_mb", _MIB, "[python.wasm] max_stack_size_mb says how much it may have"),
    "deadline_s": _Limit("timeout_ms", 0.001, "give the request more timeout_ms"),
}
_EXCEEDED: Final = re.compile(r"(?P<limit>[a-z]+_[a-z]+)=(?P<value>[0-9.e+]+); it was ended\. Raise that limit .*more")
_LATER: Final = re.compile(r"give it a later one, as deadline_s=.*")
# What the sandbox says of denials, and what is true here.
_DENIED: Final = (
    (re.compile(r"grant its path with Allow\(read=\(\.\.\.\)\)"), "give it what it needs as an input"),
    (re.compile(r", or grant Allow\((?:mounts=\(\.\.\.\)|net=True)\)"), ""),
    (
        re.compile(r"grant the system call with Allow\(syscalls=\(\.\.\.\)\), if you trust the algorithm so far"),
        "a program that has to is one for a trusted worker, [workers.NAME]",
    ),
    (re.compile(r"was not granted: grant it with Allow\(\w+=True\)"), "is granted to no algorithm here"),
)
# The same of faults, at the end of texts that are an algorithm's own.
_FAILED: Final = (
    (re.compile(r"grant a path of yours there with Allow\(read=\(\.\.\.\)\)$"), "give it what it needs as an input"),
    (re.compile(r", or name its directory as it is linked .* with Allow\(read=\(directory,\)\)$"), ""),
)
_PIP: Final = re.compile(r"^(?P<what>the algorithm needs .*): pip install '[^']*'$")
_NO_MODULE: Final = re.compile(r"No module named '(?P<name>\w+)'$")  # of one with dots, the package is there


def in_own_words(error: BaseException) -> str:
    """What an error says, in words of the gateway. What is an algorithm's own stays as it is."""
    text = str(error)
    if isinstance(error, LimitExceeded):
        return _LATER.sub(_LIMITS["deadline_s"].advice, _EXCEEDED.sub(_exceeded, text))
    if missing_module(error):
        return (
            f"{text}; if it is a package: an algorithm that is registered can declare it in dependencies, see "
            "[python.dependencies]; code that is not registered, and a model.py, cannot"
        )
    if isinstance(error, MissingPackage):
        return _PIP.sub(r"\g<what>; see [python.dependencies]", text)
    changes = _DENIED if isinstance(error, NotAllowed) else _FAILED if isinstance(error, AlgorithmError) else ()
    for of_sandbox, own in changes:
        text = of_sandbox.sub(own, text)
    return text


def _exceeded(match: re.Match[str]) -> str:
    known = _LIMITS.get(match["limit"])
    if known is None:
        return match[0]
    value = float(match["value"]) / known.scale
    return f"{known.name}={value:g}; it was ended. If it may have more: {known.advice}"


def limit_of(error: LimitExceeded) -> tuple[str, float]:
    """The name and the value of the limit that was exceeded, in the option's own unit."""
    known = _LIMITS.get(error.limit)
    if known is None:
        return error.limit, error.value
    value = error.value / known.scale
    return known.name, round(value) if isinstance(error, DeadlineExceeded) or value == round(value) else value


def missing_module(error: BaseException) -> str:
    """The package that an algorithm imports and that is not there; empty if that is not what is wrong."""
    if not isinstance(error, AlgorithmError) or error.type != "ModuleNotFoundError":
        return ""
    found = _NO_MODULE.search(str(error))
    return found["name"] if found is not None else ""
