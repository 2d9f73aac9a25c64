"""Tensors in plain files, put in place whole: the transfer of the legacy dialect and of requests by hand.

Never makes a segment, and reads one as any other file.

A file is ``<tag>.tsr``. Our worker reads copies, because a legacy controller may overwrite its files in place. It
leaves these files there, and writes ``result_<i>.tsr``. A legacy worker deletes its inputs after reading. So our
controller keeps a copy of each tag's file, and links it into place for every request that names the tag. It renames the
worker's result files as soon as the response is there, so that no later write of the worker can change them. It removes
them when they are mapped.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, Final, Literal

import numpy as np

from .. import tsr
from ..base import system
from ..base.atomic import replacement
from ..base.fork_safety import this_process
from ..base.identifiers import is_plain_tag, tensor_file
from ..errors import Fault, MissingTag, OutOfSpace, TSRFormatError, UnsupportedTensor
from ..protocol.commands import split_words
from ..protocol.legacy import LEGACY_FORBIDDEN_MODE
from ..protocol.messages import Request, Response, TensorRef, decode_response
from ..shm.loans import sizes_of
from ..shm.stats import PoolStats
from ..tsr import dtypes
from ..tsr import header as tsr_header
from ..tsr import tensors as conversions
from ..tsr.files import TRANSIENT_FAULTS, BeingChanged, check_payload, until_settled
from ..tsr.framework_names import check_framework_name
from ..wire.header import MAX_DTYPE_CODE_V1, MAX_HEADER_NBYTES, MAX_NDIM_V1
from ..wire.messages import DEFAULT_RESULT, REQUEST_FILE
from ..wire.names import MAX_TAG_LENGTH, RESULT_PREFIX
from .interface import ControllerTransfer, Draft, WorkerTransfer
from .tags import describe_tags

__all__ = ["LegacyControllerTransfer", "LegacyWorkerTransfer"]

_LEGACY_DTYPES: Final = ("float32", "int8", "int32")  # those of the original framework
_is_legacy_result = re.compile(r"r[0-9]*").fullmatch


# -- files -----------------------------------------------------------------------------------------------------------


def _encode(tensor: Any, *, may_be_v2: bool = False) -> tuple[bytes, memoryview]:
    """A header, and the payload's bytes.

    Args:
        tensor: any tensor.
        may_be_v2: False for a legacy peer: a v1 header, and one of the dtypes that every such peer reads. True: any v1
            header; a v2 header if v1 cannot hold the tensor.

    Raises:
        UnsupportedTensor: not a tensor, or one that no header it may have can hold.
    """
    dtype, array = conversions.to_array(tensor)
    if not may_be_v2 and dtype.name not in _LEGACY_DTYPES:
        raise UnsupportedTensor(
            f"a legacy peer reads {', '.join(_LEGACY_DTYPES)}, and no {dtype.name}: convert the tensor to float32"
        )
    try:
        if may_be_v2 and (dtype.code > MAX_DTYPE_CODE_V1 or array.ndim > MAX_NDIM_V1):
            header = tsr_header.encode_v2(dtype, array.shape, created_ns=time.time_ns())
        else:
            header = tsr_header.encode_v1(dtype, array.shape)
    except TSRFormatError as error:
        raise UnsupportedTensor(
            f"a legacy peer reads TSR v1 only: {str(error).removesuffix('; use v2')}; convert the tensor"
        ) from error
    if array.nbytes and not (array.flags.c_contiguous and conversions.is_little_endian(array)):
        copy = bytearray(array.nbytes)
        conversions.copy_into(copy, 0, array)
        return header, memoryview(copy)
    return header, array.reshape(-1).view(np.uint8).data if array.nbytes else memoryview(b"")


def _write(path: str, header: bytes, payload: memoryview) -> None:
    """Put a file in place, whole; a process that reads the old file keeps the old one."""
    with replacement(path) as fd:
        system.write_all(fd, header)
        system.write_all(fd, payload, len(header))


def _read(path: str, framework: str) -> Any:
    """A copy of a file's tensor, of any layout. Never maps: a writer that overwrites a file truncates it first."""
    check_framework_name(framework)

    def once() -> Any:
        try:
            return _copy(path, framework)
        except TSRFormatError as error:
            if error.fault in TRANSIENT_FAULTS:
                raise BeingChanged(error) from None
            raise

    return until_settled(once)


def _copy(path: str, framework: str) -> Any:
    fd = system.open_private_file(path, forbidden_mode=LEGACY_FORBIDDEN_MODE)
    try:
        header = _header_of(fd, path)
        payload = np.empty(header.payload_nbytes, np.uint8).data
        if system.read_into(fd, payload, header.payload_offset) != header.payload_nbytes:
            raise TSRFormatError(f"{path} became shorter while it was read", fault=Fault.TRUNCATED, path=path)
        if header.is_segment and _header_of(fd, path) != header:
            raise TSRFormatError(f"{path}: replaced again and again while it was read", fault=Fault.TORN, path=path)
    finally:
        system.close(fd)
    check_payload(header, payload, path)
    return conversions.from_buffer(payload, header.dtype, header.shape, 0, framework)


def _header_of(fd: int, path: str) -> tsr_header.Header:
    raw = system.read_all(fd, MAX_HEADER_NBYTES)
    return tsr_header.decode(raw, file_nbytes=system.file_nbytes(fd), path=path)


def _empty(shape: int | tuple[int, ...], dtype: Any, framework: str) -> Any:
    """A plain array or tensor of undefined content. A legacy peer maps no memory, so sending copies it."""
    known = dtypes.resolve(dtype)
    shape = sizes_of(shape)
    if any(size < 0 for size in shape):
        raise UnsupportedTensor(f"{shape} is no shape: a size is negative")
    payload = np.empty(math.prod(shape) * known.itemsize, np.uint8).data
    return conversions.from_buffer(payload, known, shape, 0, framework)


def _kept_file(tag: str) -> str:
    """The name of the file in which our controller keeps a tag's tensor, when the tag's own file is not in place."""
    return f".{tag}.kept"


def _inode(path: str) -> int | None:
    try:
        return system.status(path).st_ino
    except FileNotFoundError:
        return None


# -- the worker's side -----------------------------------------------------------------------------------------------


class LegacyWorkerTransfer(WorkerTransfer):
    """See :class:`WorkerTransfer`.

    Args:
        directory: the session directory.
        stem: of the results' tags, before ``_<i>``.
        may_be_v2: whether a result that v1 cannot hold is a v2 file; else it is refused.
    """

    def __init__(self, directory: str, stem: str = RESULT_PREFIX, *, may_be_v2: bool = False) -> None:
        self._directory = directory
        self._known_dir = system.KnownDir(directory)
        self._stem = stem
        self._may_be_v2 = may_be_v2
        self.tags = _Files(directory)
        self.results: list[TensorRef] = []
        self._count = 0  # how many result files of the last response may be there

    def begin(self, request: Request) -> None:  # noqa: ARG002 - its tensors are in files
        self.results = []

    def fetch(self, tag: str, framework: str) -> Any:
        for name in _names(tag):
            try:
                return _read(os.path.join(self._directory, name), framework)
            except FileNotFoundError:
                pass
        raise MissingTag(
            f"there is no tensor with the tag {tag!r}, and no file {tensor_file(tag[:MAX_TAG_LENGTH])} in "
            f"{self._directory}",
            tag=tag,
        )

    def publish(self, tensors: Sequence[Any]) -> None:
        self._known_dir.check()
        for tensor in tensors:
            tag = f"{self._stem}_{len(self.results)}"
            _write(self._path(tag), *_encode(tensor, may_be_v2=self._may_be_v2))
            self.results.append(TensorRef(tag, tensor_file(tag), 0))
            self._count = max(self._count, len(self.results))

    def end(self, request: Request, is_kept: bool) -> list[TensorRef]:  # noqa: ARG002 - as above
        if not is_kept:
            self.results = []
        for number in range(len(self.results), self._count if self._known_dir.is_there() else 0):
            system.unlink(self._path(f"{self._stem}_{number}"))
        self._count = len(self.results)
        return self.results

    def withdraw(self) -> None:
        self.end(Request(), is_kept=False)

    def empty(self, shape: int | tuple[int, ...], dtype: Any, framework: str) -> Any:
        return _empty(shape, dtype, framework)

    def close(self, *, is_orphan: bool) -> None:
        if is_orphan:
            self.withdraw()

    def _path(self, tag: str) -> str:
        return os.path.join(self._directory, tensor_file(tag))


def _names(tag: str) -> tuple[str, ...]:
    """Where the tensor of a tag may be. The second is for a request by hand, whose tags our controller puts nowhere."""
    return (tensor_file(tag), _kept_file(tag)) if is_plain_tag(tag) else ()


class _Files:
    """The tags that name a file."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def __contains__(self, tag: object) -> bool:
        names = _names(tag) if isinstance(tag, str) else ()
        return any(system.exists(os.path.join(self._directory, name)) for name in names)


# -- the controller's side -------------------------------------------------------------------------------------------


class LegacyControllerTransfer(ControllerTransfer):
    """See :class:`ControllerTransfer`.

    Args:
        directory: the session directory.
        budget_nbytes: most bytes of files to keep at once; None for no limit but the file system's.
        views: ``"readonly"`` or ``"copy_on_write"``: what received tensors are; None for each framework's default.
    """

    def __init__(self, directory: str, *, budget_nbytes: int | None, views: str | None = None) -> None:
        super().__init__()
        self._directory = directory
        self._owner = this_process.mark
        self._known_dir = system.KnownDir(directory)
        self._mode: Literal["r", "c"] | None = None if views is None else "r" if views == "readonly" else "c"
        self._budget_nbytes = budget_nbytes
        self._kept: dict[str, int] = {}  # by tag: bytes of its file
        self._placed: dict[str, int | None] = {}  # by tag: the inode that we put in place for the worker
        self._taken: set[str] = set()  # file names of results that wait to be received
        self._takes = 0
        self._lock = threading.RLock()  # threads may send and drop tags while another prepares a request
        self._written = 0
        self._written_nbytes = 0

    def put(self, tag: str, tensor: Any) -> None:
        with self._lock:
            self._known_dir.check()
            self._kept[tag] = self._save(self._kept_path(tag), tensor, replaced_nbytes=self._kept.get(tag, 0))

    def drop(self, tag: str) -> None:
        with self._lock:
            if tag not in self._kept:
                known = describe_tags(self._kept)
                raise MissingTag(f"there is no tensor with the tag {tag!r}; there are {known}", tag=tag)
            if self._known_dir.is_there():
                system.unlink(self._kept_path(tag), owner=self._owner)
            del self._kept[tag]

    def prepare(
        self,
        key: Any,  # noqa: ARG002 - there is one request at a time
        command: str,
        parameters: str,
        tensors: Sequence[Any],
        deadline_s: float = inf,  # noqa: ARG002
    ) -> Draft:
        words = split_words(parameters)
        with self._lock:
            self._known_dir.check()
            self.withdraw()
            try:
                for word in words:
                    if word in self._kept:
                        self._place(word)
                own = [self._place_argument(tensor) for tensor in tensors]
            except BaseException:
                self.withdraw()
                raise
        if own or (words and all(word in self._kept for word in words)):
            parameters = ",".join([*words, *own])  # as a legacy worker splits them; other text stays as it is
        return Draft(command, parameters)

    def release(self, key: Any, oldest: int | None) -> None:
        """Does nothing: ``decode`` has removed the request's files, and so does the next ``prepare``."""

    def withdraw(self) -> None:
        self._remove_placed()
        for name in self._taken if self._known_dir.is_there() else ():  # of a response that no caller took
            system.unlink(os.path.join(self._directory, name), owner=self._owner)
        self._taken.clear()

    def decode(self, raw: bytes) -> Response:
        """Parse a response, and take its result files.

        The words of its params are results if all of them are files of the worker's own.
        """
        response = decode_response(raw)
        tags = [ref.tag for ref in response.tensors]
        are_results = response.error is None and all(map(self._is_result, tags))
        response.tensors = [self._take(tag, self._path(tag)) for tag in tags] if are_results else []
        if not system.exists(os.path.join(self._directory, REQUEST_FILE)):
            self._remove_placed()  # else the handler goes on, and may read them; the next request removes them
        if not are_results:
            return response
        if tags and tags == split_words(response.result):
            response.result = DEFAULT_RESULT
        return response

    def receive(self, ref: TensorRef, framework: str) -> Any:
        path = os.path.join(self._directory, ref.segment)
        try:
            tensor = tsr.load(path, framework=framework, mode=self._mode)
        except TSRFormatError:  # but at a limit of the system the file stays, to be received later
            self._forget(ref.segment)
            raise
        self._forget(ref.segment)  # what is mapped stays as it is
        return tensor

    def _forget(self, name: str) -> None:
        system.unlink(os.path.join(self._directory, name), owner=self._owner)
        self._taken.discard(name)

    def empty(self, shape: int | tuple[int, ...], dtype: Any, framework: str) -> Any:
        return _empty(shape, dtype, framework)

    def stats(self) -> PoolStats:
        return PoolStats(
            segments=len(self._kept),
            nbytes=sum(list(self._kept.values())),
            free_nbytes=0,
            published=self._written,
            copied_nbytes=self._written_nbytes,
            created=self._written,
            leased=0,
            leased_nbytes=0,
        )

    def collect(self) -> None:
        """Does nothing: a file's memory is free when its last view is gone."""

    def worker_started(self, is_over: Callable[[], bool]) -> None:
        """Does nothing: every request puts all its files in place."""

    def worker_ended(self) -> None:
        self.withdraw()

    def close(self) -> None:
        """Does nothing: the files are removed with the directory."""

    # -- files ----------------------------------------------------------------------------------------------------

    def _save(self, path: str, tensor: Any, *, replaced_nbytes: int = 0) -> int:
        header, payload = _encode(tensor)
        nbytes = len(header) + len(payload)
        held = sum(list(self._kept.values())) - replaced_nbytes  # a copy: another thread may send a tensor
        if self._budget_nbytes is not None and held + nbytes > self._budget_nbytes:
            raise OutOfSpace(
                f"a file of {nbytes} bytes would exceed the session's budget of {self._budget_nbytes}; {held} are in "
                "use: drop tensors, or raise budget_nbytes",
                needed_nbytes=nbytes,
                free_nbytes=max(0, self._budget_nbytes - held),
                is_budget=True,
            )
        _write(path, header, payload)
        self._written += 1
        self._written_nbytes += len(payload)
        return nbytes

    def _place_argument(self, tensor: Any) -> str:
        number = 0
        while (tag := f"arg_{number}") in self._kept or tag in self._placed:
            number += 1
        path = self._path(tag)
        self._save(path, tensor)
        self._placed[tag] = _inode(path)
        return tag

    def _place(self, tag: str) -> None:
        kept, path = self._kept_path(tag), self._path(tag)
        system.unlink(path)
        if _is_legacy_result(tag):
            # The worker may overwrite the file in place with a result of that name; that must not reach our copy.
            fd = system.open_private_file(kept)
            try:
                _write(path, b"", memoryview(system.read_all(fd, system.file_nbytes(fd))))
            finally:
                system.close(fd)
        else:
            system.link(kept, path)
        self._placed[tag] = _inode(path)

    def _remove_placed(self) -> None:
        placed, self._placed = self._placed, {}
        for tag, inode in placed.items():
            path = self._path(tag)
            if inode is not None and _inode(path) == inode:  # else the worker has made a result of that name
                system.unlink(path, owner=self._owner)

    def _is_result(self, tag: str) -> bool:
        inode = _inode(self._path(tag))
        return inode is not None and inode != self._placed.get(tag)

    def _take(self, tag: str, path: str) -> TensorRef:
        self._takes += 1
        name = tensor_file(f".taken_{self._takes}")
        self._taken.add(name)
        system.rename(path, os.path.join(self._directory, name), owner=self._owner)
        return TensorRef(tag, name, 0)

    def _path(self, tag: str) -> str:
        return os.path.join(self._directory, tensor_file(tag))

    def _kept_path(self, tag: str) -> str:
        return os.path.join(self._directory, _kept_file(tag))
