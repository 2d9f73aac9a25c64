"""The extra ``[candle]``: ``import candle`` works contained, and its tensors are results."""

from __future__ import annotations

import numpy as np
import pytest

from tr_mmap.sandbox import AlgorithmError, Limits, Sandbox

pytest.importorskip("candle", reason="NOT TESTED: candle in the sandbox (candle-nn is not installed)")

CODE = """
import candle
from candle import Tensor

def process(inputs):
    x = Tensor(inputs["x"].tolist()).to_dtype(candle.f32)
    return {"product": x.matmul(x.t()), "scalar": x.sum_all(), "types": [
        str(x.to_dtype(each).dtype) for each in (candle.u8, candle.u32, candle.i64, candle.f16, candle.f32, candle.f64)
    ]}
"""


@pytest.fixture(scope="module")
def box():
    with Sandbox(limits=Limits(wall_ms=60_000, cpu_ms=60_000)) as box:
        yield box


def test_candle_computes_contained_and_its_tensors_are_results(box: Sandbox) -> None:
    x = np.arange(6.0).reshape(2, 3)
    found = box.run(box.register("candle", CODE, "process"), {"x": x}).outputs
    assert found["product"].dtype == np.float32
    assert np.array_equal(found["product"], x @ x.T)
    assert found["scalar"].shape == ()
    assert found["scalar"] == 15


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("u8", "uint8"), ("u32", "uint32"), ("i64", "int64"), ("f16", "float16"), ("bf16", "bfloat16"), ("f32", "float32"),
     ("f64", "float64")],
)  # fmt: skip
def test_a_tensor_keeps_its_type_and_shape(box: Sandbox, name: str, dtype: str) -> None:
    code = f"import candle\noutput = candle.Tensor([[[1.0, 2.0, 3.0]], [[4.0, 5.0, 6.0]]]).to_dtype(candle.{name})"
    found = box.execute(code).outputs["output"]
    assert str(found.dtype) == dtype
    assert found.astype(np.float64).tolist() == [[[1, 2, 3]], [[4, 5, 6]]]
    turned = box.execute(code + "\noutput = output.transpose(0, 2)").outputs["output"]
    assert turned.astype(np.float64).tolist() == [[[1, 4]], [[2, 5]], [[3, 6]]]


def test_a_tensor_within_a_value_is_an_error_by_name(box: Sandbox) -> None:
    with pytest.raises(AlgorithmError, match="a tensor inside of a value"):
        box.execute("import candle; output = [candle.Tensor([1.0])]")
