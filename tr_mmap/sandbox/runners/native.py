"""Runs shared libraries: reads what one exports, or loads it and calls its function on tensors.

Loading a library runs its initialisers. All of this happens in the contained process, after it was contained.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import time
from typing import Any, Final

import msgspec
import numpy as np

from ..faults import advice
from ..messages import Answer, Fault, Job, Work
from ..namespaces import DESCRIPTORS
from ..native_messages import TENSORS, NativeOptions
from ..runner import mapped
from .compiled import ALIGNMENT, ERROR_NBYTES, TENSOR, Refused, describe_input, read_output, text_of
from .elf import exported_functions

__all__ = ["answer"]

_MAX_TEXT: Final = 8000
_LINE_BUFFERED: Final = 1  # _IOLBF
_SYSTEM_ERROR: Final = 0x10000  # TR_SYSTEM_ERROR
_RULES: Final = {errno.EPERM: "syscalls", errno.EACCES: "read", errno.EROFS: "write"}
_LIMITS: Final = {errno.ENOMEM: "memory_nbytes", errno.ENOSPC: "disk_nbytes"}
_ARGUMENTS: Final = [*[ctypes.c_void_p, ctypes.c_size_t] * 2, ctypes.c_char_p, ctypes.c_size_t]

_libc = ctypes.CDLL(None)
_loaded: dict[str, Any] = {}  # the library of this process, and the mapping of its outputs' area


def answer(job: Job, work: Work, memory: mmap.mmap, fds: list[int]) -> Answer:
    """Do a job; results go into the outputs' area.

    Args:
        job: the job.
        work: its description.
        memory: the inputs' area; for a check, it has the library.
        fds: of the inputs' area, of the outputs' area, of the loans, and of the library to run.
    """
    try:
        if job.is_check:
            code = memory[work.code_offset : work.code_offset + work.code_nbytes]
            return Answer(function=_choose(work, exported_functions(code)))
        return _run(job, work, msgspec.convert(work.options, NativeOptions), memory, fds)
    except Refused as error:
        return Answer(fault=Fault("algorithm", error.kind, str(error)[:_MAX_TEXT]))


def _choose(work: Work, names: list[str]) -> str:
    function = work.function or TENSORS
    if function not in names:
        raise Refused(
            "NameError", f"the library {work.name!r} exports no {function!r}; it exports {_shorten(names) or 'nothing'}"
        )
    return function


def _shorten(names: list[str]) -> str:
    return ", ".join(names)[:1000]


def _run(job: Job, work: Work, options: NativeOptions, memory: mmap.mmap, fds: list[int]) -> Answer:
    if work.values:
        raise Refused("TypeError", f"{TENSORS} gets tensors, and {next(iter(work.values))!r} is none; give an array")
    _, outputs_fd, *loans, library_fd = fds
    library = _load(library_fd)
    name = work.function or TENSORS
    try:
        function = library[name]
    except AttributeError:
        raise Refused("NameError", f"the library {work.name!r} exports no {name!r}") from None
    starts = [_address_of(each) for each in [memory, *map(mapped, loans)]]
    outputs = _outputs_area(outputs_fd)
    share = min(job.output_nbytes, len(outputs) // max(1, len(options.outputs))) // ALIGNMENT * ALIGNMENT
    outputs_at = _address_of(outputs)
    inputs, made = np.zeros(len(work.tensors), TENSOR), np.zeros(len(options.outputs), TENSOR)
    names = [each.encode() + b"\0" for each in (*(spec.name for spec in work.tensors), *options.outputs)]
    texts = [ctypes.create_string_buffer(each) for each in names]
    for record, text in zip([*inputs, *made], texts, strict=True):
        record["name"] = ctypes.addressof(text)
    for record, spec in zip(inputs, work.tensors, strict=True):
        describe_input(record, spec, starts[spec.area] + spec.offset)
    for index, record in enumerate(made):
        record["nbytes"], record["data"] = share, outputs_at + index * share
    error = ctypes.create_string_buffer(ERROR_NBYTES)
    function.restype = ctypes.c_int
    function.argtypes = _ARGUMENTS
    began_s = time.perf_counter()
    code = function(inputs.ctypes.data, len(inputs), made.ctypes.data, len(made), error, ERROR_NBYTES)
    elapsed_ms = (time.perf_counter() - began_s) * 1000
    _libc.fflush(None)
    if code:
        return Answer(fault=_fault_of(code, text_of(error.raw), name))
    specs = [
        read_output(record, output, outputs_at + index * share, index * share, share)
        for index, (record, output) in enumerate(zip(made, options.outputs, strict=True))
    ]
    if sum(int(record["nbytes"]) for record in made) > job.output_nbytes:
        return Answer(fault=Fault("limit", "output_nbytes", ""))
    return Answer(tensors=specs, execution_time_ms=elapsed_ms, function=name)


def _load(fd: int) -> Any:
    """Load the library, once: a process runs only one algorithm."""
    if "library" not in _loaded:
        # Line buffering, so that what it prints is seen even if it crashes.
        _libc.setvbuf(ctypes.c_void_p.in_dll(_libc, "stdout"), None, _LINE_BUFFERED, 0)
        directory = DESCRIPTORS if os.path.isdir(DESCRIPTORS) else "/proc/self/fd"
        try:
            _loaded["library"] = ctypes.CDLL(f"{directory}/{fd}")
        except OSError as error:
            raise Refused(
                "LoadError",
                f"the library cannot be loaded: {error}; what it needs beside the system's libraries, link into it, or "
                "name its directory as it is linked (-Wl,-rpath,directory) and grant it with Allow(read=(directory,))",
            ) from None
    return _loaded["library"]


def _outputs_area(fd: int) -> mmap.mmap:
    about = os.fstat(fd)
    if _loaded.get("outputs_file") != (about.st_dev, about.st_ino):
        _loaded["outputs"] = mmap.mmap(fd, 0)
        _loaded["outputs_file"] = about.st_dev, about.st_ino
    found: mmap.mmap = _loaded["outputs"]
    return found


def _address_of(buffer: mmap.mmap) -> int:
    return int(np.frombuffer(buffer, np.uint8).ctypes.data)


def _fault_of(code: int, text: str, name: str) -> Fault:
    """The fault for a result that is not 0: its text; for a result of tr_fail_system also the system's error."""
    number = code - _SYSTEM_ERROR
    if number in _LIMITS:
        return Fault("limit", _LIMITS[number], text)
    if number not in errno.errorcode:
        return Fault("algorithm", "Failed", text or f"{name} returned {code}")
    said = f"{text}: {os.strerror(number)}" if text else os.strerror(number)
    if number in _RULES:
        rule = _RULES[number]
        return Fault("not_allowed", "PermissionError", f"{said}: {advice(rule)}"[:_MAX_TEXT], "", rule, text[:200])
    if number == errno.ENOENT:
        said += "; a file that is there may not have been granted: " + advice("read")
    return Fault("algorithm", type(OSError(number, "")).__name__, said[:_MAX_TEXT])
