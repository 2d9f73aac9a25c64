"""The files of a mapped channel: how the pages are made and opened, and long messages. Maps nothing.

A message that is too long for its slot in a ring is a spill: a file of its own, which the slot names under ``"spill"``.
"""

from __future__ import annotations

import os
from typing import Final

import msgspec

from ..base import system
from ..base.fork_safety import this_process
from ..base.identifiers import spill_sender
from ..errors import BadMessage, HostilePath
from ..wire.messages import MAX_MESSAGE_NBYTES, SPILL_SUFFIX
from .interface import Role

__all__ = ["SPILL_KEY", "Spills", "close_all", "create_file", "open_file"]

SPILL_KEY: Final = b'"spill":'  # the first member after the number, in the line that names a spill


class _Spill(msgspec.Struct):
    spill: str = ""


def create_file(directory: str, name: str, content: bytes, nbytes: int) -> int:
    """Put a new control file in place; a process that still has the old one mapped keeps the old one."""
    path = os.path.join(directory, name)
    system.unlink(path)
    fd = system.create_file(path)
    try:
        system.allocate(fd, nbytes, directory=directory)
        system.write_all(fd, content.ljust(nbytes))
    except BaseException:
        system.close(fd)
        raise
    return fd


def open_file(directory: str, name: str, nbytes: int) -> int:
    """Open a control file that the controller has made.

    Raises:
        HostilePath: it is no file of the controller's, or to map it could be SIGBUS.
    """
    path = os.path.join(directory, name)
    fd = system.open_private_file(path, write=True)
    try:
        reason = ""
        if system.file_nbytes(fd) < nbytes:
            reason = f"is shorter than {nbytes} bytes"
        elif system.is_sparse(fd):
            reason = "has holes, where a store may be SIGBUS"
        if reason:
            raise HostilePath(f"{path} {reason}; its owner does not make such a file", path=path, reason=reason)
    except BaseException:
        system.close(fd)
        raise
    return fd


def close_all(fds: list[int]) -> None:
    """Close the descriptors of files that are mapped."""
    for fd in fds:
        try:
            system.close(fd)
        except OSError:
            pass  # it is closed all the same, and its mapping stays


class Spills:
    """Long messages, on one side of a channel.

    Args:
        directory: the session directory.
        role: which side this is; each side reads only what the other has written.
    """

    def __init__(self, directory: str, role: Role) -> None:
        self._directory = system.KnownDir(directory)
        self._role = role
        self._owner = this_process.mark
        self._count = 0
        self._token = os.urandom(4).hex()  # of this end, because an earlier one may have left spills
        self.looked_at = ""  # the path of the last one that was read

    def write(self, text: bytes) -> bytes:
        """Put a message into a file. Returns the file's name.

        Raises:
            OutOfSpace: no room for it.
            SessionNotStarted: the session directory was removed or replaced.
        """
        self._count += 1
        name = f"{self._role.value}.{self._token}_{self._count}{SPILL_SUFFIX}"
        self._directory.check()
        path = os.path.join(self._directory.path, name)
        fd = system.create_file(path)
        try:
            system.write_all(fd, text)
        except BaseException:
            system.unlink(path, owner=self._owner)
            raise
        finally:
            system.close(fd)
        return name.encode()

    def remove(self, path: str) -> None:
        """Remove the file of a message that was taken."""
        try:
            system.unlink(path, owner=self._owner)
        except OSError:
            pass  # it is removed with the session's directory

    def read(self, line: bytes) -> bytes:
        """The message that the peer's line names; its path is ``looked_at`` then.

        Raises:
            BadMessage: the line names no message of the peer's, or one that is too long.
            OSError: it cannot be read now.
        """
        try:
            name = msgspec.json.decode(line, type=_Spill).spill
        except msgspec.DecodeError as error:
            raise BadMessage(f"the message cannot be read: {error}", detail=str(error)) from error
        if spill_sender(name) != self._role.peer.value:
            raise BadMessage(f"{name[:80]!r} is not the name of a long message", detail=name[:80])
        self.looked_at = path = os.path.join(self._directory.path, name)
        try:
            fd = system.open_private_file(path)
        except FileNotFoundError as error:
            self._directory.check()
            raise BadMessage(f"{path} is gone, in which the message should be", detail=name) from error
        except HostilePath as error:
            raise BadMessage(f"{error}; the message in its place is ignored", detail=name) from error
        try:
            self._directory.check()  # now: what was opened before this is in the directory
            if system.file_nbytes(fd) > MAX_MESSAGE_NBYTES:
                raise BadMessage(f"{path} is longer than a message may be", detail=name)
            return system.read_all(fd, MAX_MESSAGE_NBYTES)
        finally:
            system.close(fd)
