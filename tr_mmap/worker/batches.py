"""A batch: several requests for one command in one message, as a pool sends them. Sends nothing.

The function is called once for each item, one after the other, and an item that fails does not touch the others. Each
result is copied before the next call, because a function may return the same array each time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..errors import BadMessage, TRException
from ..protocol.batches import (
    BATCH,
    COLUMNS,
    ENTRIES,
    SECONDS,
    STACK,
    TEXTS,
    entry_of_failure,
    entry_of_named,
    entry_of_tensors,
    entry_of_text,
)
from ..protocol.messages import Failure, Response, encode
from ..protocol.named_values import pack
from ..tsr.tensors import is_plain_torch, to_array
from ..wire.header import MAX_NDIM
from ..wire.messages import ARGUMENT_TAG_PREFIX
from .annotations import code_of
from .binding import Command
from .reply import Reply, failure_of

if TYPE_CHECKING:
    from .functions import Server

__all__ = ["answer"]

_SEVERAL: Final = (tuple, list)


class _Recorder:
    """Stands for a request's transfer while an item is handled: keeps copies of what its function publishes itself."""

    def __init__(self, transfer: Any) -> None:
        self._transfer = transfer
        self.tensors: list[Any] = []

    def publish(self, tensors: Sequence[Any]) -> None:
        """What ``send_tensors`` calls."""
        self.tensors += map(_copy_of, tensors)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transfer, name)


def answer(
    server: Server,
    known: Command,
    values: dict[str, Any],
    judge: Callable[[BaseException, Reply], Failure | None],
) -> None:
    """Answer the items of a batch; the reply has all results.

    Args:
        server: whose request this is.
        known: the command.
        values: of the request, by name.
        judge: returns the failure for what a handler raised; raises what ends the worker.

    Raises:
        BadMessage: it is no batch.
        OutOfSpace: no room for the results.
    """
    count, texts, columns = values.get(BATCH), values.get(TEXTS), values.get(COLUMNS)
    if type(count) is not int or not isinstance(columns, list) or not isinstance(texts, str | list):
        raise BadMessage("this batch of requests cannot be read", detail=BATCH)
    context, results = server._context(), _Results(server, count)
    whole, transfer, fast_path = context.reply, context.transfer, server._fast_path
    is_plain = isinstance(texts, str) and not texts and len(columns) in known.tensor_counts
    try:
        server._fast_path = None  # which would send at once what an item's function gives to send_tensors()
        for number in range(count):
            reply = context.reply = Reply()
            recorder = context.transfer = _Recorder(transfer)  # type: ignore[assignment] # has all that it has
            try:
                tensors = [column[number, ...] for column in columns]
                if is_plain:
                    value = known.function(*tensors)
                else:
                    text = texts if isinstance(texts, str) else texts[number]
                    arguments, named = _bound(server, known, text, tensors)
                    value = known.function(*arguments, **named)
                if server.is_foreign:
                    return  # the function has forked, and this is the child
                if value is None:
                    value = recorder.tensors or reply.result
                try:
                    results.add(value)
                except Exception as error:
                    server._blame_result(error, code_of(known.function))
                    raise
            except BaseException as error:
                failure = judge(error, reply)
                if failure is not None:
                    results.add_failure(failure)
    finally:
        context.reply, context.transfer = whole, transfer
        if not server.is_foreign:
            server._fast_path = fast_path
    results.send()


def _bound(server: Server, known: Command, text: str, tensors: list[Any]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of one item, as if it were a message of its own."""
    own = {f"{ARGUMENT_TAG_PREFIX}{place}": tensor for place, tensor in enumerate(tensors)}

    def fetch(tag: str, framework: str) -> Any:
        return own[tag] if tag in own else server._fetch(tag, framework)

    parameters = " ".join([text, *own]) if text else " ".join(own)
    try:
        return known.bind(parameters, _Tags(own, server._tags), fetch, server.framework)
    except TRException as error:
        server._blame_input(error)
        raise


class _Tags:
    """The tags that name a tensor for one item."""

    def __init__(self, own: dict[str, Any], others: Any) -> None:
        self._own = own
        self._others = others

    def __contains__(self, tag: object) -> bool:
        return tag in self._own or tag in self._others


class _Results:
    """The results of a batch: stacked as long as they are alike, else one entry for each.

    Args:
        server: whose request this is.
        count: how many there will be.
    """

    def __init__(self, server: Server, count: int) -> None:
        self._server = server
        self._count = count
        self._began_s = time.perf_counter()
        self._stack: Any = None
        self._stacked = 0  # rows that have a result
        self._entries: list[list[Any]] | None = None  # once the results are not alike

    def add(self, value: Any) -> None:
        """The result of the next item, before anything else is called."""
        if self._entries is None and self._fits(value):
            self._stack[self._stacked, ...] = value
            self._stacked += 1
        else:
            self._add_entry(self._entry_of(value))

    def add_failure(self, failure: Failure) -> None:
        """The next item has failed."""
        self._add_entry(entry_of_failure(failure))

    def _fits(self, value: Any) -> bool:
        if isinstance(value, np.ndarray):
            if type(value) is not np.ndarray or value.dtype.kind not in "biufcV" or value.dtype.hasobject:
                return False
        elif not isinstance(value, np.generic) and not is_plain_torch(value):
            return False
        if value.ndim >= MAX_NDIM:  # a stack has one dimension more
            return False
        if self._stack is None and not self._stacked:
            framework = "torch" if not isinstance(value, np.ndarray | np.generic) else "numpy"
            self._stack = self._server.empty((self._count, *value.shape), _native(value.dtype), framework)
        stack = self._stack
        return stack is not None and _native(value.dtype) == stack.dtype and value.shape == stack.shape[1:]

    def _add_entry(self, entry: list[Any]) -> None:
        if self._entries is None:
            stack, self._stack = self._stack, None
            self._entries = [entry_of_tensors([_copy_of(stack[number, ...])]) for number in range(self._stacked)]
        self._entries.append(entry)

    def _entry_of(self, value: Any) -> list[Any]:
        if value is None:
            return entry_of_text("ok")
        if isinstance(value, str):
            return self._entry_of_text(str.__str__(value))
        if isinstance(value, dict):
            text, tensors = pack(value)
            return entry_of_named(text, [_copy_of(each) for each in tensors])
        return entry_of_tensors([_copy_of(each) for each in (value if isinstance(value, _SEVERAL) else [value])])

    def _entry_of_text(self, text: str) -> list[Any]:
        try:
            text.encode()
        except UnicodeEncodeError:
            try:
                encode(Response(0, result=text))
            except BadMessage as error:
                return entry_of_failure(failure_of(error))  # as where it is the only text of a message
        return entry_of_text(text)

    def send(self) -> None:
        """Make them the reply."""
        values: dict[str, Any] = {BATCH: self._count, SECONDS: time.perf_counter() - self._began_s}
        if self._entries is None:
            values[STACK] = self._stack
        else:
            values[ENTRIES] = self._entries
        self._server._say_named(values)


def _native(dtype: Any) -> Any:
    """A dtype in this machine's byte order, in which every tensor is sent."""
    return dtype.newbyteorder("=") if isinstance(dtype, np.dtype) and not dtype.isnative else dtype


def _copy_of(value: Any) -> Any:
    """A tensor of its own, which nobody changes before it is sent.

    Raises:
        UnsupportedTensor: it is none.
    """
    if is_plain_torch(value):
        return value.clone()
    to_array(value)
    return np.array(value) if isinstance(value, np.ndarray | np.generic) else value
