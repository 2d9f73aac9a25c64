"""What several tests of stores use."""

from __future__ import annotations

from typing import Any

import numpy as np


def embed(texts: list[str]) -> np.ndarray[Any, Any]:
    """A vector of the letters in each text: not clever, and always the same."""
    rows = np.zeros((len(texts), 26), np.float32)
    for row, text in zip(rows, texts, strict=True):
        for letter in text.lower():
            if "a" <= letter <= "z":
                row[ord(letter) - ord("a")] += 1
    return rows


def other_embed(texts: list[str]) -> np.ndarray[Any, Any]:
    return embed(texts) * 2
