"""A worker that handles several requests at once. Driven by many_at_once.py."""

import asyncio
import threading

import numpy as np

from tr_mmap import RequestCancelled, Server

server = Server(threads=2)  # for the plain functions; an async def needs none of them
may_end = threading.Event()


@server.command("long")
def long():
    """Takes as long as another request says."""
    may_end.wait()
    return "the long one"


@server.command("end_long")
def end_long():
    may_end.set()


@server.command("train")
def train(epochs: int):
    """Says how far it is, and stops when nobody wants the result any more."""
    for epoch in range(epochs):
        if server.cancelled():
            raise RequestCancelled
        server.progress((epoch + 1) / epochs, f"epoch {epoch + 1}")
    return f"trained {epochs} epochs"


@server.command("train_for_ever")
def train_for_ever():
    while True:
        train(10)


@server.command("wait")
async def wait(number: int):
    """Hundreds of these wait at once, in one thread."""
    await asyncio.sleep(0.01)
    return str(number)


@server.command("fit")
def fit(points: np.ndarray, degree: int = 1):
    """Arguments by name, and an answer by name."""
    found = np.polyfit(points[:, 0], points[:, 1], degree)
    return {"coefficients": found, "degree": degree}


if __name__ == "__main__":
    server.run()
