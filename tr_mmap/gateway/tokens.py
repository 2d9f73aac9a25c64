"""Tokens: JSON Web Tokens of one algorithm, signed by a key that lies in a file. Makes them and checks them."""

from __future__ import annotations

import os
import secrets
import stat
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from ..errors import HostilePath
from .errors import BadConfig, Unauthorized
from .scopes import check_scope, not_granted

__all__ = ["Principal", "Tokens", "make_key_file", "read_key_file"]

_ALGORITHM: Final = "HS256"
_KEY_NBYTES: Final = 32  # as the algorithm's hash has, at least (RFC 7518, 3.2)
_MOST_KEY_NBYTES: Final = 4096
_MOST_TOKEN: Final = 8192  # characters
_MOST_SUBJECT: Final = 256  # characters
_LAST_S: Final = 1e12  # of what exp can mean; beyond lie numbers that floats lack
_MOST_CACHED: Final = 4096


@dataclass(frozen=True, slots=True)
class Principal:
    """Who makes a request.

    Attributes:
        subject: by whom algorithms and tasks are owned.
        scopes: what is granted.
        token_id: tells one token of a subject from another; the rate limit counts by it.
        expires_s: when the token ends, by ``time.time``.
    """

    subject: str
    scopes: frozenset[str]
    token_id: str
    expires_s: float

    @property
    def is_admin(self) -> bool:
        """Whether all is granted."""
        return "admin" in self.scopes

    def has(self, scope: str) -> bool:
        """Whether a scope is granted."""
        return scope in self.scopes or "admin" in self.scopes

    def check(self, scope: str) -> None:
        """
        Raises:
            Forbidden: a scope is not granted.
        """
        if not self.has(scope):
            raise not_granted(scope, self.scopes, self.subject)


class Tokens:
    """Makes tokens, and says whose one is.

    Args:
        key: that signs them.
        audience: for whom they are.
    """

    def __init__(self, key: bytes, audience: str) -> None:
        import jwt

        self._jwt = jwt
        self._key = key
        self._audience = audience
        self._known: dict[str, Principal] = {}  # of tokens that were verified, until they end

    def make(self, subject: str, scopes: Iterable[str], valid_s: float, **claims: Any) -> str:
        """A token.

        Args:
            subject: whose.
            scopes: what it grants; see :mod:`.scopes`.
            valid_s: how long it is valid, in seconds.
            **claims: more to say in it.

        Raises:
            ValueError: there is no such scope, or the subject is none.
        """
        granted = list(scopes)
        for each in granted:
            check_scope(each)
        if not _is_subject(subject):
            raise ValueError(f"a subject is a text of 1 to {_MOST_SUBJECT} printable characters")
        now_s = int(time.time())
        said = {
            "sub": subject,
            "aud": self._audience,
            "iat": now_s,
            "exp": now_s + int(valid_s),
            "jti": uuid.uuid4().hex,
            "scope": " ".join(granted),
        }
        return self._jwt.encode({**said, **claims}, self._key, algorithm=_ALGORITHM)

    def known(self, token: str) -> Principal | None:
        """Whose a token is, if it was verified before, and has not ended since."""
        found = self._known.get(token)
        if found is None or found.expires_s > time.time():
            return found
        del self._known[token]
        return None

    def verify(self, token: str) -> Principal:
        """Whose a token is.

        Raises:
            Unauthorized: it is none of this key, or not valid now, or for another audience.
        """
        known = self.known(token)
        if known is not None:
            return known
        if len(token) > _MOST_TOKEN:
            raise Unauthorized("the token is longer than tokens are")
        try:
            claims = self._jwt.decode(
                token,
                self._key,
                algorithms=[_ALGORITHM],
                audience=self._audience,
                options={"require": ["exp", "aud", "sub"]},
            )
        except self._jwt.ExpiredSignatureError:
            raise Unauthorized("the token has expired; make a new one with tr-mmap token") from None
        except self._jwt.InvalidTokenError as error:
            raise Unauthorized(f"the token is not valid here: {_one_line(error)}") from None
        except (RecursionError, UnicodeError):  # nested too deeply; no text
            raise Unauthorized("the token is not valid here: it is no JSON Web Token") from None
        subject, scope, expires_s = claims["sub"], claims.get("scope", ""), claims["exp"]
        if not _is_subject(subject):
            raise Unauthorized(
                f"the token is not valid here: sub is a text of 1 to {_MOST_SUBJECT} printable characters"
            )
        if not isinstance(scope, str) or type(expires_s) not in (int, float) or expires_s > _LAST_S:
            raise Unauthorized("the token is not valid here: scope is a text, and exp a number of seconds since 1970")
        found = Principal(subject, frozenset(scope.split()), str(claims.get("jti") or subject), float(expires_s))
        if len(self._known) >= _MOST_CACHED:
            self._known.clear()
        self._known[token] = found
        return found


def _is_subject(subject: Any) -> bool:
    return isinstance(subject, str) and 0 < len(subject) <= _MOST_SUBJECT and subject.isprintable()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def make_key_file(path: str | os.PathLike[str]) -> bool:
    """Make a key, which only this user can read, unless the file is there. Returns whether it was made."""
    name = os.fspath(path)
    os.makedirs(os.path.dirname(name) or ".", mode=0o700, exist_ok=True)
    temporary = f"{name}.{os.getpid()}.{secrets.token_hex(8)}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(48) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, name)  # whole, or not at all, and never over another's
        except FileExistsError:
            return False
        return True
    finally:
        os.unlink(temporary)


def read_key_file(path: str | os.PathLike[str] | None) -> bytes:
    """The key in a file.

    Raises:
        BadConfig: there is none, or none that is a key.
        HostilePath: other users can read or write it, or it is another user's.
    """
    if path is None:
        raise BadConfig(
            'the gateway does not start without a key: name a file, as [auth] key_file = "tr_mmap.key", and make it '
            "with tr-mmap token",
            key="auth.key_file",
        )
    name = os.fspath(path)
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise BadConfig(
            f"auth.key_file: {name} cannot be read: {error.strerror}; tr-mmap token makes it", key="auth.key_file"
        ) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise BadConfig(f"auth.key_file: {name} is no file", key="auth.key_file")
    with open(descriptor, "rb") as file:
        if status.st_mode & 0o077:
            raise HostilePath(
                f"auth.key_file: other users can read or write {name}; chmod 600 {name} keeps them out",
                path=name,
                reason="others have rights",
            )
        if status.st_uid not in (os.geteuid(), 0):
            raise HostilePath(
                f"auth.key_file: {name} is another user's, who knows the key; make one as the user of the gateway, "
                "with tr-mmap token",
                path=name,
                reason="another user's",
            )
        key = file.read(_MOST_KEY_NBYTES + 1).strip()
    if not _KEY_NBYTES <= len(key) <= _MOST_KEY_NBYTES:
        raise BadConfig(
            f"auth.key_file: {name} has {len(key)} bytes, and a key has {_KEY_NBYTES} at least; tr-mmap token makes "
            "one",
            key="auth.key_file",
        )
    return key
