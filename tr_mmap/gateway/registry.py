"""Which algorithms are registered. Runs nothing, opens nothing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal

from ..sandbox import Algorithm
from .boxes import BoxKey
from .environments import Lease
from .errors import Forbidden, NotFound
from .tokens import Principal

__all__ = ["Kind", "Registered", "Registry", "version_of"]

Kind = Literal["python", "wasm", "native", "torch"]


@dataclass(frozen=True, slots=True)
class Registered:
    """An algorithm that can be executed by its name.

    Attributes:
        name: by which it is executed.
        version: of its code and dependencies: 16 hexadecimal digits.
        kind: what its code is.
        algorithm: for the sandbox.
        box: in which it runs.
        owner: the subject of the token that registered it.
        registered_s: when, by ``time.time``.
        is_idempotent: whether a run may be tried again.
        model: the name of the model that it gets as the input ``model``; None for none.
        is_model: whether it is that model itself, and nobody has registered it.
        dependencies: as it declares them.
        environment: that has them; None if what is installed here counts.
    """

    name: str
    version: str
    kind: Kind
    algorithm: Algorithm
    box: BoxKey
    owner: str
    registered_s: float
    is_idempotent: bool = True
    model: str | None = None
    dependencies: tuple[str, ...] = field(default=())
    is_model: bool = False
    environment: Lease | None = None


def version_of(*parts: bytes) -> str:
    """A version, which is another one if any part is."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]


class Registry:
    """Algorithms by name. To be used in one thread."""

    def __init__(self) -> None:
        self._found: dict[str, Registered] = {}

    def __len__(self) -> int:
        return len(self._found)

    def get(self, name: str) -> Registered:
        """
        Raises:
            NotFound: there is none of that name.
        """
        try:
            return self._found[name]
        except KeyError:
            raise NotFound(f"no algorithm is registered as {name!r:.200}") from None

    def check_owner(self, name: str, principal: Principal) -> None:
        """
        Raises:
            Forbidden: somebody else has registered it, who is no admin.
        """
        found = self._found.get(name)
        if found is not None and found.owner != principal.subject and not principal.is_admin:
            raise Forbidden(f"the algorithm {name!r} is another subject's; take another name")

    def put(self, registered: Registered) -> Registered | None:
        """Add one. Returns the one whose place it takes, if any."""
        former = self._found.get(registered.name)
        self._found[registered.name] = registered
        return former

    def remove(self, name: str) -> Registered:
        """
        Raises:
            NotFound: there is none of that name.
        """
        found = self.get(name)
        del self._found[name]
        return found

    def all(self) -> list[Registered]:
        """All, by name."""
        return [self._found[name] for name in sorted(self._found)]
