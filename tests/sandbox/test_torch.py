"""Kind "torch": source on torch tensors, torch.export programs and TorchScript models, and who gets what back."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tr_mmap.sandbox import AlgorithmError, Bundle, LimitExceeded, Limits, NotAllowed, Sandbox

torch = pytest.importorskip("torch", reason="NOT TESTED: kind 'torch' of the sandbox (torch is not installed)")

X = torch.arange(8, dtype=torch.float32).reshape(2, 4)
LIMITS = Limits(memory_nbytes=1 << 30, wall_ms=60_000, cpu_ms=60_000)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return torch.relu(self.layer(x)) * scale


class Two(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return a - b, a.sum()


class Named(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"double": 2 * x, "sum": x.sum()}


class Stores(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        return x


_exported: dict[type, bytes] = {}  # by the model's class; one takes up to a second


def exported(model: torch.nn.Module, *arguments: torch.Tensor, **options: object) -> bytes:
    if type(model) in _exported and not options:
        return _exported[type(model)]
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(model.eval(), arguments, **options), buffer)
    if not options:
        _exported[type(model)] = buffer.getvalue()
    return buffer.getvalue()


def scripted(model: torch.nn.Module, *_: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(model.eval()), buffer)
    return buffer.getvalue()


FORMS = pytest.mark.parametrize("save", [exported, scripted])


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox("torch", limits=LIMITS) as box:
        yield box


# -- models -----------------------------------------------------------------------------------------------------------


@FORMS
@pytest.mark.parametrize("reuse", [False, True])
def test_a_model_given_as_bytes_runs(box: Sandbox, save: object, reuse: bool) -> None:
    algorithm = box.register("model", save(Model(), X), reuse=reuse)
    assert algorithm.function == "forward"
    for _ in range(3):
        y = box.run(algorithm, {"x": X}).outputs["output"]
        assert torch.allclose(y, Model()(X))
        assert not y.requires_grad
    assert torch.allclose(box.call(algorithm, "forward", X), Model()(X))


@FORMS
def test_inputs_go_to_parameters_by_name_or_in_their_order(box: Sandbox, save: object) -> None:
    a, b = torch.ones(3), torch.full((3,), 5.0)
    algorithm = box.register("two", save(Two(), a, b), outputs=("difference", "sum"))
    for inputs in ({"a": a, "b": b}, {"b": b, "a": a}, {"left": a, "right": b}):
        found = box.run(algorithm, inputs).outputs
        assert found["difference"].tolist() == [-4, -4, -4]
        assert found["sum"].item() == 3
    with pytest.raises(AlgorithmError, match="no input right; it has a, b") as caught:
        box.run(algorithm, {"a": a, "right": b})
    assert caught.value.type == "TypeError"
    with pytest.raises(AlgorithmError, match=r"^the inputs of 'two' are a, b; b is missing$"):
        box.run(algorithm, {"a": a})
    with pytest.raises(AlgorithmError, match=r"^the inputs of 'two' are a, b; a, b are missing$"):
        box.run(algorithm, {})
    for wrong in ([1.0, 2.0], 3):
        with pytest.raises(AlgorithmError, match=r"^the input 'b' of 'two' is no tensor, and has to be one"):
            box.run(algorithm, {"a": a, "b": wrong})


class OtherSelf(torch.nn.Module):
    def forward(me, x: torch.Tensor) -> torch.Tensor:  # noqa: N805 - the promise is that this works
        return x + 1


@FORMS
def test_the_module_itself_is_no_input_whatever_it_is_called(box: Sandbox, save: object) -> None:
    algorithm = box.register("other", save(OtherSelf(), X))
    assert box.run(algorithm, {"anything": X}).outputs["output"].tolist() == (X + 1).tolist()
    with pytest.raises(AlgorithmError, match=r"^the inputs of 'other' are x; x is missing$"):
        box.run(algorithm, {})


@FORMS
def test_results_have_names(box: Sandbox, save: object) -> None:
    a = torch.ones(3)
    found = box.run(box.register("two", save(Two(), a, a)), {"a": a, "b": a}).outputs
    assert list(found) == ["output_0", "output_1"]
    found = box.run(box.register("named", save(Named(), a)), {"x": a}).outputs
    assert found["double"].tolist() == [2, 2, 2]
    assert found["sum"].item() == 3


def test_a_value_is_a_parameter_too(box: Sandbox) -> None:
    y = box.run(box.register("model", scripted(Model())), {"x": X, "scale": 2.0}).outputs["output"]
    assert torch.allclose(y, 2 * Model()(X))


def test_another_method_of_a_model_is_called(box: Sandbox) -> None:
    class Methods(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

        @torch.jit.export
        def triple(self, x: torch.Tensor) -> torch.Tensor:
            return 3 * x

    code = scripted(Methods())
    assert box.call(box.register("methods", code), "triple", X).equal(3 * X)
    assert box.run(box.register("methods", code, "triple"), {"x": X}).outputs["output"].equal(3 * X)
    with pytest.raises(AlgorithmError, match="no method 'missing'"):
        box.call("methods", "missing", X)


def test_a_model_that_was_exported_for_any_batch_runs_on_any(box: Sandbox) -> None:
    batch = torch.export.Dim("batch", min=2)
    code = exported(Model(), X, dynamic_shapes={"x": {0: batch}})
    assert box.run(box.register("model", code), {"x": torch.ones(7, 4)}).outputs["output"].shape == (7, 3)
    with pytest.raises(AlgorithmError):
        box.run("model", {"x": torch.ones(7, 5)})


# -- what is no model -------------------------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self) -> object:
        return print, ("unpickled",)


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_pickles_and_other_archives_are_refused_with_what_to_give(box: Sandbox) -> None:
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("a.txt", "x")
    for code in (saved(Bomb()), saved(Model().state_dict()), pickle.dumps(Bomb()), other.getvalue(), b"PK\3\4 damaged"):
        with pytest.raises(AlgorithmError) as caught:
            box.register("model", code)
        assert caught.value.type == "NotAModel"
    with pytest.raises(AlgorithmError, match=r"torch\.export\.save"):
        box.register("model", saved(Bomb()))


@FORMS
def test_a_damaged_model_is_an_error_of_the_algorithm(box: Sandbox, save: object) -> None:
    code, random = save(Model(), X), np.random.default_rng(3)
    for _ in range(8):
        data = bytearray(code)
        for at in random.integers(0, len(code), 20):
            data[at] = random.integers(256)
        try:
            box.run(box.register("damaged", bytes(data)), {"x": X})
        except (AlgorithmError, LimitExceeded, NotAllowed):
            pass
    assert torch.allclose(box.run(box.register("model", code), {"x": X}).outputs["output"], Model()(X))


# -- Python source ----------------------------------------------------------------------------------------------------


def test_source_gets_torch_tensors(box: Sandbox) -> None:
    code = (
        "import torch\ndef process(inputs):\n  return {n: [type(t).__name__, str(t.dtype)] for n, t in inputs.items()}"
    )
    inputs = {"a": X, "b": np.zeros(3, np.int16), "c": torch.zeros(2, dtype=torch.bfloat16), "d": np.array(True)}
    found = box.run(box.register("types", code), inputs).outputs
    assert found == {
        "a": ["Tensor", "torch.float32"], "b": ["Tensor", "torch.int16"], "c": ["Tensor", "torch.bfloat16"],
        "d": ["Tensor", "torch.bool"],
    }  # fmt: skip
    assert box.execute("output = inputs['n'] + 1", {"n": 2}).outputs == {"output": 3}


@pytest.mark.parametrize("reuse", [False, True])
def test_a_collection_looks_at_nothing_that_was_there_before_the_runs(box: Sandbox, reuse: bool) -> None:
    """Torch is of some 300,000 objects: to look at them takes longer than most runs, and copies their pages."""
    code = (
        "import gc, sys\n"
        "def process(inputs):\n"
        "    if not hasattr(sys, 'kept'): sys.kept = [[] for _ in range(50_000)]\n"
        "    return len(gc.get_objects())"
    )
    algorithm = box.register("count", code, reuse=reuse)
    counts = [box.run(algorithm).outputs["output"] for _ in range(3)]
    assert 50_000 <= counts[0] < 60_000
    if reuse:
        assert max(counts[1:]) < 10_000  # nor at what its first run has left


@pytest.mark.parametrize("reuse", [False, True])
def test_a_store_into_an_input_changes_the_runs_own_copy(box: Sandbox, reuse: bool) -> None:
    code = (
        "def process(inputs):\n  inputs['x'].add_(1)\n  inputs['l'].mul_(0)\n  return {'y': inputs['x'] + inputs['l']}"
    )
    algorithm = box.register("stores", code, reuse=reuse)
    lent = box.empty(8, np.float32)
    lent[:] = 3
    for number in range(4):
        x = torch.full((8,), float(number))
        assert box.run(algorithm, {"x": x, "l": lent}).outputs["y"].tolist() == [number + 1.0] * 8
        assert x.tolist() == [number] * 8
        assert lent.tolist() == [3] * 8


@FORMS
def test_a_model_that_stores_into_its_input_changes_its_own_copy(box: Sandbox, save: object) -> None:
    x = torch.zeros(5)
    assert box.run(box.register("stores", save(Stores(), x.clone())), {"x": x}).outputs["output"].tolist() == [1] * 5
    assert x.tolist() == [0] * 5


@pytest.fixture(scope="module")
def small_box() -> Iterator[Sandbox]:
    with Sandbox("torch", limits=Limits(memory_nbytes=100 << 20, wall_ms=60_000, cpu_ms=60_000)) as box:
        yield box


def test_inputs_count_for_no_limit_however_large_and_memory_does(small_box: Sandbox) -> None:
    algorithm = small_box.register("sum", "def process(inputs): return float(inputs['x'].sum())", reuse=True)
    x = np.ones(40 << 20, np.float32)
    for _ in range(2):
        assert small_box.run(algorithm, {"x": x}).outputs["output"] == x.size
    for code in (
        "import torch; output = torch.ones(120 << 20, dtype=torch.uint8)",
        "output = bytearray(120 << 20)",
    ):
        with pytest.raises((LimitExceeded, AlgorithmError), match="memory") as caught:
            small_box.execute(code)
        assert isinstance(caught.value, LimitExceeded), caught.value.type
        assert caught.value.limit == "memory_nbytes"


def test_memory_that_inputs_do_not_fill_is_not_the_algorithms(small_box: Sandbox, tmp_path: Path) -> None:
    """What the sandbox keeps of a former run is larger than these inputs, and so is the file of the last one."""
    with open(tmp_path / "large", "wb") as file:
        file.truncate(400 << 20)
    take = small_box.register(
        "take", "import torch\ndef process(i): return float(torch.ones(200 << 20, dtype=torch.int8)[-1])"
    )
    small_box.execute("output = 1", {"x": np.zeros(320 << 20, np.uint8)})
    inputs = [np.zeros(size << 20, np.uint8) for size in (84, 88, 92, 96)]
    for x in [*inputs, np.memmap(tmp_path / "large", np.uint8, "r", shape=(4 << 20,))]:
        with pytest.raises(LimitExceeded, match="memory"):
            small_box.run(take, {"x": x})


# -- bundles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reuse", [False, True])
def test_a_bundle_is_tensors_by_name_and_a_store_changes_the_runs_own_copy(box: Sandbox, reuse: bool) -> None:
    code = """
import torch
def process(inputs):
    weight = inputs["model"]["weight"]
    weight.add_(1)
    return {"y": inputs["x"] @ weight, "kinds": [type(each).__name__ for each in inputs["model"].values()]}
"""
    bundle = Bundle({"weight": torch.zeros(4, 2), "bias": np.ones(2)})
    algorithm = box.register("bundled", code, reuse=reuse)
    for _ in range(3):
        response = box.run(algorithm, {"x": X, "model": bundle})
        assert response.outputs["y"].tolist() == (X @ torch.ones(4, 2)).tolist()
        assert response.outputs["kinds"] == ["Tensor", "Tensor"]
        assert response.input_places["model"] == "in place"


@FORMS
def test_a_model_may_lie_in_a_bundle_and_is_opened_as_it_is_registered(box: Sandbox, save: object) -> None:
    code = save(Model(), X)
    as_array = np.frombuffer(code, np.uint8)
    for reuse in (False, True):
        algorithm = box.register("bundled", Bundle({"model": as_array}), reuse=reuse)
        for _ in range(2):
            response = box.run(algorithm, {"x": X})
            assert torch.allclose(response.outputs["output"], Model()(X))
            assert response.copied_nbytes == X.nbytes
    with zipfile.ZipFile(io.BytesIO(code)) as whole:
        damaged = io.BytesIO()
        with zipfile.ZipFile(damaged, "w") as archive:
            for name in whole.namelist():
                archive.writestr(name, b"x")
    box.register("damaged", damaged.getvalue())  # the control: by its names it is a model
    with pytest.raises(AlgorithmError):
        box.register("damaged", Bundle({"model": np.frombuffer(damaged.getvalue(), np.uint8)}))


# -- results ----------------------------------------------------------------------------------------------------------


def test_results_are_of_the_callers_framework(box: Sandbox) -> None:
    algorithm = box.register("double", "def process(inputs): return {'y': inputs['x'] * 2, 'n': 3}")
    for x, kind in ((X, torch.Tensor), (X.numpy(), np.ndarray)):
        found = box.run(algorithm, {"x": x}).outputs
        assert isinstance(found["y"], kind)
        assert np.array_equal(np.asarray(found["y"]), 2 * X.numpy())
        assert found["n"] == 3
    assert isinstance(box.call(box.register("f", "def f(x): return x"), "f", X), torch.Tensor)
    assert isinstance(box.call("f", "f", X.numpy()), np.ndarray)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.int64, torch.complex64])
def test_results_keep_their_type(box: Sandbox, dtype: torch.dtype) -> None:
    x = torch.tensor([[0, 1], [1, 0]]).to(dtype)
    y = box.call(box.register("f", "def f(x): return x.T"), "f", x)
    assert y.dtype == dtype
    assert torch.equal(y, x.T)


def test_a_caller_may_store_into_results_and_nobody_sees_it() -> None:
    code = "import torch\ndef process(inputs): return {'y': torch.ones(200_000), 'empty': torch.ones(0, 3)}"
    results: list[torch.Tensor] = []
    expected = [200_000.0 * number for number in range(6)] * 2
    with Sandbox("torch", limits=LIMITS) as box:
        for reuse in (False, True):
            algorithm = box.register("ones", code, reuse=reuse)
            for number in range(6):
                found = box.run(algorithm, {"x": X}).outputs
                assert (found["y"] == 1).all()
                assert found["empty"].shape == (0, 3)
                results.append(found["y"].mul_(number))
        assert [each.sum().item() for each in results] == expected
    assert [each.sum().item() for each in results] == expected


def test_gradients_and_random_numbers_work(box: Sandbox) -> None:
    code = "import torch\nw = torch.ones(4, requires_grad=True)\n(inputs['x'] @ w).sum().backward()\noutput = w.grad"
    assert box.execute(code, {"x": X}).outputs["output"].tolist() == X.sum(0).tolist()
    drawn = [box.execute("import torch; output = float(torch.rand(()))").outputs["output"] for _ in range(3)]
    assert len(set(drawn)) == 3


# -- the package ------------------------------------------------------------------------------------------------------


def test_without_torch_the_package_works_and_the_kind_names_its_extra() -> None:
    program = """if True:
        import sys
        sys.modules["torch"] = None
        import tr_mmap.sandbox
        from tr_mmap.errors import MissingPackage
        for options in ({"kind": "torch"}, {"preload": ("numpy", "torch")}):
            try:
                tr_mmap.sandbox.Sandbox(**options)
            except MissingPackage as error:
                assert error.package == "torch", error
                assert "kind" not in options or "tr_mmap[torch]" in str(error), error
            else:
                raise SystemExit("no error")
    """
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_host_does_not_import_torch_if_its_caller_does_not() -> None:
    program = f"""if True:
        import sys
        import numpy as np
        from tr_mmap.sandbox import Limits, Sandbox
        with Sandbox("torch", limits=Limits(memory_nbytes=1 << 30, wall_ms=60_000, cpu_ms=60_000)) as box:
            box.register("model", {scripted(Named())!r})
            found = box.run("model", {{"x": np.ones(3, np.float32)}}).outputs["double"]
            assert type(found) is np.ndarray and found.tolist() == [2, 2, 2], found
        assert "torch" not in sys.modules
    """
    subprocess.run([sys.executable, "-"], input=program.encode(), check=True)
