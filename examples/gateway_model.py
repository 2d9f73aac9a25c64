"""Serves a PyTorch model over HTTP: exported, or as its weights with code. Then a new version takes its place.

pip install '.[gateway,torch]' safetensors
python examples/gateway_model.py
"""

import contextlib
import json
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

CONFIGURATION = """
[server]
port = 0                 # one that is free; the default is 3000
[auth]
key_file = "tr_mmap.key"
[python.models]
model_dir = "models"
[sandbox]
memory_mb = 1024
wall_ms = 30000
cpu_ms = 30000
"""

MODEL_PY = """
import torch

def forward(inputs):
    weights = inputs["model"]  # tensors by name, in shared memory
    return torch.nn.functional.linear(inputs["x"], weights["layer.weight"], weights["layer.bias"]).softmax(1)
"""


class Scorer(torch.nn.Module):
    """Scores of three classes."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Probabilities, a row for each row of x."""
        return self.layer(x).softmax(1)


def export(model: Scorer, folder: Path) -> None:
    """One file that has the whole model."""
    folder.mkdir(parents=True)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model.eval(), (torch.ones(2, 4),), dynamic_shapes={"x": {0: batch}})
    torch.export.save(program, folder / "model.pt2")


def save_weights(model: Scorer, folder: Path) -> None:
    """The weights, and code that uses them."""
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(MODEL_PY)
    save_file(model.state_dict(), folder / "model.safetensors")


@contextlib.contextmanager
def gateway(configuration: Path) -> Iterator[tuple[str, str]]:
    """A gateway that runs: where, and a token for it."""
    command = [sys.executable, "-m", "tr_mmap"]
    made = subprocess.run(
        [*command, "token", "--config", configuration, "--scope", "admin"], capture_output=True, text=True, check=True
    )
    process = subprocess.Popen([*command, "serve", "--config", configuration], stderr=subprocess.PIPE, text=True)
    try:
        lines = iter(process.stderr)
        url = next(match[1] for line in lines if (match := re.match(r"serving on (\S+);", line)))
        yield url, made.stdout.split()[-1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


def ask(url: str, token: str, path: str, body: object = None) -> Any:
    """The answer to a request."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/api/v1/python/{path}", data, {"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def main() -> None:
    first, second = Scorer(1), Scorer(2)
    x = torch.arange(8.0).reshape(2, 4) / 8
    inputs = {"x": {"dtype": "float32", "shape": list(x.shape), "data": x.tolist()}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tr_mmap.toml").write_text(CONFIGURATION)
        export(first, folder / "models" / "exported" / "1")
        save_weights(first, folder / "models" / "scorer" / "1")
        with gateway(folder / "tr_mmap.toml") as (url, token):
            for each in ask(url, token, "models")["models"]:
                print(each["name"], "version", each["served"], each["format"], each["state"])

            def is_right(algorithm: str, model: Scorer) -> bool:
                result = ask(url, token, "execute", {"algorithm": algorithm, "inputs": inputs})["result"]
                return torch.allclose(torch.tensor(result["data"]), model(x))

            print("exported is right:", is_right("exported", first))
            print("weights and code are right:", is_right("scorer", first))
            save_weights(second, folder / "models" / "scorer" / "2")
            print("now version", ask(url, token, "models/scorer", {})["served"])  # or it is found within 60 s
            print("the new one is right:", is_right("scorer", second))


if __name__ == "__main__":
    main()
