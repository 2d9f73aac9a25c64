"""Runs one algorithm, inside the contained process. The host does not trust it, because the algorithm can change it.

The kernel contains the process. This module only hands over inputs, results and errors.
"""

from __future__ import annotations

import fcntl
import importlib
import io
import mmap
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from ..tsr import dtypes
from ..tsr.tensors import from_buffer, is_little_endian, to_array
from . import candle_tensors
from .faults import TooMuchOutput, fault_of, shortened, tries
from .memory import arena_start, data_ranges, write
from .messages import Ahead, Answer, BundleSpec, Job, TensorSpec, Work
from .values import MAX_VALUES_NBYTES, plain

try:
    from . import _arena
except ImportError:  # there was no compiler
    _arena = None  # type: ignore[assignment]

__all__ = ["MAX_MAPPINGS", "answer_job", "code_of", "finish", "get_ahead", "mapped", "open_bundle", "print_to"]

_ALIGNMENT: Final = 64
_POPULATE: Final = 0x8000  # MAP_POPULATE maps the pages at once: a fault for each costs more than copying it
MAX_MAPPINGS: Final = 12
_F_GET_SEALS: Final = 1034  # fails for files that are not memfds


def answer_job(job: Job, inputs_fd: int, outputs_fd: int, loans: Sequence[int] = ()) -> Answer:
    """Run the work that a job describes, and put its results into the outputs' area."""
    memory = mapped(inputs_fd)
    work = msgspec.json.decode(memory[job.text_offset : job.text_offset + job.text_nbytes], type=Work)
    code = code_of(work, memory, loans)
    try:
        kind = importlib.import_module(f"{__package__}.runners.{work.runner}")
        if hasattr(kind, "answer"):  # this runner puts its results into the area by itself
            result: Answer = kind.answer(job, work, memory, [inputs_fd, outputs_fd, *loans])
            result.fault = result.fault and shortened(result.fault)
            return result
        if job.is_check:
            return Answer(function=kind.check(work.name, code, work.function))
        inputs: dict[str, Any] = dict(work.values)
        areas = [memory, *map(mapped, loans)]
        for spec in work.tensors:
            dtype = dtypes.by_name(spec.dtype)
            inputs[spec.name] = from_buffer(areas[spec.area], dtype, spec.shape, spec.offset, "numpy")
        for name, bundle in work.bundles.items():
            inputs[name] = open_bundle(bundle, areas[bundle.area], "numpy")
        arguments = None if work.arguments is None else [inputs[str(number)] for number in range(work.arguments)]
        return finish(job, work, outputs_fd, lambda: kind.run(work.name, code, work.function, inputs, arguments))
    except BaseException as error:
        return Answer(fault=shortened(fault_of(error, f"<algorithm {work.name}>")))


def code_of(work: Work, memory: mmap.mmap, loans: Sequence[int]) -> bytes:
    """A copy of the algorithm's code."""
    source = mapped(loans[work.code_area - 1]) if work.code_area else memory
    return source[work.code_offset : work.code_offset + work.code_nbytes]


def open_bundle(bundle: BundleSpec, buffer: mmap.mmap, framework: str) -> dict[str, Any]:
    """The tensors of a bundle by name, as views of a buffer."""
    return {
        each.name: from_buffer(buffer, dtypes.by_name(each.dtype), each.shape, each.offset, framework)
        for each in bundle.tensors
    }


def get_ahead(ahead: Ahead, inputs_fd: int, outputs_fd: int) -> None:
    """Map memory for a later job, and clear the results of former runs in it."""
    mapped(inputs_fd)
    _numpy_memory.use(outputs_fd, ahead.output_nbytes)
    _numpy_memory.clear(outputs_fd, ahead.expected_nbytes)


def finish(job: Job, work: Work, outputs_fd: int, run: Callable[[], Any]) -> Answer:
    """Run an algorithm, and put its results into the outputs' area.

    Raises:
        BaseException: what the algorithm raised; answer_job makes a fault of it.
    """
    _numpy_memory.use(outputs_fd, job.output_nbytes)
    tries.begin()
    began_s = time.perf_counter()
    output = run()
    elapsed_ms = (time.perf_counter() - began_s) * 1000
    answer = _put(output, outputs_fd, job.output_nbytes)
    answer.execution_time_ms, answer.function = elapsed_ms, work.function
    return answer


_mappings: dict[tuple[int, int], mmap.mmap] = {}  # by device and inode: a kept process gets the same areas again


def mapped(fd: int) -> mmap.mmap:
    """A read-only mapping of a whole file, from a cache of the last ones."""
    status = os.fstat(fd)
    key = status.st_dev, status.st_ino
    found = _mappings.pop(key, None)
    if found is None:
        flags = mmap.MAP_SHARED | (_POPULATE if _is_memory(fd) else 0)  # a file on a disk may be larger than needed
        found = mmap.mmap(fd, 0, flags=flags, prot=mmap.PROT_READ)
    _mappings[key] = found  # the most recently used is the last
    if len(_mappings) > MAX_MAPPINGS:
        del _mappings[next(iter(_mappings))]
    return found


def _is_memory(fd: int) -> bool:
    try:
        return fcntl.fcntl(fd, _F_GET_SEALS) >= 0
    except OSError:
        return False


class _Printed(io.RawIOBase):
    """A stream that writes into a file, up to the file's present size, and drops the rest."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._left = os.fstat(fd).st_size

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def write(self, data: Any) -> int:
        text = bytes(data)
        self._left -= os.write(self._fd, text[: self._left]) if self._left > 0 else 0
        return len(text)


def print_to(fd: int) -> None:
    """Redirect stdout and stderr to a file, for native code too."""
    for number in (1, 2):
        os.dup2(fd, number)
    raw = _Printed(1)
    for name in ("stdout", "stderr"):
        setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace", line_buffering=True))


class _Arena:
    """The second half of the outputs' area, in which numpy allocates. The first half is for results that are copied."""

    def __init__(self) -> None:
        self._file = (0, 0)
        self._start = 0

    def use(self, fd: int, nbytes: int) -> None:
        """Let numpy allocate in the second half of an area, if it has one."""
        if _arena is None or not nbytes:
            return
        status = os.fstat(fd)
        self._start = arena_start(nbytes)
        if status.st_size < self._start + nbytes:
            return
        is_same = (status.st_dev, status.st_ino) == self._file
        _arena.use(-1 if is_same else fd, self._start, status.st_size - self._start)
        self._file = status.st_dev, status.st_ino

    def clear(self, fd: int, expected_nbytes: int) -> None:
        """Fill an area with zeros; if numpy allocates there, also map ``expected_nbytes`` of its second half."""
        status = os.fstat(fd)
        is_ours = (status.st_dev, status.st_ino) == self._file
        middle = self._start if is_ours else status.st_size
        with mmap.mmap(fd, 0) as whole:
            for start, end in list(data_ranges(fd)):
                if start < middle:
                    np.frombuffer(whole, np.uint8)[start : min(end, middle)] = 0
                if end > middle:
                    _arena.clear(max(start, middle) - middle, end - middle)
        if is_ours:
            expected = min(expected_nbytes, status.st_size - middle)
            _arena.clear(expected, expected)

    def offset_of(self, array: np.ndarray[Any, Any]) -> int | None:
        """The offset in the area at which an array lies; None if it lies elsewhere, and must be copied."""
        if _arena is None or not array.nbytes or not array.flags.c_contiguous or not is_little_endian(array):
            return None
        offset = _arena.offset_of(array.ctypes.data, array.nbytes)
        return None if offset < 0 or offset % _ALIGNMENT else self._start + offset


_numpy_memory = _Arena()


def _put(output: Any, fd: int, nbytes: int) -> Answer:
    outputs = output if isinstance(output, dict) else {"output": output}
    values: dict[str, Any] = {}
    answer = Answer()
    end = total = 0
    for name, value in outputs.items():
        if not isinstance(name, str):
            raise TypeError(f"the results' names are texts, and {name!r:.80} is none")
        if not _is_tensor(value):
            values[name] = plain(value, f"the result {name!r:.80}")
            continue
        dtype, array = to_array(candle_tensors.plain(value))
        total += array.nbytes
        if total > nbytes:
            raise TooMuchOutput
        offset = _numpy_memory.offset_of(array)
        if offset is None:
            offset = -(-end // _ALIGNMENT) * _ALIGNMENT
            end = offset + array.nbytes
            if end > nbytes:
                raise TooMuchOutput
            write(fd, offset, array)
        answer.tensors.append(TensorSpec(name, dtype.name, array.shape, offset))
    text = msgspec.json.encode(values)
    if len(text) > MAX_VALUES_NBYTES:
        raise ValueError(
            f"the results that are no tensors take {len(text)} bytes as JSON, and may take {MAX_VALUES_NBYTES}, "
            "whatever output_nbytes is: give large ones as arrays, a text as one of uint8"
        )
    if max(end, total) + len(text) > nbytes:
        raise TooMuchOutput
    os.pwrite(fd, text, end)
    answer.values_offset, answer.values_nbytes = end, len(text)
    return answer


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return (
        isinstance(value, np.ndarray | np.generic)
        or (torch is not None and isinstance(value, torch.Tensor))
        or candle_tensors.is_one(value)
    )
