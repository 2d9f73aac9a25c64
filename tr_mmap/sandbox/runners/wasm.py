"""Runs WebAssembly: compiles a module, or runs a compiled one as a command, as a function of numbers, or on tensors.

The engine confines a module to its own memory. A module that escapes from the engine is still in a contained process.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
import time
from typing import Any

import msgspec
import numpy as np
import wasmtime
from wasmtime import _ffi as ffi

from ...tsr import dtypes
from ...tsr.tensors import from_buffer
from ..memory import write
from ..messages import Answer, Job, TensorSpec, Work
from ..wasm_messages import COMMAND, TENSORS, WasmOptions, encode_number
from .compiled import ERROR_NBYTES, Refused
from .wasm_engine import Deadline, fault_of, make_engine, make_linker, make_wasi
from .wasm_functions import NumberFunction
from .wasm_memory import Frame, NoPlace, Windows

__all__ = ["answer"]

_MAX_TABLE_ELEMENTS = 1 << 20


def answer(job: Job, work: Work, memory: mmap.mmap, fds: list[int]) -> Answer:
    """Do a job; results go into the outputs' area. ``fds`` are of the inputs' area, the outputs' area and the loans."""
    _, outputs_fd, *_ = fds
    options = msgspec.convert(work.options, WasmOptions)
    try:
        if job.is_check:
            code = memory[work.code_offset : work.code_offset + work.code_nbytes]
            return _compile(code, options, outputs_fd)
    except (wasmtime.WasmtimeError, Refused) as error:
        return Answer(fault=fault_of(error, None))
    came_s = time.monotonic()
    guest = _kept.pop("guest", None)
    try:
        if guest is None:
            guest = Guest(work.name, options, memory)
        guest.deadline.arm(options.wall_ms - (time.monotonic() - came_s) * 1000)
        began_s = time.perf_counter()
        if work.function == TENSORS:
            result = guest.run_tensors(work, options, fds, job.output_nbytes)
        elif work.function == COMMAND:
            result = guest.run_command(work, options, memory, outputs_fd)
        else:
            result = guest.call(str(work.function), options.arguments, options, outputs_fd)
        result.execution_time_ms = (time.perf_counter() - began_s) * 1000
        result.function = work.function
    except Exception as error:
        return Answer(fault=fault_of(error, guest.memory_left() if guest else None))
    guest.deadline.disarm()
    _kept["guest"] = guest  # also if the process ends now: destroying the guest first would only cost time
    return result


_kept: dict[str, Guest] = {}  # the "guest" of this process, between its runs


def _compile(code: bytes, options: WasmOptions, outputs_fd: int) -> Answer:
    engine = make_engine(options)
    module = wasmtime.Module(engine, code)
    make_linker(engine, module, options)
    functions = [each.name for each in module.exports if isinstance(each.type, wasmtime.FuncType)]
    compiled = np.frombuffer(module.serialize(), np.uint8)
    write(outputs_fd, 0, compiled)
    return _say(
        {"functions": functions}, outputs_fd, [TensorSpec("compiled", "uint8", compiled.shape, 0)], compiled.nbytes
    )


def _say(values: dict[str, Any], fd: int, tensors: list[TensorSpec], offset: int) -> Answer:
    text = msgspec.json.encode(values)
    os.pwrite(fd, text, offset)
    return Answer(offset, len(text), tensors)


class Guest:
    """A module that is ready to run, and its instance once it has one.

    Args:
        name: of the algorithm.
        options: limits and grants.
        memory: the inputs' area, in which the compiled module lies.
    """

    def __init__(self, name: str, options: WasmOptions, memory: mmap.mmap) -> None:
        self._name = name
        self._engine = make_engine(options)
        self._deadline: Deadline | None = None
        self._module = self._load(options, memory)
        self._linker = make_linker(self._engine, self._module, options)
        self._store: wasmtime.Store | None = None
        self._instance: wasmtime.Instance | None = None
        self._windows: Windows | None = None
        self._functions: dict[str, NumberFunction] = {}
        self._limit = options.memory_nbytes

    def _load(self, options: WasmOptions, memory: mmap.mmap) -> wasmtime.Module:
        compiled = np.frombuffer(memory, np.uint8, options.compiled_nbytes, options.compiled_offset)
        pointer = ctypes.POINTER(ffi.wasmtime_module_t)()
        error = ffi.wasmtime_module_deserialize(
            self._engine.ptr(),
            ctypes.cast(compiled.ctypes.data, ctypes.POINTER(ctypes.c_uint8)),
            compiled.nbytes,
            ctypes.byref(pointer),
        )
        if error:
            raise wasmtime.WasmtimeError._from_ptr(error)
        return wasmtime.Module._from_ptr(pointer)

    @property
    def deadline(self) -> Deadline:
        """Its clock, which starts a thread when it is first needed."""
        self._deadline = self._deadline or Deadline(self._engine)
        return self._deadline

    def memory_left(self) -> int | None:
        """By how many bytes its memory could still grow."""
        memory = self._memory()
        return None if memory is None or self._store is None else self._limit - memory.data_len(self._store)

    def call(self, name: str, arguments: list[int | str], options: WasmOptions, outputs_fd: int) -> Answer:
        """Call an exported function of numbers."""
        store, instance = self._start(options)
        function = self._functions.get(name)
        if function is None:
            found = instance.exports(store)[name]
            assert isinstance(found, wasmtime.Func)
            function = self._functions[name] = NumberFunction(name, store, found)
        self._begin(store, options)
        results = function(arguments)
        return _say({"results": [encode_number(each) for each in results]}, outputs_fd, [], 0)

    def run_command(self, work: Work, options: WasmOptions, memory: mmap.mmap, outputs_fd: int) -> Answer:
        """Run a WASI command, always in an instance of its own."""
        arguments, stdin = _command_inputs(work, memory)
        self._instance = None
        store, instance = self._start(options, arguments, stdin)
        command = instance.exports(store)[COMMAND]
        assert isinstance(command, wasmtime.Func)
        status = 0
        try:
            command(store)
        except wasmtime.ExitTrap as error:
            status = error.code
        if status:
            raise Refused("ExitStatus", f"the command ended with status {status}; it printed last: {_last_printed()}")
        return _say({"exit_code": 0}, outputs_fd, [], 0)

    def run_tensors(self, work: Work, options: WasmOptions, fds: list[int], nbytes: int) -> Answer:
        """Call ``tr_run``."""
        if work.values:
            raise Refused("TypeError", f"tr_run gets tensors, and {next(iter(work.values))!r} is none")
        if self._windows is not None:
            with contextlib.suppress(NoPlace):
                return self._run_tensors(work, options, fds, nbytes)
            # Windows of former runs were too small and still take up addresses; a new instance has all of its memory.
            self._instance = self._store = self._windows = None
            self._functions = {}
        return self._run_tensors(work, options, fds, nbytes)

    def _run_tensors(self, work: Work, options: WasmOptions, fds: list[int], nbytes: int) -> Answer:
        store, instance = self._start(options)
        memory = self._memory()
        if memory is None:
            raise Refused("NameError", 'the module exports no memory named "memory"')
        if self._windows is None:
            self._windows = Windows(store, memory)
        windows = self._windows
        # Windows are not the module's own memory, so they do not count for its limit.
        store.set_limits(memory_size=1 << 32)
        inputs_fd, outputs_fd, *loans = fds
        names = ["inputs", *(f"loan {number}" for number in range(len(loans)))]
        sizes = [options.tensors_nbytes, *(os.fstat(fd).st_size for fd in loans)]
        starts = [
            windows.open(name, size, fd, is_writable=False).offset
            for name, size, fd in zip(names, sizes, [inputs_fd, *loans], strict=True)
        ]
        outputs = windows.open("outputs", nbytes, outputs_fd)
        frame = Frame(windows, work.tensors, options.outputs, starts, outputs.offset, nbytes)
        self._limit = options.memory_nbytes + windows.nbytes
        self._set_limits(store)
        run = instance.exports(store)[TENSORS]
        assert isinstance(run, wasmtime.Func)
        self._begin(store, options)
        try:
            code = run(
                store,
                frame.inputs_at,
                len(work.tensors),
                frame.outputs_at,
                len(options.outputs),
                frame.error_at,
                ERROR_NBYTES,
            )
            if code:
                raise Refused("Failed", frame.error() or f"tr_run returned {code}")
            return Answer(tensors=frame.results())
        finally:
            if not options.is_reused:
                for name in (*names, "outputs"):
                    windows.close(name)

    def _start(
        self, options: WasmOptions, arguments: list[str] | None = None, stdin: bytes = b""
    ) -> tuple[wasmtime.Store, wasmtime.Instance]:
        """The instance; a new one if there is none."""
        if self._instance is not None and self._store is not None:
            return self._store, self._instance
        self._windows, self._functions, self._limit = None, {}, options.memory_nbytes
        store = self._store = wasmtime.Store(self._engine)
        if self._module.imports:
            store.set_wasi(make_wasi(self._name, options, arguments or [], stdin))
        self._set_limits(store)
        self._begin(store, options)
        instance = self._instance = self._linker.instantiate(store, self._module)
        initialize = instance.exports(store).get("_initialize")
        if isinstance(initialize, wasmtime.Func):
            initialize(store)
        return store, instance

    def _set_limits(self, store: wasmtime.Store) -> None:
        store.set_limits(self._limit, _MAX_TABLE_ELEMENTS, instances=1, tables=16, memories=16)

    @staticmethod
    def _begin(store: wasmtime.Store, options: WasmOptions) -> None:
        store.set_epoch_deadline(1)
        if options.fuel is not None:
            store.set_fuel(options.fuel)

    def _memory(self) -> wasmtime.Memory | None:
        if self._store is None or self._instance is None:
            return None
        found = self._instance.exports(self._store).get("memory")
        return found if isinstance(found, wasmtime.Memory) else None


def _last_printed() -> str:
    sys.stdout.flush()
    end = os.lseek(1, 0, os.SEEK_CUR)
    start = max(0, end - 1000)
    return os.pread(1, end - start, start).decode("utf-8", "replace").strip() or "nothing"


def _command_inputs(work: Work, memory: mmap.mmap) -> tuple[list[str], bytes]:
    """The inputs ``arguments``, a list of texts, and ``stdin``, a text or a tensor of bytes."""
    inputs: dict[str, Any] = dict(work.values)
    for spec in work.tensors:
        inputs[spec.name] = from_buffer(memory, dtypes.by_name(spec.dtype), spec.shape, spec.offset, "numpy")
    arguments, stdin = inputs.pop("arguments", []), inputs.pop("stdin", "")
    if inputs:
        raise Refused("TypeError", f"a command has the inputs 'arguments' and 'stdin', and not {next(iter(inputs))!r}")
    if not isinstance(arguments, list) or not all(isinstance(each, str) and "\0" not in each for each in arguments):
        raise Refused("TypeError", "arguments is a list of texts")
    if not isinstance(stdin, str | np.ndarray):
        raise Refused("TypeError", "stdin is a text or a tensor of bytes")
    return arguments, stdin.encode() if isinstance(stdin, str) else stdin.tobytes()
