"""The WebAssembly engine inside a contained process: its settings, its deadline, and how its errors become faults."""

from __future__ import annotations

import _thread
import ctypes
import sys
import threading
import time
from typing import Any, Final

import wasmtime
from wasmtime import _ffi as ffi

from ..messages import Fault
from ..wasm_messages import WasmOptions
from .compiled import Refused

__all__ = ["Deadline", "Denied", "fault_of", "make_engine", "make_linker", "make_wasi"]

WASI: Final = "wasi_snapshot_preview1"
_MAX_TEXT: Final = 8000
_UNKNOWN_OFFSET: Final = (1 << 64) - 1
_MORE_STACK_NBYTES: Final = 1 << 20  # stack that the engine needs beyond the module's
_LIMITS: Final = {
    wasmtime.TrapCode.STACK_OVERFLOW: "stack_nbytes",
    wasmtime.TrapCode.OUT_OF_FUEL: "fuel",
    wasmtime.TrapCode.INTERRUPT: "wall_ms",
    wasmtime.TrapCode.ALLOCATION_TOO_LARGE: "memory_nbytes",
}
_RULES: Final = {  # the rule of Allow, by the WASI function that needs it
    "clock_res_get": "clock",
    "clock_time_get": "clock",
    "poll_oneoff": "clock",
    "random_get": "random",
}

_set_async_stack_size = ffi.dll.wasmtime_config_async_stack_size_set  # the package has no name for it
_set_async_stack_size.restype = None
_set_async_stack_size.argtypes = [ctypes.POINTER(ffi.wasm_config_t), ctypes.c_size_t]


class Denied(Exception):
    """The module called a function that was not granted."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{detail} was not granted: grant it with Allow({rule}=True)")
        self.rule = rule
        self.detail = detail


def make_engine(options: WasmOptions) -> wasmtime.Engine:
    """Make an engine, with the compiler Cranelift, and without features that modules do not need."""
    config = wasmtime.Config()
    config.strategy = "cranelift"
    config.parallel_compilation = False  # a contained process has one core, as a rule
    config.memory_init_cow = False  # it needs memfd_create, which is denied
    config.memory_may_move = False  # tensors are mapped into it
    config.wasm_multi_memory = True
    config.wasm_memory64 = False
    config.wasm_threads = False
    config.wasm_gc = False
    config.wasm_component_model = False
    config.epoch_interruption = True
    config.consume_fuel = options.fuel is not None
    # The engine aborts if max_wasm_stack is larger than the stack of its fibers.
    _set_async_stack_size(config.ptr(), options.stack_nbytes + _MORE_STACK_NBYTES)
    config.max_wasm_stack = options.stack_nbytes
    return wasmtime.Engine(config)


def make_linker(engine: wasmtime.Engine, module: wasmtime.Module, options: WasmOptions) -> wasmtime.Linker:
    """Make the linker: a module may import functions of WASI preview 1; those for time and random bytes if granted.

    Raises:
        Refused: the module imports something else.
    """
    linker = wasmtime.Linker(engine)
    imports = [(each.module, str(each.name), each.type) for each in module.imports]
    if imports:
        linker.define_wasi()
        linker.allow_shadowing = True
    granted = {"clock": options.has_clock, "random": options.has_random}
    for where, name, kind in imports:
        if where != WASI or not isinstance(kind, wasmtime.FuncType):
            raise Refused(
                "ImportError", f"the module imports {where}::{name}, and there is only {WASI}, with functions"
            )
        rule = _RULES.get(name)
        if rule is not None and not granted[rule]:
            linker.define_func(WASI, name, kind, _denying(rule, name))
    return linker


def _denying(rule: str, name: str) -> Any:
    def deny(*_: Any) -> Any:
        raise Denied(rule, name)

    return deny


def make_wasi(name: str, options: WasmOptions, arguments: list[str], stdin: bytes) -> wasmtime.WasiConfig:
    """Configure WASI: these arguments, this standard input, the granted directories and variables, and nothing else."""
    wasi = wasmtime.WasiConfig()
    wasi.argv = [name, *arguments]
    wasi.env = list(options.env.items())
    # The package has no method for this either. The configuration takes ownership of the vector.
    vector = ffi.wasm_byte_vec_t()
    ffi.wasm_byte_vec_new(ctypes.byref(vector), len(stdin), (ctypes.c_ubyte * len(stdin)).from_buffer_copy(stdin))
    ffi.wasi_config_set_stdin_bytes(wasi.ptr(), ctypes.byref(vector))
    wasi.stdout_custom = wasi.stderr_custom = _print
    for path, is_writable in options.directories:
        wasi.preopen_dir(path, path, is_writable)
    return wasi


def _print(data: bytes) -> int:
    sys.stdout.buffer.write(data)
    return len(data)


class Deadline:
    """Interrupts an engine when a run's time is over.

    Its thread sleeps until the end of a run's time, or until there is a run. All runs have the same limit, so a later
    run never ends earlier than the moment for which the thread sleeps, and need not wake it.
    """

    def __init__(self, engine: wasmtime.Engine) -> None:
        self._engine = engine
        self._changed = threading.Condition()
        self._end_s: float | None = None
        self._is_idle = False
        threading.stack_size(256 << 10)  # small, because it counts for the limit on memory
        _thread.start_new_thread(self._watch, ())  # Thread.start would wait until it runs

    def arm(self, wall_ms: float) -> None:
        """A run begins, and may take ``wall_ms`` milliseconds."""
        with self._changed:
            self._end_s = time.monotonic() + wall_ms / 1000
            if self._is_idle:
                self._changed.notify()

    def disarm(self) -> None:
        """The run has ended; the engine is not interrupted any more."""
        with self._changed:
            self._end_s = None

    def _watch(self) -> None:
        with self._changed:
            while True:
                if self._end_s is None:
                    self._is_idle = True
                    self._changed.wait()
                    self._is_idle = False
                elif (left_s := self._end_s - time.monotonic()) > 0:
                    self._changed.wait(left_s)
                else:
                    self._engine.increment_epoch()
                    self._end_s = None


def fault_of(error: Exception, memory_left: int | None) -> Fault:
    """The fault for an error.

    Args:
        error: of the engine or the runner.
        memory_left: by how many bytes the module's memory could still have grown; None if it has none.
    """
    if isinstance(error, Denied):
        return Fault("not_allowed", "Denied", str(error), rule=error.rule, detail=error.detail)
    if isinstance(error, Refused):
        return Fault("algorithm", error.kind, str(error)[:_MAX_TEXT])
    if isinstance(error, wasmtime.Trap):
        code, frames = error.trap_code, _frames(error)
        if code in _LIMITS:
            return Fault("limit", _LIMITS[code], "", frames)
        if code is wasmtime.TrapCode.UNREACHABLE and memory_left is not None and memory_left < 1 << 20:
            return Fault("limit", "memory_nbytes", "", frames)  # allocators trap so when they get no more memory
        name = "".join(part.capitalize() for part in code.name.split("_")) if code is not None else "Trap"
        return Fault("algorithm", name, f"the module trapped: {_reason(error)}"[:_MAX_TEXT], frames)
    text = str(error)
    if "exceeds memory limits" in text or "exceeds table limits" in text or "Cannot allocate memory" in text:
        return Fault("limit", "memory_nbytes", "")
    return Fault("algorithm", type(error).__name__, text[:_MAX_TEXT])


def _reason(trap: wasmtime.Trap) -> str:
    """A trap's text without its frames."""
    _, _, causes = trap.message.partition("Caused by:")
    return "; ".join(line.strip().lstrip("0123456789: ") for line in causes.strip().splitlines()) or trap.message


def _frames(trap: wasmtime.Trap) -> str:
    lines = ["Traceback of the module (most recent call first):"]
    for frame in trap.frames:
        name = "".join(
            each if each.isprintable() else "?" for each in frame.func_name or f"function {frame.func_index}"
        )
        where = f", byte {frame.module_offset:#x} of the module" if frame.module_offset != _UNKNOWN_OFFSET else ""
        lines.append(f"  {name[:200]}{where}")
    return "\n".join(lines)[:_MAX_TEXT]
