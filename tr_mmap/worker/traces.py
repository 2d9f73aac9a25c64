"""A handler's traceback as text of bounded length, without the library's own frames. Raises nothing, whatever it gets.

The exception is a user's. To ask for its text, its name or its notes may run any code and raise anything, and it may
have any number of frames. So every step here has a bound, and a simpler step to fall back to.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from types import CodeType, TracebackType
from typing import Any, Final

from ..errors import TRException
from .stop_signals import Stop

__all__ = ["cut", "is_a", "plain_text", "name_of", "text_of", "trace_of"]

MAX_NAME_CHARS: Final = 200
MAX_TEXT_CHARS: Final = 16 << 10  # an error's own text; its beginning and its end tell what it is
MAX_TRACE_CHARS: Final = 128 << 10  # even escaped as JSON, six characters for one, far under a message's limit

_MAX_FRAMES: Final = 100  # of one exception; from a recursion the first and the last half are worth reading
_MAX_LINKED: Final = 200  # exceptions in a chain or a group; to format more takes seconds
_NEWEST: Final = 20  # of a longer chain, these are shown

_PACKAGE: Final = os.path.join(os.path.dirname(os.path.dirname(__file__)), "")
_HANDLERS: Final = os.path.join(_PACKAGE, "worker", "default.py")  # the default worker's functions are handlers
_CALLER: Final = (os.path.join(_PACKAGE, "worker", "functions.py"), "main_logic")  # len has no frame

_cause_of = BaseException.__dict__["__cause__"].__get__  # a subclass may have a property of that name
_context_of = BaseException.__dict__["__context__"].__get__
_is_context_hidden = BaseException.__dict__["__suppress_context__"].__get__
_traceback_of = BaseException.__dict__["__traceback__"].__get__
_class_name = type.__dict__["__name__"].__get__  # and a metaclass too


def is_a(error: BaseException, *kinds: type[BaseException]) -> bool:
    """Whether an exception is of one of these classes. Asks its type: ``isinstance`` asks the exception, too."""
    return issubclass(type(error), kinds)


def cut(text: str, limit: int) -> str:
    """The text, or its beginning and its end with a remark between them if it is longer than ``limit``."""
    if len(text) <= limit:
        return text
    left_out = f"\n[... {len(text) - limit} characters are left out here ...]\n"
    return text[: limit // 2] + left_out + text[len(text) - (limit - limit // 2) :]


def plain_text(value: Any) -> str | None:
    """What ``str`` makes of a value, as plain text that UTF-8 can hold; None if it makes nothing of it."""
    try:
        return str.encode(str(value), "utf-8", "replace").decode()
    except Stop:
        raise
    except BaseException:  # a user's __str__ may raise anything, and that must not take the place of the error
        return None


def text_of(error: BaseException) -> str:
    """An exception's own text, cut if need be."""
    text = plain_text(error)
    return "(it has no text)" if text is None else cut(text, MAX_TEXT_CHARS)


def name_of(error: BaseException) -> str:
    """The name of an exception's class."""
    return cut(str.encode(_class_name(type(error)), "utf-8", "replace").decode(), MAX_NAME_CHARS)


def trace_of(error: BaseException, code: CodeType | None = None, *, has_returned: bool = False) -> str:
    """The traceback of what a handler raised, cut if need be.

    Args:
        error: what was raised.
        code: of a handler that has returned and whose result is to blame: it is shown in place of our frames.
        has_returned: it has, also if its code is unknown.
    """
    try:
        text = _formatted(error, code, has_returned) if _is_small(error) else _brief(error)
    except Stop:
        raise
    except BaseException:  # out of memory, or an exception that cannot be formatted
        text = _fallback(error)
    return cut(str.encode(text, "utf-8", "replace").decode(), MAX_TRACE_CHARS)


def _formatted(error: BaseException, code: CodeType | None, has_returned: bool) -> str:
    """The traceback as Python writes it."""
    frames = list(_handler_frames(error))
    if has_returned and all(map(_is_ours, frames)):
        frames = []
    shown = _ends_of(frames)
    trace = None
    for each in reversed(shown):
        trace = TracebackType(trace, each.tb_frame, each.tb_lasti, each.tb_lineno)
    # A negative limit keeps the last frames; it is for the other exceptions of the chain.
    formatter = traceback.TracebackException(type(error), error, trace, limit=-_MAX_FRAMES, compact=True)
    if code is not None:
        place = traceback.FrameSummary(code.co_filename, code.co_firstlineno, code.co_name)
        formatter.stack = traceback.StackSummary.from_list([place, *formatter.stack])
    lines = formatter.format(chain=not _is_cause_ours(error))
    text = "".join([cut(line, MAX_TEXT_CHARS) for line in lines])
    if len(frames) > len(shown):
        text += f"({len(frames) - len(shown)} frames in the middle of the traceback are left out)\n"
    return text


def _brief(error: BaseException) -> str:
    """The frames, and the newest exceptions of a chain or group that is too large to be formatted."""
    shown = _ends_of(list(_handler_frames(error)))
    lines = ["Traceback (most recent call last):\n"]
    lines += [
        f'  File "{each.tb_frame.f_code.co_filename}", line {each.tb_lineno}, in {each.tb_frame.f_code.co_name}\n'
        for each in shown
    ]
    lines.append(f"{name_of(error)}: {cut(text_of(error), 1000)}\n")
    for index, each in enumerate(_linked(error)):
        if index > _NEWEST:
            lines.append("(it is linked to more exceptions, which are left out)\n")
            break
        if index:
            lines.append(f"linked to {name_of(each)}: {cut(text_of(each), 1000)}\n")
    return "".join(lines)


def _fallback(error: BaseException) -> str:
    try:
        return _brief(error)  # asks an exception for its text only
    except Stop:
        raise
    except BaseException:
        return f"(its traceback cannot be written)\n{name_of(error)}: {text_of(error)}\n"


def _ends_of(frames: list[TracebackType]) -> list[TracebackType]:
    return frames if len(frames) <= _MAX_FRAMES else frames[: _MAX_FRAMES // 2] + frames[-_MAX_FRAMES // 2 :]


def _frames(error: BaseException) -> list[TracebackType]:
    frames: list[TracebackType] = []
    trace = _traceback_of(error)
    while trace is not None:
        frames.append(trace)
        trace = trace.tb_next
    return frames


def _is_cause_ours(error: BaseException) -> bool:
    """Whether we raised the error on purpose, from errors that are our own affair: a lookup that found nothing, say."""
    linked = list(_linked(error))[1:]
    return is_a(error, TRException) and all(_is_ours(each) for other in linked for each in _frames(other))


def _handler_frames(error: BaseException) -> Iterator[TracebackType]:
    """The traceback's entries, without ours above the handler, and without ours below it if we raised on purpose."""
    frames = _frames(error)
    others = [index for index, each in enumerate(frames) if not _is_ours(each)]
    if not others:
        code = frames[-1].tb_frame.f_code if frames else None
        is_builtin = code is not None and (code.co_filename, code.co_name) == _CALLER
        return iter(() if is_builtin else frames)  # else the fault is ours
    return iter(frames[others[0] : others[-1] + 1 if is_a(error, TRException) else None])


def _is_ours(trace: TracebackType) -> bool:
    path = trace.tb_frame.f_code.co_filename
    return path.startswith(_PACKAGE) and path != _HANDLERS


def _is_small(error: BaseException) -> bool:
    """Whether few exceptions hang together with this one."""
    return all(count <= _MAX_LINKED for count, _ in enumerate(_linked(error)))


def _linked(error: BaseException) -> Iterator[BaseException]:
    """The exception, and those that it was raised from, came after, or is a group of; each once."""
    waiting: list[BaseException] = [error]
    seen: set[int] = set()
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        if is_a(each, BaseExceptionGroup):
            waiting += BaseExceptionGroup.exceptions.__get__(each)[: _MAX_LINKED + 1]
        cause = _cause_of(each)
        context = None if cause is not None or _is_context_hidden(each) else _context_of(each)
        waiting += [linked for linked in (context, cause) if linked is not None]
