"""``session.json``: what a session is and which processes it belongs to. Never says where sessions are.

A sweep by any process judges a session by this file. It is one JSON object, written whole and replaced whole. Readers
ignore fields that they do not know, so later versions may add some.
"""

from __future__ import annotations

import os
import time

import msgspec

from ..base import system
from ..base.atomic import replacement
from ..base.strict_json import refuse_duplicates
from ..errors import BadMessage
from ..processes.identity import Identity
from ..transfer.options import TransferOptions
from ..wire.limits import MAX_MANIFEST_NBYTES
from ..wire.messages import PROTOCOL_VERSION
from ..wire.names import MANIFEST_FILE

__all__ = ["Manifest", "peek_controller", "read", "write"]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest of one session. To change it: ``msgspec.structs.replace`` and :func:`write`.

    Attributes:
        protocol: version of the control protocol.
        session_id: its name.
        controller: the process that owns it.
        worker: the process that serves it; None until it is started.
        worker_mark: the worker's mark. It tells this worker from that of an earlier start, which may attach late; "" if
            it has none.
        channel: the name of the channel, "mapped", "files" or "legacy".
        doorbells: names of the semaphores; a sweep of the session removes those that still exist.
        transfer: how both sides keep their tensors; the key in the file is "store".
        spin_us: how many microseconds either side polls for a message, at most, before it sleeps.
        recycle_memory: whether the worker keeps freed private memory for later arrays.
        framework: the library that made the session.
        pool: the directory, beside the session's, in which the controller's process has its segments; "" if they are
            in the session's own.
        log: the file with the worker's output, if it is outside the session's directory; else "".
        created_ms: when it was made, milliseconds since 1970.
    """

    protocol: int = PROTOCOL_VERSION
    session_id: str
    controller: Identity
    worker: Identity | None = None
    worker_mark: str = ""
    channel: str = "mapped"
    doorbells: list[str] = msgspec.field(default_factory=list)
    transfer: TransferOptions = msgspec.field(default=TransferOptions(), name="store")
    spin_us: float = 0.0
    recycle_memory: bool = True
    framework: str = ""
    pool: str = ""
    log: str = ""
    created_ms: int = msgspec.field(default_factory=_now_ms)


_decoder = msgspec.json.Decoder(Manifest)


def write(directory: str, manifest: Manifest) -> None:
    """Put a manifest into a session's directory in one step; replaces the one that is there.

    Raises:
        BadMessage: the manifest is larger than readers accept.
        FileNotFoundError: there is no such directory.
    """
    data = msgspec.json.encode(manifest) + b"\n"
    if len(data) > MAX_MANIFEST_NBYTES:
        raise BadMessage(
            f"the manifest of session {manifest.session_id[:64]!r} has {len(data)} bytes; at most "
            f"{MAX_MANIFEST_NBYTES} are read: shorten its names",
            detail=f"{len(data)} bytes",
        )
    with replacement(os.path.join(directory, MANIFEST_FILE)) as fd:
        system.write_all(fd, data)


class _Owner(msgspec.Struct):
    controller: Identity


_owner_decoder = msgspec.json.Decoder(_Owner)


def peek_controller(directory: str) -> Identity | None:
    """The controller that a manifest names, at a tenth of the cost of :func:`read`; None if that is not plain.

    Nothing is checked, so this may serve as a reason to leave a session alone, and never as one to remove it.
    """
    try:
        data = system.peek(f"{directory}/{MANIFEST_FILE}", MAX_MANIFEST_NBYTES + 1)
        return None if len(data) > MAX_MANIFEST_NBYTES else _owner_decoder.decode(data).controller
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def read(directory: str) -> Manifest | None:
    """The manifest of a session's directory; None if there is none.

    Raises:
        BadMessage: the file is no manifest, or is too large for one.
        HostilePath: it is not a file of this user's own.
    """
    path = os.path.join(directory, MANIFEST_FILE)
    try:
        fd = system.open_private_file(path)
    except FileNotFoundError:
        return None
    try:
        data = system.read_all(fd, MAX_MANIFEST_NBYTES + 1)
    finally:
        system.close(fd)
    if len(data) > MAX_MANIFEST_NBYTES:
        raise BadMessage(
            f"{path} has more than {MAX_MANIFEST_NBYTES} bytes and so is no manifest; remove the session by hand "
            "if it is none of yours",
            detail="too large",
        )
    try:
        refuse_duplicates(data)
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, BadMessage) as error:
        raise BadMessage(
            f"{path} is not a session's manifest ({error}); remove the session by hand if nothing uses it",
            detail=str(error),
        ) from error
