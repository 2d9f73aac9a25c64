"""Tensors in a module's linear memory, as ``tr_algorithm.h`` describes them. They are mapped there, not copied.

A window is a range of linear memory over which a file is mapped: the inputs' sealed memory, read-only, or the outputs'
area. If the module stores into a read-only window, it traps, as for an access outside of its memory. Windows change
only while the module does not run.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Any, Final

import numpy as np
import wasmtime

from ..messages import TensorSpec
from .compiled import ERROR_NBYTES, TENSOR, Refused, describe_input, read_output, text_of

__all__ = ["Frame", "NoPlace", "Window", "Windows"]

_PAGE: Final = 64 << 10  # of WebAssembly
_STEP_NBYTES: Final = 64 << 20  # new pages count for the kernel's limit on memory until a file is mapped over them
_MAP_FIXED, _MAP_NORESERVE, _MAP_POPULATE = 0x10, 0x4000, 0x8000

_mmap = ctypes.CDLL(None, use_errno=True).mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]


class NoPlace(Refused):
    """The memory cannot grow so far."""


class Window:
    """A range of linear memory.

    Attributes:
        offset: of its first byte.
        nbytes: its size, in whole pages of WebAssembly.
        mapped: device and inode of the file that is mapped there, and how many bytes of it; None if none is.
    """

    def __init__(self, offset: int, nbytes: int) -> None:
        self.offset = offset
        self.nbytes = nbytes
        self.mapped: tuple[int, int, int] | None = None


class Windows:
    """The windows of one instance.

    Args:
        store: its store.
        memory: its first memory.
    """

    def __init__(self, store: wasmtime.Store, memory: wasmtime.Memory) -> None:
        self._store = store
        self._memory = memory
        self._windows: dict[str, Window] = {}
        self.nbytes = 0  # of all windows

    def open(self, name: str, nbytes: int, fd: int = -1, *, is_writable: bool = True) -> Window:
        """Open a window of at least ``nbytes`` bytes, and map a file there.

        Args:
            name: a window of this name is used again if it is large enough.
            nbytes: how many bytes of the file, from its start, are needed.
            fd: of the file; -1 to map no file.
            is_writable: whether the module may write the file.

        Raises:
            NoPlace: the memory cannot grow so far.
        """
        window = self._windows.get(name)
        if window is None or window.nbytes < nbytes:
            if window is not None:
                self.close(name)
            window = self._windows[name] = self._grow(nbytes, fd, is_writable)
        elif fd >= 0 and not _is_mapped(window, fd, nbytes):
            self._map(window.offset, nbytes, fd, 0, is_writable)
        if fd >= 0:
            about = os.fstat(fd)
            window.mapped = about.st_dev, about.st_ino, nbytes
        return window

    def close(self, name: str) -> None:
        """Unmap the file of a window."""
        window = self._windows[name]
        window.mapped = None
        if window.nbytes:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
            self._replace(window.offset, window.nbytes, 0, flags, -1, 0)

    def view(self, offset: int, dtype: Any, count: int) -> np.ndarray[Any, Any]:
        """An array over the module's memory. It must not be used after the instance is gone."""
        end = offset + np.dtype(dtype).itemsize * count
        if not 0 <= offset <= end <= self._memory.data_len(self._store):
            raise Refused("ValueError", f"{offset} to {end} is not in the module's memory")
        raw = (ctypes.c_char * (end - offset)).from_address(self._base() + offset)
        return np.frombuffer(raw, dtype, count)

    def _base(self) -> int:
        return ctypes.addressof(self._memory.data_ptr(self._store).contents)

    def _grow(self, nbytes: int, fd: int, is_writable: bool) -> Window:
        start = self._memory.data_len(self._store)
        done, whole = 0, -(-nbytes // _PAGE) * _PAGE
        self.nbytes += whole
        while done < whole:
            step = min(_STEP_NBYTES, whole - done)
            try:
                self._memory.grow(self._store, step // _PAGE)
            except wasmtime.WasmtimeError as error:
                raise NoPlace(
                    "MemoryError",
                    f"the module's memory of {start >> 20} MiB has no place for {nbytes >> 20} MiB of tensors: "
                    f"32 bits reach 4 GiB, and it may have a maximum of its own ({error})",
                ) from None
            if fd >= 0:
                self._map(start + done, min(step, nbytes - done), fd, done, is_writable)
            done += step
        return Window(start, whole)

    def _map(self, offset: int, nbytes: int, fd: int, file_offset: int, is_writable: bool) -> None:
        if not nbytes:
            return
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if is_writable else 0)
        self._replace(offset, nbytes, protection, mmap.MAP_SHARED, fd, file_offset)

    def _replace(self, offset: int, nbytes: int, protection: int, flags: int, fd: int, file_offset: int) -> None:
        wanted = self._base() + offset
        found = _mmap(wanted, nbytes, protection, flags | _MAP_FIXED, fd, file_offset)
        if found != wanted:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))


def _is_mapped(window: Window, fd: int, nbytes: int) -> bool:
    about = os.fstat(fd)
    return (
        window.mapped is not None and window.mapped[:2] == (about.st_dev, about.st_ino) and window.mapped[2] >= nbytes
    )


class Frame:
    """The arguments of ``tr_run`` in a module's memory: the tensors' records and names, a buffer for an error text.

    Args:
        windows: of the instance.
        inputs: the tensors. Their elements lie at their offsets in the window of their area.
        names: of the outputs.
        starts: where the windows of the inputs' areas begin.
        outputs_at: where the window ``"outputs"`` begins.
        output_nbytes: size of that window; each output gets the same share.
    """

    def __init__(
        self,
        windows: Windows,
        inputs: list[TensorSpec],
        names: list[str],
        starts: list[int],
        outputs_at: int,
        output_nbytes: int,
    ) -> None:
        texts = [each.encode() + b"\0" for each in (*(spec.name for spec in inputs), *names)]
        count = len(texts)
        self._windows = windows
        self._names = names
        self._outputs_at = outputs_at
        self._share = output_nbytes // max(1, len(names)) & ~63
        frame = windows.open("frame", count * TENSOR.itemsize + ERROR_NBYTES + sum(map(len, texts)))
        self.error_at = frame.offset + count * TENSOR.itemsize
        self.inputs_at, self.outputs_at = frame.offset, frame.offset + len(inputs) * TENSOR.itemsize
        tensors = windows.view(frame.offset, TENSOR, count)
        tensors[:] = np.zeros((), TENSOR)
        windows.view(self.error_at, np.uint8, ERROR_NBYTES)[:] = 0
        text_at = self.error_at + ERROR_NBYTES
        for index, text in enumerate(texts):
            windows.view(text_at, np.uint8, len(text))[:] = np.frombuffer(text, np.uint8)
            tensors[index]["name"] = text_at
            text_at += len(text)
        for index, spec in enumerate(inputs):
            describe_input(tensors[index], spec, starts[spec.area] + spec.offset)
        for index in range(len(names)):
            tensors[len(inputs) + index]["nbytes"] = self._share
            tensors[len(inputs) + index]["data"] = outputs_at + index * self._share

    def error(self) -> str:
        """The text that the module has left."""
        return text_of(self._windows.view(self.error_at, np.uint8, ERROR_NBYTES).tobytes())

    def results(self) -> list[TensorSpec]:
        """The outputs that the module has made, with their offsets in the outputs' area.

        Raises:
            Refused: the module has not made one of them, or its record is wrong.
        """
        records = self._windows.view(self.outputs_at, TENSOR, len(self._names))
        return [
            read_output(each, name, self._outputs_at + index * self._share, index * self._share, self._share)
            for index, (each, name) in enumerate(zip(records, self._names, strict=True))
        ]
