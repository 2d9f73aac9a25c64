"""What programs of the original framework write, byte by byte. See ``tests/peers/replay.py`` for the steps."""

from __future__ import annotations

import struct
from typing import Any, Final

Step = tuple[str, str] | tuple[str, str, bytes]

# A v1 header: magic, version, header's size, 0; dtype 1, 2 dims; the dims, filled up with 1 from the left; the count,
# 0, 0.
HEADER_2X2: Final = bytes.fromhex(
    "54535221 01000000 40000000 00000000 01000000 02000000"
    "01000000 01000000 02000000 02000000 0400000000000000 0000000000000000 0000000000000000"
)
HEADER_INT8_2: Final = bytes.fromhex(
    "54535221 01000000 40000000 00000000 02000000 01000000"
    "01000000 01000000 01000000 02000000 0200000000000000 0000000000000000 0000000000000000"
)
HEADER_INT32_1: Final = bytes.fromhex(
    "54535221 01000000 40000000 00000000 03000000 01000000"
    "01000000 01000000 01000000 01000000 0100000000000000 0000000000000000 0000000000000000"
)
A: Final = HEADER_2X2 + struct.pack("<4f", 1, 2, 3, 4)
B: Final = HEADER_2X2 + struct.pack("<4f", 5, 6, 7, 8)
PRODUCT: Final = HEADER_2X2 + struct.pack("<4f", 19, 22, 43, 50)
SMALL: Final = HEADER_INT8_2 + bytes([7, 255])
ONE: Final = HEADER_INT32_1 + struct.pack("<i", -9)


def answers(*responses: bytes, results: dict[str, bytes] | None = None) -> list[Step]:
    """Each response waits until the one before it is gone; the first waits before the results are written."""
    steps: list[Step] = [("gone", "response.json")]
    steps += [("write", f"{tag}.tsr", raw) for tag, raw in (results or {}).items()]
    for number, response in enumerate(responses):
        steps += [("gone", "response.json")] * (number > 0)
        steps.append(("put", "response.json", response))
    return steps


def served(request: bytes, *steps: Step, inputs: dict[str, bytes] | None = None) -> list[Step]:
    """The original's loop: it reads the request, runs the handler, and then removes the request."""
    fetched: list[Step] = []
    for tag, raw in (inputs or {}).items():
        fetched += [("reads", f"{tag}.tsr", raw), ("remove", f"{tag}.tsr")]
    return [
        ("there", "request.json"),
        ("reads", "request.json", request),
        ("write", "status.txt", b"running"),
        *fetched,
        *steps,
        ("write", "status.txt", b"done"),
        ("remove", "request.json"),
    ]


def removed_first(request: bytes, *steps: Step) -> list[Step]:
    """A worker that removes the request before it answers."""
    return [
        ("there", "request.json"),
        ("reads", "request.json", request),
        ("remove", "request.json"),
        ("write", "status.txt", b"busy"),
        *steps,
    ]


# What our controller asks, what the worker does, and what the caller gets: a text, a list of tensors' values, or an
# error. By name: (kind, message, steps, answer).
WORKER: Final[dict[str, tuple[str, Any, list[Step], Any]]] = {
    "a product in two responses": (
        "tensor",
        "matmul a b",
        served(
            b'{"cmd": "matmul", "params": "a,b"}',
            *answers(
                b'{"cmd": "", "params": "result_0"}', b'{"cmd": "", "params": "ok"}', results={"result_0": PRODUCT}
            ),
            inputs={"a": A, "b": B},
        ),
        [[[19.0, 22.0], [43.0, 50.0]]],
    ),
    "a text after the product": (
        "text",
        "hello bob",
        served(b'{"cmd": "hello", "params": "bob"}', *answers(b'{"cmd": "hello", "params": "Hello Bob"}')),
        "Hello Bob",
    ),
    "the next text is not the last one": (
        "text",
        "hello eve",
        served(b'{"cmd": "hello", "params": "eve"}', *answers(b'{"cmd": "hello", "params": "Hello Eve"}')),
        "Hello Eve",
    ),
    "a missing tag, twice invalid": (
        "text",
        "matmul a",
        served(
            b'{"cmd": "matmul", "params": "a"}',
            *answers(b'{"cmd": "", "params": "invalid"}', b'{"cmd": "", "params": "invalid"}'),
        ),
        "invalid",
    ),
    "two results and ok": (
        "tensor",
        "split a",
        served(
            b'{"cmd": "split", "params": "a"}',
            *answers(
                b'{"cmd": "", "params": "result_0,result_1"}',
                b'{"cmd": "", "params": "ok"}',
                results={"result_0": SMALL, "result_1": ONE},
            ),
            inputs={"a": A},
        ),
        [[7, -1], [-9]],
    ),
    "a list of results": (
        "tensor",
        "split a",
        served(
            b'{"cmd": "split", "params": "a"}',
            *answers(
                b'{"cmd":"","params":["result_0", "result_1"]}', b"{}", results={"result_0": SMALL, "result_1": ONE}
            ),
        ),
        [[7, -1], [-9]],
    ),
    "text, text, result, ok, ok": (
        "tensor",
        "slow a",
        served(
            b'{"cmd": "slow", "params": "a"}',
            *answers(b'{"cmd": "slow", "params": "loading"}', b'{"cmd": "slow", "params": "half"}'),
            *answers(
                b'{"cmd": "", "params": "result_0"}',
                b'{"cmd": "", "params": "ok"}',
                b'{"cmd": "", "params": "ok"}',
                results={"result_0": ONE},
            ),
        ),
        [[-9]],
    ),
    "a text that was not escaped": (
        "text",
        "path",
        served(b'{"cmd": "path", "params": ""}', *answers(b'{"cmd": "path", "params": "C:\\dir\\x\n2"}')),
        "C:\\dir\\x\n2",
    ),
    "a text with quotes that were not escaped": (
        "text",
        "quote",
        served(b'{"cmd": "quote", "params": ""}', *answers(b'{"cmd": "quote", "params": "say "hi" twice"}')),
        "say ",
    ),
    "letters as a JSON writer escapes them": (
        "text",
        "letters",
        served(b'{"cmd": "letters", "params": ""}', *answers(rb'{"cmd": "", "params": "za\u017c\u00f3\u0142\u0107"}')),
        "zażółć",
    ),
    "quotes of ours": (
        "text",
        {"cmd": "say", "params": 'a "b" \\ \n ż'},
        served(
            b'{"cmd": "say", "params": "a \\u0022b\\u0022 \\\\ \\n \xc5\xbc"}',
            *answers(b'{"cmd": "say", "params": "x"}'),
        ),
        "x",
    ),
    "an error in the status": (
        "error",
        "fail",
        [
            ("there", "request.json"),
            ("reads", "request.json", b'{"cmd": "fail", "params": ""}'),
            ("write", "status.txt", b"error: it went wrong"),
            *answers(b'{"cmd": "fail", "params": ""}'),
            ("remove", "request.json"),
        ],
        "it went wrong",
    ),
    "a request that is removed first": (
        "tensor",
        "matmul a b",
        removed_first(
            b'{"cmd": "matmul", "params": "a,b"}',
            *answers(
                b'{"cmd": "", "params": "result_0"}', b'{"cmd": "", "params": "ok"}', results={"result_0": PRODUCT}
            ),
            ("write", "status.txt", b"ok"),
        ),
        [[[19.0, 22.0], [43.0, 50.0]]],
    ),
    "and the text after it": (
        "text",
        "hello bob",
        removed_first(
            b'{"cmd": "hello", "params": "bob"}',
            *answers(b'{"cmd": "hello", "params": "Hello Bob"}'),
            ("write", "status.txt", b"ok"),
        ),
        "Hello Bob",
    ),
}


def asks(request: bytes, answer: bytes, *results: Step, inputs: dict[str, bytes] | None = None) -> list[Step]:
    """The original controller: it writes the request as it is, waits until it is gone, and takes the response."""
    return [
        *[("write", f"{tag}.tsr", raw) for tag, raw in (inputs or {}).items()],
        ("write", "request.json", request),
        ("gone", "request.json"),
        ("there", "response.json"),
        ("begins", "response.json", answer),
        *results,
        ("remove", "response.json"),
    ]


# What a controller of the original framework does with our worker (``tr_mmap.worker``).
CONTROLLER: Final[dict[str, list[Step]]] = {
    "it is ready": [("write", "status.txt", b"ready")],
    "a product": asks(
        b'{"cmd": "matmul", "params": "a,b"}',
        b'{"params": "result_0", "cmd": "matmul"',
        ("reads", "result_0.tsr", PRODUCT),
        inputs={"a": A, "b": B},
    ),
    "a product in bare words": asks(
        b"matmul a b", b'{"params": "result_0", "cmd": "matmul"', ("reads", "result_0.tsr", PRODUCT)
    ),
    "bare words and a newline": asks(b"hello world\n", b'{"params": "Hello World", "cmd": "hello"'),
    "one word": asks(b"hello", b'{"params": "Hello World", "cmd": "hello"'),
    "our own keys": asks(b'{"command":"hello","parameters":"bob"}', b'{"params": "Hello Bob"'),
    "a list": asks(
        b'{"cmd": "matmul", "params": ["a", "b"]}', b'{"params": "result_0"', ("reads", "result_0.tsr", PRODUCT)
    ),
    "a text with quotes that were not escaped": asks(
        b'{"cmd": "hello", "params": "you "two""}', b'{"params": "Hello You ", "cmd": "hello"'
    ),
    "a path that was not escaped": asks(b'{"cmd": "hello", "params": "c:\\dir"}', b'{"params": "Hello C:\\\\Dir"'),
    "a line break that was not escaped": asks(b'{"cmd": "hello", "params": "a\nb"}', b'{"params": "Hello A\\nB"'),
    "quotes that were escaped": asks(
        b'{"cmd": "hello", "params": "\\"you\\""}', b'{"params": "Hello \\u0022You\\u0022", "cmd": "hello"'
    ),
    "the status says running": [("write", "status.txt", b"running"), *asks(b"hello", b'{"params": "Hello World"')],
    "a missing tag": asks(b'{"cmd": "matmul", "params": "a,c"}', b'{"params": "error: '),
    "an unknown command": asks(b"unheard_of x", b'{"params": "error: '),
    "a torn request": asks(b'{"cmd": "hello", "par', b'{"params": "error: '),
    "and it still serves": asks(b"hello again", b'{"params": "Hello Again"'),
}
