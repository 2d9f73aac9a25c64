"""The short cuts past channel and store: a request, or an answer, that is like most is one call of the extension's.

They write the same bytes to the same places as the long way, and take it for whatever is not like most: texts with
escapes, new tags, a layout that was not seen before, an error. There are none in plain Python, over other channels, nor
where messages or tensors are proved or compared.
"""

from __future__ import annotations

from typing import Any, TypeGuard

from . import native
from .answers import Answer
from .channel import Channel, MappedChannel
from .protocol import Request, Response, TensorRef
from .stores import ControllerStore, WorkerStore
from .stores.segments import SegmentControllerStore, SegmentWorkerStore

__all__ = ["answerer", "asker"]


def asker(channel: Channel, store: ControllerStore, ends: list[Any]) -> native.Asker | None:
    """The controller's short cut for one run, if there is one; made after ``store.begin_run``.

    Args:
        channel: of the run.
        store: of the session.
        ends: gets an element when the worker has ended.
    """
    if not _has_usual_form(channel) or not isinstance(store, SegmentControllerStore) or store.has_checksum:
        return None
    return native.Asker(*channel.ends(), *store.ends(), ends, Response)


def answerer(channel: Channel, store: WorkerStore, ends: list[Any]) -> native.Answerer | None:
    """The worker's short cut, if there is one.

    Args:
        channel: of the session.
        store: of the session.
        ends: gets an element when the controller has ended.
    """
    if not _has_usual_form(channel) or not isinstance(store, SegmentWorkerStore) or store.has_checksum:
        return None
    return native.Answerer(*channel.ends(), *store.ends(), channel.status, store.tags, ends, Request, TensorRef, Answer)


def _has_usual_form(channel: Channel) -> TypeGuard[MappedChannel]:
    """Whether the extension can read and write a channel's messages; not those that are proved."""
    return native.IS_COMPILED and isinstance(channel, MappedChannel)
