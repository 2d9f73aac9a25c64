"""What may name a tensor, and what a session. Looks at nothing but the text."""

from __future__ import annotations

import re
from typing import Final

from .errors import BadMessage, BadTag

__all__ = ["check_session_id", "check_tag", "is_session_id"]

MAX_TAG_LENGTH: Final = 128  # with ".tsr" and a sequence number well under NAME_MAX (255)
MAX_SESSION_ID_LENGTH: Final = 64  # goes into semaphore names too, beside other parts

_good_tag = re.compile(r"(?!\.)(?!(?:result|segment)_[0-9]+\Z)[A-Za-z0-9_.-]{1,128}").fullmatch
_good_session_id = re.compile(r"(?!\.)[A-Za-z0-9_.-]{1,64}").fullmatch
_CHARACTERS: Final = "letters, digits, '_', '-' and '.', not beginning with a dot"


def check_tag(tag: str) -> None:
    """Refuse what may not name a tensor.

    Raises:
        BadTag: too long, empty, has other characters, or is of the form that the library names its own files.
    """
    try:
        if _good_tag(tag):
            return
        is_reserved = re.fullmatch(r"(result|segment)_[0-9]+", tag) is not None
    except TypeError:
        raise BadTag(f"a tag is a str, not {type(tag).__name__}", tag=repr(tag)[:MAX_TAG_LENGTH]) from None
    if is_reserved:
        raise BadTag(f"the tag {tag!r} is one of the library's own names; choose another", tag=tag)
    shown = tag[:MAX_TAG_LENGTH]
    raise BadTag(f"{shown!r} is no tag: 1 to {MAX_TAG_LENGTH} characters, {_CHARACTERS}", tag=shown)


def check_session_id(session_id: str) -> None:
    """Refuse what may not name a session.

    Raises:
        BadMessage: too long, empty, or has other characters.
    """
    if not isinstance(session_id, str) or not _good_session_id(session_id):
        shown = repr(session_id)[: MAX_SESSION_ID_LENGTH + 2]
        raise BadMessage(
            f"{shown} is no session id: 1 to {MAX_SESSION_ID_LENGTH} characters, {_CHARACTERS}", detail=shown
        )


def is_session_id(text: str) -> bool:
    """Whether it may name a session."""
    return _good_session_id(text) is not None
