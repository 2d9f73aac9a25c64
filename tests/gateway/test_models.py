"""Models of a gateway: found in a directory, shared by all runs, swapped under load, refused with what to do."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from gateways import RunningGateway, running
from model_folders import header_of, put, safetensors_of, with_header
from support import wait_until

from tr_mmap.gateway.boxes import Boxes, BoxKey
from tr_mmap.gateway.errors import Overloaded
from tr_mmap.gateway.model_files import FoundVersion
from tr_mmap.gateway.model_loading import ModelLoader
from tr_mmap.gateway.model_memory import LoadedModel, ModelMemory, Version
from tr_mmap.gateway.models import Models
from tr_mmap.gateway.registry import Registered
from tr_mmap.gateway.sections import ModelsConfig
from tr_mmap.sandbox import Algorithm, Bundle, Limits, Sandbox

MODELS = "/api/v1/python/models"
EXECUTE = "/api/v1/python/execute"
EVERY_S = 0.2
CONFIG = f"""
[python.models]
model_dir = "models"
scan_interval_seconds = {EVERY_S}
max_memory_mb = 8
[scheduler]
max_workers = 4
[sandbox]
wall_ms = 60000
"""
FORWARD = """
def forward(inputs):
    return {"output": inputs["x"] * inputs["model"]["scale"]}
"""


def scale(value: float) -> bytes:
    return safetensors_of(scale=np.array([float(value)]))


def fill(models: Path) -> None:
    """What is there from the start."""
    put(models / "scale" / "1", model__safetensors=scale(1), model__py=FORWARD)
    put(models / "scale" / "2", model__safetensors=scale(2), model__py=FORWARD)
    put(models / "flat", model__safetensors=safetensors_of(w=np.arange(6.0).reshape(2, 3), b=np.ones(3)))
    put(models / "pickled" / "1", model__pkl=b"\x80\x04.", model__py=FORWARD)
    put(models / "damaged" / "1", model__safetensors=scale(1)[:-1])
    put(models / "typo" / "1", model__safetensors=scale(1), model__py="def forward(inputs:\n")
    put(models / "headless" / "1", model__safetensors=scale(1), model__py="def backward(inputs):\n    return 1\n")
    put(models / "bare" / "1", model__py=FORWARD)
    put(models / "both" / "1", model__safetensors=scale(1), model__onnx=b"x")
    put(models / ".hidden" / "1", model__safetensors=scale(1))
    (models / "empty").mkdir()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("models")
    fill(folder / "models")
    with running(folder, CONFIG) as started:
        yield started


def models_of(gateway: RunningGateway) -> Path:
    return gateway.folder / "models"


def listed(gateway: RunningGateway) -> dict[str, dict[str, Any]]:
    answer = gateway.ask("GET", MODELS, scopes=("execute",))
    assert answer.status_code == 200, answer.text
    return {each["name"]: each for each in answer.json()["models"]}


def load(gateway: RunningGateway, name: str, body: object = None) -> dict[str, Any]:
    answer = gateway.ask("POST", f"{MODELS}/{name}", body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def refusal(gateway: RunningGateway, name: str, status: int = 422, body: object = None) -> str:
    answer = gateway.ask("POST", f"{MODELS}/{name}", body)
    assert answer.status_code == status, answer.text
    text: str = answer.json()["error"]
    assert "\n" not in text
    return text


# -- what is found ---------------------------------------------------------------------------------------------------


def test_models_are_listed_with_their_versions_and_the_greatest_is_served(gateway: RunningGateway) -> None:
    found = listed(gateway)
    assert {".hidden", "empty"}.isdisjoint(found)
    assert found["scale"] == {
        "name": "scale", "versions": [1, 2], "served": 2, "is_chosen": False, "state": "loaded",
        "format": "safetensors", "nbytes": 4096, "is_algorithm": True, "error": None,
    }  # fmt: skip
    assert (found["flat"]["versions"], found["flat"]["served"], found["flat"]["is_algorithm"]) == ([1], 1, False)
    answer = gateway.ask("POST", EXECUTE, {"algorithm": "flat"})
    assert (answer.status_code, '"model": "flat"' in answer.json()["error"]) == (404, True)
    assert gateway.execute(algorithm="scale", inputs={"x": 21}) == {"dtype": "float64", "shape": [1], "data": [42]}


def test_what_cannot_be_loaded_says_why(gateway: RunningGateway) -> None:
    found = listed(gateway)
    for name, said in {
        "pickled": "safetensors.torch.save_model",
        "damaged": "damaged/1/model.safetensors is no safetensors file",
        "typo": "typo/1/model.py, line 1: '(' was never closed",
        "headless": "forward",
        "bare": "bare/1 has no model.safetensors",
        "both": "leave one",
    }.items():
        assert (found[name]["state"], found[name]["served"]) == ("failed", None)
        assert said in found[name]["error"].lower(), found[name]["error"]
        answer = gateway.ask("POST", EXECUTE, {"algorithm": name, "inputs": {"x": 1}})
        assert (answer.status_code, answer.json()["error"]) == (422, found[name]["error"])
        assert said in refusal(gateway, name).lower()
    assert str(gateway.folder) not in str(found)


@pytest.mark.parametrize("name", ["model.pkl", "model.pickle", "pytorch_model.bin", "model.pt", "model.pth"])
def test_pickles_are_refused_with_the_way_to_convert(gateway: RunningGateway, name: str) -> None:
    folder = models_of(gateway) / "pickles" / "1"
    put(folder, **{name: b"\x80\x04cos\nsystem\n."})
    try:
        assert "safetensors.torch.save_model" in refusal(gateway, "pickles")
    finally:
        shutil.rmtree(folder.parent)


def test_weights_beside_a_pickle_are_taken(gateway: RunningGateway) -> None:
    folder = models_of(gateway) / "with_pickle"
    put(folder, model__safetensors=scale(1), pytorch_model__bin=b"\x80\x04.")
    assert load(gateway, "with_pickle")["served"] == 1
    shutil.rmtree(folder)


def test_a_model_is_looked_for_again_and_forgotten_when_it_is_gone(gateway: RunningGateway) -> None:
    folder = models_of(gateway) / "later"
    put(folder / "1", model__safetensors=scale(5), model__py=FORWARD)
    wait_until(lambda: listed(gateway).get("later", {}).get("served"))
    assert gateway.execute(algorithm="later", inputs={"x": 2})["data"] == [10]
    shutil.rmtree(folder)
    wait_until(lambda: "later" not in listed(gateway))
    assert gateway.ask("POST", EXECUTE, {"algorithm": "later", "inputs": {"x": 2}}).status_code == 404


# -- paths -----------------------------------------------------------------------------------------------------------


def test_no_name_leads_out_of_the_directory(gateway: RunningGateway) -> None:
    put(gateway.folder / "outside" / "1", model__safetensors=scale(1))
    for name in ("..", "%2e%2e", "..%2foutside", "%2e%2e%2foutside", "scale%2f2", ".hidden", "%00", "x" * 200):
        assert gateway.ask("POST", f"{MODELS}/{name}").status_code in (400, 404, 405), name


def test_links_out_of_the_directory_are_refused_and_those_within_are_not(gateway: RunningGateway) -> None:
    models, outside = models_of(gateway), gateway.folder / "outside"
    put(outside / "1", model__safetensors=scale(1), model__py=FORWARD)
    (models / "linked").mkdir()
    for make in (
        lambda: (models / "linked" / "model.safetensors").symlink_to(outside / "1" / "model.safetensors"),
        lambda: (models / "linked" / "1").symlink_to(outside / "1"),
        lambda: os.symlink("../../outside/1", models / "linked" / "1"),
    ):
        make()
        assert "leads out of model_dir" in refusal(gateway, "linked")
        for each in (models / "linked").iterdir():
            each.unlink()
    (models / "linked").rmdir()
    (models / "linked").symlink_to(outside)
    assert "leads out of model_dir" in refusal(gateway, "linked")
    (models / "linked").unlink()
    (models / "linked").symlink_to("linked")  # to itself
    refusal(gateway, "linked", 404)
    (models / "linked").unlink()
    (models / "linked").symlink_to("scale")
    assert load(gateway, "linked")["served"] == 2
    (models / "linked").unlink()


def test_what_is_no_file_is_refused(gateway: RunningGateway) -> None:
    folder = models_of(gateway) / "fifo"
    folder.mkdir()
    os.mkfifo(folder / "model.safetensors")
    assert "no file" in refusal(gateway, "fifo")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    assert "no file" in refusal(gateway, "fifo")
    shutil.rmtree(folder)


# -- loading ---------------------------------------------------------------------------------------------------------


def test_a_version_that_was_asked_for_is_served_until_another_is(gateway: RunningGateway) -> None:
    assert load(gateway, "scale", {"version": 1})["served"] == 1
    assert gateway.execute(algorithm="scale", inputs={"x": 3})["data"] == [3]
    put(models_of(gateway) / "scale" / "3", model__safetensors=scale(3), model__py=FORWARD)
    wait_until(lambda: listed(gateway)["scale"]["versions"] == [1, 2, 3])
    put(models_of(gateway) / "scan_is_over", model__safetensors=scale(1))  # by its name the last one of a scan
    wait_until(lambda: listed(gateway).get("scan_is_over", {}).get("served"))
    shutil.rmtree(models_of(gateway) / "scan_is_over")
    assert (listed(gateway)["scale"]["served"], listed(gateway)["scale"]["is_chosen"]) == (1, True)
    assert (load(gateway, "scale")["served"], listed(gateway)["scale"]["is_chosen"]) == (3, False)
    assert gateway.execute(algorithm="scale", inputs={"x": 3})["data"] == [9]
    shutil.rmtree(models_of(gateway) / "scale" / "3")
    wait_until(lambda: listed(gateway)["scale"]["served"] == 2)


def test_asking_for_the_greatest_version_unpins_even_if_that_version_is_refused(gateway: RunningGateway) -> None:
    folder = models_of(gateway) / "pinned"
    for number in (1, 2):
        put(folder / str(number), model__safetensors=scale(number), model__py=FORWARD)
    assert load(gateway, "pinned", {"version": 1})["is_chosen"]
    put(folder / "3", model__safetensors=b"damaged", model__py=FORWARD)
    assert "pinned/3" in refusal(gateway, "pinned", body={"version": 3})
    assert listed(gateway)["pinned"]["is_chosen"]  # this asked for another one, and did not get it
    assert "pinned/3" in refusal(gateway, "pinned")
    wait_until(lambda: listed(gateway)["pinned"]["served"] == 2)  # the greatest that can be loaded
    put(folder / "4", model__safetensors=scale(4), model__py=FORWARD)
    wait_until(lambda: listed(gateway)["pinned"]["served"] == 4)
    assert not listed(gateway)["pinned"]["is_chosen"]
    shutil.rmtree(folder)


def test_files_that_have_changed_are_another_version_of_the_same_number(gateway: RunningGateway) -> None:
    folder = models_of(gateway) / "changing"
    put(folder, model__safetensors=scale(1), model__py=FORWARD)
    wait_until(lambda: listed(gateway).get("changing", {}).get("served"))
    first = gateway.ask("GET", "/api/v1/python/algorithms/changing").json()
    assert (first["kind"], first["function"], first["model"]) == ("python", "forward", "changing")
    gateway.register("changes", "output = 1", model="changing")
    algorithms = gateway.ask("GET", "/api/v1/python/algorithms").json()["algorithms"]
    is_model = {each["name"]: each["is_model"] for each in algorithms}
    assert (is_model["changing"], is_model["changes"]) == (True, False)
    put(folder, model__safetensors=scale(7))
    wait_until(lambda: gateway.execute(algorithm="changing", inputs={"x": 1})["data"] == [7])
    assert gateway.ask("GET", "/api/v1/python/algorithms/changing").json()["version"] != first["version"]
    put(folder, model__safetensors=b"damaged")
    wait_until(lambda: listed(gateway)["changing"]["error"])
    assert gateway.execute(algorithm="changing", inputs={"x": 1})["data"] == [7]
    shutil.rmtree(folder)


def test_a_load_that_fails_keeps_the_version_that_is_served(gateway: RunningGateway) -> None:
    folder = models_of(gateway) / "scale" / "4"
    put(folder, model__safetensors=scale(4), model__py="def forward(:")
    wait_until(lambda: listed(gateway)["scale"]["error"])
    found = listed(gateway)["scale"]
    assert (found["versions"], found["served"], found["state"]) == ([1, 2, 4], 2, "loaded")
    assert "line 1" in found["error"]
    assert "line 1" in refusal(gateway, "scale", body={"version": 4})
    assert gateway.execute(algorithm="scale", inputs={"x": 1})["data"] == [2]
    shutil.rmtree(folder)
    wait_until(lambda: not listed(gateway)["scale"]["error"])


def test_a_version_that_cannot_answer_takes_no_place_of_one_that_can(gateway: RunningGateway) -> None:
    folder = models_of(gateway) / "answering"
    put(folder / "1", model__safetensors=scale(1), model__py=FORWARD)
    assert load(gateway, "answering")["is_algorithm"]
    put(folder / "2", model__safetensors=scale(2))  # its model.py was forgotten, or is being copied
    wait_until(lambda: listed(gateway)["answering"]["error"])
    found = listed(gateway)["answering"]
    assert (found["versions"], found["served"], found["is_algorithm"]) == ([1, 2], 1, True)
    assert "answering/2 has no model.py" in found["error"]
    assert gateway.ask("GET", f"{MODELS}/answering", scopes=("execute",)).json() == found
    assert found["error"] == refusal(gateway, "answering", body={"version": 2})
    assert gateway.execute(algorithm="answering", inputs={"x": 3})["data"] == [3]
    put(folder / "2", model__py=FORWARD)
    wait_until(lambda: listed(gateway)["answering"]["served"] == 2)
    assert gateway.execute(algorithm="answering", inputs={"x": 3})["data"] == [6]
    (folder / "2" / "model.py").unlink()
    wait_until(lambda: listed(gateway)["answering"]["error"])
    assert gateway.execute(algorithm="answering", inputs={"x": 3})["data"] == [6]
    put(folder / "3", model__safetensors=scale(3))
    shutil.rmtree(folder / "1")
    shutil.rmtree(folder / "2")  # so it is meant
    wait_until(lambda: listed(gateway)["answering"]["served"] == 3)
    assert (listed(gateway)["answering"]["is_algorithm"], listed(gateway)["answering"]["error"]) == (False, None)
    shutil.rmtree(folder)


def test_what_is_not_there_cannot_be_loaded(gateway: RunningGateway) -> None:
    assert "no model 'nothing'" in refusal(gateway, "nothing", 404)
    assert gateway.ask("GET", f"{MODELS}/nothing").status_code == 404
    assert "no version 9; it has 1, 2" in refusal(gateway, "scale", 404, {"version": 9})
    for body in ({"version": 0}, {"version": "2"}, {"versions": 2}, []):
        assert gateway.ask("POST", f"{MODELS}/scale", body).status_code == 400
    assert gateway.ask("POST", f"{MODELS}/scale", scopes=("execute", "register")).status_code == 403
    assert gateway.ask("GET", MODELS, scopes=("metrics",)).status_code == 403


HEADERS = {
    "overlap": {"a": [0, 8], "b": [4, 12]},
    "gap": {"a": [0, 4], "b": [8, 12]},
    "far away": {"a": [0, 1 << 62]},
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_hostile_header_is_one_line_and_the_gateway_goes_on(gateway: RunningGateway, name: str) -> None:
    header = {n: {"dtype": "U8", "shape": [e - s], "data_offsets": [s, e]} for n, (s, e) in HEADERS[name].items()}
    folder = models_of(gateway) / "hostile"
    for raw in (with_header(header, bytes(12)), b"\xff" * 64, b"", with_header(b"{" * 10_000, b"")):
        put(folder, model__safetensors=raw)
        assert "hostile/model.safetensors" in refusal(gateway, "hostile")
    shutil.rmtree(folder)
    assert gateway.execute(algorithm="scale", inputs={"x": 1})["data"] == [2]


# -- algorithms that get a model --------------------------------------------------------------------------------------


def test_an_algorithm_gets_its_model_as_arrays_that_nobody_can_write(gateway: RunningGateway) -> None:
    code = "def use(inputs):\n    m = inputs['model']\n    return {'y': inputs['x'] @ m['w'] + m['b']}\n"
    info = gateway.register("use", code, model="flat")
    assert info["model"] == "flat"
    x = {"dtype": "float64", "shape": [1, 2], "data": [[1, 1]]}
    assert gateway.execute(algorithm="use", inputs={"x": x})["y"]["data"] == [[4, 6, 8]]
    gateway.register("store", "inputs['model']['w'][0] = 5\noutput = 1", model="flat")
    answer = gateway.ask("POST", EXECUTE, {"algorithm": "store"})
    assert (answer.status_code, "read-only" in answer.json()["error"]) == (422, True)
    assert gateway.execute(algorithm="use", inputs={"x": x})["y"]["data"] == [[4, 6, 8]]


def test_a_process_that_is_kept_has_one_version_of_its_model(gateway: RunningGateway) -> None:
    code = """
import builtins, time
def use(inputs):
    if not hasattr(builtins, "cached"):
        builtins.cached = float(inputs["model"]["scale"][0])
    while inputs.get("waits"):
        time.sleep(0.01)
    return builtins.cached
"""
    folder = models_of(gateway) / "kept"
    put(folder / "1", model__safetensors=scale(1))
    load(gateway, "kept")
    gateway.register("kept-use", code, model="kept", reuse=True, function="use")
    assert [gateway.execute(algorithm="kept-use") for _ in range(3)] == [1, 1, 1]
    put(folder / "2", model__safetensors=scale(2))
    load(gateway, "kept")
    assert [gateway.execute(algorithm="kept-use") for _ in range(3)] == [2, 2, 2]
    # A run that goes on has the former version still, and a process with that one is kept.
    body = {"algorithm": "kept-use", "inputs": {"waits": True}}
    task = gateway.ask("POST", "/api/v1/compute", body).json()["task_id"]
    wait_until(lambda: gateway.ask("GET", f"/api/v1/task/{task}").json()["status"] == "running")
    assert gateway.execute(algorithm="kept-use") == 2
    put(folder / "3", model__safetensors=scale(3))
    load(gateway, "kept")
    assert gateway.execute(algorithm="kept-use") == 3
    assert gateway.ask("PUT", f"/api/v1/task/{task}/cancel").status_code == 202
    shutil.rmtree(folder)


def test_a_registration_with_a_model_that_it_cannot_have_says_which(gateway: RunningGateway) -> None:
    def register(**body: object) -> tuple[int, str]:
        answer = gateway.ask("POST", "/api/v1/python/algorithms", {"name": "wrong", "code": "output = 1", **body})
        return answer.status_code, answer.json()["error"]

    status, text = register(model="nothing")
    assert (status, "no model 'nothing'" in text, "flat" in text) == (404, True, True)
    status, text = register(name="scale")
    assert (status, "is an algorithm itself" in text) == (409, True)
    answer = gateway.ask("DELETE", "/api/v1/python/algorithms/scale")
    assert (answer.status_code, answer.json()["type"]) == (409, "Conflict")
    assert "'scale' is a model, which nobody has registered" in answer.json()["error"]
    assert "remove its directory from [python.models] model_dir" in answer.json()["error"]
    assert gateway.ask("DELETE", "/api/v1/python/algorithms/no-model").status_code == 404
    answer = gateway.ask("POST", EXECUTE, {"algorithm": "scale", "inputs": {"x": 1, "model": 1}})
    assert (answer.status_code, "is its model" in answer.json()["error"]) == (400, True)


def test_a_model_is_mapped_by_all_runs_at_once_and_not_copied(gateway: RunningGateway) -> None:
    """By what the kernel says of the processes that have it."""
    put(models_of(gateway) / "large", model__safetensors=safetensors_of(w=np.ones(3 << 17)))
    info = load(gateway, "large")
    assert info["nbytes"] == 3 << 20
    gateway.register("wait", "import time\nwhile True:\n    output = time.sleep(0.01)", model="large")
    tasks = [gateway.ask("POST", "/api/v1/compute", {"algorithm": "wait"}).json()["task_id"] for _ in range(2)]

    def mappings() -> dict[int, set[str]]:
        """Processes by the memory of which they have mapped so much, to read, and share it."""
        found: dict[int, set[str]] = {}
        for process in psutil.Process(gateway.process.pid).children(recursive=True):
            try:
                maps = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
            except OSError:
                continue
            for line in maps:
                span, permissions, _, _, inode, *name = line.split(maxsplit=5)
                start, end = (int(each, 16) for each in span.split("-"))
                if end - start == 3 << 20 and permissions == "r--s" and name and "memfd" in name[0]:
                    found.setdefault(int(inode), set()).add(process.pid)
        return found

    wait_until(lambda: any(len(each) >= 2 for each in mappings().values()))
    for each in tasks:
        assert gateway.ask("PUT", f"/api/v1/task/{each}/cancel").status_code == 202
    shutil.rmtree(models_of(gateway) / "large")


# -- memory ----------------------------------------------------------------------------------------------------------

MIB3 = safetensors_of(w=np.ones(3 << 17))


def test_the_model_that_was_not_used_for_longest_makes_room_and_none_that_a_run_uses(gateway: RunningGateway) -> None:
    """Of 8 MiB, each has 3."""
    models = models_of(gateway)
    source = "import time\ndef forward(inputs):\n    while inputs['wait']:\n        time.sleep(0.01)\n    return 1\n"
    names = ["lru_a", "lru_b", "lru_c"]

    def states() -> list[str]:
        found = listed(gateway)
        return [found[each]["state"] for each in names]

    for each in names[:2]:
        put(models / each, model__safetensors=MIB3, model__py=source)
        load(gateway, each)
    gateway.execute(algorithm="lru_a", inputs={"wait": False})  # so that the other one is the oldest
    put(models / "lru_c", model__safetensors=MIB3, model__py=source)
    load(gateway, "lru_c")
    assert states() == ["loaded", "available", "loaded"]
    assert gateway.execute(algorithm="lru_b", inputs={"wait": False}) == 1  # it comes back
    assert states() == ["available", "loaded", "loaded"]
    assert sum(each["nbytes"] for each in listed(gateway).values()) <= 8 << 20
    tasks = []
    for name in ("lru_b", "lru_c"):
        answer = gateway.ask("POST", "/api/v1/compute", {"algorithm": name, "inputs": {"wait": True}})
        tasks.append(answer.json()["task_id"])
    wait_until(lambda: all(gateway.ask("GET", f"/api/v1/task/{each}").json()["status"] == "running" for each in tasks))
    body = {"algorithm": "lru_a", "inputs": {"wait": False}}
    wait_until(lambda: gateway.ask("POST", EXECUTE, body).status_code == 503)  # as soon as both have theirs
    answer = gateway.ask("POST", EXECUTE, body)
    assert (answer.status_code, answer.headers.get("retry-after")) == (503, "1"), answer.text
    assert states() == ["available", "loaded", "loaded"]
    for each in tasks:
        gateway.ask("PUT", f"/api/v1/task/{each}/cancel")
    wait_until(lambda: gateway.ask("POST", EXECUTE, body).status_code == 200)
    for each in names:
        shutil.rmtree(models / each)


def test_a_model_that_is_larger_than_all_may_be_is_refused(gateway: RunningGateway) -> None:
    folder = models_of(gateway) / "huge"
    put(folder, model__safetensors=safetensors_of(w=np.zeros(9 << 20, np.uint8)))
    assert "max_memory_mb" in refusal(gateway, "huge")
    shutil.rmtree(folder)


# -- new versions under load ------------------------------------------------------------------------------------------


def test_no_request_is_lost_while_versions_good_and_bad_come_and_go(gateway: RunningGateway) -> None:
    models = models_of(gateway) / "busy"
    put(models / "1", model__safetensors=scale(1), model__py=FORWARD)
    load(gateway, "busy")
    is_over = threading.Event()
    token = gateway.token("execute")

    def ask() -> list[float]:
        found = []
        while not is_over.is_set():
            answer = gateway.ask("POST", EXECUTE, {"algorithm": "busy", "inputs": {"x": 1}}, token=token)
            assert answer.status_code == 200, answer.text
            found.append(answer.json()["result"]["data"][0])
        return found

    with ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(ask) for _ in range(4)]
        try:
            for number in range(2, 8):
                is_bad = number % 2 == 0
                weights = scale(number)[:-3] if number % 4 == 0 else scale(number)
                source = "def forward(:" if number % 4 == 2 else FORWARD
                put(models / str(number), model__py=source, model__safetensors=weights)
                answer = gateway.ask("POST", f"{MODELS}/busy")
                assert answer.status_code == (422 if is_bad else 200), answer.text
                for each in models.iterdir():
                    if int(each.name) < number - 1:
                        shutil.rmtree(each)
        finally:
            is_over.set()
        for future in futures:
            found = future.result()
            assert set(found) <= {1, 3, 5, 7}
            assert found == sorted(found)  # nobody gets a former version after a new one
    assert gateway.execute(algorithm="busy", inputs={"x": 1})["data"] == [7]
    shutil.rmtree(models)


def test_a_run_that_goes_on_keeps_its_version(gateway: RunningGateway) -> None:
    models = models_of(gateway) / "slow"
    source = (
        "import time\ndef forward(inputs):\n    time.sleep(inputs['s'])\n    return float(inputs['model']['scale'][0])"
    )
    put(models / "1", model__safetensors=scale(1), model__py=source)
    load(gateway, "slow")
    body = {"algorithm": "slow", "inputs": {"s": 1.0}}
    task = gateway.ask("POST", "/api/v1/compute", body).json()["task_id"]
    wait_until(lambda: gateway.ask("GET", f"/api/v1/task/{task}").json()["status"] == "running")
    put(models / "2", model__safetensors=scale(2), model__py=source)
    shutil.rmtree(models / "1")
    load(gateway, "slow")
    assert gateway.execute(algorithm="slow", inputs={"s": 0.0}) == 2
    wait_until(lambda: gateway.ask("GET", f"/api/v1/task/{task}").json()["status"] == "success")
    assert gateway.ask("GET", f"/api/v1/task/{task}").json()["result"] in (1, 2)
    shutil.rmtree(models)


def test_a_version_that_is_served_no_more_counts_until_the_runs_that_have_it_are_over() -> None:
    def load(found: FoundVersion, reserve: Callable[[int], None]) -> LoadedModel:
        reserve(4096)
        return LoadedModel(Bundle({"w": np.ones(1)}), None, False)

    released: list[Version] = []
    memory = ModelMemory(4096, load, released.append)
    first, second = (Version(FoundVersion("m", number, f"m/{number}", ())) for number in (1, 2))
    with memory.using(first), memory.using(first):
        memory.retire(first)
        assert (memory.nbytes, released) == (4096, [])
        with pytest.raises(Overloaded), memory.using(second):
            pass
    assert (memory.nbytes, released) == (0, [first])
    with memory.using(second):
        assert memory.nbytes == 4096


def test_a_version_that_is_gone_as_it_is_brought_back_is_replaced_by_the_one_that_is_served(folder: Path) -> None:
    """A run waits for a version that had to make room; its files go, and another version is served meanwhile."""

    class Loader(ModelLoader):
        def load(self, found: FoundVersion, reserve: Callable[[int], None]) -> LoadedModel:
            if found.name == "first" and found.number == 1 and (folder / "first" / "2").exists():
                shutil.rmtree(folder / "first" / "1")
                models.scan()
            return super().load(found, reserve)

    boxes = Boxes(lambda key: Sandbox(key.kind, limits=key.limits), 1)
    loader = Loader(str(folder), boxes, lambda _: Limits(), is_reused=False)
    models = Models(ModelsConfig(max_memory_mb=1), boxes, loader, lambda _: None)
    put(folder / "first" / "1", model__safetensors=scale(1))
    models.scan()
    put(folder / "second", model__safetensors=safetensors_of(w=np.ones((1 << 17) - 8)))
    models.scan()
    assert models.info("first").state == "available"
    (folder / "first" / "2").mkdir()
    put(folder / "first" / "2", model__safetensors=safetensors_of(other=np.ones(1)))
    key, algorithm = BoxKey("contained", Limits()), Algorithm("a", b"", None)
    with models.lent(Registered("a", "", "python", algorithm, key, "", 0.0, model="first"), "ada") as lent:
        assert lent.inputs["model"].names == ("other",)
    assert models.info("first").served == 2


# -- without ----------------------------------------------------------------------------------------------------------


def test_models_that_come_later_into_an_empty_directory_are_found(folder: Path) -> None:
    (folder / "models").mkdir()
    with running(folder, CONFIG) as gateway:
        assert listed(gateway) == {}
        put(folder / "models" / "late", model__safetensors=scale(1))
        wait_until(lambda: "late" in listed(gateway))


def test_header_of_writes_what_the_format_says() -> None:
    assert header_of({"a": np.zeros(2, np.float32)}) == {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
