"""Hands the secret of a session with ``auth=True`` to the worker. Never writes it to a file.

Each start of a worker has a secret of 32 random bytes; ``protocol.mac`` says what it protects from. The controller
writes it into a pipe, and the worker inherits the read end; ``TR_MMAP_AUTH_FD`` in its environment is the number of
that descriptor. So the secret is in no file, argument or environment. A process that edits a file cannot make the
worker accept unsigned messages.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

from ..base import system
from ..errors import SessionNotStarted
from ..protocol.mac import SECRET_NBYTES
from ..wire.names import SECRET_FD_VARIABLE

__all__ = ["handed_over", "inherited_secret", "new_secret"]


def new_secret() -> bytes:
    """A secret for one worker, 32 random bytes."""
    return os.urandom(SECRET_NBYTES)


@contextmanager
def handed_over(secret: bytes | None) -> Iterator[tuple[dict[str, str], tuple[int, ...]]]:
    """What a worker that is started in this block needs: environment variables, and descriptors to pass."""
    if secret is None:
        yield {}, ()
        return
    reading, writing = system.make_pipe()
    try:
        try:
            system.write_pipe(writing, secret)  # far less than a pipe holds, so this never blocks
        finally:
            system.close(writing)
        yield {SECRET_FD_VARIABLE: str(reading)}, (reading,)
    finally:
        system.close(reading)


def inherited_secret(environ: MutableMapping[str, str] = os.environ) -> bytes | None:
    """The secret that this process was started with; None if its session has no ``auth``. Works once.

    Raises:
        SessionNotStarted: there should be a secret, and it cannot be read.
    """
    number = environ.pop(SECRET_FD_VARIABLE, None)  # our children get neither the descriptor nor the secret
    if number is None:
        return None
    secret = b""
    if re.fullmatch("[0-9]{1,9}", number):
        try:
            secret = system.read_pipe(int(number), SECRET_NBYTES + 1)
        except OSError:
            secret = b""
    if len(secret) != SECRET_NBYTES:
        raise SessionNotStarted(
            f"the session's secret cannot be read from descriptor {number[:20]!r} ({SECRET_FD_VARIABLE}); workers "
            "of a session with auth=True are started by it, and inherit the descriptor"
        )
    return secret
