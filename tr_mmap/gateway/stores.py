"""The stores of a gateway: opened once each, shared by all requests, each request bound to what its token grants.

To be used in the thread of one event loop; what may take long runs in the threads of each handle. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec

from ..errors import OutOfSpace
from ..store import AsyncStore
from ..store.embedders import bundled
from ..store.places import Places, note_of
from .errors import BadRequest, Conflict, Forbidden, NotFound, Overloaded, StoreFull
from .scopes import store_user
from .sections import StoreConfig
from .store_api import STORE_NAME, CreateStoreBody, StoreInfo
from .tokens import Principal

__all__ = ["Stores"]

_MOST_HANDLES: Final = 64  # each may have some threads
_NEW: Final = {"durability": "os"}  # a directory is on a disk, as a rule
_is_name: Final = re.compile(STORE_NAME).fullmatch


class Stores:
    """The stores in one directory.

    Args:
        config: where they are.
        most_handles: how many are kept open; more may be while that many are in use.
    """

    def __init__(self, config: StoreConfig, most_handles: int = _MOST_HANDLES) -> None:
        self._config = config
        self._most_handles = most_handles
        self._handles: OrderedDict[tuple[str, str | None], _Handle] = OrderedDict()  # those used last are last
        self._ending: set[asyncio.Task[None]] = set()
        self._is_closed = False

    # -- what requests do ---------------------------------------------------------------------------------------------

    async def create(self, name: str, body: CreateStoreBody) -> tuple[StoreInfo, bool]:
        """Make a store, unless it is there with the same options.

        Returns:
            What it is, and whether it was made.

        Raises:
            Forbidden: stores are not made here.
            BadRequest: it cannot have that name.
            OptionMismatch, EmbedderMismatch, Conflict: it is there, with other options.
            BadMessage, UnsupportedTensor: an option is wrong.
            StoreFull: there is no room.
        """
        root = self._root()
        if not _is_name(name):
            raise BadRequest(f"{name!r:.120} cannot name a store; use 1 to 100 letters, digits, '_', '-' and '.'")
        is_new = self._identity(name) is None
        if is_new and not self._config.create:
            raise Forbidden("stores are not made by requests here; see [store] create")
        given = {key: value for key, value in msgspec.structs.asdict(body).items() if value is not None}
        embedder = given.pop("embedder", None)
        options = {**_NEW, **given} if is_new else given
        try:
            store = await AsyncStore.open(
                name, root, embedder=await asyncio.to_thread(bundled, embedder, is_wanted=True), **options
            )
        except OutOfSpace as error:
            raise _full(error) from error
        await store.close()
        info = await self.info(name)
        if body.budget_nbytes not in (None, info.budget_nbytes):  # it is of a handle, and would not stay
            raise Conflict(f"the store {name!r} has a budget of {info.budget_nbytes} bytes, and not another")
        return info, is_new

    async def info(self, name: str) -> StoreInfo:
        """What a store was made with."""
        noted = await asyncio.to_thread(note_of, self._root(), name)
        return msgspec.convert({**noted, "name": name}, StoreInfo)

    @asynccontextmanager
    async def using(
        self, name: str, principal: Principal, *, writes: bool, user: str | None = None
    ) -> AsyncIterator[AsyncStore]:
        """A handle on a store, which shows and changes what a token grants. It is not closed meanwhile.

        Args:
            name: of the store.
            principal: whose token it is.
            writes: whether something is to be changed.
            user: whose records alone are to be seen; None for all that the token grants.

        Raises:
            NotFound: there is none of that name.
            Forbidden: that is not granted.
            BadRequest: the token grants the records of several users, and none is named.
            StoreFull: there is no room.
        """
        bound_to = store_user(principal.scopes, name, writes=writes, wanted=user, subject=principal.subject)
        try:
            async with self._sharing(name, bound_to) as store:
                yield store
        except OutOfSpace as error:
            raise _full(error) from error

    async def close(self) -> None:
        """Close all handles, when what they do has ended. Idempotent."""
        self._is_closed = True
        while self._handles:
            self._retire(next(iter(self._handles)), is_at_once=True)
        while self._ending:
            await asyncio.wait(self._ending)

    # -- where they are -----------------------------------------------------------------------------------------------

    def _root(self) -> str:
        """
        Raises:
            NotFound: there is no directory for them.
        """
        if self._config.dir is None:
            raise NotFound("there are no stores here; [store] dir names a directory of them")
        return self._config.dir

    def _identity(self, name: str) -> tuple[int, int] | None:
        """Tells a store from one that was made anew under its name; None if there is none."""
        if not _is_name(name):
            return None
        try:
            found = os.stat(os.path.join(Places(self._root(), name).catalogue, "data.mdb"))
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    # -- handles ------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _sharing(self, name: str, user: str | None) -> AsyncIterator[AsyncStore]:
        """The handle for a user's records, opened unless it is open."""
        if self._is_closed:
            raise Overloaded("the gateway is about to end; try again", retry_after_s=1.0)
        identity = self._identity(name)
        if identity is None:
            raise _missing(name)
        key = (name, user)
        handle = self._handles.get(key)
        if handle is not None and handle.identity != identity:  # somebody has removed the store, and made one anew
            self._retire(key)
            handle = None
        if handle is None:
            handle = self._handles[key] = _Handle(identity, asyncio.ensure_future(self._open(name, user)))
        self._handles.move_to_end(key)
        handle.users += 1
        try:
            yield await asyncio.shield(handle.opening)  # others wait for it too
        finally:
            handle.users -= 1
            if handle.has_failed and self._handles.get(key) is handle:
                self._retire(key)
            elif handle.is_retired:
                self._end(handle)
            for each in [each for each, one in self._handles.items() if not one.users]:
                if len(self._handles) <= self._most_handles:
                    break
                self._retire(each)

    async def _open(self, name: str, user: str | None) -> AsyncStore:
        if user is not None:
            async with self._sharing(name, None) as store:
                return store.clone(scope=user)
        root = self._root()
        embedder = await asyncio.to_thread(lambda: bundled(note_of(root, name).get("embedder")))
        return await AsyncStore.open(name, root, embedder=embedder)

    def _retire(self, key: tuple[str, str | None], *, is_at_once: bool = False) -> None:
        """Give a handle to nobody any more, and close it as soon as nobody uses it."""
        handle = self._handles.pop(key)
        handle.is_retired = True
        if not handle.users or is_at_once:
            self._end(handle)

    def _end(self, handle: _Handle) -> None:
        if not handle.is_ending and (not handle.users or self._is_closed):
            handle.is_ending = True
            task = asyncio.ensure_future(handle.end())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)


class _Handle:
    """A handle that requests share.

    Args:
        identity: of the store, when it was opened.
        opening: what opens it.
    """

    def __init__(self, identity: tuple[int, int], opening: asyncio.Future[AsyncStore]) -> None:
        self.identity = identity
        self.opening = opening
        self.users = 0
        self.is_retired = False
        self.is_ending = False
        opening.add_done_callback(_look_at)

    @property
    def has_failed(self) -> bool:
        """Whether it could not be opened."""
        return self.opening.done() and (self.opening.cancelled() or self.opening.exception() is not None)

    async def end(self) -> None:
        """Close it, if it was opened."""
        await asyncio.wait([self.opening])
        if not self.has_failed:
            await self.opening.result().close()


def _look_at(opening: asyncio.Future[Any]) -> None:
    """Whoever waited for it may be gone, and then nobody has looked at its error."""
    if not opening.cancelled():
        opening.exception()


def _missing(name: str) -> NotFound:
    return NotFound(f"there is no store {name!r:.120}; PUT /api/v1/store/NAME makes one")


def _full(error: OutOfSpace) -> StoreFull:
    """What a client may know of it: no paths."""
    if error.is_budget:
        return StoreFull(str(error))
    return StoreFull(
        "the file system of the stores has no room: delete records; nothing was added, and of what was to be cleared, "
        "a part may be gone"
    )
