"""What the executor of kind ``"wasm"`` and its runner say to each other, beside what all kinds say."""

from __future__ import annotations

import msgspec

__all__ = ["COMMAND", "MODULE_START", "TENSORS", "WasmOptions", "decode_number", "encode_number"]

MODULE_START = b"\0asm\x01\0\0\0"  # of a module of version 1; others begin otherwise
COMMAND = "_start"
TENSORS = "tr_run"


class WasmOptions(msgspec.Struct):
    """Behind :class:`Work`.

    Attributes:
        memory_nbytes, stack_nbytes, wall_ms, fuel: of :class:`Limits`.
        directories: that a command finds, and whether it may write them.
        env: variables.
        has_clock, has_random: granted.
        outputs: names of what ``tr_run`` gives.
        arguments: of an exported function, see :func:`encode_number`.
        compiled_offset, compiled_nbytes: of the compiled module in the inputs' memory.
        tensors_nbytes: where the tensors end there.
        is_reused: whether the instance is kept for the next run.
    """

    memory_nbytes: int
    stack_nbytes: int
    wall_ms: float
    fuel: int | None = None
    directories: list[tuple[str, bool]] = []
    env: dict[str, str] = {}
    has_clock: bool = False
    has_random: bool = False
    outputs: list[str] = []
    arguments: list[int | str] = []
    compiled_offset: int = 0
    compiled_nbytes: int = 0
    tensors_nbytes: int = 0
    is_reused: bool = False


def encode_number(value: int | float) -> int | str:
    """A number as JSON carries it without loss: JSON has neither infinity nor NaN.

    Raises:
        TypeError: it is no number.
    """
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, int):
        return int(value)
    raise TypeError(f"functions of WebAssembly take and give numbers, and {value!r:.80} is none")


def decode_number(text: int | str) -> int | float:
    """The number again.

    Raises:
        ValueError: it is none.
    """
    return float.fromhex(text) if isinstance(text, str) else text
