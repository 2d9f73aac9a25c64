"""The messages between the host, its zygote and the contained processes. No process trusts the bytes of another.

Each message is one packet of a socket pair: JSON, perhaps with descriptors. Longer texts go through shared memory.
"""

from __future__ import annotations

import _socket
import array
import os
import socket
from typing import Any, Final, TypeVar

import msgspec

from ..base.unpatched import unpatched
from .values import check_depth

__all__ = [
    "MAX_PACKET_NBYTES",
    "Ahead",
    "Answer",
    "BundleSpec",
    "Fault",
    "Job",
    "Ready",
    "Spawned",
    "TensorSpec",
    "Work",
    "pair",
    "receive",
    "send",
]

MAX_PACKET_NBYTES: Final = 64 << 10  # far below what a socket's buffer holds
_MAX_FDS: Final = 16
_FDS_NBYTES: Final = socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize)
# As int: the module's flags are enumerations, and combining these takes longer than receiving a packet.
_CLOEXEC: Final = int(socket.MSG_CMSG_CLOEXEC)
_CUT: Final = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
_MAX_DEPTH: Final = 8  # of JSON in a message; our own messages have less
_T = TypeVar("_T", bound=msgspec.Struct)


class TensorSpec(msgspec.Struct, frozen=True, array_like=True):
    """One tensor in an area.

    Attributes:
        name: of the input or output.
        dtype: its name in the table of ``tsr/dtypes.py``.
        shape: sizes in elements, outermost first.
        offset: of its first byte.
        area: 0 for the area itself; else the number of a loan. The loans' descriptors follow the others in a job.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    area: int = 0


class BundleSpec(msgspec.Struct, frozen=True, array_like=True):
    """Several tensors that are one input.

    Attributes:
        area: the number of the loan in which they all lie.
        tensors: their descriptions.
    """

    area: int
    tensors: list[TensorSpec]


class Job(msgspec.Struct, tag="job"):
    """Host to contained process.

    Its descriptors are: the inputs' area, the outputs' area, the file for printed text, the loans.

    Attributes:
        text_offset, text_nbytes: where the JSON of a :class:`Work` lies in the inputs' area, after the tensors.
        output_nbytes: the limit on results, for which the outputs' area was made.
        is_check: whether only to check the code, not to run it.
    """

    text_offset: int
    text_nbytes: int
    output_nbytes: int
    is_check: bool = False


class Ahead(msgspec.Struct, tag="ahead"):
    """Host to contained process, before its first job: memory to map in advance.

    Mapping takes longer than some jobs. Its descriptors are the inputs' area and the outputs' area. The latter may have
    results of former runs; the process clears it before any job.

    Attributes:
        output_nbytes: the limit on results, for which the outputs' area was made.
        expected_nbytes: how many bytes of numpy's part of the outputs' area are likely to be used.
    """

    output_nbytes: int
    expected_nbytes: int


class Work(msgspec.Struct):
    """What to run, and on what.

    Attributes:
        runner: the module of ``runners/``.
        name: of the algorithm.
        code_offset, code_nbytes: where its code lies in ``code_area``.
        function: the function to call; None for the default choice.
        values: the inputs that are JSON values.
        tensors: the inputs that are tensors.
        bundles: the inputs that are bundles, by name.
        code_area: 0 for the inputs' area; else the number of a loan.
        arguments: how many inputs, named by their number, are the function's arguments; None if it gets ``inputs``.
        options: options that only the runner of this kind knows.
    """

    runner: str
    name: str
    code_offset: int
    code_nbytes: int
    function: str | None
    values: dict[str, Any] = {}
    tensors: list[TensorSpec] = []
    bundles: dict[str, BundleSpec] = {}
    code_area: int = 0
    arguments: int | None = None
    options: dict[str, Any] = {}


class Fault(msgspec.Struct):
    """How a run failed.

    Attributes:
        kind: ``"algorithm"``, ``"not_allowed"`` or ``"limit"``.
        type: name of the exception's class; or of the limit.
        message: its text.
        traceback: the algorithm's own frames.
        rule: the rule that refused something.
        detail: what was refused.
    """

    kind: str
    type: str
    message: str
    traceback: str = ""
    rule: str = ""
    detail: str = ""


class Answer(msgspec.Struct, tag="answer"):
    """Contained process to host.

    Attributes:
        values_offset, values_nbytes: where the outputs that are JSON values lie in the outputs' area.
        tensors: the outputs that are tensors.
        execution_time_ms: how long the algorithm ran.
        function: the function that was chosen; None if the code itself sets ``output``.
        fault: how the run failed; None if it did not.
    """

    values_offset: int = 0
    values_nbytes: int = 0
    tensors: list[TensorSpec] = []
    execution_time_ms: float = 0.0
    function: str | None = None
    fault: Fault | None = None


class Ready(msgspec.Struct):
    """Zygote to host: it is ready to fork, and its children will have these layers."""

    layers: list[str]


class Spawned(msgspec.Struct):
    """Zygote to host: a new process, with its pidfd; without a descriptor, the fork has failed.

    Attributes:
        pid: of the process; 0 if the fork has failed.
        number: the number of the host's request.
    """

    pid: int
    number: int


def pair() -> tuple[socket.socket, socket.socket]:
    """Make a pair of connected sockets that send whole packets."""
    make = unpatched("socket", "socket")  # gevent's socket is always non-blocking, and waits in its own loop
    ours, theirs = _socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return make(fileno=ours.detach()), make(fileno=theirs.detach())


def send(end: socket.socket, message: msgspec.Struct | bytes, fds: list[int] | None = None) -> None:
    """Send one packet.

    Raises:
        ValueError: it is longer than ``MAX_PACKET_NBYTES``.
    """
    data = message if isinstance(message, bytes) else msgspec.json.encode(message)
    if len(data) > MAX_PACKET_NBYTES:
        raise ValueError(f"{len(data)} bytes, of at most {MAX_PACKET_NBYTES} in one packet")
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    end.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)  # a closed end is an error, not SIGPIPE


def receive(end: socket.socket) -> tuple[bytes, list[int]]:
    """Receive one packet: its bytes (none if the other end is closed) and its descriptors, which the caller closes.

    Raises:
        ValueError: the packet is longer than ours are, or has more descriptors.
    """
    try:
        data, ancillary, flags, _ = end.recvmsg(MAX_PACKET_NBYTES, _FDS_NBYTES, _CLOEXEC)
    except ConnectionResetError:  # the other end was closed before it had read everything
        return b"", []
    if not ancillary and not flags & _CUT:
        return data, []
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if flags & _CUT:
        for fd in fds:
            os.close(fd)
        raise ValueError("a packet longer than any of ours")
    return data, list(fds)


def decode(data: bytes, kind: type[_T]) -> _T:
    """Decode a packet.

    Raises:
        ValueError: it is not a message of this kind.
    """
    check_depth(data, _MAX_DEPTH)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise ValueError(str(error)) from error
