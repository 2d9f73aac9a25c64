"""Images through workers with a model of torch, which each worker loads once; a worker that dies takes nothing with it.

This file is the controller and the worker. Needs torch.
"""

import os
import signal
import sys

import torch

from tr_mmap import Server, SessionPool

WORKERS = 4

server = Server(framework="torch")
model: list[torch.nn.Module] = []


@server.on_start
def load() -> None:
    """Before the first request: each worker has the same weights."""
    torch.manual_seed(19)
    torch.set_num_threads(1)  # the workers share the processors
    model.append(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10)).eval())


@server.command("classify")
@torch.inference_mode()
def classify(images):
    return model[0](images).argmax(1)


def main() -> None:
    load()
    batches = [torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(number)) for number in range(60)]
    expected = [classify(batch).tolist() for batch in batches]
    with SessionPool(__file__, WORKERS, retries=2, framework="torch") as pool:
        pool.wait_until_ready()
        labels = []
        for number, result in enumerate(pool.map("classify", batches)):
            labels.append(result.tolist())
            if number == 20:
                os.kill(pool.stats().workers[0].pid, signal.SIGKILL)  # as the system does when memory runs out
        print("right labels:", sum(a == b for a, b in zip(labels, expected, strict=True)), "of", len(batches))
        pool.wait_until_ready()
        stats = pool.stats()
        print("workers:", len(stats.workers), "died:", stats.died, "failed:", stats.failed)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run()
    else:
        main()
