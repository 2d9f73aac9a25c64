"""The worker's own log: writes to it whatever a handler did to stderr, and keeps it bounded. Never reads requests.

A handler may close, replace or break ``sys.stderr``, and so may a library that it uses. So a worker has a descriptor of
its own of the log, which is used where stderr does not take a line.

A handler that prints must not fail because of its log. So if the system refuses to write to the log (a full disk,
a limit of a file's size, a quota), the text is dropped, and no error is raised.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import threading
from typing import Any, Final

from ..base import system
from ..base.fork_safety import ForkAware
from ..errors import TRException
from ..processes.worker_log import cut_log, most_log_nbytes
from .stop_signals import Stop

__all__ = ["WorkerLog", "log"]

_LOOK_PARTS: Final = 32  # Python may print one such part of the log's limit before the size is looked at
_SLACK_PARTS: Final = 4  # see look_from_thread

_current: WorkerLog | None = None


def log(*values: Any) -> None:
    """Write a line to the worker's log. Raises nothing: neither a broken stderr nor a full disk ends the worker."""
    text = " ".join(map(_text_of, values)) + "\n"
    try:
        stream = sys.stderr
        if stream is not None:
            stream.write(text)
            stream.flush()
            return
    except Stop:
        raise
    except BaseException:  # whatever an object in place of stderr raises
        pass
    if _current is not None:
        _current.write(text)


def _text_of(value: Any) -> str:
    try:
        return str(value)
    except Stop:
        raise
    except BaseException as error:
        return f"<{type(value).__name__} whose text raises {type(error).__name__}>"


class WorkerLog(ForkAware):
    """The log of this process, which is a worker. While it is kept, what Python prints is counted.

    A forked child writes to the same log, but never cuts it.

    Args:
        path: of the log.

    Raises:
        OSError, TRException: this process's output does not go there.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = system.open_private_file(path, write=True)
        try:
            self._identity = _identity_of(self._fd)
            streams = [fd for fd in (1, 2) if _identity_of(fd) == self._identity]
            if not streams:
                raise OSError(f"neither stdout nor stderr is {path}")
            for fd in (self._fd, *streams):
                system.append_always(fd)  # else a writer would go on far behind the end of a log that was cut
        except BaseException:
            system.close(self._fd)
            raise
        self._is_looking = threading.Lock()  # taken without a wait: while one thread cuts, another need not
        self._printed = 0  # characters since the last look
        self._look_chars = 0  # how many may be printed before the next one
        self._counted: list[Any] = []
        super().__init__()

    @classmethod
    def keep(cls, *paths: str) -> WorkerLog | None:
        """Keep the first of these files to which this process prints; None if a person has started this worker."""
        global _current
        for path in paths:
            try:
                _current = cls(path)
            except (OSError, TRException):
                continue
            _current._count()
            _current.look()
            return _current
        return None

    def write(self, text: str) -> None:
        """Write to the log itself, whatever has become of stderr."""
        if self._has(self._fd):
            try:
                system.write_all(self._fd, text.encode("utf-8", "replace"))
            except OSError:
                pass  # the disk is full; what is lost is a line for a person, and the worker goes on
        self._add(len(text))

    def look(self) -> None:
        """Cut the log if it has become too large."""
        self._printed = 0
        most_nbytes = most_log_nbytes()  # a handler may have changed the limit
        self._look_chars = most_nbytes // _LOOK_PARTS
        self._look(most_nbytes, most_nbytes)

    def look_from_thread(self) -> None:
        """Cut the log if native code or child processes have made it too large; the main thread may print meanwhile.

        It cuts only above 5/4 of the limit. What Python prints is cut earlier, by :meth:`look` in the printing thread.
        """
        most_nbytes = most_log_nbytes()
        self._look(most_nbytes, most_nbytes + most_nbytes // _SLACK_PARTS)

    def _look(self, most_nbytes: int, cut_nbytes: int) -> None:
        """Cut the log as one that may have ``most_nbytes``, if it has more than ``cut_nbytes``."""
        if self.is_foreign or not self._is_looking.acquire(blocking=False):
            return
        try:
            if not self._has(self._fd) or system.file_nbytes(self._fd) > cut_nbytes:
                self._cut(most_nbytes)
        except (OSError, TRException, MemoryError):
            pass  # the next look tries again
        finally:
            self._is_looking.release()

    def close(self) -> None:
        """Count no more."""
        global _current
        if _current is self:
            _current = None
        for stream in self._counted:
            vars(stream).pop("write", None)
        self._counted.clear()
        fd, self._fd = self._fd, -1
        if self._has(fd):
            system.close(fd)

    def _has(self, fd: int) -> bool:
        """Whether a descriptor is of our log. A handler may have closed it, and the number may be another file's."""
        return fd >= 0 and _identity_of(fd) == self._identity

    def _cut(self, most_nbytes: int) -> None:
        """Cut the log through a descriptor that does not append, for as long as that takes."""
        if self._has(self._fd) and os.path.exists(name := f"/proc/self/fd/{self._fd}"):
            fd = system.open_path(name, write=True)  # also when somebody has removed the file's own name
        else:
            fd = system.open_private_file(self._path, write=True)
        try:
            if self._has(fd):  # else the name leads elsewhere by now
                cut_log(fd, most_nbytes)
        finally:
            system.close(fd)

    def _count(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            # An attribute of the stream, not a stream in its place: loggers made earlier have the stream itself.
            if type(stream) is io.TextIOWrapper and "write" not in vars(stream):
                stream.write = self._counting(stream.write)  # type: ignore[method-assign]
                self._counted.append(stream)
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            # All layers above call this in the end, for text and bytes, and for each flush until the interpreter's end.
            buffer = stream.buffer if type(stream) is io.TextIOWrapper else None
            raw = getattr(buffer, "raw", buffer)
            if type(raw) is io.FileIO and "write" not in vars(raw):
                raw.write = self._forgiving(raw, raw.write)  # type: ignore[method-assign]

    def _counting(self, write: Any) -> Any:
        def counting_write(text: str, /) -> Any:
            written = write(text)
            self._add(len(text))
            return written

        return counting_write

    def _forgiving(self, raw: io.FileIO, write: Any) -> Any:
        """A write that drops what the system does not take for the log. It stays when the log is kept no more."""

        def forgiving_write(data: Any, /) -> Any:
            whole = memoryview(data).cast("B")
            done = 0
            has_cut = False
            while True:
                try:
                    written = write(whole[done:])
                except OSError as error:
                    if raw.closed or _identity_of(raw.fileno()) not in (self._identity, None):
                        raise  # it is another file by now, whose errors are its user's
                    # None: the descriptor is closed, by os.close() or by native code. No print may fail for that.
                    if error.errno != errno.EFBIG or has_cut:
                        return len(whole)
                    has_cut = True
                    self.look()
                    continue
                if written is None:
                    return None if done == 0 else done
                done += written
                if done >= len(whole):  # else it was cut off at a limit, and a text stream would not write the rest
                    return done

        return forgiving_write

    def _add(self, count: int) -> None:
        self._printed += count
        if self._printed > self._look_chars:
            self.look()


def _identity_of(fd: int) -> tuple[int, int] | None:
    """Which file an open file is; None if it is closed."""
    try:
        info = os.fstat(fd)
    except OSError:
        return None
    return info.st_dev, info.st_ino
