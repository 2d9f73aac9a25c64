"""What it costs to have a module in a worker: batches and weights, beside the same module here, and a torch queue.

The ways take turns, in another order each time, each with one thread. A batch is filled anew, and the result is read.
Prints medians in ms.

pip install 'tr_mmap[torch]'
python examples/torch/module_costs.py 200      # rounds; 20 if left out
"""

import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from training import SAMPLES, WithoutDrift, send_weights

from tr_mmap import PythonSession


def time_in_turns(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median of each way, in ms."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 3):  # three to warm up
        for name, way in random.sample(list(ways.items()), len(ways)):
            began = time.perf_counter()
            way()
            if number >= 3:
                times[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(each) for name, each in times.items()}


@torch.inference_mode()
def serve(requests, answers) -> None:
    """The process at the other end of the queues: it answers batches, and loads state_dicts."""
    torch.set_num_threads(1)
    model = WithoutDrift().eval()
    while (given := requests.get()) is not None:
        if isinstance(given, dict):
            model.load_state_dict(given, assign=True)
            answers.put("ok")
        else:
            answers.put(model(given))


def measure(session: PythonSession, requests, answers, rounds: int) -> None:
    torch.manual_seed(0)
    model, data = WithoutDrift().eval(), torch.randn(512, SAMPLES)

    @torch.inference_mode()
    def here(count: int) -> None:
        float(model(data[torch.randperm(512)[:count]])[-1, -1])

    def copied(count: int) -> None:
        float(session.calculate("correct", data[torch.randperm(512)[:count]])[-1, -1])

    def loaned(count: int) -> None:
        batch = session.empty((count, SAMPLES))
        torch.index_select(data, 0, torch.randperm(512)[:count], out=batch)
        float(session.calculate("correct", batch)[-1, -1])

    def queued(count: int) -> None:
        requests.put(data[torch.randperm(512)[:count]])
        float(answers.get()[-1, -1])

    def send() -> None:
        send_weights(session, model).result()

    def queue() -> None:
        requests.put(model.state_dict())
        answers.get()

    print(f"{'':<24}{'here':>10}{'loaned':>10}{'copied':>10}{'queues':>10}")
    found = time_in_turns({"loaned": send, "queues": queue}, rounds)
    print(f"{'new weights, 4 MiB':<34}{found['loaned']:>10.2f}{'':>10}{found['queues']:>10.2f}")
    for count in (1, 32, 512):
        ways = {"here": here, "loaned": loaned, "copied": copied, "queues": queued}
        found = time_in_turns({name: lambda way=way, n=count: way(n) for name, way in ways.items()}, rounds)
        title = f"{count} x {SAMPLES}, {count * SAMPLES * 4 >> 10} KiB"
        print(f"{title:<24}" + "".join(f"{each:>10.2f}" for each in found.values()))


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    torch.set_num_threads(1)
    context = torch.multiprocessing.get_context("spawn")
    requests, answers = context.Queue(), context.Queue()
    process = context.Process(target=serve, args=(requests, answers))
    process.start()
    worker = Path(__file__).with_name("training.py")
    try:
        with PythonSession(worker, "costs", framework="torch", env={"OMP_NUM_THREADS": "1"}) as session:
            measure(session, requests, answers, rounds)
    finally:
        requests.put(None)
        process.join()


if __name__ == "__main__":
    main()
