"""A worker by decorator: plain functions of tensors. Driven by decorator.py."""

import numpy as np

from tr_mmap import Server

server = Server(framework="numpy")
total = 0.0  # a worker's state lives as long as the worker


@server.command("scale")
def scale(values, factor: float):
    """One tensor back. ``factor`` is annotated as a number, so it is a word of the message and not a tensor's tag."""
    return values * np.float32(factor)


@server.command("extremes")
def extremes(values):
    """Several tensors back."""
    return values.min(axis=0), values.max(axis=0)


@server.command("describe")
def describe(values, name: str):
    """A text back."""
    return f"{name}: {values.dtype} {values.shape}"


@server.command("count")
def count(values):
    """Nothing back but that it is done."""
    global total
    total += float(values.sum())


@server.command("total")
def report():
    """No tensors in."""
    return f"{total:g}"


if __name__ == "__main__":
    server.run()
