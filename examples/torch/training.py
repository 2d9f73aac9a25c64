"""Trains a module here; a worker has its weights, without a copy of its own, and evaluates them meanwhile.

This file is the controller and the worker.

pip install 'tr_mmap[torch]'
python examples/torch/training.py
"""

import sys
from concurrent.futures import Future

import torch
from torch import nn

from tr_mmap import PythonSession, Server

SAMPLES = 1024


class WithoutDrift(nn.Module):
    """Takes the drift out of signals of 1024 samples, a row each. It has 4 MiB of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.drift = nn.Sequential(nn.Linear(SAMPLES, 512), nn.ReLU(), nn.Linear(512, SAMPLES))

    def forward(self, signals: torch.Tensor) -> torch.Tensor:
        return signals - self.drift(signals)


# -- the worker -------------------------------------------------------------------------------------------------------

server = Server(framework="torch")
with torch.device("meta"):  # parameters without memory: the weights come from the controller
    served = WithoutDrift().eval()


@server.command("load")
def load(*weights):
    """The tensors of a state_dict, in its order, become the parameters. They stay where the controller has put them."""
    served.load_state_dict(dict(zip(served.state_dict(), weights, strict=True)), assign=True)


@server.command("correct")
@torch.inference_mode()
def correct(signals):
    result = server.empty(signals.shape, signals.dtype)  # a loan, in which the controller reads the result
    return torch.sub(signals, served.drift(signals), out=result)


@server.command("evaluate")
@torch.inference_mode()
def evaluate(signals, expected):
    return nn.functional.mse_loss(served(signals), expected)


# -- the controller ---------------------------------------------------------------------------------------------------


def make_signals(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Signals that drift, and the same without the drift."""
    expected = 0.2 * torch.randn(count, SAMPLES)
    return expected + torch.sin(torch.linspace(0, 10, SAMPLES) * (1 + torch.rand(count, 1))), expected


def train(model: WithoutDrift, optimizer: torch.optim.Optimizer) -> None:
    """One epoch."""
    for _ in range(8):
        signals, expected = make_signals(64)
        loss = nn.functional.mse_loss(model(signals), expected)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def send_weights(session: PythonSession, model: nn.Module) -> Future:
    """Under the names that they have in the module. The worker keeps the earlier ones until it loads these."""
    weights = model.state_dict()
    for name, tensor in weights.items():
        session.send_tensor(tensor, name)
    return session.submit(f"load {' '.join(weights)}")


def main() -> None:
    torch.manual_seed(0)
    model = WithoutDrift()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    signals, expected = make_signals(128)  # to evaluate with

    with PythonSession(__file__, framework="torch") as session:
        session.send_tensor(signals, "signals")  # once, for all evaluations
        session.send_tensor(expected, "expected")
        loads, answers, own_losses = [], [], []
        for _ in range(5):
            train(model, optimizer)
            loads.append(send_weights(session, model))
            answers.append(session.submit("evaluate signals expected"))  # while the next epoch is trained here
            own_losses.append(nn.functional.mse_loss(model(signals), expected).item())
        for loaded in loads:
            loaded.result()  # raises if the worker could not load them
        losses = [answer.result().item() for answer in answers]
        print("losses:", " ".join(f"{loss:.2f}" for loss in losses))
        print("each with its own weights:", torch.allclose(torch.tensor(losses), torch.tensor(own_losses)))

        copied, right = session.stats().copied_nbytes, 0
        for _ in range(8):  # batches: each is written where the worker reads it
            batch = session.empty((128, SAMPLES))
            torch.add(signals, 0.1 * torch.randn(128, 1), out=batch)
            result = session.calculate("correct", batch)
            right += torch.allclose(result, model(batch), atol=1e-5)
        print("right batches:", right, "copied:", session.stats().copied_nbytes - copied, "bytes")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run()
    else:
        main()
