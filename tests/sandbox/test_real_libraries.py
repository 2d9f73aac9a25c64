"""Libraries that people use, contained: they compute what they compute here, with the usual system calls.

None of them is granted anything. What they need beyond the defaults is memory and time.
"""

from __future__ import annotations

import numpy as np
import pytest

from tr_mmap.sandbox import Limits, Sandbox

LIMITS = Limits(memory_nbytes=2 << 30, wall_ms=100_000, cpu_ms=100_000)

FIT = """
import numpy as np
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

def process(inputs):
    x, y = inputs["x"], inputs["y"]
    line = make_pipeline(StandardScaler(), PCA(3), LogisticRegression()).fit(x, y)
    forest = RandomForestClassifier(20, random_state=0, n_jobs=2).fit(x, y)
    return {"line": line.predict_proba(x), "forest": forest.predict(x), "weights": line[-1].coef_}
"""

CONVOLUTION = """
import torch

def process(inputs):
    x, w = (torch.tensor(inputs[name]) for name in ("x", "w"))
    w.requires_grad_()
    y = torch.nn.functional.conv2d(x, w, padding=1)
    torch.nn.functional.avg_pool2d(y, 2).square().mean().backward()
    return {"y": y, "gradient": w.grad}
"""

GROUP_BY = """
import numpy as np
import pandas as pd

def process(inputs):
    frame = pd.DataFrame({"key": inputs["key"], "value": inputs["value"]})
    frame["day"] = pd.Timestamp("2026-01-01") + pd.to_timedelta(frame["key"], unit="D")
    groups = frame.groupby("key")["value"].agg(["mean", "sum", "count"])
    by_month = frame.groupby(frame["day"].dt.month)["value"].sum()
    return {"groups": groups.to_numpy(), "keys": groups.index.to_numpy(), "months": by_month.to_numpy()}
"""

INPUTS = {
    "a scikit-learn fit": ("sklearn", FIT, {"x": ("normal", (300, 8)), "y": ("classes", (300,))}),
    "a torch convolution": ("torch", CONVOLUTION, {"x": ("normal", (2, 3, 32, 32)), "w": ("normal", (8, 3, 3, 3))}),
    "a pandas group-by": ("pandas", GROUP_BY, {"key": ("classes", (5000,)), "value": ("normal", (5000,))}),
}


def made(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    random = np.random.default_rng(len(shape))
    return random.integers(0, 3, shape) if kind == "classes" else random.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("what", INPUTS)
def test_a_real_library_computes_contained_what_it_computes_here(what: str) -> None:
    package, code, shapes = INPUTS[what]
    pytest.importorskip(package, reason=f"NOT TESTED: {what} in the sandbox ({package} is not installed)")
    inputs = {name: made(*shape) for name, shape in shapes.items()}
    namespace: dict[str, object] = {}
    exec(code, namespace)
    expected = namespace["process"](inputs)  # type: ignore[operator]
    with Sandbox(limits=LIMITS, preload=("numpy", package)) as box:
        assert {"seccomp", "landlock"} <= box.layers
        found = box.run(box.register("compute", code, "process"), inputs).outputs
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        value = value.detach().numpy() if hasattr(value, "detach") else value
        assert np.allclose(found[name], value, atol=1e-5), name
        assert np.asarray(found[name]).dtype == np.asarray(value).dtype, name


def test_a_library_that_was_not_imported_before_is_imported_contained() -> None:
    pytest.importorskip("pandas", reason="NOT TESTED: a pandas group-by in the sandbox (pandas is not installed)")
    _, code, shapes = INPUTS["a pandas group-by"]
    with Sandbox(limits=LIMITS) as box:
        found = box.run(box.register("compute", code, "process"), {n: made(*s) for n, s in shapes.items()}).outputs
        assert found["groups"].shape == (3, 3)
