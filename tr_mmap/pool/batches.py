"""Small requests of one map in one message: how they are put together, and how their results are taken apart.

Sends nothing. Requests fit together if they have the same command, and tensors of the same dtypes and shapes.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Sequence
from typing import Any, Final

import numpy as np

from ..controller.results import Result, remote_error, value_of
from ..errors import BadMessage
from ..protocol.batches import BATCH, COLUMNS, ENTRIES, SECONDS, STACK, TEXTS, item_of_entry
from ..protocol.commands import UserMessage, parse_command
from ..protocol.messages import Response
from ..protocol.named_values import FORM_NAMED, unpack
from ..tsr.tensors import is_plain_torch
from ..wire.header import MAX_NDIM

__all__ = ["ITEM_NBYTES", "kind_of", "nbytes_of", "packed", "results_of"]

ITEM_NBYTES: Final = 1 << 15  # a larger item gains nothing from others beside it
_DTYPE_KINDS: Final = "biufcV"  # V: bfloat16 and its like
_MAX_NDIM: Final = MAX_NDIM - 1  # a stack of them has one more


def kind_of(message: UserMessage, tensors: Sequence[Any]) -> Hashable:
    """What requests have in common that fit into one batch; None for one that fits into none."""
    if not isinstance(message, str) or message[:1] == "{":
        return None
    if len(tensors) == 1 and type(array := tensors[0]) is np.ndarray and array.dtype.kind in _DTYPE_KINDS:
        is_small = array.nbytes <= ITEM_NBYTES and array.ndim <= _MAX_NDIM
        return (array.dtype, array.shape) if is_small else None  # the usual case, in fewer steps
    shapes: list[Hashable] = []
    for each in tensors:
        if type(each) is np.ndarray:
            if each.nbytes > ITEM_NBYTES or each.dtype.kind not in _DTYPE_KINDS:
                return None
        elif not is_plain_torch(each) or each.nbytes > ITEM_NBYTES:
            return None
        if each.ndim > _MAX_NDIM:
            return None
        shapes.append((each.dtype, each.shape))
    return tuple(shapes)


def nbytes_of(tensors: Sequence[Any]) -> int:
    """Bytes of the tensors of a request."""
    return sum(each.nbytes for each in tensors)


def packed(messages: Sequence[str], tensors: Sequence[Sequence[Any]]) -> tuple[str, dict[str, Any]]:
    """One request for several that fit together: its command, and its arguments by name.

    Args:
        messages: of each, the command and its words.
        tensors: of each.
    """
    first = messages[0]
    command, text = parse_command(first)
    texts: str | list[str] = text
    if any(each != first for each in messages):
        texts = [parse_command(each)[1] for each in messages]
    columns = [_stacked([each[place] for each in tensors]) for place in range(len(tensors[0]))]
    return command, {BATCH: len(messages), TEXTS: texts, COLUMNS: columns}


def _stacked(tensors: list[Any]) -> Any:
    if isinstance(tensors[0], np.ndarray):
        return np.stack(tensors)
    return sys.modules["torch"].stack(tensors)


def results_of(result: Result, count: int) -> tuple[list[Any], float]:
    """The results of the items of a batch: what ``calculate`` returns for each, or its error; and how long they took.

    Raises:
        BadMessage: the response is not one of so many items.
    """
    response, tensors = result
    values = unpack(response.result, tensors) if response.form == FORM_NAMED else {}
    if values.get(BATCH) != count:
        raise BadMessage(f"the response to a batch of {count} requests is not one", detail=response.result[:80])
    stack = values.get(STACK)
    if stack is not None:
        # A row of a tensor with one dimension would be a scalar.
        rows = list(stack) if stack.ndim > 1 else [stack[number, ...] for number in range(count)]
        return rows, values[SECONDS]
    return [_result_of(response.command, each) for each in values[ENTRIES]], values[SECONDS]


def _result_of(command: str, entry: list[Any]) -> Any:
    form, text, tensors, failure = item_of_entry(entry)
    if failure is not None:
        return remote_error(command, failure)
    return value_of((Response(0, command, text, form=form), tensors))
