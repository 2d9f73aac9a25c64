"""Versions of a model that come, go and change: runs get what was tried, and none is lost for the next one's sake."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gateways import RunningGateway, running
from model_folders import put, safetensors_of
from support import BOUND_S

from tr_mmap.gateway.boxes import Boxes, BoxKey
from tr_mmap.gateway.errors import BadModel, Overloaded
from tr_mmap.gateway.model_files import FilesChanged, FoundVersion, find_models, opened
from tr_mmap.gateway.model_loading import ModelLoader
from tr_mmap.gateway.model_memory import LoadedModel, ModelMemory, Version
from tr_mmap.gateway.models import Models
from tr_mmap.gateway.registry import Registered
from tr_mmap.gateway.sections import ModelsConfig
from tr_mmap.sandbox import Algorithm, Bundle, Limits, Sandbox

MODELS = "/api/v1/python/models"
FORWARD = """
def forward(inputs):
    return float(inputs["model"]["scale"][0])
"""
KEY = BoxKey("contained", Limits())


def weights(value: float, mib: int) -> bytes:
    return safetensors_of(scale=np.array([float(value)]), padding=np.zeros(mib << 20, np.uint8))


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    config = """
[python.models]
model_dir = "models"
auto_scan = false
max_memory_mb = 8
"""
    folder = tmp_path_factory.mktemp("versions")
    (folder / "models").mkdir()
    with running(folder, config) as started:
        yield started


def served(gateway: RunningGateway, name: str) -> dict[str, Any]:
    found = gateway.ask("GET", MODELS).json()["models"]
    return next(each for each in found if each["name"] == name)


def test_a_version_that_does_not_fit_in_beside_the_served_one_is_refused_and_says_so(gateway: RunningGateway) -> None:
    folder = gateway.folder / "models" / "large"
    put(folder / "1", model__safetensors=weights(1, 5), model__py=FORWARD)
    assert gateway.ask("POST", f"{MODELS}/large").status_code == 200
    put(folder / "2", model__safetensors=weights(2, 5), model__py=FORWARD)
    answer = gateway.ask("POST", f"{MODELS}/large")
    assert (answer.status_code, answer.json()["type"]) == (422, "BadModel")
    assert "max_memory_mb" in answer.json()["error"]
    found = served(gateway, "large")
    assert (found["served"], found["state"], found["error"]) == (1, "loaded", answer.json()["error"])
    assert gateway.execute(algorithm="large", inputs={}) == 1
    assert gateway.ask("POST", f"{MODELS}/large", {"version": 1}).status_code == 200  # which is there already
    shutil.rmtree(folder / "1")
    assert gateway.ask("POST", f"{MODELS}/large").status_code == 200
    assert gateway.execute(algorithm="large", inputs={}) == 2
    shutil.rmtree(folder)


def load_in(sizes: dict[int, int], nothing: frozenset[int] = frozenset()) -> Callable[..., LoadedModel]:
    def load(found: FoundVersion, reserve: Callable[[int], None]) -> LoadedModel:
        reserve(sizes[found.number])
        if found.number in nothing:
            raise BadModel("it is none", name=found.name)
        return LoadedModel(Bundle({"w": np.ones(1)}), None, False)

    return load


def versions(*numbers: int) -> list[Version]:
    return [Version(FoundVersion("m", number, f"m/{number}", ())) for number in numbers]


def test_what_is_tried_takes_the_room_of_others_and_never_of_the_version_beside_it() -> None:
    memory = ModelMemory(8, load_in({1: 3, 2: 3, 3: 3, 4: 3}, frozenset({4})), lambda _: None)
    first, other, second, bad = versions(1, 2, 3, 4)
    for each in (first, other):  # the first was not used for longest
        with memory.using(each):
            pass
    with memory.using(second, first):
        assert [each.nbytes for each in (first, other, second)] == [3, 0, 3]
    with pytest.raises(BadModel), memory.using(bad, first):
        pass
    assert (first.nbytes, memory.nbytes) == (3, 3)


def test_a_trial_leaves_the_room_that_the_served_version_needs_when_it_comes_back() -> None:
    memory = ModelMemory(8, load_in({1: 5, 2: 5, 3: 5}), lambda _: None)
    first, second, other = versions(1, 2, 3)
    for each in (first, other):
        with memory.using(each):
            pass
    assert first.nbytes == 0
    with pytest.raises(BadModel) as found, memory.using(second, first):
        pass
    assert not found.value.is_lasting


# -- files that change -----------------------------------------------------------------------------------------------


class Place:
    """Models in a folder, of which one has had to make room."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.boxes = Boxes(lambda key: Sandbox(key.kind, limits=key.limits), 1)
        loader = ModelLoader(str(folder), self.boxes, lambda _: Limits(), is_reused=False)
        self.models = Models(ModelsConfig(max_memory_mb=1, **options), self.boxes, loader, lambda _: None)

    def lend(self) -> tuple[str, ...]:
        """The names of the tensors that a run of the first model gets."""
        with self.models.lent(using("first"), "ada") as lent:
            names: tuple[str, ...] = lent.inputs["model"].names
            return names

    def evict(self) -> None:
        put(self.folder / "second", model__safetensors=safetensors_of(w=np.ones((1 << 17) - 8)))
        self.models.scan()
        assert self.models.info("first").state == "available"


def using(model: str, code: bytes = b"", **options: Any) -> Registered:
    """An algorithm that gets a model."""
    return Registered("a", "", "python", Algorithm("a", code, None, **options), KEY, "", 0.0, model=model)


def put_first(folder: Path, *names: str) -> None:
    put(folder / "first" / "1", model__safetensors=safetensors_of(**dict.fromkeys(names, np.ones(4))))


@pytest.mark.parametrize("how", ["in place", "another", "shorter", "gone"])
def test_a_version_is_brought_back_only_from_the_files_that_were_tried(folder: Path, how: str) -> None:
    place = Place(folder)
    put_first(folder, "one")
    place.models.scan()
    place.evict()
    file = folder / "first" / "1" / "model.safetensors"
    raw = file.read_bytes()
    if how == "in place":
        file.write_bytes(raw.replace(b"one", b"two"))
    elif how == "another":
        put_first(folder, "two")
    elif how == "shorter":
        file.write_bytes(raw[:-8])
    else:
        file.unlink()
    for _ in range(2):
        with pytest.raises(Overloaded, match="has changed since it was found"):
            place.lend()
    place.models.scan()
    if how in ("in place", "another"):
        assert place.lend() == ("two",)
    else:
        with pytest.raises(BadModel):
            place.lend()


def test_a_version_that_is_still_in_memory_is_served_though_its_files_have_changed(folder: Path) -> None:
    place = Place(folder)
    put_first(folder, "one")
    place.models.scan()
    put_first(folder, "two")
    assert place.lend() == ("one",)


def test_a_file_that_changes_while_it_is_read_is_not_taken(folder: Path) -> None:
    place = Place(folder)
    put_first(folder, "one")
    file = folder / "first" / "1" / "model.safetensors"
    (found,) = find_models(str(folder))["first"].values()
    with pytest.raises(FilesChanged), opened(str(folder), found, file.name):
        file.write_bytes(file.read_bytes())
    place.boxes.close()


def test_a_change_that_a_run_has_seen_is_looked_at_soon(folder: Path) -> None:
    async def main() -> None:
        place = Place(folder, scan_interval_seconds=3600.0)
        put_first(folder, "one")
        await place.models.start()
        place.evict()
        put_first(folder, "two")

        async def until_it_is_served() -> tuple[str, ...]:
            while True:
                try:
                    return await asyncio.to_thread(place.lend)
                except Overloaded:
                    await asyncio.sleep(0.01)

        assert await asyncio.wait_for(until_it_is_served(), BOUND_S) == ("two",)
        await place.models.close()

    asyncio.run(main())


# -- processes that are kept -----------------------------------------------------------------------------------------


def test_an_algorithm_that_is_registered_no_more_is_forgotten_while_its_model_is_served(folder: Path) -> None:
    place = Place(folder)
    put_first(folder, "one")
    place.models.scan()
    kept = place.models._models["first"].served.kept  # type: ignore[union-attr]
    other = using("first", b"other", is_reused=True)
    for registered in (other, *[using("first", bytes([number]), is_reused=True) for number in range(5)]):
        for subject in ("ada", "eve"):
            mine = replace(registered, algorithm=replace(registered.algorithm, owner=subject))
            with place.models.lent(mine, subject):
                pass
        if registered is not other:
            place.models.end_kept(registered)
    assert {each.code for _, each in kept} == {b"other"}
