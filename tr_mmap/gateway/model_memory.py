"""Which models are in memory: no more bytes than were allowed, and none goes that a run uses. Reads no files itself."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from ..sandbox import Algorithm, Bundle
from .boxes import BoxKey
from .errors import BadModel, Overloaded
from .model_files import FoundVersion
from .registry import Registered

__all__ = ["LoadedModel", "ModelMemory", "Version"]

_WAIT_S: Final = 1.0  # what clients are told when all that is in memory is in use
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A version in memory.

    Attributes:
        bundle: its tensors; or the bytes of its file, as the only one.
        own: the algorithm that it is; None if it is none.
        is_input: whether that algorithm gets the bundle as its input ``model``.
    """

    bundle: Bundle
    own: Registered | None
    is_input: bool


class Version:
    """One version of a model, in memory or not.

    Args:
        found: its files.

    Attributes:
        found: as given.
        own: the algorithm that it is, without its code, which lies in memory; None before it was loaded, or if none.
        kept: algorithms that have processes with this version in them, and where.
    """

    def __init__(self, found: FoundVersion) -> None:
        self.found = found
        self.own: Registered | None = None
        self.kept: set[tuple[BoxKey, Algorithm]] = set()
        self._number = next(_numbers)
        self._loading = threading.Lock()
        self._loaded: LoadedModel | None = None
        self._nbytes = 0
        self._needed_nbytes = 0  # when it was in memory last
        self._pins = 0
        self._is_retired = False

    @property
    def nbytes(self) -> int:
        """That it takes of memory now."""
        return self._nbytes

    def mark(self, algorithm: Algorithm) -> Algorithm:
        """The same algorithm as one whose kept process serves this version, and no other one."""
        return replace(algorithm, owner=f"{algorithm.owner}\n{self._number}")


class ModelMemory:
    """See the module's docstring. Threads may use it at once; two never load the same version.

    Args:
        most_nbytes: of all that is in memory.
        load: brings a version into memory; it tells how many bytes it needs before it takes them.
        on_release: is told of a version that is in memory no more, by the thread that has made room.
    """

    def __init__(
        self,
        most_nbytes: int,
        load: Callable[[FoundVersion, Callable[[int], None]], LoadedModel],
        on_release: Callable[[Version], None],
    ) -> None:
        self._most_nbytes = most_nbytes
        self._load = load
        self._on_release = on_release
        self._lock = threading.Lock()
        self._used: OrderedDict[Version, None] = OrderedDict()  # those used last are last
        self._nbytes = 0

    @property
    def nbytes(self) -> int:
        """Of all that is in memory."""
        return self._nbytes

    @contextmanager
    def using(self, version: Version, beside: Version | None = None) -> Iterator[LoadedModel]:
        """A version, which stays in memory meanwhile. It is loaded if it is not there.

        Args:
            version: which.
            beside: another one that is to be used meanwhile, too: it makes no room, and has to fit in beside this one.

        Raises:
            BadModel: the two do not fit in together.
            Overloaded: all that is in memory is in use, and there is no room.
            TRException: as loading it.
        """
        with self._lock:
            version._pins += 1
        try:
            yield self._get(version, beside)
        finally:
            with self._lock:
                version._pins -= 1
                is_over = version._is_retired and not version._pins and self._drop(version)
            if is_over:
                self._on_release(version)

    def retire(self, version: Version) -> None:
        """Release a version that nobody uses from now on, as soon as the runs that have it are over."""
        with self._lock:
            version._is_retired = True
            is_over = not version._pins and self._drop(version)
        if is_over:
            self._on_release(version)

    def _get(self, version: Version, beside: Version | None) -> LoadedModel:
        with version._loading:
            with self._lock:
                if version._loaded is not None:
                    self._used.move_to_end(version)
                    return version._loaded
            try:
                loaded = self._load(version.found, lambda nbytes: self._reserve(version, nbytes, beside))
            except BaseException:
                with self._lock:
                    self._drop(version)
                raise
            version._loaded = loaded
            if loaded.own is not None:
                version.own = replace(loaded.own, algorithm=replace(loaded.own.algorithm, bundle=None))
            return loaded

    def _reserve(self, version: Version, nbytes: int, beside: Version | None) -> None:
        if nbytes > self._most_nbytes:
            raise BadModel(
                f"{version.found.folder} needs {nbytes} bytes, and all models may have {self._most_nbytes}; see "
                "[python.models] max_memory_mb",
                name=version.found.name,
            )
        if beside is not None and beside is not version and beside._needed_nbytes + nbytes > self._most_nbytes:
            raise BadModel(
                f"{version.found.folder} needs {nbytes} bytes beside the {beside._needed_nbytes} of the version that "
                f"is served, and all models may have {self._most_nbytes}; see [python.models] max_memory_mb, or remove "
                "the served version first",
                name=version.found.name,
                is_lasting=False,
            )
        gone = []
        try:
            with self._lock:
                while self._nbytes + nbytes > self._most_nbytes:
                    unused = next((each for each in self._used if not each._pins and each is not beside), None)
                    if unused is None:
                        raise Overloaded(
                            f"the models that runs use now leave no room for {version.found.name!r}; try again",
                            retry_after_s=_WAIT_S,
                        )
                    self._drop(unused)
                    gone.append(unused)
                self._used[version] = None
                self._nbytes += nbytes
                version._nbytes = version._needed_nbytes = nbytes
        finally:
            for each in gone:
                self._on_release(each)

    def _drop(self, version: Version) -> bool:
        """To be called with the lock. Returns whether it had memory."""
        if version not in self._used:
            return False
        del self._used[version]
        self._nbytes -= version._nbytes
        version._nbytes, version._loaded = 0, None
        return True
