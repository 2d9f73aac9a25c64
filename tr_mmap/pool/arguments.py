"""What a caller says, as a message and its tensors; and the options of a pool, checked. Sends nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from operator import index
from typing import Any, Final

from ..errors import BadMessage
from ..protocol.commands import UserMessage

__all__ = ["check_count", "message_of", "worker_count"]

_PLAIN: Final = (str, int, float)


def message_of(command: Any, arguments: tuple[Any, ...]) -> tuple[UserMessage, tuple[Any, ...]]:
    """The message of a request, and its tensors.

    Args:
        command: the command, and perhaps words for it.
        arguments: texts, numbers and paths, which become further words; tensors; or one dict of arguments by name.

    Raises:
        BadMessage: the command is none, or a dict is not the only argument; or a path that is not the last word has
            blanks.
    """
    if not isinstance(command, str):
        if isinstance(command, Mapping) and not any(_is_word(each) for each in arguments):
            return command, arguments
        what = "functions" if callable(command) else type(command).__name__
        raise BadMessage(
            f"a pool runs commands of its workers' script, not {what}: give the command's name, and register the "
            'function in the script with @server.command("name")',
            detail="command",
        )
    if not arguments:
        return command, arguments
    words = [each for each in arguments if _is_word(each)]
    if not words:
        if len(arguments) == 1 and isinstance(arguments[0], dict):
            return command, (_with_texts(arguments[0]),)
        return command, arguments
    tensors = tuple(each for each in arguments if not _is_word(each))
    if any(isinstance(each, Mapping) for each in tensors):
        raise BadMessage("a dict of arguments by name is the only argument; put the words into it", detail="arguments")
    for each in words[:-1]:
        if hasattr(each, "__fspath__") and len(path := _text_of(each).split()) != 1:
            raise BadMessage(
                f"the path {' '.join(path)!r:.80} would be {len(path)} words: give it as the last argument, or all "
                'by name, in a dict: {"path": path, …}',
                detail="arguments",
            )
    text = " ".join(map(_text_of, words))
    if text == text.strip() or " " in command:
        return f"{command} {text}", tensors
    return {"command": command, "parameters": text}, tensors  # which keeps the blanks


def _is_word(value: Any) -> bool:
    kind = type(value)
    if kind in _PLAIN or kind is bool:
        return True
    return hasattr(value, "__fspath__") or (isinstance(value, _PLAIN) and not hasattr(value, "dtype"))


def _with_texts(named: dict[Any, Any]) -> dict[Any, Any]:
    """Arguments by name, with texts in place of paths."""
    if not any(hasattr(each, "__fspath__") for each in named.values()):
        return named
    return {name: _text_of(each) if hasattr(each, "__fspath__") else each for name, each in named.items()}


def _text_of(value: Any) -> str:
    if hasattr(value, "__fspath__"):
        return os.fsdecode(value)
    return str.__str__(value) if isinstance(value, str) else str(value)


def worker_count(value: Any) -> int:
    """How many workers a pool is to have.

    Raises:
        BadMessage: it is no number from 1 on.
    """
    if value is None:
        found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return found or 1
    return check_count("max_workers", value)


def check_count(name: str, value: Any, least: int = 1) -> int:
    """A whole number from ``least`` on.

    Raises:
        BadMessage: it is none; ``detail`` is the option's name.
    """
    try:
        found = None if isinstance(value, bool) else index(value)
    except TypeError:
        found = None
    if found is None or found < least:
        raise BadMessage(f"{name} is {value!r:.80}; it must be a whole number, {least} or more", detail=name)
    return found
