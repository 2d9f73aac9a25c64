"""What may name a tensor, a session, a segment's file, a doorbell. Pure: checks the text, opens nothing."""

from __future__ import annotations

import re
from typing import Final

from ..errors import BadMessage, BadTag
from ..wire.messages import MAX_SPILL_TOKEN_LENGTH, REQUEST_STEM, RESPONSE_STEM, SPILL_SUFFIX
from ..wire.names import (
    DOORBELL_PREFIX,
    GIVEN_FILE_PREFIX,
    GIVEN_PREFIX,
    MAX_DOORBELL_LENGTH,
    MAX_SEGMENT_NAME_LENGTH,
    MAX_SESSION_ID_LENGTH,
    MAX_TAG_LENGTH,
    NAME_PUNCTUATION,
    READERS_SUFFIX,
    RESULT_PREFIX,
    SEGMENT_PREFIX,
    TENSOR_SUFFIX,
)

__all__ = [
    "check_session_id",
    "check_tag",
    "given_stem",
    "is_doorbell_name",
    "is_given_file_name",
    "is_plain_tag",
    "is_result_name",
    "is_segment_name",
    "is_session_id",
    "spill_sender",
    "tensor_file",
]

_LETTERS: Final = f"[A-Za-z0-9{re.escape(NAME_PUNCTUATION)}]"
_RESERVED: Final = f"(?:{RESULT_PREFIX}|{SEGMENT_PREFIX}|{GIVEN_FILE_PREFIX}|{GIVEN_PREFIX}[0-9]+)_[0-9]+"
_CHARACTERS: Final = "letters, digits, '_', '-' and '.', not beginning with a dot"

_good_tag = re.compile(rf"(?!\.)(?!{_RESERVED}\Z){_LETTERS}{{1,{MAX_TAG_LENGTH}}}").fullmatch
_reserved_tag = re.compile(_RESERVED).fullmatch
_good_session_id = re.compile(rf"(?!\.){_LETTERS}{{1,{MAX_SESSION_ID_LENGTH}}}").fullmatch
_plain_tag = re.compile(rf"(?!\.){_LETTERS}{{1,{MAX_TAG_LENGTH}}}").fullmatch
_segment_name = re.compile(rf"(?!\.){_LETTERS}{{1,{MAX_SEGMENT_NAME_LENGTH}}}{re.escape(TENSOR_SUFFIX)}").fullmatch
_spill_name = re.compile(
    rf"({REQUEST_STEM}|{RESPONSE_STEM})\.[0-9A-Za-z_]{{1,{MAX_SPILL_TOKEN_LENGTH}}}{re.escape(SPILL_SUFFIX)}"
).fullmatch
_result_name = re.compile(
    rf"{RESULT_PREFIX}(?:_[0-9]+{re.escape(TENSOR_SUFFIX)}|{re.escape(READERS_SUFFIX)})"
).fullmatch
_given_name = re.compile(rf"({GIVEN_PREFIX}[0-9]{{1,9}})_[0-9]{{1,9}}\.[0-9A-Za-z.]*", re.ASCII).fullmatch
_given_file = re.compile(rf"{GIVEN_FILE_PREFIX}_[0-9]{{1,9}}{re.escape(TENSOR_SUFFIX)}", re.ASCII).fullmatch
_doorbell_name = re.compile(rf"{DOORBELL_PREFIX}{_LETTERS}{{1,{MAX_DOORBELL_LENGTH}}}").fullmatch


def check_tag(tag: str) -> None:
    """Refuse what may not name a tensor.

    Raises:
        BadTag: not a text, empty, too long, has other characters, or has the form of the library's own file names.
    """
    try:
        if _good_tag(tag):
            return
        is_reserved = _reserved_tag(tag) is not None
    except TypeError:
        raise BadTag(f"a tag is a str, not {type(tag).__name__}", tag=repr(tag)[:MAX_TAG_LENGTH]) from None
    if is_reserved:
        raise BadTag(f"the tag {tag!r} is one of the library's own names; choose another", tag=tag)
    shown = tag[:MAX_TAG_LENGTH]
    raise BadTag(f"{shown!r} is no tag: 1 to {MAX_TAG_LENGTH} characters, {_CHARACTERS}", tag=shown)


def check_session_id(session_id: str) -> None:
    """Refuse what may not name a session.

    Raises:
        BadMessage: too long, empty, or has other characters; ``detail`` is ``"session_id"``.
    """
    if not isinstance(session_id, str) or not _good_session_id(session_id):
        shown = repr(session_id)[: MAX_SESSION_ID_LENGTH + 2]
        raise BadMessage(
            f"{shown} is no session id: 1 to {MAX_SESSION_ID_LENGTH} characters, {_CHARACTERS}",
            detail="session_id",
        )


def is_session_id(text: str) -> bool:
    """Whether the text may name a session."""
    return _good_session_id(text) is not None


def is_plain_tag(text: str) -> bool:
    """Whether the text has the characters and the length of a tag. The library's own names have them too."""
    return _plain_tag(text) is not None


def is_segment_name(text: str) -> bool:
    """Whether the text may be the file name of a segment."""
    return _segment_name(text) is not None


def given_stem(text: str) -> str:
    """What the names of the files of one given pool begin with, by the name of one of its segments; "" for others."""
    found = _given_name(text)
    return "" if found is None else found[1]


def is_given_file_name(text: str) -> bool:
    """Whether the text is the name of a link to a plain file that the controller has loaded."""
    return _given_file(text) is not None


def is_result_name(text: str) -> bool:
    """Whether the text is the file name of a worker's result, or of the page of their readers."""
    return _result_name(text) is not None


def spill_sender(text: str) -> str:
    """The kind of message that the spill of that name holds, "request" or "response"; "" if it names no spill."""
    found = _spill_name(text)
    return "" if found is None else found[1]


def is_doorbell_name(text: str) -> bool:
    """Whether the text may name a doorbell. So no file can make us use another program's semaphores."""
    return _doorbell_name(text) is not None


def tensor_file(name: str) -> str:
    """The file name of the tensor that goes by a tag, or of a segment."""
    return name + TENSOR_SUFFIX
