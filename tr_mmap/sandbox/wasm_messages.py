"""The options that the executor of kind ``"wasm"`` gives to its runner, and how numbers are encoded in JSON."""

from __future__ import annotations

import msgspec

__all__ = ["COMMAND", "MODULE_START", "TENSORS", "WasmOptions", "decode_number", "encode_number"]

MODULE_START = b"\0asm\x01\0\0\0"  # of a module of version 1; others begin otherwise
COMMAND = "_start"
TENSORS = "tr_run"


class WasmOptions(msgspec.Struct):
    """``options`` of a :class:`Work`.

    Attributes:
        memory_nbytes, stack_nbytes, wall_ms, fuel: as in :class:`Limits`.
        directories: granted directories, each with whether the module may write there.
        env: environment variables.
        has_clock, has_random: whether the clock and random bytes are granted.
        outputs: names of the tensors that ``tr_run`` returns.
        arguments: of an exported function, see :func:`encode_number`.
        compiled_offset, compiled_nbytes: where the compiled module lies in the inputs' area.
        tensors_nbytes: where the tensors end in that area.
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
    """Encode a number for JSON without loss: a float as a hexadecimal text, because JSON lacks infinity and NaN.

    Raises:
        TypeError: it is not a number.
    """
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, int):
        return int(value)
    raise TypeError(f"functions of WebAssembly take and give numbers, and {value!r:.80} is none")


def decode_number(text: int | str) -> int | float:
    """Decode a number of :func:`encode_number`.

    Raises:
        ValueError: the text is not a number.
    """
    return float.fromhex(text) if isinstance(text, str) else text
