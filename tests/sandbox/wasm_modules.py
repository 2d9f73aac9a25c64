# ruff: noqa: E501 - modules in text
"""Modules of WebAssembly that the tests use: the examples' own, and small ones in text."""

from __future__ import annotations

from pathlib import Path

from wasmtime import wat2wasm

EXAMPLES = Path(__file__).parents[2] / "examples" / "wasm"
SCALE = (EXAMPLES / "scale.wasm").read_bytes()
WORDS = (EXAMPLES / "words.wasm").read_bytes()


def module(*parts: str) -> bytes:
    """A module of these fields, in its binary form."""
    return bytes(wat2wasm(f"(module {' '.join(parts)})"))


MEMORY = '(memory (export "memory") 1)'

NUMBERS = module(
    MEMORY,
    '(func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))',
    '(func (export "half") (param f64) (result f64) (f64.div (local.get 0) (f64.const 2)))',
    '(func (export "wide") (param i64) (result i64) (local.get 0))',
    '(func (export "both") (param i32 f32) (result f32 i32) (local.get 1) (local.get 0))',
    '(func (export "nothing"))',
    "(global $n (mut i32) (i32.const 0))",
    '(func (export "count") (result i32) (global.set $n (i32.add (global.get $n) (i32.const 1))) (global.get $n))',
)


def wasi(name: str, parameters: str, *parts: str) -> bytes:
    """A command that imports one function of WASI, which returns an error number, and traps unless that is 0."""
    return module(
        f'(import "wasi_snapshot_preview1" "{name}" (func $wasi (param {parameters}) (result i32)))',
        MEMORY,
        '(func (export "_start") (if (call $wasi ' + " ".join(parts) + ") (then (unreachable))))",
    )


def tensors(body: str, *parts: str) -> bytes:
    """A module whose ``tr_run`` has this body; its parameters are $in $n $out $m $error $size."""
    return module(
        *parts,
        MEMORY,
        '(func $tr_run (export "tr_run") (param $in i32) (param $n i32) (param $out i32) (param $m i32) (param $error i32)',
        f"(param $size i32) (result i32) {body})",
    )


DTYPE, NDIM, SHAPE, NBYTES, DATA, NAME = 0, 4, 8, 136, 144, 152
"""Offsets in ``struct tr_tensor``."""
