"""A worker whose handlers break their streams, raise what hardly anybody raises, and fork."""

from __future__ import annotations

import asyncio
import gc
import io
import multiprocessing
import os
import sys
import threading
import traceback

import numpy as np

from tr_mmap import OutOfSpace, Server

server = Server()


# -- what a handler may do to its streams ----------------------------------------------------------------------------


class NoStream:
    pass


class Raising(io.StringIO):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def write(self, _text):
        raise self.error


class Recursive(io.StringIO):
    def write(self, text):
        return self.write(text)


class HalfClosed(io.StringIO):
    def flush(self):
        raise SystemExit(9)


def _closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


def _both(stream):
    sys.stdout = sys.stderr = stream


def _to_descriptor(number: int) -> None:
    for fd in (1, 2):
        os.dup2(number, fd)


SABOTAGES = {
    "closed_stringio": lambda: _both(_closed()),
    "stringio": lambda: _both(io.StringIO()),
    "none": lambda: _both(None),
    "deleted": lambda: (delattr(sys, "stdout"), delattr(sys, "stderr")),
    "no_stream": lambda: _both(NoStream()),
    "text": lambda: _both("stderr"),
    "bytes": lambda: _both(io.BytesIO()),
    "raises_value_error": lambda: _both(Raising(ValueError("write"))),
    "raises_exit": lambda: _both(Raising(SystemExit(3))),
    "raises_interrupt": lambda: _both(Raising(KeyboardInterrupt())),
    "raises_cancelled": lambda: _both(Raising(asyncio.CancelledError())),
    "recursive": lambda: _both(Recursive()),
    "flush_exits": lambda: _both(HalfClosed()),
    "ascii": lambda: _both(io.TextIOWrapper(io.BytesIO(), encoding="ascii")),
    "close_streams": lambda: (sys.stdout.close(), sys.stderr.close()),
    "close_descriptors": lambda: (os.close(1), os.close(2)),
    "dup2_dev_full": lambda: _to_descriptor(os.open("/dev/full", os.O_WRONLY)),
    "dup2_read_only": lambda: _to_descriptor(os.open("/dev/null", os.O_RDONLY)),
    "broken_pipe": lambda: (pipe := os.pipe(), os.close(pipe[0]), _to_descriptor(pipe[1])),
    "write_is_none": lambda: setattr(sys.stderr, "write", None),
    "detached": lambda: (sys.stdout.detach(), sys.stderr.detach()),
}


@server.command("sabotage")
def sabotage(name: str):
    SABOTAGES[name]()
    raise LookupError(f"after {name}")


@server.command("hello")
def hello() -> str:
    return "here"


@server.command("pid")
def pid() -> str:
    return str(os.getpid())


# -- what a handler may raise ----------------------------------------------------------------------------------------


class Hostile(Exception):
    def __str__(self):
        raise KeyboardInterrupt


class Exiting(Exception):
    def __str__(self):
        raise SystemExit(5)

    __repr__ = __str__


class NoText(Exception):
    def __str__(self):
        return 5  # noqa: PLE0307 - that is the point


class TextSubclass(str):
    def encode(self, *_):
        raise RuntimeError("encode")

    def __len__(self):
        return -1  # noqa: PLE0303 - that is the point


class OddText(Exception):
    def __str__(self):
        return TextSubclass("odd")


class Meta(type):
    @property
    def __name__(cls):
        raise RuntimeError("no name")

    @property
    def __module__(cls):
        raise RuntimeError("no module")


class BrokenMeta(Exception, metaclass=Meta):
    pass


class BrokenCause(Exception):
    @property
    def __cause__(self):
        raise RuntimeError("cause")

    @property
    def __context__(self):
        raise RuntimeError("context")

    @property
    def __notes__(self):
        raise RuntimeError("notes")


class NoClass(Exception):
    @property
    def __class__(self):
        raise RuntimeError("class")


class NoAttributes(Exception):
    def __getattribute__(self, name):
        raise ZeroDivisionError(name)


class PretendsToExit(Exception):
    __class__ = SystemExit


class NoSpaceOfUser(OutOfSpace):
    def __getattribute__(self, name):
        raise KeyboardInterrupt(name)


class SpaceOfUser(OutOfSpace):
    def __init__(self):
        Exception.__init__(self, "mine")
        self.message = "mine"


def _chain(count: int, link) -> BaseException:
    error: BaseException = ValueError(0)
    for number in range(count):
        newer = ValueError(number)
        link(newer, error)
        error = newer
    return error


def _cycle() -> BaseException:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    return first


def _deep(count: int):
    if count:
        _deeper(count - 1)
    raise ValueError("deep")


def _deeper(count: int):
    _deep(count)


def _noted(note) -> BaseException:
    error = ValueError("noted")
    error.__notes__ = note
    return error


def _nested_group(depth: int) -> BaseException:
    error: BaseException = ValueError("innermost")
    for _ in range(depth):
        error = ExceptionGroup("group", [error])
    return error


ERRORS = {
    "long_key": lambda: KeyError("x" * (9 << 20)),
    "long_zeros": lambda: ValueError("\0" * (9 << 20)),
    "long_name": lambda: type("N" * 100_000, (Exception,), {})("named"),
    "interrupting_text": lambda: Hostile(),
    "exiting_text": lambda: Exiting(),
    "no_text": lambda: NoText(),
    "odd_text": lambda: OddText(),
    "surrogates": lambda: ValueError("\ud800 and \udcff"),
    "broken_meta": lambda: BrokenMeta("meta"),
    "broken_cause": lambda: BrokenCause("cause"),
    "no_class": lambda: NoClass("class"),
    "no_attributes": lambda: NoAttributes("attributes"),
    "pretends_to_exit": lambda: PretendsToExit("exit"),
    "no_space_of_user": lambda: NoSpaceOfUser("mine", needed_nbytes=1, free_nbytes=0),
    "group_of_no_class": lambda: ExceptionGroup("group", [NoClass("class"), NoAttributes("attributes")]),
    "causes": lambda: _chain(10_000, lambda newer, older: setattr(newer, "__cause__", older)),
    "contexts": lambda: _chain(10_000, lambda newer, older: setattr(newer, "__context__", older)),
    "cycle": lambda: _cycle(),
    "notes": lambda: _noted(["n" * (1 << 20)] * 10),
    "odd_notes": lambda: _noted(5),
    "group": lambda: ExceptionGroup("wide", [ValueError(number) for number in range(100_000)]),
    "base_group": lambda: BaseExceptionGroup("base", [KeyboardInterrupt(), SystemExit(2)]),
    "nested_group": lambda: _nested_group(500),
    "cancelled": lambda: asyncio.CancelledError("cancelled"),
    "generator_exit": lambda: GeneratorExit(),
    "stop_iteration": lambda: StopIteration(1),
    "interrupt": lambda: KeyboardInterrupt("by hand"),
    "base": lambda: BaseException("base"),
    "memory": lambda: MemoryError(),
    "syntax": lambda: SyntaxError("bad", ("file", 1, 1, "x" * 10_000_000)),
    "os_error": lambda: OSError(2, "none", b"\xff"),
    "unicode": lambda: UnicodeDecodeError("utf-8", b"\xff" * (1 << 20), 0, 1, "bad"),
    "bare_out_of_space": lambda: SpaceOfUser(),
    "out_of_space": lambda: OutOfSpace("no room", needed_nbytes=100, free_nbytes=0),
}


@server.command("raise")
def raise_it(name: str):
    raise ERRORS[name]()


@server.command("recursion")
def recursion(count: int):
    sys.setrecursionlimit(2 * count + 1000)
    _deep(count)


@server.command("endless")
def endless():
    return endless()


@server.command("raise_class")
def raise_class():
    raise asyncio.CancelledError


@server.command("nested")
def nested():
    try:
        raise KeyError("inner")
    except KeyError as error:
        raise ValueError("outer") from error


@server.command("bad_dtype")
def bad_dtype():
    server.send_tensors(np.array([object()]))


@server.command("return_objects")
def return_objects():
    return np.array([object()])


@server.command("too_large")
def too_large():
    server.empty((1 << 45,), "uint8")


@server.command("quit")
def exit_with(code: int):
    sys.exit(code)


# -- children --------------------------------------------------------------------------------------------------------

_pipes: list[tuple[int, int]] = []


def _child_of(body) -> str:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        return body(writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()  # until the child has ended: nothing it does later can disturb
    return f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])} {said.decode()}"


def _raise(error):
    raise error


def _try(call) -> bytes:
    try:
        call()
    except BaseException as error:
        return type(error).__name__.encode() + b" "
    return b"done "


CHILDREN = {
    "returns": lambda _: "the child",
    "returns_tensor": lambda _: np.ones(3),
    "exits": lambda _: sys.exit(),
    "exits_3": lambda _: sys.exit(3),
    "exits_text": lambda _: sys.exit("words"),
    "raises": lambda _: _raise(ValueError("in the child")),
    "interrupted": lambda _: _raise(KeyboardInterrupt()),
    "_exit": lambda _: os._exit(4),
    "prints": lambda _: print("the child prints"),
    "answers": lambda fd: os.write(
        fd,
        b"".join(
            _try(call)
            for call in (
                lambda: server.write_response("", "from the child"),
                lambda: server.send_tensors(np.ones(3)),
                lambda: server.write_status("exiting"),
                lambda: server.write_status("busy: child"),
                lambda: server.cleanup_session_dir(),
            )
        ),
    ),
    "grandchild": lambda _: (os.fork(), "both")[1],
}


@server.command("fork")
def fork(how: str):
    return _child_of(CHILDREN[how])


@server.command("fork_with_array")
def fork_with_array(x):
    return _child_of(lambda fd: (os.write(fd, str(float(x.sum())).encode()), x)[1])


@server.command("multiprocess")
def multiprocess():
    child = multiprocessing.get_context("fork").Process(target=print, args=("in the child",))
    child.start()
    child.join()
    return str(child.exitcode)


@server.command("fork_in_thread")
def fork_in_thread():
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(_child_of(lambda _: "")))
    thread.start()
    thread.join()
    return said[0]


if __name__ == "__main__":
    gc.freeze()  # as in tools.py
    try:
        server.run()
    except BaseException:
        traceback.print_exc()
        raise
