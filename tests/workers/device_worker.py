"""A worker whose tensors may be on another device. Its words: whether it has ``lazy``, and its option ``device``."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import lazy_device
import torch

from tr_mmap import Server, sender_device
from tr_mmap.shm import pool
from tr_mmap.tsr import devices

has_device, option = sys.argv[2:]
if has_device == "lazy":
    lazy_device.begin()
server = Server(framework="torch", device=None if option == "None" else option)


@server.command("where")
def where(*tensors):
    """Where each is now, and where its sender had it."""
    return " ".join(f"{each.device} {sender_device(each)} {float(each.sum())}" for each in tensors)


@server.command("make")
def make(count: int):
    return lazy_device.on_device(torch.ones(count)), torch.ones(count)


@server.command("pretend")
def pretend(count: int):
    """A tensor that is said to be on a device that nobody has."""
    pool.device_of = lambda _: "cuda:99"
    try:
        server.send_tensors(torch.ones(count))
    finally:
        pool.device_of = devices.device_of


if __name__ == "__main__":
    server.run()
