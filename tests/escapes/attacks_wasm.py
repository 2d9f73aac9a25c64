# ruff: noqa: E501 - each line is a program
"""Attacks of modules of WebAssembly. Each gives 1 if it has worked, and fails if it was denied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from wasmtime import wat2wasm

from tr_mmap.sandbox import AlgorithmError, LimitExceeded, Limits, NotAllowed

LIMITS = Limits(memory_nbytes=64 << 20, wall_ms=1000, cpu_ms=60_000, stack_nbytes=1 << 20, output_nbytes=1 << 20)
WELL = bytes(wat2wasm('(module (func (export "f") (result i32) (i32.const 7)))'))
WORDS = (Path(__file__).parents[2] / "examples" / "wasm" / "words.wasm").read_bytes()
MEMORY = '(memory (export "memory") 1)'


@dataclass(frozen=True)
class WasmAttack:
    """One attack.

    Attributes:
        number: the kind, see the README.
        name: what it tries.
        code: the module.
        error: what its user gets.
        field: of that error: name and value.
        inputs: of the run; ``{granted}`` in a text is the directory that was granted.
        has_control: whether it works where all is granted and nothing limited; a bomb would hurt the machine, and what
            no engine offers works nowhere.
    """

    number: int
    name: str
    code: bytes
    error: type[Exception]
    field: tuple[str, object]
    inputs: Mapping[str, Any] = field(default_factory=dict)
    has_control: bool = False

    @property
    def id(self) -> str:
        return f"{self.number:02} {self.name}"

    def inputs_of(self, granted: str) -> dict[str, Any]:
        """The inputs of a run that was granted this directory; a tensor of zeros where there is to be one."""
        inputs = {name: np.zeros(64) if value is None else value for name, value in self.inputs.items()}
        if "arguments" in inputs:
            inputs["arguments"] = [each.format(granted=granted) for each in inputs["arguments"]]
        return inputs


def _module(*fields: str) -> bytes:
    return bytes(wat2wasm(f"(module {' '.join(fields)})"))


def _wasi(name: str, parameters: str, arguments: str, *fields: str) -> bytes:
    """A command that calls one function of WASI, and traps if that is refused."""
    return _module(
        f'(import "wasi_snapshot_preview1" "{name}" (func $wasi (param {parameters}) (result i32)))',
        *(fields or (MEMORY,)),
        f'(func (export "_start") (if (call $wasi {arguments}) (then unreachable)))',
    )


def _open(path: str, flags: int, rights: int) -> bytes:
    text = f'(memory (export "memory") 1) (data (i32.const 128) "{path}")'
    arguments = (
        f"(i32.const 3) (i32.const 0) (i32.const 128) (i32.const {len(path)}) (i32.const {flags}) (i64.const {rights})"
    )
    return _wasi(
        "path_open",
        "i32 i32 i32 i32 i32 i64 i64 i32 i32",
        arguments + "(i64.const 0) (i32.const 0) (i32.const 64)",
        text,
    )


def _body(text: str, *fields: str) -> bytes:
    return _module(*fields, MEMORY, f'(func $attack (export "attack") (result i32) {text})')


def _imports(module: str, name: str) -> bytes:
    return _module(f'(import "{module}" "{name}" (func (param i32) (result i32)))', '(func (export "attack"))')


def _reads(path: str) -> dict[str, Any]:
    return {"arguments": [path]}


FAILED, UNREACHABLE, BOUNDS = ("type", "ExitStatus"), ("type", "Unreachable"), ("type", "MemoryOutOfBounds")
IMPORT = ("type", "ImportError")
SLEEP = '(memory (export "memory") 1) (data (i32.const 24) "\\00\\00\\f0\\ff\\ff\\ff\\ff\\0f")'  # ns; kind 0 is a clock
TENSORS = "(param $in i32) (param i32 i32 i32 i32 i32) (result i32)"

ATTACKS = [
    WasmAttack(1, "read the password file", WORDS, AlgorithmError, FAILED, _reads("/etc/passwd"), True),
    WasmAttack(1, "read the password file of shadows", WORDS, AlgorithmError, FAILED, _reads("/etc/shadow")),
    WasmAttack(1, "read its process's environment", WORDS, AlgorithmError, FAILED, _reads("/proc/self/environ")),
    WasmAttack(1, "go up from a granted directory", WORDS, AlgorithmError, FAILED, _reads("{granted}/../secret"), True),
    WasmAttack(1, "follow a symbolic link out of a granted directory", WORDS, AlgorithmError, FAILED, _reads("{granted}/link"), True),
    WasmAttack(2, "write into a granted directory", _open("new", 1, 64), AlgorithmError, UNREACHABLE, has_control=True),
    WasmAttack(2, "truncate a granted file", _open("text", 8, 64), AlgorithmError, UNREACHABLE, has_control=True),
    WasmAttack(3, "import a socket", _imports("wasi_snapshot_preview1", "sock_open"), AlgorithmError, ("type", "WasmtimeError")),
    WasmAttack(3, "import another system's socket", _imports("wasix_32v1", "sock_open"), AlgorithmError, IMPORT),
    WasmAttack(4, "import fork", _imports("wasix_32v1", "proc_fork"), AlgorithmError, IMPORT),
    WasmAttack(4, "import the C library's system()", _imports("env", "system"), AlgorithmError, IMPORT),
    WasmAttack(6, "import a raw system call", _imports("env", "syscall"), AlgorithmError, IMPORT),
    WasmAttack(7, "call a function by another signature", _body(
        "(drop (call_indirect (type $t) (i64.const 1) (i32.const 0))) (i32.const 1)",
        "(type $t (func (param i64) (result i64))) (table 1 funcref) (elem (i32.const 0) $f) (func $f)"),
        AlgorithmError, ("type", "BadSignature")),
    WasmAttack(7, "call what is in no table", _body(
        "(drop (call_indirect (type $t) (i64.const 1) (i32.const 99))) (i32.const 1)",
        "(type $t (func (param i64) (result i64))) (table 1 funcref)"), AlgorithmError, ("type", "TableOutOfBounds")),
    WasmAttack(8, "memory", _body("(loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) unreachable"),
               LimitExceeded, ("limit", "memory_nbytes")),
    WasmAttack(8, "memory from the start", _module("(memory 65536)", '(func (export "attack"))'), LimitExceeded,
               ("limit", "memory_nbytes")),
    WasmAttack(8, "tables", _module("(table 4000000000 funcref)", '(func (export "attack"))'), LimitExceeded,
               ("limit", "memory_nbytes")),
    WasmAttack(8, "stack", _body("(call $attack)(call $attack) i32.add"), LimitExceeded, ("limit", "stack_nbytes")),
    WasmAttack(8, "open files", _module(
        '(import "wasi_snapshot_preview1" "path_open"',
        "(func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))",
        '(memory (export "memory") 1) (data (i32.const 0) "text") (func (export "_start") (loop $l (if (call $open',
        "(i32.const 3) (i32.const 0) (i32.const 0) (i32.const 4) (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0)",
        "(i32.const 64)) (then unreachable)) (br $l)))"), AlgorithmError, UNREACHABLE),
    WasmAttack(9, "busy for ever", _body("(loop $l (br $l)) unreachable"), LimitExceeded, ("limit", "wall_ms")),
    WasmAttack(9, "busy for ever before it is called", _module(
        '(func $f (loop $l (br $l))) (start $f) (func (export "attack"))'), LimitExceeded, ("limit", "wall_ms")),
    WasmAttack(9, "asleep for ever", _wasi(
        "poll_oneoff", "i32 i32 i32 i32", "(i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)", SLEEP),
        LimitExceeded, ("limit", "wall_ms")),
    WasmAttack(10, "store into an input", _module(MEMORY, f'(func (export "tr_run") {TENSORS}',
        "(i32.store (i32.load (i32.add (local.get $in) (i32.const 144))) (i32.const 1)) (i32.const 0))"),
        AlgorithmError, BOUNDS, {"x": None}),
    WasmAttack(10, "fill an input", _module(MEMORY, f'(func (export "tr_run") {TENSORS}',
        "(memory.fill (i32.const 65536) (i32.const 1) (i32.const 65536)) (i32.const 0))"), AlgorithmError,
        ("type", "ProcessEnded"), {"x": None}),  # the engine does it by its own code, which is no trap
    WasmAttack(11, "an output without bounds", _module(MEMORY, '(func (export "tr_run") (param i32 i32) (param $out i32)',
        "(param i32 i32 i32) (result i32) (i32.store (local.get $out) (i32.const 8))",
        "(i64.store (i32.add (local.get $out) (i32.const 136)) (i64.const -1)) (i32.const 0))"),
        AlgorithmError, ("type", "ValueError"), {"x": None}),
    WasmAttack(15, "read behind its memory", _body("(i32.load offset=4294967295 (i32.const -1))"), AlgorithmError, BOUNDS),
    WasmAttack(15, "read in front of its memory", _body("(i32.load (i32.const -8))"), AlgorithmError, BOUNDS),
    WasmAttack(15, "copy from behind its memory", _body(
        "(memory.copy (i32.const 0) (i32.const 65000) (i32.const 65000)) (i32.const 1)"), AlgorithmError, BOUNDS),
    WasmAttack(15, "let a system function write behind its memory", _wasi(
        "fd_prestat_get", "i32 i32", "(i32.const 3) (i32.const -4)"), AlgorithmError, ("", None)),
    WasmAttack(21, "a compiled module in a module's place", b"\x7fELF" + bytes(100), AlgorithmError, ("type", "NotAModule")),
]  # fmt: skip

CHANCE = WasmAttack(
    6,
    "random bytes",
    _wasi("random_get", "i32 i32", "(i32.const 0) (i32.const 8)"),
    NotAllowed,
    ("rule", "random"),
    has_control=True,
)
ATTACKS.append(CHANCE)
