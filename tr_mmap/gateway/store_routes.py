"""The functions that answer requests to stores, and their part of the table of routes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Final

import msgspec
from msgspec import UNSET
from starlette.responses import Response

from ..sandbox.values import MAX_DEPTH, check_depth
from ..store import AsyncStore, NoSuchRecord, Record
from . import store_api as api
from .aside import aside
from .calls import Call, json_response
from .errors import BadRequest, Forbidden
from .payloads import BINARY, TensorEncoder
from .route import PREFIX, Route
from .service import Service
from .store_payloads import RecordForm, RecordWriter, changes_of, fields_of, tensor_of, vector_of

__all__ = ["STORE_ROUTES"]

_STORE: Final = f"{PREFIX}/store/{{store}}"
_RECORDS: Final = f"{_STORE}/records"
_FEW: Final = 10  # records, of which a response is made in less than a thread takes to begin
_RECORD: Final = f"{_RECORDS}/{{record_id}}"


# -- what they have in common ----------------------------------------------------------------------------------------


def _using(
    service: Service, call: Call, query: api.ScopeQuery, *, writes: bool
) -> AbstractAsyncContextManager[AsyncStore]:
    user = None if query.scope is UNSET else query.scope
    return service.stores.using(call.part("store"), call.who, writes=writes, user=user)


async def _records_response(
    call: Call, tensors: api.TensorsIn, records: Sequence[Record], body_of: Callable[[list[api.RecordInfo]], Any]
) -> Response:
    """The response that has some records, with a binary part if the client takes one."""
    form: RecordForm = "binary" if BINARY in (call.header(b"accept") or "") else tensors

    def write() -> Response:
        writer = RecordWriter(form, call.max_body_nbytes)
        text = msgspec.json.encode(body_of([writer.write(each) for each in records]))
        if form != "binary":
            return json_response(call, msgspec.Raw(text))
        headers = {"x-request-id": call.id, "tr-json-length": str(len(text))}
        return Response(b"".join([text, *writer.pieces]), 200, headers, BINARY)

    return write() if form == "none" and len(records) <= _FEW else await asyncio.to_thread(write)


def _first(records: list[api.RecordInfo]) -> api.RecordInfo:
    return records[0]


def _missing(record_id: str) -> NoSuchRecord:
    return NoSuchRecord(f"there is no record {record_id!r:.300}", id=record_id)


def _filters_of(query: api.ClearQuery) -> dict[str, Any]:
    """The store's arguments that say which records."""
    names = ("user_id", "agent_id", "run_id")
    given = {name: value for name in names if (value := getattr(query, name)) is not UNSET}
    if query.filters is not UNSET:
        try:
            check_depth(query.filters.encode(), MAX_DEPTH)
            given["filters"] = json.loads(query.filters)
        except (ValueError, RecursionError):
            raise BadRequest('filters is a filter as JSON, {"kind": "note"} for example') from None
    return given


# -- the routes ------------------------------------------------------------------------------------------------------


async def _create_store(service: Service, call: Call) -> Response:
    body, _ = await call.body(api.CreateStoreBody, is_needed=False)
    info, is_new = await service.stores.create(call.part("store"), body)
    return json_response(call, info, 201 if is_new else 200)


async def _get_store(service: Service, call: Call) -> Response:
    async with _using(service, call, call.query(api.ScopeQuery), writes=False):
        return json_response(call, await service.stores.info(call.part("store")))


async def _add_records(service: Service, call: Call) -> Response:
    query = call.query(api.ScopeQuery)
    async with _using(service, call, query, writes=True) as store:
        body, binary = await call.body(api.AddBody)
        _check_users(store.scope, body)
        if body.records is None:
            if body == api.AddBody():
                raise _empty("the record")
            has_tensors = bool(body.tensors) or isinstance(body.vector, dict)
            decode = partial(fields_of, body, binary)
            ids = [await store.add(**(await aside(decode) if has_tensors else decode()))]
        else:
            if body != api.AddBody(records=body.records):
                raise BadRequest("give either one record, or records, a list of them")
            several = body.records
            for number, each in enumerate(several):
                if each == api.RecordBody():
                    raise _empty(f"record {number}")

            def fields() -> list[dict[str, Any]]:
                return [fields_of(each, binary, f"record {number}: ") for number, each in enumerate(several)]

            ids = await store.add_many(await aside(fields))
    return json_response(call, api.Added(ids), 201 if ids else 200)


def _check_users(bound_to: str | None, body: api.AddBody) -> None:
    """
    Raises:
        Forbidden: a record is another user's than the request is bound to.
    """
    others = {each.user_id for each in (body, *(body.records or ()))} - {None, bound_to}
    if bound_to is not None and others:
        raise Forbidden(
            f"the token, or ?scope, grants the records of the user {bound_to!r} alone, and a record here is of "
            f"{min(map(str, others))!r:.80}"
        )


def _empty(what: str) -> BadRequest:
    return BadRequest(f"{what} is empty; give it content, a vector, tensors or metadata")


async def _list_records(service: Service, call: Call) -> Response:
    query = call.query(api.ListQuery)
    cursor = None if query.cursor is UNSET else query.cursor
    async with _using(service, call, query, writes=False) as store:
        page = await store.get_all(**_filters_of(query), limit=query.limit, cursor=cursor)
    return await _records_response(call, query.tensors, page, lambda found: api.RecordPage(found, page.cursor))


async def _clear_records(service: Service, call: Call) -> Response:
    query = call.query(api.ClearQuery)
    async with _using(service, call, query, writes=True) as store:
        count = await store.clear(**_filters_of(query))
    return json_response(call, api.Deleted(count))


async def _search_records(service: Service, call: Call) -> Response:
    query = call.query(api.ScopeQuery)
    async with _using(service, call, query, writes=False) as store:
        body, binary = await call.body(api.SearchBody)
        wanted = body.query
        if not isinstance(wanted, str):
            wanted = await aside(partial(vector_of, wanted, binary, "the query"))
        hits = await store.search(
            wanted,
            limit=body.limit,
            filters=body.filters,
            user_id=body.user_id,
            agent_id=body.agent_id,
            run_id=body.run_id,
            threshold=body.threshold,
            mode=body.mode,
        )

    def result(found: list[api.RecordInfo]) -> api.SearchResult:
        return api.SearchResult(
            [api.FoundRecord(each, hit.score, hit.distance) for each, hit in zip(found, hits, strict=True)]
        )

    return await _records_response(call, body.tensors, [hit.record for hit in hits], result)


async def _get_record(service: Service, call: Call) -> Response:
    query = call.query(api.ReadQuery)
    record = await _find(service, call, query)
    return await _records_response(call, query.tensors, [record], _first)


async def _find(service: Service, call: Call, query: api.ScopeQuery) -> Record:
    record_id = call.part("record_id")
    async with _using(service, call, query, writes=False) as store:
        record = await store.get(record_id)
    if record is None:
        raise _missing(record_id)
    return record


async def _get_tensor(service: Service, call: Call) -> Response:
    query = call.query(api.TensorQuery)
    record = await _find(service, call, query)
    array = tensor_of(record, call.part("tensor"), call.max_body_nbytes)
    if query.tensors != "binary":
        return json_response(call, await asyncio.to_thread(TensorEncoder(query.tensors).encode, array))
    headers = {
        "x-request-id": call.id,
        "tr-dtype": str(array.dtype),
        "tr-shape": ",".join(map(str, array.shape)),
        "tr-version": str(record.version),
    }
    return Response(await asyncio.to_thread(array.tobytes), 200, headers, BINARY)


async def _update_record(service: Service, call: Call) -> Response:
    query = call.query(api.ReadQuery)
    async with _using(service, call, query, writes=True) as store:
        body, binary = await call.body(api.UpdateBody)
        changes = await aside(partial(changes_of, body, binary))
        record = await store.update(call.part("record_id"), **changes)
    return await _records_response(call, query.tensors, [record], _first)


async def _delete_record(service: Service, call: Call) -> Response:
    query = call.query(api.ScopeQuery)
    record_id = call.part("record_id")
    async with _using(service, call, query, writes=True) as store:
        if not await store.delete(record_id):
            raise _missing(record_id)
    return json_response(call, api.Deleted(1))


_READ: Final = "store.read:{store}"
_WRITE: Final = "store:{store}"

STORE_ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "PUT",
        _STORE,
        "admin",
        _create_store,
        "Make a store, unless it is there with the same options.",
        api.CreateStoreBody,
        api.StoreInfo,
        201,
        (200, 404, 409, 507),
        {"vectors": {"dim": 384, "metric": "cosine", "indexed": ["kind"]}, "texts": {}},
        needs_body=False,
    ),
    Route(
        "GET",
        _STORE,
        _READ,
        _get_store,
        "What a store was made with.",
        result=api.StoreInfo,
        errors=(404,),
        query=api.ScopeQuery,
    ),
    Route(
        "POST",
        _RECORDS,
        _WRITE,
        _add_records,
        "Add a record, or several in one commit.",
        api.AddBody,
        api.Added,
        201,
        (200, 404, 409, 503, 507),
        {
            "text": {"content": "Ada plays the oboe.", "user_id": "ada", "metadata": {"kind": "note"}},
            "vector": {"content": "a cat", "vector": [0.1, 0.9, 0.0]},
            "several": {"records": [{"content": "one"}, {"content": "two"}]},
        },
        query=api.ScopeQuery,
        takes_key=True,
        takes_binary=True,
    ),
    Route(
        "GET",
        _RECORDS,
        _READ,
        _list_records,
        "Records, newest first, a page at a time.",
        result=api.RecordPage,
        errors=(404,),
        query=api.ListQuery,
        gives_binary=True,
    ),
    Route(
        "DELETE",
        _RECORDS,
        _WRITE,
        _clear_records,
        "Delete all records, or those that a filter lets pass.",
        result=api.Deleted,
        errors=(404, 503, 507),
        query=api.ClearQuery,
    ),
    Route(
        "POST",
        f"{_STORE}/search",
        _READ,
        _search_records,
        "The records that are nearest to a vector, or that have a text's words.",
        api.SearchBody,
        api.SearchResult,
        200,
        (404,),
        {
            "text": {"query": "oboe", "limit": 3},
            "vector": {"query": [0.1, 0.9, 0.0], "filters": {"kind": "note"}, "tensors": "list"},
        },
        query=api.ScopeQuery,
        takes_binary=True,
        gives_binary=True,
    ),
    Route(
        "GET",
        f"{_RECORD}/tensors/{{tensor}}",
        _READ,
        _get_tensor,
        "A tensor of a record: its bytes, with the headers TR-DType and TR-Shape.",
        result=bytes,
        errors=(404,),
        query=api.TensorQuery,
    ),
    Route(
        "GET",
        _RECORD,
        _READ,
        _get_record,
        "One record.",
        result=api.RecordInfo,
        errors=(404,),
        query=api.ReadQuery,
        gives_binary=True,
    ),
    Route(
        "PATCH",
        _RECORD,
        _WRITE,
        _update_record,
        "Change a record; with a version, only if it is of that version.",
        api.UpdateBody,
        api.RecordInfo,
        200,
        (404, 409, 503, 507),
        {"text": {"content": "Ada plays the flute.", "version": 1}},
        query=api.ReadQuery,
        takes_binary=True,
        gives_binary=True,
    ),
    Route(
        "DELETE",
        _RECORD,
        _WRITE,
        _delete_record,
        "Delete a record.",
        result=api.Deleted,
        errors=(404, 503, 507),
        query=api.ScopeQuery,
    ),
)
