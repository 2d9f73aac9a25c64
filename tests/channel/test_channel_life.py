"""How ends of channels come and go, and what two processes make of one."""

from __future__ import annotations

from pathlib import Path

import pytest
from channel_ends import Ends, Peer, rest
from support import BOUND_S, check_open_files, never, open_files

from tr_mmap.channel import mapped
from tr_mmap.channel.files import PollRate
from tr_mmap.channel.interface import Channel
from tr_mmap.channel.kinds import channel_kind
from tr_mmap.channel.mapped import MappedChannel
from tr_mmap.protocol.messages import Request, Response, decode_response
from tr_mmap.protocol.status import Status


def test_a_closed_end_can_be_closed_and_woken_again(ends: Ends) -> None:
    for end in (ends.worker, ends.controller):
        for _ in range(2):
            end.close()
            end.unlink()
            end.wake()  # by a watch or a thread that did not know yet


def test_an_end_outlives_the_other(ends: Ends) -> None:
    ends.worker.close()
    sent = ends.ask(1, "x")
    ends.controller.ring()
    assert ends.controller.receive(1.0, never) is None
    assert ends.controller.read_status().status is Status.STARTING
    del sent


def test_channels_keep_a_descriptor_of_each_mirror_and_no_other(kind: str, tmp_path: Path) -> None:
    before = open_files()
    controller = channel_kind(kind).create(str(tmp_path))
    worker = channel_kind(kind).attach(str(tmp_path), controller.doorbells)
    controller.send(Request(1, "x", "p" * 100_000))
    assert worker.receive(0, never) is not None
    worker.write_status(Status.OK)
    worker.send(Response(1, "x"))
    assert controller.receive(0, never) is not None
    rest(controller, worker)
    assert (open_files() - before).total() == (
        5 if kind == "mapped" else 0
    )  # the controller does not write the response
    worker.close()
    controller.close()
    check_open_files(before)


ECHO = """
import sys
from tr_mmap.channel.kinds import channel_kind
from tr_mmap.channel import mapped
from tr_mmap.channel.files import PollRate
from tr_mmap.protocol.messages import Response, decode_request
mapped.WAIT_SLICE_S = 0.001
PollRate.FIRST_MS = 1.0
kind, directory, count, *doorbells = sys.argv[1:]
channel = channel_kind(kind).attach(directory, doorbells)
for number in range(1, int(count) + 1):
    request = decode_request(channel.receive(None, lambda: False))
    assert request.seq == number and request.parameters == f"{number}," * (number % 50), request
    channel.send(Response(number, request.command, request.parameters))
assert channel.receive(0, lambda: False) is None
channel.close()
"""

# Takes rings that were meant for others, gives them back late, twice, or not at all.
GREMLIN = """
import random, sys
import posix_ipc
bells = [posix_ipc.Semaphore(name) for name in sys.argv[2:]]
rng = random.Random(int(sys.argv[1]))
held = []
print("up", flush=True)
while True:
    bell = rng.choice(bells)
    try:
        bell.acquire(0.002)
    except posix_ipc.BusyError:
        continue
    what = rng.choice(["drop", "late", "late", "more"])
    if what == "more":
        bell.release(), bell.release()
    for each in held:
        each.release()
    held = [bell] if what == "late" else []
"""


def exchange(controller: Channel, count: int) -> None:
    for number in range(1, count + 1):
        text = f"{number}," * (number % 50)
        controller.send(Request(number, "echo", text))
        raw = controller.receive(1000 * BOUND_S, never)
        assert raw is not None
        assert decode_response(raw) == Response(number, "echo", text)
        assert controller.receive(0, never) is None


def test_two_processes_lose_nothing(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PollRate, "FIRST_MS", 1.0)
    count = 500 if kind == "mapped" else 20
    controller = channel_kind(kind).create(str(tmp_path))
    with Peer(ECHO, kind, tmp_path, count, *controller.doorbells):
        exchange(controller, count)
    controller.close()


@pytest.mark.parametrize("seed", [1, 2])
def test_doorbells_that_a_stranger_rings_and_steals_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(mapped, "WAIT_SLICE_S", 0.001)  # what a stolen ring costs
    controller = MappedChannel.create(str(tmp_path))
    gremlin = Peer(GREMLIN, seed, *controller.doorbells)
    try:
        gremlin.wait_up()  # it has the doorbells open, so it needs no names
        with Peer(ECHO, "mapped", tmp_path, 2000, *controller.doorbells):
            exchange(controller, 2000)
        assert gremlin.popen.poll() is None
    finally:
        gremlin.kill()
        controller.close()
