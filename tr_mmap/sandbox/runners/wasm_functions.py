"""Calls exported functions of a module that take and return numbers. Knows no limits."""

from __future__ import annotations

import ctypes
from typing import Final

import wasmtime
from wasmtime import _ffi as ffi
from wasmtime._func import enter_wasm

from ..wasm_messages import decode_number
from .compiled import Refused

__all__ = ["NumberFunction"]

_KINDS: Final = {"i32": 0, "i64": 1, "f32": 2, "f64": 3}  # wasmtime_valkind_t


class NumberFunction:
    """An exported function, with buffers for its arguments and results; wasmtime's own call allocates them each time.

    Args:
        name: of the export.
        store: of the instance.
        function: the export.

    Raises:
        Refused: it takes or returns something other than numbers.
    """

    def __init__(self, name: str, store: wasmtime.Store, function: wasmtime.Func) -> None:
        kind = function.type(store)
        self._name = name
        self._store = store
        self._function = function
        self._params = [str(each) for each in kind.params]
        self._results = [str(each) for each in kind.results]
        if not {*self._params, *self._results} <= _KINDS.keys():
            raise Refused("TypeError", f"{name} takes or gives what is no number: {self._params} to {self._results}")
        self._raw_params = (ffi.wasmtime_val_t * len(self._params))()
        self._raw_results = (ffi.wasmtime_val_t * len(self._results))()

    def __call__(self, arguments: list[int | str]) -> list[int | float]:
        """Call it.

        Raises:
            Refused: the arguments do not fit.
            wasmtime.Trap: it trapped.
        """
        if len(arguments) != len(self._params):
            raise Refused("TypeError", f"{self._name} takes {len(self._params)} arguments, and got {len(arguments)}")
        for raw, argument, kind in zip(self._raw_params, arguments, self._params, strict=True):
            raw.kind = _KINDS[kind]
            setattr(raw.of, kind, _convert(argument, kind))
        with enter_wasm(self._store) as trap:
            error = ffi.wasmtime_func_call(
                self._store._context(),
                ctypes.byref(self._function._func),
                self._raw_params,
                len(self._params),
                self._raw_results,
                len(self._results),
                trap,
            )
            if error:
                raise wasmtime.WasmtimeError._from_ptr(error)
        return [getattr(raw.of, kind) for raw, kind in zip(self._raw_results, self._results, strict=True)]


def _convert(argument: int | str, kind: str) -> int | float:
    """Convert an argument to a number of a WebAssembly type.

    Raises:
        Refused: it is not a number of that type.
    """
    value = decode_number(argument)
    if kind in ("f32", "f64"):
        return float(value)
    if isinstance(value, float):
        raise Refused("TypeError", f"{value} is no whole number, and the function takes {kind}")
    bits = int(kind[1:])
    if not -(1 << bits - 1) <= value < 1 << bits:
        raise Refused("OverflowError", f"{value} is not within {bits} bits")
    return value - (1 << bits) if value >= 1 << bits - 1 else value
