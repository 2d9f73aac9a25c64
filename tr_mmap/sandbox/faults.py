"""Describes, inside the contained process, how a run has failed: what the algorithm raised, and what it tried last.

The algorithm can change everything in that process, so the host does not trust the description; see ``verdicts.py``.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Iterable
from typing import Any, Final, TypeGuard, TypeVar

import msgspec

from ..errors import TRException
from .messages import Fault

__all__ = ["TORCH_MEMORY", "TooMuchOutput", "advice", "fault_of", "see_only", "shortened", "tries"]

_E = TypeVar("_E", bound=BaseException)
TORCH_MEMORY: Final = "DefaultCPUAllocator: can't allocate memory"
"""In the text of torch's RuntimeError where there is no memory left."""

_MAX_TEXT: Final = 8000  # bytes of an error's text and of its frames in JSON, each
_MAX_NAME: Final = 200
# Read past the class: an algorithm's exception, or its metaclass, may define a property of that name.
_traceback_of: Final[Any] = BaseException.__dict__["__traceback__"].__get__
_class_name: Final[Any] = type.__dict__["__name__"].__get__
_REFUSED_LIMIT: Final = "not allowed to raise maximum limit"  # Python's ValueError where the kernel refuses the call
_LIMIT_CALLS: Final = ("resource.setrlimit", "resource.prlimit")
_RULES: Final = {
    "socket.__new__": "net",
    "os.fork": "processes",
    "os.forkpty": "processes",
    "subprocess.Popen": "processes",
    "os.exec": "processes",
    "os.posix_spawn": "processes",
    "os.kill": "syscalls",
    "signal.pthread_kill": "syscalls",
    "os.listdir": "read",
    "os.scandir": "read",
    "os.chmod": "write",
    "os.chown": "write",
    "os.utime": "write",
    "os.mkdir": "write",
    "os.remove": "write",
    "os.rename": "write",
    "os.rmdir": "write",
    "os.symlink": "write",
    "os.link": "write",
    "os.truncate": "syscalls",
    "ctypes.call_function": "syscalls",
    "ctypes.dlsym": "syscalls",
    "socket.bind": "net",
    "resource.prlimit": "syscalls",
    "resource.setrlimit": "syscalls",
    "fcntl.fcntl": "syscalls",
    "mmap.__new__": "syscalls",
}
_ADVICE: Final = {
    "read": "grant its path with Allow(read=(...))",
    "write": "an algorithm writes in /tmp alone, if it has one; take results as outputs, or grant Allow(mounts=(...))",
    "net": "an algorithm has no network; fetch the data outside and give it as an input, or grant Allow(net=True)",
    "processes": "an algorithm is one process; use threads, or several runs",
    "syscalls": "grant the system call with Allow(syscalls=(...)), if you trust the algorithm so far",
}


_DENIALS: Final = (errno.EPERM, errno.EACCES, errno.EROFS, errno.ENOSYS)


class _Tries:
    """Notes what the algorithm tried last, to name it when it is refused."""

    rule = "syscalls"
    detail = ""
    is_open = False
    _is_hooked = False

    def begin(self) -> None:
        """Note what is tried from now on. Adds the audit hook once, because a hook cannot be removed."""
        self.rule, self.detail, self.is_open = "syscalls", "", False
        if not self._is_hooked:
            self._is_hooked = True
            sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        self.is_open = event == "open" or (self.is_open and event not in _RULES)
        if event == "open":
            path, mode = arguments[0], arguments[1]
            self.rule = "write" if isinstance(mode, str) and set(mode) & set("wax+") else "read"
            self.detail = str(path)
        elif event in _RULES:
            self.rule, self.detail = _RULES[event], event


tries = _Tries()
_visible: tuple[str, ...] = ("/",)


def see_only(paths: Iterable[str]) -> None:
    """Set the paths that this process can see. A missing file outside of them is then reported as not allowed."""
    global _visible
    _visible = tuple(paths)


def advice(rule: str) -> str:
    """What a user can do about a denial."""
    return _ADVICE[rule]


class TooMuchOutput(Exception):
    """The results take more than their limit."""


def fault_of(error: BaseException, filename: str) -> Fault:
    """The fault for an exception of an algorithm. The exception's own methods may lie or raise when they are called."""
    try:
        return _judged(error, filename)
    except BaseException as second:
        text = f"{_name_of(error)}, which cannot be examined: {_name_of(second)}"
        return Fault("algorithm", _name_of(error), text, _frames(error, filename))


def _is_a(error: BaseException, kind: type[_E]) -> TypeGuard[_E]:
    """Whether an exception is of a class, by its type: ``isinstance`` would also trust its ``__class__``."""
    return issubclass(type(error), kind)


def _name_of(error: BaseException) -> str:
    return str(_class_name(type(error)))


def _judged(error: BaseException, filename: str) -> Fault:
    rule, detail = tries.rule, tries.detail  # first: making a traceback opens files, which the hook notes
    if _is_a(error, OSError) and error.errno is None:  # a library has wrapped the system's error in one of its own
        inner: BaseException | None = error
        while inner is not None and not (_is_a(inner, OSError) and inner.errno is not None):
            inner = inner.__cause__ or inner.__context__
        if inner is not None and inner.errno in _DENIALS:
            fault = _judged(inner, filename)
            fault.traceback = _frames(error, filename)
            return fault
    frames = _frames(error, filename)
    name = _name_of(error)
    if _is_a(error, MemoryError) or (_is_a(error, RuntimeError) and TORCH_MEMORY in str(error)):
        return Fault("limit", "memory_nbytes", str(error), frames)
    if _is_a(error, ValueError) and str(error) == _REFUSED_LIMIT and detail in _LIMIT_CALLS:
        return Fault("not_allowed", name, f"the rule {rule!r} refuses {detail}: {_ADVICE[rule]}", frames, rule, detail)
    if _is_a(error, TooMuchOutput):
        return Fault("limit", "output_nbytes", "")
    if _is_a(error, OSError) and error.errno == errno.ENOSPC:
        return Fault("limit", "disk_nbytes", str(error), frames)
    if _is_a(error, OSError) and error.errno == errno.ENOMEM:
        return Fault("limit", "memory_nbytes", str(error), frames)
    if _is_a(error, OSError) and (error.errno in _DENIALS or (error.errno == errno.ENOENT and _is_hidden(error))):
        if error.filename is not None:
            detail = str(error.filename)
        elif rule in ("read", "write") and (error.errno == errno.EPERM or tries.is_open):
            rule = "syscalls"  # the last file was opened, so the error is of another system call
        if error.errno == errno.EROFS:
            rule = "write"
        elif error.errno == errno.ENOENT and rule == "syscalls":
            rule = "read"
        detail = detail[:_MAX_NAME]
        text = f"the rule {rule!r} refuses {detail or 'what it tried'}: {_ADVICE[rule]} ({error})"
        return Fault("not_allowed", name, text, frames, rule, detail)
    text = str(error) if _is_a(error, TRException) else _text_of(error)
    if _is_a(error, FileNotFoundError) and str(error.filename).startswith("/tmp/"):
        text += "; its /tmp is its own and was empty: grant a path of yours there with Allow(read=(...))"
    return Fault("algorithm", name, text, frames)


def shortened(fault: Fault) -> Fault:
    """Cut a fault's texts so that it fits into a packet. Of the frames the innermost ones are kept."""
    return Fault(
        fault.kind,
        _text_within(fault.type, _MAX_NAME),
        _text_within(fault.message, _MAX_TEXT),
        _text_within(fault.traceback[::-1], _MAX_TEXT)[::-1],
        fault.rule,
        _text_within(fault.detail, 6 * _MAX_NAME),
    )


def _text_within(text: str, nbytes: int) -> str:
    """The beginning of a text that takes at most ``nbytes`` in JSON, where one character may take six bytes."""
    # By str's own methods: an algorithm's __str__ may return an object of a subclass, whose methods raise.
    text = str.encode(str.__getitem__(text, slice(nbytes)), "utf-8", "backslashreplace").decode()
    while len(msgspec.json.encode(text)) - 2 > nbytes:
        text = text[: len(text) * 7 // 8]
    return text


def _is_hidden(error: OSError) -> bool:
    """Whether a path that is missing here may exist outside of what this process can see."""
    name = error.filename
    if not isinstance(name, str | bytes):
        return False
    path = os.path.normpath(os.path.join("/", os.fsdecode(name)))
    return not any(f"{path}/".startswith(f"{each.rstrip('/')}/") for each in _visible)


def _text_of(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception_only(error)).strip()
    except BaseException as second:  # its own __str__ raised
        return f"{_name_of(error)}, whose text cannot be made: {_name_of(second)}"


def _frames(error: BaseException, filename: str) -> str:
    """The traceback, from the first frame of the algorithm on."""
    try:
        frames = traceback.extract_tb(_traceback_of(error))
        first = next((index for index, each in enumerate(frames) if each.filename == filename), len(frames))
        lines = traceback.format_list(frames[first:])
        return ("Traceback (most recent call last):\n" + "".join(lines)) if lines else ""
    except BaseException:
        return ""
