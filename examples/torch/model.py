"""Runs a model of torch contained: as a torch.export program, as a TorchScript model, and as Python source.

pip install 'tr_mmap[torch]'
python examples/torch/model.py
"""

import io
import warnings

import numpy as np
import torch

from tr_mmap.sandbox import Limits, Sandbox


class Scorer(torch.nn.Module):
    """Scores of three classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Probabilities, a row for each row of x."""
        return self.layer(x).softmax(1)


SOURCE = """
import torch

def process(inputs):
    x = inputs["x"]  # a torch tensor; a store into it changes this run's own copy
    return {"norm": torch.linalg.norm(x, dim=1)}
"""


def main() -> None:
    model, x = Scorer().eval(), torch.ones(2, 4)
    exported, scripted = io.BytesIO(), io.BytesIO()
    torch.export.save(torch.export.export(model, (x,)), exported)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.export is the newer way
        torch.jit.save(torch.jit.script(model), scripted)
    with Sandbox("torch", limits=Limits(memory_nbytes=1 << 30, wall_ms=30_000, cpu_ms=30_000)) as box:
        for name, code in (("exported", exported), ("scripted", scripted)):
            box.register(name, code.getvalue())
            scores = box.run(name, {"x": x}).outputs["output"]
            print(name, type(scores).__name__, torch.allclose(scores, model(x)))
        box.register("norms", SOURCE)
        norms = box.run("norms", {"x": np.ones((2, 4), np.float32)}).outputs["norm"]
        print("source", type(norms).__name__, norms.tolist())


if __name__ == "__main__":
    main()
