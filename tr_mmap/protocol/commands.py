"""Splits what users write as a message into a command and its parameters. No I/O.

A message is ``"matmul a b"``, or a JSON object as text or as a dict: ``{"cmd": "matmul", "params": "a,b"}``, also with
the keys ``command`` and ``parameters``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import msgspec
import numpy as np

from ..base.strict_json import UNREADABLE, refuse_duplicates
from ..errors import BadMessage

__all__ = ["UserMessage", "command_of", "parse_command", "split_words"]

UserMessage: TypeAlias = str | Mapping[str, Any]

_decoder = msgspec.json.Decoder()
_WORDS: Final = (str, int, float, np.bool_, np.integer, np.floating)
_SEPARATORS: Final = re.compile(r"[\s,]+")


def parse_command(message: UserMessage) -> tuple[str, str]:
    """Split what the user wrote into command and parameters.

    Args:
        message: ``"matmul a b"``, ``'{"cmd": "matmul", "params": "a,b"}'``, or that object as a dict.

    Returns:
        The command, and the parameters as one text.

    Raises:
        BadMessage: there is no command in it.
    """
    if isinstance(message, str):
        command, _, parameters = message.partition(" ")
        if command.isidentifier():  # most commands are, and need no more checks
            return command, parameters.strip()
        words = message.split(None, 1)
        if not words:
            raise BadMessage("the message is empty; it begins with a command", detail="")
        if words[0][0] != "{":
            return words[0], words[1].rstrip() if len(words) > 1 else ""
        try:
            text, message = message, _decoder.decode(message)
            refuse_duplicates(text)
        except UNREADABLE as error:
            raise BadMessage(f"the message looks like JSON and is not: {error}", detail=str(error)) from error
    return command_of(message)


def split_words(parameters: str) -> list[str]:
    """The words of a parameter text, which spaces or commas separate."""
    if "," not in parameters:
        return parameters.split()
    return [word for word in _SEPARATORS.split(parameters) if word]


def _pick(fields: Mapping[str, Any], long: str, short: str) -> Any:
    if long in fields and short in fields and fields[long] != fields[short]:
        raise BadMessage(f"{long!r} and {short!r} are both given and differ; give one", detail=long)
    return fields.get(long, fields.get(short))


def command_of(fields: Any) -> tuple[str, str]:
    """Command and parameters of a message that is a JSON object, in either spelling of its keys.

    Raises:
        BadMessage: it is no object, has no command, or has parameters that are neither text, numbers nor a list of
            words and numbers.
    """
    if not isinstance(fields, Mapping):
        raise BadMessage("a JSON message is an object with a command", detail=type(fields).__name__)
    command = _pick(fields, "command", "cmd")
    parameters = _pick(fields, "parameters", "params")
    if not isinstance(command, str) or not command.strip():
        raise BadMessage("a JSON message needs a text under 'command' (or 'cmd')", detail="command")
    if parameters is None:
        parameters = ""
    elif isinstance(parameters, list | tuple):
        words = [_word_of(each) for each in parameters]
        for word in words:
            if split_words(word) != [word]:
                raise BadMessage(
                    f"{word[:80]!r} in the list 'parameters' (or 'params') is not one word: it is empty, or has a "
                    "space or a comma; give 'parameters' as one text",
                    detail="parameters",
                )
        parameters = " ".join(words)
    else:
        parameters = _word_of(parameters)
    return command.strip(), parameters


def _word_of(value: Any) -> str:
    if not isinstance(value, _WORDS):
        raise BadMessage("'parameters' (or 'params') is a text, or a list of words and numbers", detail="parameters")
    try:
        return str(value)
    except ValueError as error:  # an int with more digits than Python writes
        raise BadMessage(f"a parameter cannot be written: {error}", detail="parameters") from error
