"""The secret of a session with ``auth=True``, and how the worker gets it. What it proves is in ``protocol.mac``.

32 random bytes for each start of a worker. They are in a pipe, whose reading end the worker inherits;
``TR_MMAP_AUTH_FD`` in its environment is that descriptor's number. So the secret is in no file, argument or
environment, and that a worker demands MACs cannot be undone by editing a file.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

from ..base import system
from ..errors import SessionNotStarted
from ..protocol.mac import SECRET_NBYTES
from ..wire.names import SECRET_FD_VARIABLE

__all__ = ["handed_over", "inherited_secret", "new_secret"]


def new_secret() -> bytes:
    """A secret for one worker."""
    return secrets.token_bytes(SECRET_NBYTES)


@contextmanager
def handed_over(secret: bytes | None) -> Iterator[tuple[dict[str, str], tuple[int, ...]]]:
    """What a worker that is started now needs to get the secret: environment variables, and descriptors to pass."""
    if secret is None:
        yield {}, ()
        return
    reading, writing = system.make_pipe()
    try:
        try:
            system.write_pipe(writing, secret)  # far less than a pipe holds, so this waits for nobody
        finally:
            system.close(writing)
        yield {SECRET_FD_VARIABLE: str(reading)}, (reading,)
    finally:
        system.close(reading)


def inherited_secret(environ: MutableMapping[str, str] = os.environ) -> bytes | None:
    """The secret that this process was started with; None if its session does not authenticate. Works once.

    Raises:
        SessionNotStarted: there should be one, and it cannot be read.
    """
    number = environ.pop(SECRET_FD_VARIABLE, None)  # our children have neither the descriptor nor the secret
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
