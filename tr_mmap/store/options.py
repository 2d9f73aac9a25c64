"""The options of a store: those that it was made with, and the check of those that it is opened with. Opens nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal, TypeAlias, get_args

import msgspec
import numpy as np

from ..errors import BadMessage
from ..tsr.dtypes import resolve
from .arguments import is_text
from .closeness import METRICS
from .errors import EmbedderMismatch, OptionMismatch

__all__ = ["DURABILITIES", "AtBudget", "Durability", "Embedder", "Options", "Wanted", "embedder_name"]

Durability: TypeAlias = Literal["memory", "os", "fsync"]
AtBudget: TypeAlias = Literal["fail", "evict"]
Embedder: TypeAlias = Callable[[list[str]], Any]

DURABILITIES: Final = get_args(Durability)
_good_name: Final = re.compile(r"(?!\.)[A-Za-z0-9_.-]{1,100}").fullmatch
_MAX_DIM: Final = 65_536
_NO_NUMBERS: Final = frozenset({"bool", "complex64", "complex128"})


class Options(msgspec.Struct):
    """The options that a store was made with, and those that its first vectors have set.

    Attributes:
        name: of the store.
        dim: numbers of a vector; None until the first vector sets it.
        dtype: of the vectors.
        metric: ``"cosine"``, ``"dot"`` or ``"l2"``.
        embedder: the name of the embedder that makes vectors of texts; None if callers give the vectors.
        indexed: fields of the metadata that filters find by an index, without reading the records.
        durability: what a commit outlives, see :class:`tr_mmap.store.Store`.
        budget_nbytes: how many bytes all records may count for; None for no limit.
        at_budget: ``"fail"``: a record that does not fit is refused; ``"evict"``: others are removed for it.
    """

    name: str
    dim: int | None = None
    dtype: str = "float32"
    metric: str = "cosine"
    embedder: str | None = None
    indexed: tuple[str, ...] = ()
    durability: Durability = "memory"
    budget_nbytes: int | None = None
    at_budget: AtBudget = "fail"

    def check_same(self, wanted: Wanted) -> None:
        """Refuse to open a store with other options than it has.

        Args:
            wanted: the options that it is opened with.

        Raises:
            OptionMismatch: an option differs; ``option`` says which one.
            EmbedderMismatch: the store's vectors were made by another embedder.
        """
        for option in ("dim", "dtype", "metric", "indexed", "at_budget", "durability"):
            own, other = getattr(self, option), getattr(wanted, option)
            is_same = set(own) == set(other) if option == "indexed" and other is not None else own == other
            if other is not None and own is not None and not is_same:
                raise OptionMismatch(
                    f"the store {self.name!r} has {option} {own!r}, not {other!r}; open it without {option}, or make "
                    "another store",
                    option=option,
                    expected=own,
                    found=other,
                )
        if wanted.embedder is not None and self.embedder is not None and self.embedder != wanted.embedder:
            raise EmbedderMismatch(
                f"the vectors of the store {self.name!r} were made by {self.embedder!r}, and {wanted.embedder!r} makes "
                "others; open it with the same embedder, or make another store and add the texts again",
                option="embedder",
                expected=self.embedder,
                found=wanted.embedder,
            )

    @property
    def vector_nbytes(self) -> int:
        """Bytes of one vector."""
        return 0 if self.dim is None else self.dim * resolve(self.dtype).itemsize

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """numpy's dtype of the vectors."""
        return resolve(self.dtype).numpy


class Wanted(msgspec.Struct, frozen=True):
    """The options that a store is opened with, by the names of :class:`Options`; None to take what the store has."""

    name: str
    dim: int | None
    dtype: str | None
    metric: str | None
    embedder: str | None
    indexed: tuple[str, ...] | None
    durability: Durability | None
    budget_nbytes: int | None
    at_budget: AtBudget | None

    @classmethod
    def checked(
        cls,
        name: str,
        dim: int | None,
        dtype: Any,
        metric: str | None,
        embedder: Embedder | None,
        indexed: Iterable[str] | None,
        durability: str | None,
        budget_nbytes: int | None,
        at_budget: str | None,
    ) -> Wanted:
        """Check the options that a user has given.

        Raises:
            BadMessage: an option is wrong; ``detail`` says which.
            UnsupportedTensor: there is no such dtype.
        """
        if not isinstance(name, str) or not _good_name(name):
            raise BadMessage(
                f"{name!r:.80} cannot name a store; use 1 to 100 letters, digits, '_', '-' and '.'", detail="name"
            )
        if dim is not None and (isinstance(dim, bool) or not isinstance(dim, int) or not 1 <= dim <= _MAX_DIM):
            raise BadMessage(f"dim is {dim!r:.40}; it is a whole number, 1 to {_MAX_DIM}, or None", detail="dim")
        kind = None if dtype is None else resolve(dtype).name
        if kind in _NO_NUMBERS:
            raise BadMessage(f"vectors of {kind} have no distances; use float32 or int8, say", detail="dtype")
        for option, value, known in (
            ("metric", metric, METRICS),
            ("durability", durability, DURABILITIES),
            ("at_budget", at_budget, get_args(AtBudget)),
        ):
            if value is not None and value not in known:
                raise BadMessage(f"{option} is {value!r:.40}; it is one of {', '.join(known)}", detail=option)
        is_number = isinstance(budget_nbytes, int) and not isinstance(budget_nbytes, bool)
        if budget_nbytes is not None and (not is_number or not 0 < budget_nbytes < 2**63):
            raise BadMessage(f"budget_nbytes is {budget_nbytes!r:.40}; it is bytes, or None", detail="budget_nbytes")
        fields = None if indexed is None else (indexed,) if isinstance(indexed, str) else tuple(indexed)
        if not all(isinstance(field, str) and field and is_text(field) for field in fields or ()):
            raise BadMessage("indexed lists names of metadata", detail="indexed")
        if embedder is not None and not callable(embedder):
            raise BadMessage(
                f"embedder is {embedder!r:.40}; it is a callable that makes vectors of a list of texts",
                detail="embedder",
            )
        return cls(
            name,
            dim,
            kind,
            metric,
            embedder_name(embedder),
            fields,
            durability,  # type: ignore[arg-type]
            budget_nbytes,
            at_budget,  # type: ignore[arg-type]
        )

    def of_new(self) -> Options:
        """The options of a new store that is made with these."""
        said = {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}
        return Options(**said)


def embedder_name(embedder: Embedder | None) -> str | None:
    """The name by which a store recognises an embedder: its ``name``, else its module and qualified name."""
    if embedder is None:
        return None
    name = getattr(embedder, "name", None)
    if isinstance(name, str):
        return name
    kind = embedder if hasattr(embedder, "__qualname__") else type(embedder)
    return f"{kind.__module__}.{kind.__qualname__}"
