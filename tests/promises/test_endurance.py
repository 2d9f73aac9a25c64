"""What must stay right however long it goes on: views, forks of viewers, and rings that come late, twice or never."""

from __future__ import annotations

import gc
import os
import random
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import TOOLS, check_open_files, forks, open_files

from tr_mmap import PythonSession, native
from tr_mmap.channel import mapped
from tr_mmap.channel.doorbell import Doorbell
from tr_mmap.channel.mapped import MappedChannel
from tr_mmap.controller import futures
from tr_mmap.controller.fast_path import Traffic, controller_fast_path
from tr_mmap.controller.turn import Turn
from tr_mmap.native import drain
from tr_mmap.protocol.messages import Request, Response, TensorRef, decode_request, decode_response
from tr_mmap.protocol.status import Status
from tr_mmap.shm.pool import SegmentPool
from tr_mmap.shm.reader import SegmentReader
from tr_mmap.shm.segment import Segment
from tr_mmap.transfer.options import TransferOptions
from tr_mmap.transfer.segments import SegmentControllerTransfer, SegmentWorkerTransfer
from tr_mmap.wire.messages import BELL_FILE
from tr_mmap.worker.fast_path import worker_fast_path

# -- views -----------------------------------------------------------------------------------------------------------


class Stream:
    """A pool, a receiver, and views with their checksums."""

    def __init__(self, directory: Path, framework: str) -> None:
        self.random = random.Random(1)
        self.pool = SegmentPool(str(directory), "segment")
        self.receiver = SegmentReader(str(directory))
        self.framework = framework
        self.views: list[tuple[Any, int]] = []
        self._published: Segment | None = None

    def publish(self, number: int) -> None:
        """Another tensor, and a view of it."""
        count = self.random.choice([500, 1000, 8000])  # three size classes, so that segments go round
        x = np.arange(number, number + count, dtype=np.int64)
        if self._published is not None:
            self._published.release()
        self._published = segment = self.pool.publish(x)
        view = self.receiver.receive(segment.name, segment.seq, self.framework)
        self._last = (view, zlib.crc32(x))

    def keep(self, limit: int) -> None:
        """Keep the last view, in the place of another if there are that many."""
        if len(self.views) < limit:
            self.views.append(self._last)
        else:
            self.views[self.random.randrange(limit)] = self._last

    def wrong(self) -> int:
        return sum(zlib.crc32(np.asarray(view)) != crc for view, crc in self.views)

    def close(self) -> None:
        self.views.clear()
        self.receiver.close()
        self.pool.close()


@pytest.fixture(params=["numpy", "torch"])
def stream(request: pytest.FixtureRequest, workspace: Path) -> Iterator[Stream]:
    directory = workspace / "stream"
    directory.mkdir()
    made = Stream(directory, request.param)
    yield made
    made.close()
    shutil.rmtree(directory)


def in_a_child(work: Callable[[], bool]) -> Callable[[], None]:
    """Fork; the child waits to be told, works, and ends. Returns what tells it, and fails unless the work was good."""
    ear, mouth = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(mouth)
            os.read(ear, 1)
            code = 0 if work() else 2
        finally:
            os._exit(code)
    os.close(ear)

    def tell() -> None:
        os.write(mouth, b".")  # closing it is not enough: a later child has it too
        os.close(mouth)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    return tell


@forks
@pytest.mark.long
@pytest.mark.timeout(0)
def test_live_views_stay_right_while_others_are_published_and_processes_forked(
    stream: Stream, is_full: bool, figures: Callable[[str], None]
) -> None:
    views, publishes = (1000, 100_000) if is_full else (200, 4000)
    fds = open_files()
    children = []
    checks = 0
    for number in range(publishes):
        stream.publish(number)
        if number % 4 == 0:
            stream.keep(views)
        if number in (publishes // 3, publishes // 2):
            children.append(in_a_child(lambda: stream.wrong() == 0))
        if number % (publishes // 10) == 0:
            assert stream.wrong() == 0
            checks += len(stream.views)
    assert len(stream.views) == views
    assert stream.wrong() == 0
    for tell in children:  # their views are of before; most of ours of then are gone
        tell()
    assert stream.wrong() == 0
    check_open_files(fds)
    stream.views.clear()
    gc.collect()
    stream.publish(0)
    assert stream.pool.stats().segments < 4 * views  # they were given back or used again
    figures(f"{views} live views, {publishes} publishes, 2 forks: every checksum right, {checks} looked at here")


@forks
def test_a_childs_view_of_a_tag_outlives_that_of_its_parent_however_often_it_is_received(workspace: Path) -> None:
    """The tag keeps its segment: the parent receives it again and again after it has forked and let go."""
    directory = workspace / "stream"
    directory.mkdir()
    pool, receiver = SegmentPool(str(directory), "segment"), SegmentReader(str(directory))
    x = np.arange(10_000)
    segment = pool.publish(x)
    ref = TensorRef("a", segment.name, segment.seq)
    views = [receiver.receive(ref.segment, ref.seq, "numpy", ref.tag)]
    tell = in_a_child(lambda: zlib.crc32(views[0]) == zlib.crc32(x))
    views.clear()
    for _ in range(3):
        receiver.receive(ref.segment, ref.seq, "numpy", ref.tag)
        drain()
    segment.release()  # the tag is sent again
    for number in range(10):
        again = pool.publish(x + number + 1)
        assert again is not segment
        again.release()
    tell()
    receiver.close()
    pool.close()
    directory.rmdir()


class Tensors(torch.utils.data.Dataset[tuple[int, int]]):
    """A data set of views: an item is its number and its checksum."""

    def __init__(self, views: list[torch.Tensor]) -> None:
        self.views = views

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> tuple[int, int]:
        return index, zlib.crc32(self.views[index].numpy())


@forks
@pytest.mark.long
@pytest.mark.timeout(0)
def test_a_data_loaders_workers_and_their_parent_see_every_view_right(
    is_full: bool, figures: Callable[[str], None]
) -> None:
    items, publishes = (1000, 20_000) if is_full else (100, 1000)
    with PythonSession(TOOLS, quiet_mode=True, framework="torch") as session:
        views, sums = [], []
        for number in range(items):
            x = torch.arange(number, number + 3000)
            views.append(session.calculate("echo", x))
            sums.append(zlib.crc32(x.numpy()))
        loader: Any = torch.utils.data.DataLoader(Tensors(views), batch_size=10, num_workers=2, shuffle=True)
        per_batch = publishes // len(loader)
        seen: list[int] = []
        for indices, found in loader:
            assert [sums[index] for index in indices] == found.tolist()
            seen += indices.tolist()
            for number in range(per_batch):  # of the same size, so that segments go round
                assert session.calculate("echo", torch.full((3000,), number))[0] == number
            # Some of what the parent lets go of, the loader's processes still have.
            del views[-1:]
            views.append(session.calculate("echo", torch.arange(len(views), len(views) + 3000)))
        assert sorted(seen) == list(range(items))
        assert [zlib.crc32(view.numpy()) for view in views] == sums
    figures(f"{items} views read by 2 workers of a DataLoader during {publishes} round trips: every checksum right")


# -- doorbells -------------------------------------------------------------------------------------------------------


class BadBell:
    """A doorbell that drops rings, doubles them, or rings late: at the next ring."""

    def __init__(self, real: Any, seed: int) -> None:
        self._real = real
        self._random = random.Random(seed)
        self._is_late = False
        self.counts = {"dropped": 0, "doubled": 0, "late": 0, "good": 0}

    def ring(self) -> None:
        if self._is_late:
            self._is_late = False
            self._real.ring()
        kind = self._random.choice(list(self.counts))
        self.counts[kind] += 1
        if kind == "late":
            self._is_late = True
        for _ in range({"doubled": 2, "good": 1}.get(kind, 0)):
            self._real.ring()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("at_once", [1, 32])
def test_rings_that_are_dropped_doubled_or_late_lose_nothing_and_hang_nobody(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, is_full: bool, figures: Callable[[str], None], at_once: int
) -> None:
    exchanges = 50_000 if is_full else 2500  # two rings each
    monkeypatch.setattr(mapped, "WAIT_SLICE_S", 0.001)
    directory = workspace / "channel"
    directory.mkdir()
    controller = MappedChannel.create(str(directory))
    worker = MappedChannel.attach(str(directory), controller.doorbells)
    bells = [BadBell(controller._peer_doorbell, 1), BadBell(worker._peer_doorbell, 2)]
    controller._peer_doorbell, worker._peer_doorbell = bells  # type: ignore[assignment]
    problems: list[object] = []

    def serve() -> None:
        for number in range(1, exchanges + 1):
            raw = worker.receive(30_000, lambda: bool(problems))
            if raw is None or decode_request(raw).parameters != str(number):
                problems.append(raw)
                return
            worker.send(Response(seq=number, result=str(-number)))

    server = threading.Thread(target=serve)
    server.start()
    try:
        sent = 0
        for number in range(1, exchanges + 1):
            while sent < min(number + at_once - 1, exchanges):
                sent += 1
                controller.send(Request(seq=sent, command="x", parameters=str(sent)))
            raw = controller.receive(30_000, lambda: bool(problems))
            assert raw is not None
            assert decode_response(raw).result == str(-number)
    finally:
        problems.append("over")
        server.join()
    assert problems == ["over"]
    assert sum(sum(bell.counts.values()) for bell in bells) == 2 * exchanges
    assert min(min(bell.counts.values()) for bell in bells) > exchanges // 8
    figures(f"{2 * exchanges} rings, {exchanges} round trips, none lost: {bells[0].counts} and {bells[1].counts}")
    controller.close()
    worker.close()
    shutil.rmtree(directory)


class BadArms:
    """Arms the bell by which a worker wakes a loop; takes it back, so that no ring comes, or rings besides."""

    def __init__(self, channel: MappedChannel, seed: int) -> None:
        self._channel = channel
        self._arm = channel.arm
        self._random = random.Random(seed)
        self.counts = {"dropped": 0, "doubled": 0, "good": 0}

    def arm(self) -> bool:
        is_there = self._arm()
        kind = self._random.choice(list(self.counts))
        self.counts[kind] += 1
        if kind == "dropped":
            self._channel.disarm()
        elif kind == "doubled":
            self._channel._in.ring_bell()
        return is_there


@pytest.mark.long
@pytest.mark.timeout(0)
def test_bad_rings_lose_no_future_of_many_in_flight(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, is_full: bool, figures: Callable[[str], None]
) -> None:
    rounds = 1600 if is_full else 80  # of 32 requests
    monkeypatch.setattr(futures, "LOOK_S", 0.001)
    with PythonSession(TOOLS, "bells", quiet_mode=True) as session:
        worker = session._dispatcher.resources.worker  # type: ignore[union-attr] # it is started
        channel = worker.channel  # type: ignore[union-attr]
        assert isinstance(channel, MappedChannel)
        fd = os.open(bell_of(channel), os.O_WRONLY | os.O_NONBLOCK)
        channel._in.set_bell(fd)
        bad = BadArms(channel, 3)
        monkeypatch.setattr(channel, "arm", bad.arm)
        bell = BadBell(channel._peer_doorbell, 4)
        monkeypatch.setattr(channel, "_peer_doorbell", bell)
        try:
            for round_ in range(rounds):
                asked = {session.submit(f"say {round_}.{place}"): f"{round_}.{place}" for place in range(32)}
                assert not wait(asked, 30).not_done  # nobody is in result()
                assert {future.result(): text for future, text in asked.items()} == {
                    text: text for text in asked.values()
                }
        finally:
            channel._in.set_bell(-1)
            os.close(fd)
    assert min(bad.counts.values()) > rounds // 8
    figures(f"{rounds} times 32 futures, none lost: {bad.counts}")


def bell_of(channel: MappedChannel) -> str:
    """The bell's file."""
    return os.path.join(channel._directory, BELL_FILE)


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.skipif(not native.IS_COMPILED, reason="the fast paths are the extension's")
def test_bad_rings_lose_nothing_that_takes_the_fast_path(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, is_full: bool, figures: Callable[[str], None]
) -> None:
    exchanges = 50_000 if is_full else 2500  # two rings each
    monkeypatch.setattr(mapped, "WAIT_SLICE_S", 0.001)
    directory = workspace / "channel"
    directory.mkdir()
    controller = MappedChannel.create(str(directory))
    worker = MappedChannel.attach(str(directory), controller.doorbells)
    worker.write_status(Status.READY)
    asking, answering = (
        kind(str(directory), TransferOptions()) for kind in (SegmentControllerTransfer, SegmentWorkerTransfer)
    )
    asking.worker_started(lambda: False)
    bells = [BadBell(controller._peer_doorbell, 1), BadBell(worker._peer_doorbell, 2)]
    relays = [Doorbell.create(name) for name in MappedChannel.new_doorbells()]  # what the extension rings
    controller._peer_doorbell, worker._peer_doorbell = relays
    problems: list[object] = []
    counters = native.Counters()
    counters.limit = 1
    traffic = Traffic(Turn(), Turn(), {}, asking.unannounced, asking.tagged, asking.left, {}, counters)
    controller_path = controller_fast_path(controller, asking, problems, traffic)
    worker_path = worker_fast_path(worker, answering, problems)
    assert controller_path is not None
    assert worker_path is not None

    def relay(bell: Doorbell, bad: BadBell) -> None:
        while not problems:
            if bell.wait(0.1):
                bad.ring()

    class Negative:
        reply: Any = None

        def main_logic(self, _: str, parameters: str) -> bool:
            self.reply.result = str(-int(parameters))
            return True

    def serve() -> None:
        server = Negative()
        for _ in range(exchanges):
            if (left := worker_path.serve(server)) is not True:
                problems.append(left)
                return

    threads = [threading.Thread(target=relay, args=pair) for pair in zip(relays, bells, strict=True)]
    threads.append(threading.Thread(target=serve))
    for thread in threads:
        thread.start()
    try:
        for number in range(1, exchanges + 1):
            answer = controller_path.call(f"x {number}", (), 30.0, None)
            assert isinstance(answer, tuple)
            assert answer[0].result == str(-number)
    finally:
        problems.append("over")
        for thread in threads:
            thread.join()
    assert problems == ["over"]
    assert min(min(bell.counts.values()) for bell in bells) > exchanges // 16
    figures(f"{2 * exchanges} rings, {exchanges} round trips, none lost: {bells[0].counts} and {bells[1].counts}")
    controller._peer_doorbell, worker._peer_doorbell = (bad._real for bad in bells)
    for bell in relays:
        bell.unlink()
    asking.close()
    answering.close(is_orphan=True)
    controller.close()
    worker.close()
    shutil.rmtree(directory)


def test_a_doorbell_that_cannot_be_rung_any_more_is_loud_enough(workspace: Path) -> None:
    """At its largest count a semaphore refuses another post."""
    directory = workspace / "channel"
    directory.mkdir()
    controller = MappedChannel.create(str(directory))
    worker = MappedChannel.attach(str(directory), controller.doorbells)

    class Full:
        def ring(self) -> None:
            raise OSError(75, "Value too large for defined data type")

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    real = controller._peer_doorbell
    controller._peer_doorbell = Full()  # type: ignore[assignment]
    controller.send(Request(seq=1, command="x"))
    controller.ring()
    raw = worker.receive(0, lambda: False)
    assert raw is not None
    assert decode_request(raw).command == "x"
    controller._peer_doorbell = real
    controller.close()
    worker.close()
    shutil.rmtree(directory)
