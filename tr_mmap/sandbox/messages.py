"""What the host, its zygote and the contained processes send to each other. No process trusts the bytes of another.

Each message is one packet of a socket pair, JSON, perhaps with descriptors. What is longer goes through memory.
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
# As plain numbers: those of the module are enumerations, which take longer to be combined than a packet to be received.
_CLOEXEC: Final = int(socket.MSG_CMSG_CLOEXEC)
_CUT: Final = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
_MAX_DEPTH: Final = 8  # of a message; they have less
_T = TypeVar("_T", bound=msgspec.Struct)


class TensorSpec(msgspec.Struct, frozen=True, array_like=True):
    """One tensor in an area.

    Attributes:
        name: of the input or output.
        dtype: of the table in ``tsr/dtypes.py``.
        shape: sizes in elements, outermost first.
        offset: of its first byte.
        area: 0 for the area itself; else the number of a loan, whose descriptors come behind the others.
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
        tensors: what describes them.
    """

    area: int
    tensors: list[TensorSpec]


class Job(msgspec.Struct, tag="job"):
    """Host to contained process.

    With it come descriptors: of the inputs, of the outputs' area, of what it prints, of loans.

    Attributes:
        text_offset, text_nbytes: of the text in the inputs' memory, behind the tensors: a :class:`Work` in JSON.
        output_nbytes: of the outputs' area.
        is_check: whether only to check the code, not to run it.
    """

    text_offset: int
    text_nbytes: int
    output_nbytes: int
    is_check: bool = False


class Ahead(msgspec.Struct, tag="ahead"):
    """Host to contained process, before its first job: memory to map, which takes longer than some jobs.

    With it come descriptors of the inputs and of the outputs' area. The latter may have what others have left there,
    and is cleared before any job.

    Attributes:
        output_nbytes: of results that the area is for.
        expected_nbytes: how much of it is likely to be used, from the start of each of its parts.
    """

    output_nbytes: int
    expected_nbytes: int


class Work(msgspec.Struct):
    """What to run, and on what.

    Attributes:
        runner: the module of ``runners/``.
        name: of the algorithm.
        code_offset, code_nbytes: of its code.
        function: to call; None for the usual choice.
        values: the inputs that are no tensors.
        tensors: the others.
        bundles: those that are several tensors, by name.
        code_area: where the code lies: 0 for the inputs' memory; else the number of a loan.
        arguments: how many inputs, named by their number, are the function's arguments; None if it gets ``inputs``.
        options: what only runners of one kind know.
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
        type: of the exception; or the limit.
        message: its text.
        traceback: the algorithm's own frames.
        rule: what refused it, and what it tried.
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
        values_offset, values_nbytes: of the outputs that are no tensors, in JSON, in the outputs' area.
        tensors: the others.
        execution_time_ms: of the algorithm.
        function: which was chosen; None if the code itself sets ``output``.
        fault: how it failed; None if it did not.
    """

    values_offset: int = 0
    values_nbytes: int = 0
    tensors: list[TensorSpec] = []
    execution_time_ms: float = 0.0
    function: str | None = None
    fault: Fault | None = None


class Ready(msgspec.Struct):
    """Zygote to host: it can fork; and the layers that its children will have."""

    layers: list[str]


class Spawned(msgspec.Struct):
    """Zygote to host, with a pidfd: the new process, and the number that the host gave it. Without: it failed."""

    pid: int
    number: int


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends, which keep the borders of packets."""
    make = unpatched("socket", "socket")  # gevent's waits in another way, and says that it does not wait when it must
    ours, theirs = _socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return make(fileno=ours.detach()), make(fileno=theirs.detach())


def send(end: socket.socket, message: msgspec.Struct | bytes, fds: list[int] | None = None) -> None:
    """Send one packet.

    Raises:
        ValueError: it is longer than the other end takes.
    """
    data = message if isinstance(message, bytes) else msgspec.json.encode(message)
    if len(data) > MAX_PACKET_NBYTES:
        raise ValueError(f"{len(data)} bytes, of at most {MAX_PACKET_NBYTES} in one packet")
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    end.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)  # an end that has gone is an error, not our end


def receive(end: socket.socket) -> tuple[bytes, list[int]]:
    """Take one packet: its bytes, none if the other end is closed; and its descriptors, which are the caller's now."""
    try:
        data, ancillary, flags, _ = end.recvmsg(MAX_PACKET_NBYTES, _FDS_NBYTES, _CLOEXEC)
    except ConnectionResetError:  # it was closed before it read everything
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
    """The message of a packet.

    Raises:
        ValueError: it is none.
    """
    check_depth(data, _MAX_DEPTH)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise ValueError(str(error)) from error
