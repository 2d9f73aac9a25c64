"""Which algorithms are registered. Runs nothing, opens nothing."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Final, Literal

from ..sandbox import Algorithm
from .boxes import BoxKey
from .environments import Lease
from .errors import Forbidden, NotFound, RegistryFull
from .tokens import Principal

__all__ = ["Kind", "Registered", "Registry", "version_of"]

Kind = Literal["python", "wasm", "native", "torch"]

_MOST: Final = 4096
_MOST_NBYTES: Final = 512 << 20
_MOST_OF_SUBJECT: Final = 1024
_MOST_NBYTES_OF_SUBJECT: Final = 128 << 20


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
        nbytes: of its code, and of what else it keeps.
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
    nbytes: int = 0


def version_of(*parts: bytes) -> str:
    """A version, which is another one if any part is."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:16]


class Registry:
    """Algorithms by name. To be used in one thread.

    What is registered stays in memory until it is unregistered. So there is a bound on how many there are and on the
    bytes of their code, for each subject and for all together: no token takes the room of all others.

    Args:
        most: how many there may be.
        most_nbytes: that their code may have, all together.
        most_of_subject: how many of them one subject may have registered.
        most_nbytes_of_subject: the same, of bytes.
    """

    def __init__(
        self,
        most: int = _MOST,
        most_nbytes: int = _MOST_NBYTES,
        most_of_subject: int = _MOST_OF_SUBJECT,
        most_nbytes_of_subject: int = _MOST_NBYTES_OF_SUBJECT,
    ) -> None:
        self._most = most
        self._most_nbytes = most_nbytes
        self._most_of_subject = most_of_subject
        self._most_nbytes_of_subject = most_nbytes_of_subject
        self._found: dict[str, Registered] = {}
        self._counts: Counter[str] = Counter()  # by subject
        self._nbytes: Counter[str] = Counter()

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

    def check_room(self, name: str, owner: str, nbytes: int) -> None:
        """
        Args:
            name: of an algorithm that is to be registered; it takes the place of one that has it.
            owner: who registers it.
            nbytes: of its code.

        Raises:
            RegistryFull: there is no room for it.
        """
        former = self._found.get(name)
        is_own = former is not None and former.owner == owner
        freed = former.nbytes if former is not None else 0
        if not is_own and self._counts[owner] >= self._most_of_subject:
            raise RegistryFull(f"you have registered {self._most_of_subject} algorithms; unregister one first")
        if former is None and len(self._found) >= self._most:
            raise RegistryFull(f"{self._most} algorithms are registered; unregister one first")
        if self._nbytes[owner] - (freed if is_own else 0) + nbytes > self._most_nbytes_of_subject:
            raise RegistryFull(
                f"the code of your algorithms would have more than {self._most_nbytes_of_subject >> 20} MiB; "
                "unregister one first"
            )
        if self._nbytes.total() - freed + nbytes > self._most_nbytes:
            raise RegistryFull(
                f"the code of all algorithms would have more than {self._most_nbytes >> 20} MiB; unregister one first"
            )

    def check_owner(self, name: str, principal: Principal, advice: str = "take another name") -> None:
        """
        Args:
            name: of an algorithm, or of none.
            principal: who wants to replace or forget it.
            advice: what to do instead, for the error.

        Raises:
            Forbidden: somebody else has registered it, who is no admin.
        """
        found = self._found.get(name)
        if found is not None and found.owner != principal.subject and not principal.is_admin:
            raise Forbidden(f"the algorithm {name!r} is another subject's; {advice}")

    def put(self, registered: Registered) -> Registered | None:
        """Add one. Returns the one whose place it takes, if any.

        Raises:
            RegistryFull: there is no room for it.
        """
        self.check_room(registered.name, registered.owner, registered.nbytes)
        former = self._found.get(registered.name)
        if former is not None:
            self.remove(registered.name)
        self._found[registered.name] = registered
        self._counts[registered.owner] += 1
        self._nbytes[registered.owner] += registered.nbytes
        return former

    def remove(self, name: str) -> Registered:
        """
        Raises:
            NotFound: there is none of that name.
        """
        found = self.get(name)
        del self._found[name]
        self._counts[found.owner] -= 1
        self._nbytes[found.owner] -= found.nbytes
        if not self._counts[found.owner]:
            del self._counts[found.owner], self._nbytes[found.owner]
        return found

    def all(self) -> list[Registered]:
        """All, by name."""
        return [self._found[name] for name in sorted(self._found)]
