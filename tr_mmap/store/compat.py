"""A store under the names of mem0's open API: ``Memory`` and ``AsyncMemory``, with its arguments and results.

Each result is a dictionary or a list of dictionaries; times are ISO 8601. No language model is used: texts are kept as
they are, and nothing is inferred from them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from ..errors import BadMessage
from .aio import AsyncHandle
from .errors import NoSuchRecord, VersionConflict
from .records import SCOPES, Event, Hit, Record
from .store import Store
from .threads import obtain

__all__ = ["AsyncMemory", "Memory", "NoSuchMemory"]

_LIMIT: Final = 100
_ACTOR: Final[tuple[str, ...]] = ("actor_id", "role")  # of a message; kept among the metadata, shown beside them
_EVENTS: Final = {"add": "ADD", "update": "UPDATE"}  # after any other event the memory is gone: "DELETE"


class NoSuchMemory(NoSuchRecord, ValueError):
    """There is no memory of that id; also a ``ValueError``, as in mem0."""


class Memory:
    """A store under these names.

    Args:
        name: of the store.
        path: see :class:`Store`.
        options: see :class:`Store`.
    """

    def __init__(self, name: str = "memory", path: str | os.PathLike[str] | None = None, **options: Any) -> None:
        self.store = Store(name, path, **options)

    @classmethod
    def from_config(cls, config_dict: Mapping[str, Any]) -> Memory:
        """A memory from a mapping of the constructor's arguments.

        Raises:
            BadMessage: the mapping has another name, such as that of a language model's settings.
        """
        known = {"name", "path", *(Store.__init__.__kwdefaults__ or {})}
        if unknown := sorted(set(config_dict) - known):
            raise BadMessage(
                f"a memory has no {unknown[0]!r:.40}; it takes {', '.join(sorted(known))}", detail=str(unknown[0])[:80]
            )
        return cls(**config_dict)

    def add(
        self,
        messages: str | Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        infer: bool = False,
        memory_type: str | None = None,
        prompt: str | None = None,  # noqa: ARG002 - programs for mem0 give it
    ) -> dict[str, Any]:
        """Add one text, or the texts of a conversation, each as a memory. Messages of the role ``system`` are left out.

        Args:
            messages: a text, a message, or a list of these.
            user_id: whose they are.
            agent_id: which agent's.
            run_id: which run's.
            metadata: of each; a ``role`` and an ``actor_id`` in them are replaced by those of the message.
            infer: must be False.
            memory_type: must be None.
            prompt: ignored; mem0 gives it to a language model.

        Returns:
            ``{"results": [{"id", "memory", "event": "ADD", "actor_id", "role"}, ...]}``

        Raises:
            BadMessage: there is no scope, a message has no text, or ``infer`` or ``memory_type`` asks for inference.
        """
        if infer:
            raise BadMessage("nothing is inferred here; add what is to be kept, with infer=False", detail="infer")
        if memory_type is not None:
            raise BadMessage(
                f"memory_type is {memory_type!r:.40}; a language model would have to write such a memory, and nothing "
                "is inferred here",
                detail="memory_type",
            )
        scopes = {"user_id": user_id, "agent_id": agent_id, "run_id": run_id}
        if not any(scopes.values()) and self.store.scope is None:
            raise BadMessage("a memory needs user_id, agent_id or run_id", detail="scopes")
        records, results = [], []
        several = [messages] if isinstance(messages, str | Mapping) else messages
        if not isinstance(several, Sequence) or not all(isinstance(each, str | Mapping) for each in several):
            raise BadMessage("messages are a text, or a list of messages", detail="messages")
        for each in several:
            message = {"content": each, "role": "user"} if isinstance(each, str) else each
            text, role, actor = (message.get(name) for name in ("content", "role", "name"))
            if not isinstance(text, str):
                raise BadMessage("a message is a text, or has one as its 'content'", detail="messages")
            if role == "system":
                continue
            said = {name: value for name, value in (("role", role), ("actor_id", actor)) if value is not None}
            records.append({"content": text, "metadata": {**(metadata or {}), **said}, **scopes})
            results.append({"memory": text, "event": "ADD", "actor_id": actor, "role": role})
        ids = self.store.add_many(records)
        return {"results": [{"id": one, **result} for one, result in zip(ids, results, strict=True)]}

    def get(self, memory_id: str) -> dict[str, Any] | None:
        """One memory; None if there is none."""
        record = self.store.get(memory_id)
        return None if record is None else _shape(record)

    def get_all(
        self,
        *,
        filters: Mapping[str, Any] | None = None,
        limit: int | None = None,
        top_k: int | None = None,
        **scopes: str | None,
    ) -> dict[str, Any]:
        """Memories, newest first: 100, if neither ``limit`` nor ``top_k`` says how many."""
        page = self.store.get_all(filters=_filters(filters), limit=_how_many(top_k, limit), **_checked(scopes))
        return {"results": [_shape(each) for each in page]}

    def search(
        self,
        query: str,
        *,
        filters: Mapping[str, Any] | None = None,
        limit: int | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
        rerank: bool = False,
        **scopes: str | None,
    ) -> dict[str, Any]:
        """Memories that fit a text, the best first: 100, if neither ``limit`` nor ``top_k`` says how many."""
        if rerank:
            raise BadMessage("nothing is ranked a second time here; leave rerank out", detail="rerank")
        hits: list[Hit] = self.store.search(
            query,
            limit=_how_many(top_k, limit),
            threshold=threshold,
            filters=_filters(filters),
            **_checked(scopes),
        )
        return {"results": [_shape(hit.record) | {"score": hit.score} for hit in hits]}

    def update(self, memory_id: str, data: str, metadata: Mapping[str, Any] | None = None) -> dict[str, str]:
        """Give a memory another text.

        Args:
            memory_id: of the memory.
            data: the text.
            metadata: added to those that it has. Its ``role`` and ``actor_id`` stay.

        Raises:
            NoSuchMemory: there is none.
        """
        while True:
            record = self.store.get(memory_id)
            if record is None:
                raise _missing(memory_id)
            said = {name: record.metadata[name] for name in _ACTOR if name in record.metadata}
            merged = {**record.metadata, **(metadata or {}), **said}
            try:
                self.store.update(memory_id, content=data, metadata=merged, if_version=record.version)
            except VersionConflict:
                continue  # somebody else has changed it meanwhile: merge with their metadata
            except NoSuchRecord:
                raise _missing(memory_id) from None
            return {"message": "Memory updated successfully!"}

    def delete(self, memory_id: str) -> dict[str, str]:
        """Delete one.

        Raises:
            NoSuchMemory: there is none.
        """
        if not self.store.delete(memory_id):
            raise _missing(memory_id)
        return {"message": "Memory deleted successfully!"}

    def delete_all(
        self, user_id: str | None = None, agent_id: str | None = None, run_id: str | None = None
    ) -> dict[str, str]:
        """Delete those of a user, agent or run.

        Raises:
            BadMessage: none of them was said.
        """
        if not any((user_id, agent_id, run_id)):
            raise BadMessage("delete_all needs user_id, agent_id or run_id; reset() deletes all", detail="scopes")
        self.store.clear(user_id=user_id, agent_id=agent_id, run_id=run_id)
        return {"message": "Memories deleted successfully!"}

    def history(self, memory_id: str) -> list[dict[str, Any]]:
        """What has become of a memory, oldest first."""
        found = []
        before: Event | None = None
        created_at: float | None = None
        for each in self.store.history(memory_id):
            is_there = each.event in _EVENTS
            if created_at is None or each.event == "add":
                created_at = each.at
            said = each.metadata if is_there or before is None else before.metadata
            found.append(
                {
                    "id": f"{memory_id}:{each.version}",
                    "memory_id": memory_id,
                    "old_memory": None if before is None else before.content,
                    "new_memory": each.content,
                    "event": _EVENTS.get(each.event, "DELETE"),
                    "created_at": _iso(created_at),
                    "updated_at": _iso(each.at),
                    "is_deleted": not is_there,
                    **{name: said.get(name) for name in _ACTOR},
                }
            )
            before = each
        return found

    def clear(self) -> int:
        """Delete all, and say how many there were."""
        return self.store.clear()

    def reset(self) -> None:
        """Delete all."""
        self.store.clear()

    def close(self) -> None:
        """Release the store."""
        self.store.close()


class AsyncMemory(AsyncHandle):
    """As :class:`Memory`; each method is a coroutine, and what may take long runs in threads.

    Opening a store may take a while: :meth:`create` does it in a thread.

    Args:
        name: of the store; or a memory that is open, without the other arguments.
        path: see :class:`Store`.
        options: see :class:`Store`.
    """

    def __init__(
        self, name: str | Memory = "memory", path: str | os.PathLike[str] | None = None, **options: Any
    ) -> None:
        if isinstance(name, Memory) and (path is not None or options):
            raise BadMessage("a memory that is open has its path and options; give it alone", detail="name")
        self.memory = name if isinstance(name, Memory) else Memory(name, path, **options)
        super().__init__(self.memory.store)

    @classmethod
    async def create(cls, *arguments: Any, **options: Any) -> AsyncMemory:
        """A memory, by the arguments of :class:`Memory`."""
        memory = await obtain(partial(Memory, *arguments, **options), Memory.close)
        return cls(memory)

    @classmethod
    async def from_config(cls, config_dict: Mapping[str, Any]) -> AsyncMemory:
        """As :meth:`Memory.from_config`."""
        memory = await obtain(partial(Memory.from_config, config_dict), Memory.close)
        return cls(memory)

    async def add(self, messages: Any, **options: Any) -> dict[str, Any]:
        """As :meth:`Memory.add`."""
        return await self._threads_for(may_embed=True).run(self.memory.add, messages, **options)

    async def get(self, memory_id: str) -> dict[str, Any] | None:
        """As :meth:`Memory.get`."""
        record = await self._record(memory_id)
        return None if record is None else _shape(record)

    async def get_all(self, **options: Any) -> dict[str, Any]:
        """As :meth:`Memory.get_all`."""
        return await self._threads.run(self.memory.get_all, **options)

    async def search(self, query: str, **options: Any) -> dict[str, Any]:
        """As :meth:`Memory.search`."""
        return await self._threads_for(may_embed=True).run(self.memory.search, query, **options)

    async def update(self, memory_id: str, data: str, metadata: Mapping[str, Any] | None = None) -> dict[str, str]:
        """As :meth:`Memory.update`."""
        return await self._threads_for(may_embed=True).run(self.memory.update, memory_id, data, metadata)

    async def delete(self, memory_id: str) -> dict[str, str]:
        """As :meth:`Memory.delete`."""
        return await self._threads.run(self.memory.delete, memory_id)

    async def delete_all(self, **scopes: str | None) -> dict[str, str]:
        """As :meth:`Memory.delete_all`."""
        return await self._threads.run(self.memory.delete_all, **scopes)

    async def history(self, memory_id: str) -> list[dict[str, Any]]:
        """As :meth:`Memory.history`."""
        return await self._threads.run(self.memory.history, memory_id)

    async def clear(self) -> int:
        """As :meth:`Memory.clear`."""
        return await self._threads.run(self.memory.clear)

    async def reset(self) -> None:
        """As :meth:`Memory.reset`."""
        await self._threads.run(self.memory.reset)


def _missing(memory_id: str) -> NoSuchMemory:
    return NoSuchMemory(f"there is no memory {memory_id!r}", id=memory_id)


def _how_many(top_k: int | None, limit: int | None) -> int:
    given = limit if top_k is None else top_k
    return _LIMIT if given is None else given


def _checked(scopes: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := sorted(set(scopes) - set(SCOPES)):
        raise BadMessage(f"memories are not found by {unknown[0]!r:.40}; use filters", detail=unknown[0][:80])
    return dict(scopes)


def _filters(given: Any) -> Any:
    """Translate mem0's filters: a field with the value ``"*"`` may have any value."""
    if isinstance(given, list):
        return [_filters(each) for each in given]
    if not isinstance(given, Mapping):
        return given
    return {
        name: _filters(value) if name in ("AND", "OR", "NOT") else {"ne": None} if value == "*" else value
        for name, value in given.items()
    }


def _iso(moment_s: float) -> str:
    return datetime.fromtimestamp(moment_s, UTC).isoformat()


def _shape(record: Record) -> dict[str, Any]:
    own = {name: value for name, value in record.metadata.items() if name not in _ACTOR}
    beside = {name: getattr(record, name) for name in SCOPES}
    beside |= {name: record.metadata.get(name) for name in _ACTOR}
    text = record.content or ""
    return {
        "id": record.id,
        "memory": text,
        "hash": hashlib.md5(text.encode(), usedforsecurity=False).hexdigest(),
        "metadata": own or None,
        "created_at": _iso(record.created_at),
        "updated_at": _iso(record.updated_at),
        **{name: value for name, value in beside.items() if value is not None},
    }
