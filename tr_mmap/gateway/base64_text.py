"""Bytes of base64, decoded piece by piece, so that no long one keeps other threads waiting."""

from __future__ import annotations

import binascii
from typing import Final

__all__ = ["from_base64"]

_PIECE: Final = 1 << 20  # characters, decoded in one call: some milliseconds, in which no other thread comes to run


def from_base64(text: str) -> bytes:
    """
    Raises:
        ValueError: it is no base64; or no text.
    """
    if not isinstance(text, str):
        raise ValueError(f"base64 is a text, and no {type(text).__name__}")
    try:
        if len(text) <= _PIECE:
            return binascii.a2b_base64(text, strict_mode=True)
        pieces = [
            binascii.a2b_base64(text[begin : begin + _PIECE], strict_mode=True) for begin in range(0, len(text), _PIECE)
        ]
    except ValueError:
        raise ValueError("it is no base64") from None
    if any(len(each) != _PIECE // 4 * 3 for each in pieces[:-1]):
        raise ValueError("it is no base64: it is padded before its end")
    return b"".join(pieces)
