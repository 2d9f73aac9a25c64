"""Models of torch and of ONNX in a gateway: opened by contained processes only, tried before they are served."""

from __future__ import annotations

import io
import pickle
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gateways import RunningGateway, running
from model_folders import onnx_of, put

from tr_mmap.errors import MissingPackage
from tr_mmap.gateway.boxes import Boxes
from tr_mmap.gateway.model_files import find_models
from tr_mmap.gateway.model_loading import ModelLoader
from tr_mmap.sandbox import Limits, Sandbox

torch = pytest.importorskip("torch", reason="NOT TESTED: models of torch in the gateway (torch is not installed)")
pytest.importorskip("onnxruntime", reason="NOT TESTED: models of ONNX in the gateway (onnxruntime is not installed)")
save_file = pytest.importorskip("safetensors.torch").save_file

MODELS = "/api/v1/python/models"
CONFIG = """
[python.models]
model_dir = "models"
auto_scan = false
reuse = true
[sandbox]
wall_ms = 60000
cpu_ms = 60000
memory_mb = 1024
"""
X = [[1.0, 2.0, 3.0], [0.5, 0.0, -1.0]]
INPUT = {"dtype": "float32", "shape": [2, 3], "data": X}
WEIGHTS = np.arange(6, dtype=np.float32).reshape(3, 2)
WITH_TORCH = """
import torch
layer = None
def forward(inputs):
    global layer
    if layer is None:
        layer = torch.nn.Linear(3, 2)
        layer.load_state_dict(inputs["model"], assign=True)
    with torch.no_grad():
        return layer(inputs["x"])
"""
COUNTS = """
import builtins
def forward(inputs):
    builtins.counted = getattr(builtins, "counted", 0) + 1
    return [builtins.counted, float(inputs["model"]["bias"][0])]
"""


class Linear(torch.nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def exported(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(Linear(seed).eval(), (torch.ones(2, 3),)), buffer)
    return buffer.getvalue()


def scripted() -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(Linear().eval()), buffer)
    return buffer.getvalue()


def saved() -> bytes:
    buffer = io.BytesIO()
    torch.save(Linear().state_dict(), buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("formats")
    models = folder / "models"
    put(models / "exported" / "1", model__pt2=exported())
    put(models / "scripted", model__pt=scripted())
    put(models / "scripted_too", model__pth=scripted())
    put(models / "saved", model__pt=saved())
    put(models / "onnx", model__onnx=onnx_of(WEIGHTS))
    put(models / "no_onnx", model__onnx=b"no model")
    for name, source in {"source": WITH_TORCH, "counts": COUNTS}.items():
        put(models / name / "1", model__py=source)
        save_file(Linear().layer.state_dict(), models / name / "1" / "model.safetensors")
    with running(folder, CONFIG) as started:
        yield started


def listed(gateway: RunningGateway) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in gateway.ask("GET", MODELS).json()["models"]}


@pytest.mark.parametrize("name", ["exported", "scripted", "scripted_too", "source"])
def test_a_model_of_torch_is_executed_by_its_name(gateway: RunningGateway, name: str) -> None:
    info = listed(gateway)[name]
    assert (info["state"], info["is_algorithm"], info["error"]) == ("loaded", True, None)
    for _ in range(2):  # the second one by a process that was kept
        result = gateway.execute(algorithm=name, inputs={"x": INPUT})
        assert np.allclose(result["data"], Linear()(torch.tensor(X)).detach().numpy())


@pytest.mark.parametrize("x", [INPUT, X], ids=["tensor", "lists"])
@pytest.mark.parametrize("named", ["x", "another"])
def test_a_model_of_onnx_is_executed_by_its_name(gateway: RunningGateway, x: object, named: str) -> None:
    result = gateway.execute(algorithm="onnx", inputs={named: x})
    assert (result["dtype"], result["data"]) == ("float32", (np.array(X, np.float32) @ WEIGHTS).tolist())


def test_a_model_says_which_inputs_it_takes(gateway: RunningGateway) -> None:
    for name in ("onnx", "exported"):
        answer = gateway.ask("POST", "/api/v1/python/execute", {"algorithm": name, "inputs": {"x": INPUT, "y": 1}})
        assert answer.status_code == 422
        assert "x" in answer.json()["error"]


FLAT = {"dtype": "float32", "shape": [3], "data": X[0]}
DOUBLE = {"dtype": "float64", "shape": [2, 3], "data": X}
WIDE = {"dtype": "float32", "shape": [2, 4], "data": [[1, 2, 3, 4]] * 2}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("exported", "and the model takes float32 of shape [2, 3]"),
        ("onnx", "and the model takes float32 of shape [any, 3]"),
    ],
)
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (FLAT, "float32 of shape [3]"),
        (DOUBLE, "float64 of shape [2, 3]"),
        (WIDE, "float32 of shape [2, 4]"),
    ],
    ids=["dimensions", "dtype", "sizes"],
)
def test_an_input_that_a_model_does_not_take_is_named_with_what_it_takes(
    gateway: RunningGateway, name: str, wanted: str, given: dict[str, Any], said: str
) -> None:
    answer = gateway.ask("POST", "/api/v1/python/execute", {"algorithm": name, "inputs": {"x": given}})
    assert answer.status_code == 422, answer.text
    assert f"the input 'x' {'of ' + repr(name) + ' ' if name == 'exported' else ''}is {said}, {wanted}" in answer.text
    assert "nothing is converted" in answer.text


def test_a_model_that_does_not_say_what_it_takes_is_answered_with_what_it_was_given(gateway: RunningGateway) -> None:
    answer = gateway.ask("POST", "/api/v1/python/execute", {"algorithm": "scripted", "inputs": {"x": DOUBLE}})
    assert answer.status_code == 422, answer.text
    assert "'scripted' was given x: float64 of shape [2, 3]" in answer.json()["error"]


def test_what_torch_save_writes_is_refused_with_the_way_to_convert(gateway: RunningGateway) -> None:
    error = listed(gateway)["saved"]["error"]
    assert error.startswith("saved/model.pt is refused")
    assert "safetensors.torch.save_model" in error
    put(gateway.folder / "models" / "saved", model__pt=pickle.dumps({}))
    answer = gateway.ask("POST", f"{MODELS}/saved")
    assert (answer.status_code, "safetensors.torch.save_model" in answer.json()["error"]) == (422, True)


@pytest.mark.parametrize("content", [bytes(range(1, 200)), b"x", b"PK\x03"], ids=["random", "short", "begun"])
def test_what_is_no_file_of_torch_at_all_is_not_called_a_pickle(gateway: RunningGateway, content: bytes) -> None:
    put(gateway.folder / "models" / "random", model__pt2=content)
    answer = gateway.ask("POST", f"{MODELS}/random")
    assert answer.status_code == 422, answer.text
    said = "random/model.pt2 is no archive, as torch.export.save and torch.jit.save write one; it may be incomplete"
    assert answer.json()["error"] == said


def test_a_damaged_model_is_found_out_before_it_is_served(gateway: RunningGateway) -> None:
    assert "no_onnx/model.onnx cannot be used" in listed(gateway)["no_onnx"]["error"]
    code, damaged = exported(), io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(code)) as whole, zipfile.ZipFile(damaged, "w") as archive:
        for name in whole.namelist():
            archive.writestr(name, b"x")
    put(gateway.folder / "models" / "exported" / "2", model__pt2=damaged.getvalue())
    answer = gateway.ask("POST", f"{MODELS}/exported")
    assert (answer.status_code, "exported/2/model.pt2" in answer.json()["error"]) == (422, True), answer.text
    assert listed(gateway)["exported"]["served"] == 1
    result = gateway.execute(algorithm="exported", inputs={"x": INPUT})
    assert np.allclose(result["data"], Linear()(torch.tensor(X)).detach().numpy())
    put(gateway.folder / "models" / "exported" / "3", model__pt2=exported(7))
    assert gateway.ask("POST", f"{MODELS}/exported").json()["served"] == 3
    result = gateway.execute(algorithm="exported", inputs={"x": INPUT})
    assert np.allclose(result["data"], Linear(7)(torch.tensor(X)).detach().numpy())


def test_a_kept_process_serves_one_subject_and_one_version(gateway: RunningGateway) -> None:
    def run(subject: str) -> list[float]:
        answer = gateway.ask("POST", "/api/v1/python/execute", {"algorithm": "counts"}, subject=subject)
        assert answer.status_code == 200, answer.text
        found: list[float] = answer.json()["result"]
        return found

    first = Linear().layer.bias[0].item()
    assert [run(each) for each in ("ada", "ada", "eve", "ada")] == [[1, first], [2, first], [1, first], [3, first]]
    put(gateway.folder / "models" / "counts" / "2", model__py=COUNTS)
    save_file(Linear(7).layer.state_dict(), gateway.folder / "models" / "counts" / "2" / "model.safetensors")
    assert gateway.ask("POST", f"{MODELS}/counts").json()["served"] == 2
    second = Linear(7).layer.bias[0].item()
    assert [run(each) for each in ("ada", "ada", "eve")] == [[1, second], [2, second], [1, second]]


def test_an_algorithm_of_kind_torch_gets_its_model_as_tensors(gateway: RunningGateway) -> None:
    code = (
        "import torch\ndef use(inputs):\n    m = inputs['model']\n    return inputs['x'] @ m['weight'].T + m['bias']\n"
    )
    gateway.register("use", code, kind="torch", model="source")
    result = gateway.execute(algorithm="use", inputs={"x": INPUT})
    assert np.allclose(result["data"], Linear()(torch.tensor(X)).detach().numpy())
    body = {"name": "no", "kind": "wasm", "wasm": "AGFzbQEAAAA=", "model": "source"}
    answer = gateway.ask("POST", "/api/v1/python/algorithms", body)
    assert (answer.status_code, "gets no model" in answer.json()["error"]) == (400, True)


def test_without_onnxruntime_a_model_of_onnx_names_its_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    put(folder / "m", model__onnx=onnx_of(WEIGHTS))
    boxes = Boxes(lambda key: Sandbox(key.kind, limits=key.limits), 1)
    loader = ModelLoader(str(folder), boxes, lambda _: Limits(), is_reused=False)
    with pytest.raises(MissingPackage, match=r"tr_mmap\[onnx\]"):
        loader.load(find_models(str(folder))["m"][1], lambda _: None)
    assert boxes.open_boxes() == []
