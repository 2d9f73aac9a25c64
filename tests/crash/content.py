"""What flows while processes are killed: tensors that tell whether they are whole, and a board that survives a kill.

Shared by the harness, its controllers and its workers. With the variable ``TR_KILLS_FRAMEWORK=torch`` they have
tensors of torch, otherwise of numpy. A tensor of number ``n`` is a fixed pattern with ``n`` mixed
into every element, so that one element of another number, or of none, is found.
"""

from __future__ import annotations

import enum
import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tr_mmap.channel.mapped import MappedChannel
from tr_mmap.shm.pool import SegmentPool

NBYTES: Final = 1 << 20
BOARD_VARIABLE: Final = "TR_KILLS_BOARD"  # environment variable with the board's path
FRAMEWORK_VARIABLE: Final = "TR_KILLS_FRAMEWORK"
_COUNT: Final = NBYTES // 8
_PATTERN: Final = np.random.default_rng(20).integers(0, 2**63, _COUNT, np.uint64)
_MIXER: Final = 0x9E3779B97F4A7C15  # odd and without a pattern, so that neighbours differ in every byte
_ALL: Final = 2**64 - 1
MIRROR: Final = np.uint64(0xA5A5A5A5_5A5A5A5A)  # what a worker's answer differs by from the question

Array = np.ndarray[Any, Any]


def _mixed(n: int) -> np.uint64:
    return np.uint64(n * _MIXER & _ALL)


def content(n: int) -> Array:
    """Tensor number ``n``."""
    return np.bitwise_xor(_PATTERN, _mixed(n))


def framework() -> str:
    """Of the tensors that flow."""
    return os.environ.get(FRAMEWORK_VARIABLE, "numpy")


def flowing(n: int) -> Any:
    """Tensor number ``n`` as it is sent: an array, or a tensor of torch."""
    if framework() == "numpy":
        return content(n)
    import torch

    return torch.from_numpy(content(n))


def fault_of(tensor: Any, n: int, *, is_answer: bool = False) -> str:
    """What is wrong with a tensor that should be number ``n``; "" if nothing is."""
    if type(tensor) is not np.ndarray:
        tensor = tensor.numpy()
    if tensor.shape != (_COUNT,) or tensor.dtype != np.uint64:
        return f"number {n} has shape {tensor.shape} and type {tensor.dtype}"
    wanted = _mixed(n) ^ MIRROR if is_answer else _mixed(n)
    wrong = np.flatnonzero(np.bitwise_xor(tensor, _PATTERN) != wanted)
    if not len(wrong):
        return ""
    found = sorted({int(each) for each in np.bitwise_xor(tensor, _PATTERN)[wrong[:1000]]})
    return f"number {n}: {len(wrong)} of {_COUNT} elements are wrong, from {wrong[0]} on; mixed in are {found[:3]}"


class Word(enum.IntEnum):
    """Places on the board, each one aligned 8-byte word with one writer."""

    CONTROLLER_INSIDE = 0  # what the controller is in the middle of: an Inside
    WORKER_INSIDE = 1
    WORKER_PID = 2
    DELIVERED_HERE = 3  # tensors that arrived at controllers and were checked
    DELIVERED_THERE = 4  # at workers
    WRONG_HERE = 5
    WRONG_THERE = 6
    DIED = 7  # WorkerDied that controllers got
    KEPT = 8  # tags that were still there for a new worker
    STRANGE = 9  # anything that ought not to happen
    AT_ONCE = 10  # right answers to requests that were in flight together


class Inside(enum.IntEnum):
    """What a victim was doing."""

    ELSEWHERE = 0
    PUBLISH = 1  # a tensor: filling its segment and stamping it
    SEND = 2  # a message: storing it and ringing


class Board:
    """A few words and a list of problems in files that outlive their writers."""

    def __init__(self, path: str) -> None:
        self._problems = path + ".problems"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, 4096)
            self._mapping = mmap.mmap(fd, 4096)
        finally:
            os.close(fd)
        self._view = memoryview(self._mapping)
        self.words = self._view.cast("Q")

    def close(self) -> None:
        self.words.release()
        self._view.release()
        self._mapping.close()

    def add(self, word: Word) -> None:
        self.words[word] += 1

    def problem(self, word: Word, text: str) -> None:
        """Count a problem and keep its text."""
        self.add(word)
        with open(self._problems, "a") as file:
            file.write(f"{word.name} in {os.getpid()}: {text}\n")

    def problems(self) -> str:
        try:
            return Path(self._problems).read_text()
        except FileNotFoundError:
            return ""

    def mark_publishes(self, word: Word) -> None:
        """From now on the board says whenever this process is in the middle of publishing or of sending."""
        words = self.words

        def marked(function: Callable[..., Any], inside: Inside) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                words[word] = inside
                try:
                    return function(*arguments, **options)
                finally:
                    words[word] = Inside.ELSEWHERE

            return call

        SegmentPool.publish = marked(SegmentPool.publish, Inside.PUBLISH)  # type: ignore[method-assign]
        MappedChannel.send = marked(MappedChannel.send, Inside.SEND)  # type: ignore[method-assign]
