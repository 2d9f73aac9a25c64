"""Loads the model once, then answers "predict" for as long as the session lives."""

import faulthandler

if __name__ == "__main__":
    faulthandler.dump_traceback_later(300, exit=True)  # a start that hangs ends, and WorkerDied says where

import torch
from torch import nn

from tr_mmap import Server

server = Server(framework="torch")
device = "cuda" if torch.cuda.is_available() else "cpu"


def load_model() -> nn.Module:
    """Yours: build the network, and load its weights with torch.load(path)."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


@server.command("predict")
@torch.inference_mode()
def predict(images):  # float32, shape (n, 8, 8)
    return model(images.to(device)).softmax(1).cpu()


if __name__ == "__main__":
    model = load_model().eval().to(device)
    faulthandler.cancel_dump_traceback_later()
    print("model loaded on", device)  # goes to the controller's stderr
    server.run()  # only now is the worker ready: no request waits for the weights
