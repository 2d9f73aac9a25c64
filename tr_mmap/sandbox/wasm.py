"""The executor of kind ``"wasm"``: WebAssembly modules, in an engine that is contained itself.

The host neither parses nor compiles a module. A contained process compiles it, once, to machine code, which the host
cannot check. The host keeps the machine code only in its memory, by the module that it was made from. Only contained
processes that run this module get it, in sealed memory. So a module that subverts the compiler gains only what it had:
a contained process of its own. There is no file of machine code that somebody could replace.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
from collections.abc import Hashable
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from .contained import ContainedExecutor, Inputs
from .errors import AlgorithmError
from .host import Host, Margin
from .interface import Algorithm, Allow, ComputeRequest, ComputeResponse, Limits
from .kept import Kept
from .outputs import open_outputs
from .running import Run
from .steps import Steps, finish
from .verdicts import forged
from .wasm_messages import COMMAND, MODULE_START, TENSORS, WasmOptions, decode_number, encode_number

__all__ = ["WASM_MARGIN", "WasmExecutor", "check_wasm"]

WASM_MARGIN: Final = Margin(256 << 20, 2 << 20, 80 << 30, 40.0, ("stack_nbytes", "wall_ms", "fuel"))
"""What the engine itself needs. It enforces the limits; those of the kernel and the host are higher by this margin."""

_MAX_STACK_NBYTES: Final = 100 << 20  # the kernel leaves 128 MiB free below the main thread's stack
_MAX_COMPILED_NBYTES: Final = 256 << 20  # of one module
_MAX_KEPT_NBYTES: Final = 256 << 20  # of all modules of a sandbox
_MAX_KEPT: Final = 1000  # modules; the key of each holds its source, too


def check_wasm(limits: Limits, allow: Allow) -> None:
    """Check limits and grants for this kind.

    Raises:
        ValueError: the kind cannot keep one of the limits, or give one of the grants.
    """
    if not 64 << 10 <= limits.stack_nbytes <= _MAX_STACK_NBYTES:
        raise ValueError(f"stack_nbytes={limits.stack_nbytes} is not from {64 << 10} to {_MAX_STACK_NBYTES}")
    for path in (*allow.read, *[each.host_path for each in allow.mounts]):
        if not os.path.isdir(path):
            raise ValueError(f"{path!r} is no directory, and WASI grants whole directories: name the one that it is in")


class _Compiled(NamedTuple):
    code: np.ndarray[Any, Any]
    functions: list[str]  # that it exports


class WasmExecutor(ContainedExecutor):
    """See the module's docstring. Threads may use it at once.

    Args:
        name: of the kind.
        runner: the module of ``runners/`` that runs it.
        host: makes its processes; closed with it.
        allow: what the algorithms are granted.
        kept: compiled modules, by the module's bytes and whether there is a limit on fuel, which changes the code.
    """

    takes_bundles = False
    keeps_failed = False  # after a trap, an instance is in no state that its module knows
    maps_ahead = False  # a module's own memory is elsewhere

    def __init__(self, name: str, runner: str, host: Host, allow: Allow, kept: Kept) -> None:
        super().__init__(name, runner, host)
        self.version = f"wasmtime {importlib.metadata.version('wasmtime')}"
        self._allow = allow
        self._kept = kept

    def prepare(self, algorithm: Algorithm) -> Algorithm:
        """Compile a module; nothing of it is executed, and its compiler is contained."""
        compiled = finish(self._compile(algorithm, Run()))
        return dataclasses.replace(algorithm, function=_choose(algorithm, compiled.functions))

    def steps(self, request: ComputeRequest) -> Steps[ComputeResponse]:
        """Run a request, in steps."""
        run = self._runs.begin(request)  # first, so that it can be cancelled while its module is compiled
        try:
            return (yield from self._steps(request, run))
        finally:
            self._runs.end(request)

    def _steps(self, request: ComputeRequest, run: Run) -> Steps[ComputeResponse]:
        compiled = yield from self._compile(request.algorithm, run)
        function = _choose(request.algorithm, compiled.functions)
        if function is None:
            raise _no_function(request.algorithm, compiled.functions)
        algorithm = dataclasses.replace(request.algorithm, function=function)
        options = self._options(algorithm)
        takes_numbers = algorithm.function not in (COMMAND, TENSORS)
        if takes_numbers:
            values = tuple(request.inputs.values()) if request.arguments is None else request.arguments
            options.arguments = [encode_number(_scalar(each)) for each in values]
        named = {} if takes_numbers or request.arguments is not None else request.inputs
        with self._open(named, algorithm) as inputs:
            options.tensors_nbytes = inputs.end
            options.compiled_offset, options.compiled_nbytes = inputs.add(compiled.code), compiled.code.nbytes
            done = yield from self._do(
                run,
                algorithm,
                inputs,
                self._host.limits.output_nbytes,
                is_check=False,
                options=msgspec.to_builtins(options),
            )
            outputs = open_outputs(done.answer, done.buffer)
            if takes_numbers:
                outputs = {"output": _results(outputs)}
            return self._respond(request, outputs, done, inputs)

    def forget(self, algorithm: Algorithm) -> None:
        """Also drop the machine code of its module. Another algorithm with the same module is compiled again."""
        super().forget(algorithm)
        self._kept.drop(lambda key: isinstance(key, tuple) and key[0] == algorithm.code)

    def _key(self, algorithm: Algorithm) -> Hashable:
        return dataclasses.replace(algorithm, function=None)  # all functions of an instance share its state

    def _options(self, algorithm: Algorithm) -> WasmOptions:
        limits, allow = self._host.limits, self._allow
        return WasmOptions(
            limits.memory_nbytes,
            limits.stack_nbytes,
            limits.wall_ms,
            limits.fuel,
            [*[(each, False) for each in allow.read], *[(each.path, not each.readonly) for each in allow.mounts]],
            dict(allow.env),
            allow.clock,
            allow.random,
            list(algorithm.outputs),
            is_reused=algorithm.is_reused,
        )

    def _compile(self, algorithm: Algorithm, run: Run) -> Steps[_Compiled]:
        """A module's machine code and the functions that it exports; compiled only once."""
        if not algorithm.code.startswith(MODULE_START):
            raise AlgorithmError(
                f"{algorithm.name!r} is no module of WebAssembly in its binary form; text, components and compiled "
                "modules are refused",
                type="NotAModule",
            )
        key = (algorithm.code, self._host.limits.fuel is not None)
        found: _Compiled | None = self._kept.get(key)
        if found is not None:
            return found
        options = msgspec.to_builtins(self._options(algorithm))
        done = yield from self._do(run, algorithm, Inputs({}), _MAX_COMPILED_NBYTES, is_check=True, options=options)
        outputs = open_outputs(done.answer, done.buffer)
        code = outputs.get("compiled")
        if not isinstance(code, np.ndarray) or code.dtype != np.uint8:
            raise forged(ValueError("no compiled module"))
        try:
            # A copy, because the area with the results is far larger, and needs a descriptor.
            compiled = _Compiled(code.copy(), msgspec.convert(outputs.get("functions"), list[str]))
        except ValueError as error:
            raise forged(error) from None
        self._kept.put(key, compiled, _is_too_much)
        return compiled


def _is_too_much(kept: list[_Compiled]) -> bool:
    return len(kept) > _MAX_KEPT or sum(each.code.nbytes for each in kept) > _MAX_KEPT_NBYTES


def _choose(algorithm: Algorithm, functions: list[str]) -> str | None:
    """The function to call; None if the algorithm names none, and there is no default.

    Raises:
        AlgorithmError: the module does not export the function that the algorithm names.
    """
    if algorithm.function is not None and algorithm.function not in functions:
        raise _no_function(algorithm, functions)
    for choice in (algorithm.function, TENSORS, COMMAND, algorithm.name, "process"):
        if choice in functions:
            return choice
    return functions[0] if len(functions) == 1 else None


def _no_function(algorithm: Algorithm, functions: list[str]) -> AlgorithmError:
    wanted = f"no function {algorithm.function!r}" if algorithm.function else "several functions, or none: name one"
    return AlgorithmError(
        f"the module {algorithm.name!r} exports {wanted}; it has {', '.join(functions)[:1000] or 'none'}",
        type="NameError",
    )


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic | np.ndarray) and value.ndim == 0 else value


def _results(outputs: dict[str, Any]) -> Any:
    """What an exported function returned: None, a number, or a list of them."""
    results = outputs.get("results")
    try:
        numbers = [decode_number(each) for each in msgspec.convert(results, list[int | str])]
    except (ValueError, OverflowError) as error:
        raise forged(error) from None
    return numbers if len(numbers) > 1 else numbers[0] if numbers else None
