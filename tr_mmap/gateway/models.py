"""The models of a gateway: looks for versions, tries new ones, and swaps them in; lends them to runs. Knows no HTTP.

Runs and scans are in other threads than the loop; nobody waits for the lock longer than a look takes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ..errors import MissingPackage, TRException, UnsupportedTensor
from ..sandbox import Algorithm
from .boxes import Boxes, BoxKey
from .errors import BadModel, BadRequest, NotFound, Overloaded
from .logs import log
from .model_api import ModelInfo, ModelList
from .model_files import SOURCE, FilesChanged, FoundVersion, find_models
from .model_loading import ModelLoader
from .model_memory import LoadedModel, ModelMemory, Version
from .model_record import ModelRecord
from .model_watch import ModelWatch
from .problems import describe
from .registry import Kind, Registered
from .sections import ModelsConfig

__all__ = ["MODEL", "Lent", "Models"]

MODEL = "model"
"""The input by which an algorithm gets its model."""

_LASTING = (BadModel, MissingPackage, UnsupportedTensor)  # what the same files would give again


@dataclass(frozen=True, slots=True)
class Lent:
    """What a run needs.

    Attributes:
        box: in which it runs.
        algorithm: that runs.
        inputs: that it gets beside those of the request.
    """

    box: BoxKey
    algorithm: Algorithm
    inputs: dict[str, Any]


class Models:
    """See the module's docstring.

    Args:
        config: of models.
        boxes: of the gateway.
        loader: loads them; None if there is no directory of models.
        on_change: is told the name of a model of which another version is served now, in another thread.
    """

    def __init__(
        self,
        config: ModelsConfig,
        boxes: Boxes,
        loader: ModelLoader | None,
        on_change: Callable[[str], None],
    ) -> None:
        self._config = config
        self._boxes = boxes
        self._root = loader.root if loader is not None else None
        self._on_change = on_change
        self._lock = threading.Lock()
        self._scanning = threading.Lock()
        self._models: dict[str, ModelRecord] = {}
        self._is_closed = False
        self._watch = ModelWatch(self._root or "", self.scan)
        load = loader.load if loader is not None else _load_nothing
        self._memory = ModelMemory(config.max_memory_mb << 20, load, self._end_kept)

    # -- for the loop -------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Load what there is; look again from time to time, if that is configured."""
        if self._root is None:
            return
        await self._watch.look()
        if self._config.auto_scan:
            self._watch.start(self._config.scan_interval_seconds)

    async def close(self) -> None:
        """Look no more, and release all. To be called when no run goes on."""
        await self._watch.close()
        await asyncio.to_thread(self._release_all)

    async def load(self, name: str, number: int | None) -> ModelInfo:
        """Load a version anew, try it, and serve it. If that fails, the one that is served stays.

        Args:
            name: of the model.
            number: of the version, which is served from now on though there be a greater one; None for the greatest
                that there is. If that one is refused, the next scan still serves a greater one than the present.

        Raises:
            NotFound: there is none.
            BadModel, MissingPackage: it cannot be loaded.
        """
        if self._root is None:
            raise NotFound("there are no models here; see [python.models] model_dir")
        await asyncio.to_thread(self._load_asked, name, number)
        return self.info(name)

    def infos(self) -> ModelList:
        """All models."""
        with self._lock:
            return ModelList([self._models[name].info(name) for name in sorted(self._models)])

    def info(self, name: str) -> ModelInfo:
        """One of them.

        Raises:
            NotFound: there is none of that name.
        """
        with self._lock:
            return self._find(name).info(name)

    def check(self, name: str, kind: Kind) -> None:
        """
        Raises:
            NotFound: there is no model of that name.
            BadRequest: algorithms of that kind get none.
        """
        if kind not in ("python", "torch"):
            raise BadRequest(f"an algorithm of kind {kind!r} gets no model; those of kind 'python' and 'torch' do")
        with self._lock:
            if name not in self._models:
                known = ", ".join(sorted(self._models))[:500] or "none"
                raise NotFound(f"there is no model {name!r}; there are: {known}")

    def algorithm(self, name: str) -> Registered | None:
        """The algorithm that a model is; None if there is no such model, or it is none."""
        with self._lock:
            model = self._models.get(name)
            return model.served.own if model is not None and model.served is not None else None

    def check_algorithm(self, name: str) -> None:
        """For a name by which nothing is registered.

        Raises:
            BadModel, Overloaded, NotFound: there is a model of that name, and this is why it cannot be executed.
        """
        with self._lock:
            model = self._models.get(name)
            if model is None:
                return
            if model.served is None:
                raise self._not_served(name, model)
        raise NotFound(
            f"the model {name!r} has no {SOURCE} beside its weights; register an algorithm that gets it, with "
            f'"model": "{name}"'
        )

    def algorithms(self) -> list[Registered]:
        """All models that are algorithms."""
        with self._lock:
            served = [each.served for each in self._models.values() if each.served is not None]
        return [each.own for each in served if each.own is not None]

    # -- for the threads of runs --------------------------------------------------------------------------------------

    @contextmanager
    def lent(self, registered: Registered, subject: str) -> Iterator[Lent]:
        """What a run of an algorithm needs; its model stays in memory meanwhile.

        Args:
            registered: the algorithm; or what :meth:`algorithm` gave.
            subject: whose run it is.

        Raises:
            NotFound: its model is gone.
            BadModel, MissingPackage: that cannot be loaded.
            Overloaded: there is no room for that now.
        """
        if registered.model is None:
            yield Lent(registered.box, registered.algorithm, {})
            return
        with self._using(registered.model) as (version, loaded):
            key, algorithm, inputs = registered.box, registered.algorithm, {MODEL: loaded.bundle}
            if registered.is_model:
                if loaded.own is None:  # that of now; there was another one when the request came
                    raise NotFound(f"the model {registered.name!r} is no algorithm any more")
                key, algorithm = loaded.own.box, replace(loaded.own.algorithm, owner=subject)
                inputs = inputs if loaded.is_input else {}
            if algorithm.is_reused:
                algorithm = version.mark(algorithm)
                with self._lock:
                    version.kept.add((key, algorithm))
            yield Lent(key, algorithm, dict(inputs))

    @contextmanager
    def _using(self, name: str) -> Iterator[tuple[Version, LoadedModel]]:
        with ExitStack() as stack:
            while True:
                version = self._served(name)
                try:
                    loaded = stack.enter_context(self._memory.using(version))
                    break
                except TRException as error:
                    if self._served(name) is version:  # else another one has taken its place meanwhile
                        raise self._not_loaded(name, error) from error
            yield version, loaded

    def _not_loaded(self, name: str, error: TRException) -> TRException:
        """What a run is told whose version cannot be brought back."""
        if not isinstance(error, FilesChanged):
            return error
        self._watch.look_soon()
        with self._lock:
            why = self._find(name).error
        return Overloaded(str(error), retry_after_s=error.retry_after_s) if why is None else BadModel(why, name=name)

    def _served(self, name: str) -> Version:
        with self._lock:
            model = self._find(name)
            if model.served is None:
                raise self._not_served(name, model)
            return model.served

    def _not_served(self, name: str, model: ModelRecord) -> TRException:
        if model.error is None:
            return Overloaded(f"the model {name!r} is being loaded; try again", retry_after_s=1.0)
        return BadModel(model.error, name=name)

    def _find(self, name: str) -> ModelRecord:
        try:
            return self._models[name]
        except KeyError:
            raise NotFound(f"there is no model {name!r:.200}") from None

    def end_kept(self, registered: Registered) -> None:
        """End processes that are kept of an algorithm that is registered no more."""
        its = replace(registered.algorithm, owner="")
        ended = set()
        with self._lock:
            for served in [each.served for each in self._models.values() if each.served is not None]:
                its_own = {each for each in served.kept if replace(each[1], owner="") == its}
                served.kept -= its_own
                ended |= its_own
        self._boxes.unregister(ended)

    def _end_kept(self, version: Version) -> None:
        """End those that have a version in memory which was released."""
        with self._lock:
            kept, version.kept = version.kept, set()
        self._boxes.unregister(kept)

    # -- scanning -----------------------------------------------------------------------------------------------------

    def scan(self) -> None:
        """Look at the directory: serve new versions, and forget models that are gone. What fails is noted.

        Raises:
            OSError: the directory cannot be read.
        """
        assert self._root is not None
        with self._scanning:
            if self._is_closed:
                return
            found = find_models(self._root)
            for name, versions in found.items():
                self._update(name, versions)
            with self._lock:
                gone = [(name, self._models.pop(name)) for name in [*self._models] if name not in found]
            for name, model in gone:
                if model.served is not None:
                    self._memory.retire(model.served)
                    self._on_change(name)

    def _update(self, name: str, versions: dict[int, FoundVersion]) -> None:
        """Serve the greatest version that can be loaded; or the one that was asked for."""
        model = self._noted(name, versions)
        numbers = sorted(versions, reverse=True)
        errors: list[str] = []
        for number in numbers if model.chosen is None else [model.chosen]:
            found, served = versions[number], model.served
            if served is not None and (
                served.found == found or (number < served.found.number and served.found.number in versions)
            ):
                break  # it stays, also where its files have changed and cannot be loaded
            if found in model.failed:
                errors.append(model.failed[found])
                continue
            try:
                model.check_answers(found)
                self._try(name, model, found)
                break
            except TRException as error:
                errors.append(_told(error))
                if errors[-1] != model.error:  # else it was said at the look before
                    log.warning("a model cannot be loaded", extra={"model": found.folder, "error": str(error)})
        with self._lock:
            model.error = errors[0] if errors else None

    def _noted(self, name: str, versions: dict[int, FoundVersion]) -> ModelRecord:
        with self._lock:
            model = self._models.setdefault(name, ModelRecord())
            model.versions = tuple(sorted(versions))
            model.failed = {found: why for found, why in model.failed.items() if found in versions.values()}
            if model.chosen not in versions:
                model.chosen = None
            return model

    def _load_asked(self, name: str, number: int | None) -> None:
        assert self._root is not None
        with self._scanning:
            try:
                versions = find_models(self._root).get(name)
            except OSError as error:
                raise NotFound(f"model_dir cannot be read: {error.strerror}") from error
            if not versions:
                raise NotFound(f"there is no model {name!r:.200} in model_dir")
            if number is not None and number not in versions:
                raise NotFound(f"the model {name!r} has no version {number}; it has {', '.join(map(str, versions))}")
            model, found = self._noted(name, versions), versions[number or max(versions)]
            if number is None:  # also if that one is refused: from now on, the greatest that can be loaded is served
                model.chosen = None
            try:
                model.check_answers(found)
                self._try(name, model, found)
            except TRException as error:
                with self._lock:
                    model.error = _told(error)
                if isinstance(error, FilesChanged):
                    raise Overloaded(str(error), retry_after_s=error.retry_after_s) from error
                raise
            with self._lock:
                model.chosen, model.error = number, None

    def _try(self, name: str, model: ModelRecord, found: FoundVersion) -> None:
        """Load a version, and serve it from then on. Until then the former one is served, and makes no room for it."""
        served = model.served
        beside = served if served is not None and served.found.number in model.versions else None
        version = served if served is not None and served.found == found else Version(found)
        model.is_loading = True
        try:
            with self._memory.using(version, beside), self._lock:  # until it is served, nobody takes its room
                former, model.served = model.served, version
                model.failed.pop(found, None)
        except _LASTING as error:
            if not isinstance(error, BadModel) or error.is_lasting:
                model.failed[found] = _told(error)
            raise
        finally:
            model.is_loading = False
        if former is not None and former is not version:
            self._memory.retire(former)
        self._on_change(name)

    def _release_all(self) -> None:
        with self._scanning, self._lock:
            self._is_closed = True
            served = [each.served for each in self._models.values() if each.served is not None]
            self._models.clear()
        for each in served:
            self._memory.retire(each)


def _load_nothing(found: FoundVersion, _: Callable[[int], None]) -> LoadedModel:
    raise NotFound(f"there is no model {found.name!r}")


def _told(error: TRException) -> str:
    """What clients are told of an error."""
    return describe(error, "").error
