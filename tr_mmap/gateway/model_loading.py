"""Brings one version of a model into sealed memory, and tries it in a sandbox. Knows no other version.

The gateway itself parses headers of safetensors only. Every other format is opened by a contained process.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from ..errors import MissingPackage, TRException
from ..sandbox import Algorithm, AlgorithmError, Bundle, LimitExceeded, Limits, NotAllowed
from ..sandbox.inspection import inspect
from ..sandbox.kinds import is_installed
from ..tsr.safetensors import SIZE_NBYTES, SafetensorsError, parse_header, parse_size
from ..tsr.tensors import from_buffer
from .boxes import Boxes, BoxKey
from .errors import BadModel
from .model_files import SOURCE, TO_CONVERT, Format, FoundVersion, opened, read_source
from .model_memory import LoadedModel
from .onnx_source import ONNX_SOURCE
from .registry import Kind, Registered, version_of
from .wording import in_own_words

__all__ = ["ModelLoader", "map_tensors"]

_MOST_HEADER_NBYTES: Final = 16 << 20  # of models; as objects they take twenty times as much
_FORWARD: Final = "forward"
_ONNX: Final = "onnxruntime"
_ZIP: Final = b"PK\x03\x04"
_PICKLE: Final = b"\x80"  # of protocol 2 and later, as torch.save writes it without an archive


def map_tensors(fd: int) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of a safetensors file, by name: views of the file, which are never read here.

    Raises:
        SafetensorsError: it is none.
    """
    nbytes = os.fstat(fd).st_size
    size = parse_size(os.pread(fd, SIZE_NBYTES, 0), nbytes, _MOST_HEADER_NBYTES)
    start = SIZE_NBYTES + size
    header = parse_header(os.pread(fd, size, SIZE_NBYTES), nbytes - start)
    buffer = mmap.mmap(fd, nbytes, prot=mmap.PROT_READ)
    return {
        each.name: from_buffer(buffer, each.dtype, each.shape, start + each.start, "numpy") for each in header.entries
    }


def _check_archive(begin: bytes, path: str, name: str) -> None:
    """
    Raises:
        BadModel: a file that begins so is no archive, as those of torch are.
    """
    if begin == _ZIP:
        return
    if begin.startswith(_PICKLE):
        raise BadModel(f"{path} is refused, for it is a pickle: {TO_CONVERT}", name=name)
    why = "is no archive, as torch.export.save and torch.jit.save write one; it may be incomplete"
    raise BadModel(f"{path} {why}", name=name)


class ModelLoader:
    """See the module's docstring. Threads may use it at once.

    Args:
        root: the directory of all models; kept as an attribute.
        boxes: in which they are tried, and run.
        limits: of a run, by the kind of its algorithm.
        is_reused: whether the process of a model's own algorithm may serve its next run too.
    """

    def __init__(self, root: str, boxes: Boxes, limits: Callable[[Kind], Limits], *, is_reused: bool) -> None:
        self.root = root
        self._boxes = boxes
        self._limits = limits
        self._is_reused = is_reused

    def load(self, found: FoundVersion, reserve: Callable[[int], None]) -> LoadedModel:
        """Load a version, and try it: its code is parsed, and a model that is no safetensors file is opened.

        Args:
            found: which.
            reserve: is told how many bytes it needs, before they are taken.

        Raises:
            BadModel: it cannot be loaded.
            MissingPackage: it needs a package that is not installed.
            LimitExceeded: a run's limits do not let it be opened.
            OutOfSpace, SandboxBroken: this machine cannot do it now.
        """
        file, kind_of_file = found.weights()
        bundle = self._bundle(found, file, kind_of_file, reserve)
        try:
            if found.has_source:
                return LoadedModel(bundle, self._with_source(found), True)
            if kind_of_file == "safetensors":
                return LoadedModel(bundle, None, False)
            if kind_of_file == "onnx":
                return LoadedModel(bundle, self._onnx(found, bundle), True)
            return LoadedModel(bundle, self._torch(found, bundle), False)
        except LimitExceeded as error:  # another time it may be faster
            text = f"{found.path(file)} cannot be opened: {error}"
            raise LimitExceeded(text, limit=error.limit, value=error.value) from error
        except (AlgorithmError, NotAllowed) as error:
            where = found.path(SOURCE if found.has_source else file)
            if "torch.save writes" in str(error):
                raise BadModel(f"{where} is refused: {TO_CONVERT}", name=found.name) from error
            raise BadModel(f"{where} cannot be used: {in_own_words(error)}", name=found.name) from error

    def _bundle(self, found: FoundVersion, file: str, kind: Format, reserve: Callable[[int], None]) -> Bundle:
        path = found.path(file)
        try:
            with opened(self.root, found, file) as fd:
                nbytes = os.fstat(fd).st_size
                if not nbytes:
                    raise BadModel(f"{path} is empty", name=found.name)
                if kind == "safetensors":
                    tensors = map_tensors(fd)
                else:
                    if kind != "onnx":
                        _check_archive(os.pread(fd, len(_ZIP), 0), path, found.name)
                    tensors = {file: np.frombuffer(mmap.mmap(fd, nbytes, prot=mmap.PROT_READ), np.uint8)}
                reserve(Bundle.nbytes_of(tensors))
                return Bundle(tensors)
        except SafetensorsError as error:
            raise BadModel(f"{path} is no safetensors file: {error}", name=found.name) from error
        except TRException:
            raise
        except (OSError, ValueError) as error:  # it was truncated meanwhile, say
            why = (error.strerror if isinstance(error, OSError) else None) or error
            raise BadModel(f"{path} cannot be read: {why}", name=found.name) from error

    def _with_source(self, found: FoundVersion) -> Registered:
        """Its ``forward``, on torch tensors if it imports torch, else on arrays."""
        source = read_source(self.root, found)
        try:
            kind: Kind = "torch" if "torch" in inspect(source.decode()).imports else "python"
        except SyntaxError as error:
            text = f"{found.path(SOURCE)}, line {error.lineno}: {error.msg}"
            raise BadModel(text, name=found.name) from None
        except UnicodeDecodeError:
            raise BadModel(f"{found.path(SOURCE)} is no text in UTF-8", name=found.name) from None
        key = BoxKey("torch" if kind == "torch" else "contained", self._limits(kind))
        return self._registered(found, kind, key, self._prepared(key, found, source))

    def _onnx(self, found: FoundVersion, bundle: Bundle) -> Registered:
        if not is_installed(_ONNX):
            raise MissingPackage(
                f"{found.folder} is a model of ONNX, which needs {_ONNX}: pip install 'tr_mmap[onnx]'", package=_ONNX
            )
        key = BoxKey("contained", self._limits("python"), preload=(_ONNX,))
        algorithm = self._prepared(key, found, ONNX_SOURCE.encode())
        with self._boxes.using(key) as box:
            box.call(algorithm, "check", bundle)
        return self._registered(found, "python", key, algorithm)

    def _torch(self, found: FoundVersion, bundle: Bundle) -> Registered:
        key = BoxKey("torch", self._limits("torch"))
        return self._registered(found, "torch", key, self._prepared(key, found, bundle))

    def _prepared(self, key: BoxKey, found: FoundVersion, code: bytes | Bundle) -> Algorithm:
        with self._boxes.using(key) as box:
            algorithm = box.register(found.name, code, _FORWARD, reuse=self._is_reused)
            box.unregister(algorithm)  # runs have the object; the sandbox need not know it by name
        return algorithm

    def _registered(self, found: FoundVersion, kind: Kind, key: BoxKey, algorithm: Algorithm) -> Registered:
        version = version_of(found.name.encode(), str(found.number).encode(), repr(found.files).encode())
        return Registered(found.name, version, kind, algorithm, key, "", time.time(), model=found.name, is_model=True)
