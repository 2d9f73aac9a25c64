"""What is asked of a gateway's store, as plain values. Sends nothing.

What a record may be is looked at here as :class:`tr_mmap.store.Store` does it; the rest, the gateway looks at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

import msgspec

from ...errors import BadMessage
from ...sandbox.values import plain
from ...store.arguments import Fresh, check_id, check_limit, check_scopes, check_ttl, check_version, checked_scope
from ...store.errors import NoSuchRecord, RecordExists
from ...store.records import SCOPES, Hit, Page
from ...tsr.framework_names import check_framework_name, check_installed
from ..api import PREFIX
from ..errors import BadRequest
from ..payloads import BINARY, JSON, BinaryPart
from ..store_api import Added, Deleted, StoreInfo
from .answers import Answer
from .asks import Ask, as_form, as_part, is_tensor_here, with_body
from .records import RemoteRecord, read_first, read_hits, read_page, read_record, read_tensor
from .results import Framework

__all__ = ["Listing", "StoreAsks"]

_T = TypeVar("_T")
_PAGE: Final = 1000  # records; the most that the gateway gives at once
_PAGE_OF_TENSORS: Final = 100  # whose bytes are in the response


class StoreAsks:
    """The requests to one store.

    Args:
        name: of the store.
        scope: a user, whose records alone are meant; None for all that the token grants.
        framework: of vectors and tensors in responses.

    Raises:
        BadRequest, BadMessage: one of them is wrong.
    """

    def __init__(self, name: str, scope: str | None, framework: Framework) -> None:
        check_framework_name(framework)
        check_installed(framework)
        self.name = name
        self.scope = checked_scope(scope)
        self._framework = framework
        self._root = f"{PREFIX}/store/{as_part(name)}"

    # -- the store ------------------------------------------------------------------------------------------------

    def create(self, *, indexed: Iterable[str] | None, **options: Any) -> Ask[StoreInfo]:
        """Make it, unless it is there."""
        if indexed is not None:
            options["indexed"] = indexed if isinstance(indexed, str) else list(indexed)  # a text is refused
        body = _as_json({name: value for name, value in options.items() if value is not None}, "an option")
        return with_body("PUT", self._root, body, lambda answer: answer.json(StoreInfo), is_repeatable=True)

    def info(self) -> Ask[StoreInfo]:
        """What it was made with."""
        return Ask("GET", self._path(""), lambda answer: answer.json(StoreInfo))

    # -- changes --------------------------------------------------------------------------------------------------

    def add(self, given: Mapping[str, Any]) -> Ask[list[str]]:
        """Add a record."""
        part = BinaryPart()
        body, record_id = self._record(given, part)
        return self._adding(body, part, [record_id], is_named=given["id"] is not None)

    def add_many(self, records: Iterable[Mapping[str, Any]]) -> Ask[list[str]]:
        """Add several in one commit."""
        if isinstance(records, str | bytes | Mapping) or not isinstance(records, Iterable):
            raise BadMessage(f"records is {records!r:.40}; it lists mappings with the names of add()", detail="records")
        part = BinaryPart()
        bodies: list[dict[str, Any]] = []
        ids: list[str] = []
        is_named = True
        for number, each in enumerate(records):
            if not isinstance(each, Mapping):
                raise BadMessage(
                    f"record {number} is {each!r:.40}; it is a mapping with the names of add()", detail="records"
                )
            try:
                body, record_id = self._record(each, part)
            except BadMessage as error:
                raise BadMessage(f"record {number}: {error}", detail=error.detail) from error
            if not ids:
                is_named = each.get("id") is not None
            bodies.append(body)
            ids.append(record_id)
        return self._adding({"records": bodies}, part, ids, is_named=is_named)

    def _record(self, given: Mapping[str, Any], part: BinaryPart) -> tuple[dict[str, Any], str]:
        """What a body says of a new record, and its id: a new one if it was not given."""
        fresh = Fresh(dict(given), self.scope)
        record = fresh.record
        said = {name: getattr(record, name) for name in ("id", "content", *SCOPES, "metadata", "importance")}
        said["vector"] = _vector(fresh.vector, part, "the vector")
        said["tensors"] = {name: as_form(tensor, part) for name, tensor in fresh.tensors.items()}
        said["ttl_s"] = fresh.ttl_s
        return {name: value for name, value in said.items() if value is not None}, record.id

    def _adding(self, body: dict[str, Any], part: BinaryPart, ids: list[str], *, is_named: bool) -> Ask[list[str]]:
        """
        Args:
            is_named: whether the first of the ids was given. If it was made here, no other request has it: it is there
                only if the first try of this one has added all, and its response was lost.
        """

        def read(answer: Answer) -> list[str]:
            try:
                return answer.json(Added).ids
            except RecordExists as error:
                if is_named or error.id != ids[0]:
                    raise
                return ids

        path = self._path("/records")
        return with_body("POST", path, body, read, part, is_repeatable=not is_named)

    def update(
        self, id: str, given: Mapping[str, Any], if_version: int | None, *, with_tensors: bool
    ) -> Ask[RemoteRecord]:
        """Change a record."""
        check_id(id)
        check_version(if_version)
        if not _fits_path(id):
            raise BadRequest(f"{_NO_PATH}, and cannot be changed over HTTP: {id!r:.80}")
        changes = {name: value for name, value in given.items() if value is not ...}
        fresh = Fresh({name: value for name, value in changes.items() if name not in ("vector", "ttl_s")}, None)
        part = BinaryPart()
        body: dict[str, Any] = {}
        for name, value in changes.items():
            if name == "vector":
                body[name] = _vector(value, part, "the vector")
            elif name == "tensors":
                body[name] = {each: as_form(tensor, part) for each, tensor in fresh.tensors.items()}
            elif name == "ttl_s":
                if value is not None:
                    check_ttl(value)
                body[name] = value
            else:
                body[name] = getattr(fresh.record, name)
        if if_version is not None:
            body["version"] = if_version
        path = self._path(f"/records/{_as_part(id)}")
        return _giving(
            with_body("PATCH", path, body, self._read_record, part, is_repeatable=False), with_tensors=with_tensors
        )

    def delete(self, id: str) -> Ask[bool]:
        """Delete a record."""
        check_id(id)

        def read(answer: Answer) -> bool:
            try:
                return answer.json(Deleted).deleted > 0
            except NoSuchRecord:
                return False

        path = self._path(f"/records/{_as_part(id)}") if _fits_path(id) else self._path("/records", filters=_only(id))
        return Ask("DELETE", path, read, is_repeatable=False)

    def clear(self, filters: Mapping[str, Any] | None, **scopes: str | None) -> Ask[int]:
        """Delete those that a filter lets pass."""
        path = self._path("/records", filters=_filters(filters), **check_scopes(**scopes))
        return Ask("DELETE", path, lambda answer: answer.json(Deleted).deleted, is_repeatable=False)

    # -- questions ------------------------------------------------------------------------------------------------

    def get(self, id: str, *, with_tensors: bool) -> Ask[RemoteRecord | None]:
        """A record."""
        check_id(id)

        def read(answer: Answer) -> RemoteRecord | None:
            try:
                return self._read_record(answer)
            except NoSuchRecord:
                return None

        if _fits_path(id):
            return _giving(Ask("GET", self._path(f"/records/{_as_part(id)}"), read), with_tensors=with_tensors)
        path = self._path("/records", filters=_only(id))
        first = Ask("GET", path, lambda answer: read_first(answer, self._framework))
        return _giving(first, with_tensors=with_tensors)

    def tensor(self, id: str, name: str) -> Ask[Any]:
        """One tensor of a record."""
        check_id(id)
        if not _fits_path(id):
            raise BadRequest(f"{_NO_PATH}, and its tensors come with get() alone: {id!r:.80}")
        path = self._path(f"/records/{_as_part(id)}/tensors/{_as_part(name)}")
        return Ask("GET", path, lambda answer: read_tensor(answer, self._framework))

    def search(
        self, query: Any, filters: Mapping[str, Any] | None, *, with_tensors: bool, **options: Any
    ) -> Ask[list[Hit]]:
        """Search it."""
        check_limit(options["limit"], may_be_none=False)
        check_scopes(**{name: options[name] for name in SCOPES})
        part = BinaryPart()
        body = _as_json({**options, "filters": filters}, "search()")
        body["query"] = _vector(query, part, "the query")
        ask = with_body(
            "POST",
            self._path("/search"),
            body,
            lambda answer: read_hits(answer, self._framework),
            part,
            is_repeatable=True,
        )
        return _giving(ask, with_tensors=with_tensors)

    def page(self, query: Mapping[str, str | None], limit: int, cursor: str | None, *, with_tensors: bool) -> Ask[Page]:
        """Some records, newest first."""
        path = self._path("/records", **query, limit=str(limit), cursor=cursor)
        return _giving(Ask("GET", path, lambda answer: read_page(answer, self._framework)), with_tensors=with_tensors)

    # -- what they have in common ---------------------------------------------------------------------------------

    def _read_record(self, answer: Answer) -> RemoteRecord:
        return read_record(answer, self._framework)

    def _path(self, below: str, **query: str | None) -> str:
        given = {"scope": self.scope, **query}
        said = _as_json({name: value for name, value in given.items() if value is not None}, "a parameter")
        return f"{self._root}{below}" + (f"?{urlencode(said)}" if said else "")


class Listing:
    """Records, newest first, asked for a page at a time.

    Args:
        asks: of the store.
        filters: which; None for all.
        limit: how many at most; None for all.
        cursor: of the last page.
        with_tensors: whether vectors and tensors are wanted.
        scopes: ``user_id``, ``agent_id`` and ``run_id``.

    Attributes:
        found: so far; its ``cursor`` leads to the next.
    """

    def __init__(
        self,
        asks: StoreAsks,
        filters: Mapping[str, Any] | None,
        limit: int | None,
        cursor: str | None,
        *,
        with_tensors: bool,
        **scopes: str | None,
    ) -> None:
        check_limit(limit)
        self.found = Page([], cursor)
        self._asks = asks
        self._query = {"filters": _filters(filters), **check_scopes(**scopes)}
        self._limit = limit
        self._with_tensors = with_tensors
        self._is_whole = False

    def next(self) -> Ask[Page] | None:
        """The request for the next page; None if all are there."""
        if self._is_whole:
            return None
        most = _PAGE_OF_TENSORS if self._with_tensors else _PAGE
        wanted = most if self._limit is None else min(most, self._limit - len(self.found))
        return self._asks.page(self._query, wanted, self.found.cursor, with_tensors=self._with_tensors)

    def take(self, page: Page) -> None:
        """Add the page that was asked for."""
        self.found += page
        self.found.cursor = page.cursor
        self._is_whole = page.cursor is None or len(self.found) == self._limit


_NO_PATH: Final = "a record whose id has '/tensors/' in it has no path of its own"


def _fits_path(id: str) -> bool:
    """Whether a path can name a record: behind ``/tensors/``, a tensor's name would begin."""
    return "/tensors/" not in id


def _as_part(id: str) -> str:
    """An id, or the name of a tensor, as a part of a path."""
    return id.replace(".", "%2E") if id in (".", "..") else as_part(id)  # which would be the folder, and the one above


def _only(id: str) -> str:
    """The filter that only the record of this id passes."""
    return _filters({"id": id}) or ""


def _filters(filters: Mapping[str, Any] | None) -> str | None:
    return None if filters is None else msgspec.json.encode(_as_json(filters, "filters")).decode()


def _as_json(value: Mapping[str, Any], where: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = plain(dict(value), where)
    except (TypeError, ValueError) as error:
        raise BadRequest(str(error)) from None
    return found


def _vector(value: Any, part: BinaryPart, where: str) -> Any:
    """What JSON says of a vector, or of the text of a search."""
    if is_tensor_here(value):
        return as_form(value, part)
    try:
        return plain(value, where)
    except (TypeError, ValueError) as error:
        raise BadRequest(str(error)) from None


def _giving(ask: Ask[_T], *, with_tensors: bool) -> Ask[_T]:
    """The same request; whether vectors and tensors are to be in its response."""
    if with_tensors:
        ask.headers["accept"] = f"{BINARY}, {JSON}"
    return ask
