"""torch.multiprocessing: queues whose tensors travel through shared memory, as its documentation shows."""

from __future__ import annotations

from multiprocessing.process import BaseProcess

import numpy as np

from .base import Array, Peer, end, missing, spawn

__all__ = ["TorchQueues"]


def _serve(requests, answers) -> None:
    while True:
        x = requests.get()
        if x is None:
            return
        answers.put(x + 1)


class TorchQueues(Peer):
    key = "torch"
    label = "torch.multiprocessing"
    payloads = 4

    def __init__(self) -> None:
        self._process: BaseProcess | None = None

    def unavailable(self) -> str | None:
        return missing("torch")

    def start(self, max_nbytes: int) -> None:  # noqa: ARG002
        import torch
        import torch.multiprocessing

        self._wrap = torch.from_numpy
        context = torch.multiprocessing.get_context("spawn")
        self._requests, self._answers = context.Queue(), context.Queue()
        self._process = spawn(_serve, self._requests, self._answers)
        self.roundtrip(np.zeros(1, np.float32))

    def roundtrip(self, x: Array) -> Array:
        self._requests.put(self._wrap(x))
        return self._answers.get().numpy()

    def close(self) -> None:
        if self._process is not None:
            self._requests.put(None)
            end(self._process)
            for queue in (self._requests, self._answers):
                queue.close()
                queue.join_thread()
            self._process = None
