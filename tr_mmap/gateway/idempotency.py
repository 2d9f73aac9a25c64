"""Idempotency keys: a request that is sent again, because its response was lost, say, gets the response of the first.

What is kept are results: responses with the status 2xx or 422, for some minutes, and as long as there is room; where
there is not, the oldest goes of the subject that takes most, so nobody's go because of somebody else's. After any other
response the same key may be tried again, unless what was asked for has begun and must not be done twice: then its
failure is kept as a result is. Knows no route; to be used in the loop's thread.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from starlette.responses import Response

from .api import IDEMPOTENCY_KEY
from .aside import aside
from .calls import KEY_HEADER, Call, error_response
from .errors import BadRequest, Conflict, KeyInUse, KeyReused
from .payloads import BINARY, JSON_LENGTH

__all__ = ["KEY", "Replays", "check_no_key"]

KEY: Final = "^[!-~]{1,128}$"
_REPLAYED: Final = "idempotency-replayed"
_ENTRY_NBYTES: Final = 1 << 10  # what one takes beside the body
_RETRY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Kept:
    fingerprint: bytes
    status: int
    headers: dict[str, str]
    body: bytes
    until_s: float

    @property
    def nbytes(self) -> int:
        return len(self.body) + _ENTRY_NBYTES


class Replays:
    """The responses that may be asked for again, of one gateway.

    Args:
        most: how many are kept.
        most_nbytes: of all of them; a response that needs more than a quarter of it is not kept.
        keep_s: how long.
        clock: says the time, in seconds.
    """

    def __init__(
        self,
        most: int = 10_000,
        most_nbytes: int = 64 << 20,
        keep_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = most
        self._most_nbytes = most_nbytes
        self._keep_s = keep_s
        self._clock = clock
        self._under_way: dict[tuple[str, str], bytes] = {}
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()  # the oldest first
        self._nbytes: Counter[str] = Counter()  # by subject

    async def answer(self, call: Call, do: Callable[[], Awaitable[Response]]) -> Response:
        """The response to a request: the one that its key had before, or what ``do`` gives.

        Args:
            call: whose token was checked.
            do: answers it; it turns errors into responses.

        Raises:
            BadRequest: the key is none.
            KeyReused: another request had it.
            KeyInUse: the first request of that key still goes on.
        """
        given = call.headers(KEY_HEADER)
        if not given:
            return await do()
        if len(given) != 1 or not re.fullmatch(KEY, given[0]):
            raise BadRequest(f"{IDEMPOTENCY_KEY} is one key of 1 to 128 visible characters of ASCII")
        key = (call.who.subject, given[0])
        fingerprint = await _fingerprint(call)
        kept = self._find(key, fingerprint)
        if kept is not None:
            return Response(kept.body, kept.status, {**kept.headers, "x-request-id": call.id, _REPLAYED: "true"})
        self._under_way[key] = fingerprint
        try:
            response = await do()
            self._keep(key, fingerprint, response, call)
        except BaseException:
            if call.is_final:
                lost = Conflict("this was begun, and nobody waited for its end; it is not done twice")
                self._keep(key, fingerprint, error_response(call, lost), call)
            raise
        finally:
            del self._under_way[key]
        return response

    def _find(self, key: tuple[str, str], fingerprint: bytes) -> _Kept | None:
        self._forget_old()
        kept = self._kept.get(key)
        former = kept.fingerprint if kept is not None else self._under_way.get(key, fingerprint)
        if former != fingerprint:
            raise KeyReused(f"another request had this {IDEMPOTENCY_KEY}; take a new key for a new request")
        if key in self._under_way:
            raise KeyInUse(
                f"the first request with this {IDEMPOTENCY_KEY} still goes on; ask again", retry_after_s=_RETRY_S
            )
        return kept

    def _keep(self, key: tuple[str, str], fingerprint: bytes, response: Response, call: Call) -> None:
        if not (200 <= response.status_code < 300 or response.status_code == 422 or call.is_final):
            return
        if not self._put(key, fingerprint, response) and call.is_final:
            text = "this was done, and its response was too large to be kept; it is not done twice"
            self._put(key, fingerprint, error_response(call, Conflict(text)))

    def _put(self, key: tuple[str, str], fingerprint: bytes, response: Response) -> bool:
        """Keep a response, unless it is too large."""
        headers = {name: value for name, value in response.headers.items() if name != "content-length"}
        kept = _Kept(fingerprint, response.status_code, headers, bytes(response.body), self._clock() + self._keep_s)
        if kept.nbytes > self._most_nbytes // 4:
            return False
        self._kept[key] = kept
        self._nbytes[key[0]] += kept.nbytes
        while self._nbytes.total() > self._most_nbytes or len(self._kept) > self._most:
            ((subject, _),) = self._nbytes.most_common(1)
            self._forget(next(each for each in self._kept if each[0] == subject))
        return True

    def _forget_old(self) -> None:
        now_s = self._clock()
        while self._kept:
            key, oldest = next(iter(self._kept.items()))
            if oldest.until_s > now_s:
                return
            self._forget(key)

    def _forget(self, key: tuple[str, str]) -> None:
        self._nbytes[key[0]] -= self._kept.pop(key).nbytes
        if not self._nbytes[key[0]]:
            del self._nbytes[key[0]]


def check_no_key(call: Call) -> None:
    """Refuse a key where it would do nothing: whoever sends one relies on it.

    Raises:
        BadRequest: the request has one.
    """
    if call.has_key:
        raise BadRequest(
            f"this route takes no {IDEMPOTENCY_KEY}; POST to execute, compute, algorithms and the records of a store do"
        )


async def _fingerprint(call: Call) -> bytes:
    """What tells one request from another, but for who makes it."""
    body = await call.read()
    parts = (
        call.scope["method"],
        call.scope["path"],
        call.scope.get("query_string", b"").decode("latin-1"),
        call.header(b"content-type") or "",
        call.header(JSON_LENGTH.encode()) or "",
        str(BINARY in (call.header(b"accept") or "")),
    )
    digest = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass"))
    await aside(lambda: digest.update(body), len(body))
    return digest.digest()
