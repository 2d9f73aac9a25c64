"""Many requests of one session at once: futures in the order of completion, progress, and a request that is cancelled.

This file is the controller and the worker.
"""

import sys
import time
from concurrent.futures import as_completed

import numpy as np

from tr_mmap import PythonSession, RequestCancelled, Server

server = Server(threads=2)


@server.command("mean")
def mean(x):
    return x.mean()


@server.command("train")
def train(epochs: int) -> str:
    for epoch in range(epochs):
        server.progress((epoch + 1) / epochs, f"epoch {epoch + 1}")
    return "trained"


@server.command("wait")
def wait() -> str:
    while not server.cancelled():
        time.sleep(0.001)
    raise RequestCancelled


def main() -> None:
    with PythonSession(__file__, max_in_flight=16) as session:
        images = [np.full((64, 64), number, np.float32) for number in range(100)]
        numbers = {session.submit("mean", image): number for number, image in enumerate(images)}  # waits at 16
        right = sum(future.result() == numbers[future] for future in as_completed(numbers))
        print("right means:", right, "of", len(numbers))

        reports = []
        trained = session.submit("train 3", on_progress=lambda fraction, text: reports.append(f"{fraction:.0%} {text}"))
        print(trained.result(), "after", reports[-1])

        slow = session.submit("wait", timeout_ms=None)
        quick = session.submit("mean", images[7])
        print("a slow one delays no quick one:", quick.result(), slow.done())
        while not slow.running():
            time.sleep(0.001)
        print("cancelled before its handler was called:", slow.cancel())
        while not slow.done():  # the handler sees it, and ends
            time.sleep(0.001)
        print("cancelled then:", slow.cancelled())


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run()
    else:
        main()
