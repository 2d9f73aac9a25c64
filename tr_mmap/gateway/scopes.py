"""What tokens may grant. A scope of stores may name one, and a user in it. Opens nothing.

``store`` grants every store, ``store:notes`` one, and ``store:notes/ada`` the records of the user ``ada`` in it;
``store.read``, ``store.read:notes`` and ``store.read:notes/ada`` the same, to read. In a user's name, what is no
visible character of ASCII stands in percent-encoding (RFC 3986), and so do ``"``, ``\\`` and ``%``:
``store:notes/Ada%20L``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from .errors import BadRequest, Forbidden

__all__ = ["FORMS", "SCOPES", "StoreGrant", "check_scope", "not_granted", "store_grants", "store_user"]

SCOPES: Final = ("execute", "register", "store", "store.read", "metrics", "admin")
"""``admin`` grants all the others."""

FORMS: Final = f"{', '.join(SCOPES)}; of one store: store:NAME; of one user in it: store:NAME/USER (or store.read:...)"
"""All that there are, for people."""

_STORE: Final = re.compile(
    r"(?P<kind>store|store\.read)"
    r"(?::(?P<store>[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99})(?:/(?P<user>(?:[!#$&-\[\]-~]|%[0-9A-Fa-f]{2})+))?)?"
)


@dataclass(frozen=True, slots=True)
class StoreGrant:
    """A scope of stores, read.

    Attributes:
        store: which store; None for all.
        user: whose records; None for everybody's.
        is_read_only: whether nothing may be changed.
    """

    store: str | None
    user: str | None
    is_read_only: bool


def _store_grant(scope: str) -> StoreGrant | None:
    """What a scope says of stores; None if it is none of theirs."""
    match = _STORE.fullmatch(scope)
    if match is None:
        return None
    user = match["user"]
    try:
        name = None if user is None else unquote_to_bytes(user).decode()
    except UnicodeDecodeError:
        return None
    return StoreGrant(match["store"], name, match["kind"] == "store.read")


def check_scope(scope: str) -> None:
    """
    Raises:
        ValueError: there is no such scope.
    """
    if scope not in SCOPES and _store_grant(scope) is None:
        advice = ""
        if scope.startswith(("store:", "store.read:")):
            advice = (
                '; spaces, and what is no ASCII, are percent-encoded in a user\'s name, as in "store:notes/Ada%20L"'
            )
        raise ValueError(f"there is no scope {scope!r:.200}; there are {FORMS}{advice}")


def store_grants(scopes: Collection[str]) -> Iterator[StoreGrant]:
    """What scopes say of stores."""
    if "admin" in scopes:
        yield StoreGrant(None, None, False)
    for each in scopes:
        grant = _store_grant(each)
        if grant is not None:
            yield grant


def not_granted(scope: str, scopes: Collection[str], subject: str) -> Forbidden:
    """The error for a scope that a token lacks. A new token grants only what its command names, so that names all.

    Args:
        scope: that is needed.
        scopes: that the token grants.
        subject: whose it is.
    """
    options = [
        f"--subject {shlex.quote(subject)}",
        *(f"--scope {shlex.quote(each)}" for each in (*sorted(scopes), scope)),
    ]
    return Forbidden(f"the token does not grant {scope!r}; this makes one that does: tr-mmap token {' '.join(options)}")


def store_user(
    scopes: Collection[str], store: str, *, writes: bool, wanted: str | None = None, subject: str = "me"
) -> str | None:
    """The user to whose records a request is bound.

    Args:
        scopes: of its token.
        store: the name of the store.
        writes: whether it changes something.
        wanted: a user that it names itself; None if it does not.
        subject: of the token, for errors.

    Returns:
        Of several grants, that of the whole store counts. None for everybody's records.

    Raises:
        Forbidden: that is not granted.
        BadRequest: several users are, and the request names none of them.
    """
    found = [
        each for each in store_grants(scopes) if each.store in (None, store) and not (writes and each.is_read_only)
    ]
    users = {each.user for each in found}
    if None in users or (wanted is not None and wanted in users):
        return wanted
    needed = f"{'store' if writes else 'store.read'}:{store}"
    if not users:
        raise not_granted(needed, scopes, subject)
    if wanted is not None:
        raise Forbidden(f"the token does not grant the records of the user {wanted!r:.80} in {needed!r}")
    if len(users) > 1:
        raise BadRequest("the token grants the records of several users; say whose are meant, as ?scope=USER")
    return users.pop()
