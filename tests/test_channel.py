"""Channels: one set of promises that both implementations keep, then what is special to each."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import tr_mmap
from tr_mmap import system
from tr_mmap.channel import CHANNELS, Channel, MappedChannel, Role, files, mapped
from tr_mmap.channel.base import MAX_MESSAGE_NBYTES
from tr_mmap.channel.files import FileChannel, PollRate
from tr_mmap.channel.mapped import PAGE_NBYTES, STATUS_NBYTES
from tr_mmap.errors import BadMessage, HostilePath, OutOfSpace, ResponseTimeout
from tr_mmap.protocol import (
    MAX_DETAIL_CHARS,
    MAX_SEQ,
    Request,
    Response,
    Status,
    StatusLine,
    TensorRef,
    decode_request,
    decode_response,
    parse_status,
)

BOUND_S = 60.0  # for what happens at once; only a failure waits for it
SHM = "/dev/shm"

TEXTS = [
    "",
    "plain",
    "newline\nand\ttab",
    'quotes " and \\ and {"spill": "x"}',
    "zero \0 byte",
    "ümläut, 漢字, 🙂, \u2028, \x85",
    "x" * 5000,
]


def never() -> bool:
    return False


def semaphores() -> list[str]:
    """Names of this process's semaphores that a death would leave behind."""
    return [name for name in os.listdir(SHM) if name.startswith(f"sem.tr_{os.getpid()}_")]


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Iterator[None]:
    yield
    assert semaphores() == []


@dataclass
class Ends:
    """Both ends of a channel, in this process."""

    directory: Path
    controller: Channel
    worker: Channel

    def ask(self, *fields: Any, **more: Any) -> Request:
        request = Request(*fields, **more)
        self.controller.send(request)
        return request

    def asked(self) -> Request:
        raw = self.worker.receive(0, never)
        assert raw is not None
        return decode_request(raw)


@pytest.fixture
def connect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Ends]]:
    """Makes both ends of a channel of some kind; the directory is the same each time."""
    monkeypatch.setattr(PollRate, "FIRST_MS", 1.0)
    monkeypatch.setattr(PollRate, "LAST_MS", 4.0)
    made: list[Channel] = []

    def make(kind: str) -> Ends:
        controller = CHANNELS[kind].create(str(tmp_path))
        made.append(controller)
        worker = CHANNELS[kind].attach(str(tmp_path), controller.doorbells)
        made.append(worker)
        return Ends(tmp_path, controller, worker)

    yield make
    for channel in made:
        channel.close()


@pytest.fixture(params=["files", "mapped"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ends(kind: str, connect: Callable[[str], Ends]) -> Ends:
    return connect(kind)


@pytest.fixture
def mapped_ends(connect: Callable[[str], Ends]) -> Ends:
    return connect("mapped")


@pytest.fixture
def background() -> Iterator[Callable[..., Future[Any]]]:
    with ThreadPoolExecutor(1) as executor:
        yield executor.submit


class Stop:
    """A reason to stop that lets the test know when it is asked about."""

    def __init__(self) -> None:
        self.asked = threading.Semaphore(0)
        self.is_set = False

    def __call__(self) -> bool:
        answer = self.is_set
        self.asked.release()
        return answer

    def wait_until_asked(self) -> None:
        assert self.asked.acquire(timeout=BOUND_S)


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- messages ---------------------------------------------------------------------------------------------------


def test_a_message_arrives_whole_once_and_in_order(ends: Ends) -> None:
    for seq in range(1, 21):
        refs = [TensorRef(f"t{index}", f"segment_{index}.tsr", index + 1) for index in range(seq)]
        sent = ends.ask(seq, f"command{seq}", "p" * seq, 1_700_000_000_000, refs, [f"old{seq}"])
        assert ends.worker.has_message()
        assert ends.asked() == sent
        assert not ends.worker.has_message()
        assert ends.worker.receive(0, never) is None
        answer = Response(seq, f"command{seq}", "r" * (40 - seq), "", 1_700_000_000_001, refs)
        ends.worker.send(answer)
        raw = ends.controller.receive(None, never)
        assert raw is not None
        assert decode_response(raw) == answer
        assert ends.controller.receive(0, never) is None


def test_before_the_first_message_there_is_none(ends: Ends) -> None:
    for end in (ends.controller, ends.worker):
        assert not end.has_message()
        assert end.receive(0, never) is None


def test_an_end_never_receives_what_it_sent_itself(ends: Ends) -> None:
    ends.ask(1, "x")
    assert ends.controller.receive(0, never) is None
    ends.worker.send(Response(1, "x"))
    assert ends.asked().command == "x"
    assert ends.worker.receive(0, never) is None


def test_looking_takes_nothing(ends: Ends) -> None:
    ends.ask(1, "x")
    for _ in range(3):
        assert ends.worker.has_message()
    assert ends.asked().command == "x"


def test_a_timeout_gives_none_and_loses_nothing(ends: Ends) -> None:
    assert ends.worker.receive(1.0, never) is None
    ends.ask(1, "x")
    assert ends.asked().command == "x"


def test_a_waiting_receiver_gets_the_message(ends: Ends, background: Callable[..., Future[Any]]) -> None:
    stop = Stop()
    waiting = background(ends.worker.receive, None, stop)
    stop.wait_until_asked()
    sent = ends.ask(1, "x", "y")
    assert decode_request(waiting.result(BOUND_S)) == sent


@pytest.mark.parametrize("timeout_ms", [None, 1000 * BOUND_S])
def test_wake_and_a_reason_to_stop_end_a_wait(
    ends: Ends, background: Callable[..., Future[Any]], timeout_ms: float | None
) -> None:
    stop = Stop()
    waiting = background(ends.worker.receive, timeout_ms, stop)
    stop.wait_until_asked()
    stop.is_set = True
    ends.worker.wake()
    assert waiting.result(BOUND_S) is None


def test_wake_without_a_reason_to_stop_lets_the_wait_go_on(ends: Ends, background: Callable[..., Future[Any]]) -> None:
    stop = Stop()
    waiting = background(ends.worker.receive, None, stop)
    for _ in range(3):
        stop.wait_until_asked()
        ends.worker.wake()
    sent = ends.ask(1, "x")
    assert decode_request(waiting.result(BOUND_S)) == sent


def test_a_wake_before_the_wait_is_not_lost(ends: Ends) -> None:
    answers = iter([False, True])
    ends.worker.wake()
    assert ends.worker.receive(None, lambda: next(answers)) is None


def test_a_stopped_wait_looks_one_last_time(ends: Ends) -> None:
    def stop() -> bool:
        ends.ask(1, "last")
        return True

    raw = ends.worker.receive(None, stop)
    assert raw is not None
    assert decode_request(raw).command == "last"


def test_a_wait_that_is_over_looks_one_last_time(ends: Ends) -> None:
    sent: list[Request] = []

    def stop() -> bool:
        if not sent:
            sent.append(ends.ask(1, "last"))
        return False

    raw = ends.worker.receive(0.001, stop)
    assert raw is not None
    assert decode_request(raw) == sent[0]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_text_of_any_kind_arrives_as_it_was(ends: Ends, text: str) -> None:
    assert ends.ask(1, text, text, drops=[text]) == Request(1, text, text, drops=[text])
    raw = ends.worker.receive(0, never)
    assert raw is not None
    assert json.loads(raw).get("parameters", "") == text
    ends.worker.send(Response(1, text, text, text))
    raw = ends.controller.receive(0, never)
    assert raw is not None
    assert decode_response(raw) == Response(1, text, text, text)


def test_a_message_that_is_no_text_is_refused_and_the_previous_one_stays(ends: Ends) -> None:
    sent = ends.ask(1, "x")
    with pytest.raises(BadMessage, match="surrogate"):
        ends.ask(2, "x", os.fsdecode(b"\xff"))
    assert ends.asked() == sent
    assert ends.worker.receive(0, never) is None


def test_messages_around_every_limit_arrive(ends: Ends) -> None:
    overhead = len('{"seq":1,"parameters":""}')
    limits = (1024, 4096, PAGE_NBYTES, MAX_MESSAGE_NBYTES)
    sizes = [limit - overhead + delta for limit in limits[:-1] for delta in range(-40, 41, 4)]
    for seq, size in enumerate([*sizes, 1_000_000, 3, MAX_MESSAGE_NBYTES - overhead, 3], 1):
        ends.controller.send(Request(seq % 9 + 1, parameters="p" * size))
        raw = ends.worker.receive(0, never)
        assert raw is not None
        assert json.loads(raw) == {"seq": seq % 9 + 1, "parameters": "p" * size}
    assert not [name for name in os.listdir(ends.directory) if "spill" in name or "tmp" in name]


def test_a_message_that_is_too_long_is_refused_and_the_previous_one_stays(ends: Ends) -> None:
    sent = ends.ask(1, "x")
    names = sorted(os.listdir(ends.directory))
    with pytest.raises(BadMessage, match="send large data as a tensor"):
        ends.ask(2, "x", "p" * MAX_MESSAGE_NBYTES)
    assert sorted(os.listdir(ends.directory)) == names
    assert ends.asked() == sent
    assert ends.worker.receive(0, never) is None
    assert ends.ask(3, "y") == ends.asked()


def test_a_full_file_system_refuses_a_long_message_and_the_previous_one_stays(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = ends.ask(1, "x")

    def write_all(fd: int, data: bytes, offset: int = 0) -> None:
        os.pwrite(fd, data[:10], offset)
        raise OutOfSpace("full", needed_nbytes=len(data), free_nbytes=10)

    names = sorted(os.listdir(ends.directory))
    if isinstance(ends.controller, FileChannel):
        monkeypatch.setattr(ends.controller, "_out", str(ends.directory / "other.json"))  # else it waits for its turn
    with monkeypatch.context() as patch:
        patch.setattr(system, "write_all", write_all)
        with pytest.raises(OutOfSpace):
            ends.ask(2, "x", "p" * 100_000)
    assert sorted(os.listdir(ends.directory)) == names
    assert ends.asked() == sent


def test_what_was_sent_before_the_worker_came_is_found_by_it(kind: str, tmp_path: Path) -> None:
    controller = CHANNELS[kind].create(str(tmp_path))
    controller.send(Request(1, "early"))
    worker = CHANNELS[kind].attach(str(tmp_path), controller.doorbells)
    raw = worker.receive(None, never)
    assert raw is not None
    assert decode_request(raw).command == "early"
    worker.close()
    controller.close()


# --- status -----------------------------------------------------------------------------------------------------

DETAILS = {
    "none": "",
    "short": "epoch 3",
    "blank": " \n ",
    "newlines": "first\nsecond\r\n\tthird",
    "colons": "a: b: c",
    "unicode": "größe 漢字 🙂",
    "too long": "🙂" * 5000,
    "no text": os.fsdecode(b"bad \xff name"),
}


@pytest.mark.parametrize("detail", DETAILS.values(), ids=DETAILS.keys())
@pytest.mark.parametrize("status", Status)
def test_every_status_is_read_as_it_was_written(ends: Ends, status: Status, detail: str) -> None:
    ends.worker.write_status(status, detail)
    expected = " ".join(detail.encode("utf-8", "replace").decode().split())[:MAX_DETAIL_CHARS]
    for end in (ends.controller, ends.worker):
        assert end.read_status() == StatusLine(status, expected)


def test_a_new_channel_is_starting(ends: Ends) -> None:
    assert ends.controller.read_status() == StatusLine(Status.STARTING)
    assert ends.worker.read_status() == StatusLine(Status.STARTING)


def test_nothing_of_an_earlier_status_shows_in_a_later_one(ends: Ends) -> None:
    lines = [(status, detail) for status in Status for detail in ("", "d" * 9, "long " * 300)]
    rng = random.Random(1)
    for number in range(300):
        if number % 4 == 1:
            status, detail = Status.EXIT, ""  # the one that the controller may write
            ends.controller.write_status(status)
        else:
            status, detail = rng.choice(lines)
            ends.worker.write_status(status, detail)
        text = (ends.directory / "status.txt").read_text()
        assert text.strip() == StatusLine(status, detail).to_text().strip()
        assert text.rstrip(" ").endswith("\n")
        assert ends.controller.read_status() == ends.worker.read_status() == parse_status(text)


def test_exit_is_told_from_exiting(ends: Ends) -> None:
    for status in Status:
        ends.controller.write_status(status)
        assert ends.worker.is_exit_asked() == (status is Status.EXIT)
    ends.controller.write_status(Status.EXIT, "by the user")
    assert ends.worker.is_exit_asked()


@pytest.mark.parametrize("text", ["", "what\n", "ok ay\n", "\0\0\0\0", "\xff\xfe\n", "busy" * 2000, "exit, please\n"])
def test_a_status_that_is_none_is_a_bad_message(ends: Ends, text: str) -> None:
    path = ends.directory / "status.txt"
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, text.encode("latin-1").ljust(STATUS_NBYTES), 0)
    os.close(fd)
    for end in (ends.controller, ends.worker):
        with pytest.raises(BadMessage):
            end.read_status()
        assert not end.is_exit_asked()


def test_a_wait_for_a_status_ends_with_it(ends: Ends, background: Callable[..., Future[Any]]) -> None:
    stop = Stop()
    waiting = background(ends.controller.wait_status, lambda line: line.status is Status.OK, 1000 * BOUND_S, stop)
    for status in (Status.READY, Status.BUSY, Status.OK):
        stop.wait_until_asked()
        ends.worker.write_status(status, "so")
        ends.worker.ring()
    assert waiting.result(BOUND_S) == StatusLine(Status.OK, "so")


def test_a_status_that_is_there_is_not_waited_for(ends: Ends) -> None:
    assert ends.controller.wait_status(lambda _: True, 0, never) == StatusLine(Status.STARTING)


def test_a_wait_for_a_status_ends_by_timeout_and_by_stop(ends: Ends, background: Callable[..., Future[Any]]) -> None:
    assert ends.controller.wait_status(lambda _: False, 1.0, never) is None
    stop = Stop()
    waiting = background(ends.controller.wait_status, lambda _: False, 1000 * BOUND_S, stop)
    stop.wait_until_asked()
    stop.is_set = True
    ends.controller.wake()
    assert waiting.result(BOUND_S) is None


STATUS_WRITER = """
import sys
from tr_mmap.channel import CHANNELS
from tr_mmap.protocol import Status
channel = CHANNELS[sys.argv[1]].attach(sys.argv[2], sys.argv[4:])
for number in range(int(sys.argv[3])):
    for status in (Status.READY, Status.BUSY, Status.ERROR, Status.TERMINATED, Status.OK):
        channel.write_status(status, "detail " * 20 if number % 3 == 0 else "")
channel.write_status(Status.EXITING)
"""


def test_a_status_that_changes_all_the_time_is_always_a_status(kind: str, tmp_path: Path) -> None:
    controller = CHANNELS[kind].create(str(tmp_path))
    with Peer(STATUS_WRITER, kind, tmp_path, 4000 if kind == "mapped" else 200, *controller.doorbells) as peer:
        while controller.read_status().status is not Status.EXITING:
            assert peer.is_fine()
    assert controller.read_status() == StatusLine(Status.EXITING)
    controller.close()


# --- files ------------------------------------------------------------------------------------------------------


def test_control_files_can_be_read_by_anyone_at_rest(ends: Ends, kind: str) -> None:
    def at_rest(name: str) -> Any:
        path = ends.directory / name
        assert path.stat().st_mode & 0o777 == 0o600
        with path.open() as file:
            return json.load(file)

    if kind == "mapped":
        assert at_rest("request.json") == at_rest("response.json") == {"seq": 0}
    for seq, size in enumerate([3, 5000, 10, 60_000, 1000, 0], 1):
        ends.ask(seq, "x", "p" * size)
        wanted = {"seq": seq, "command": "x", "parameters": "p" * size}
        assert at_rest("request.json") == {key: value for key, value in wanted.items() if value != ""}
        assert ends.asked().parameters == "p" * size
        ends.worker.send(Response(seq, "", "r" * size, timestamp=seq))
        wanted = {"seq": seq, "result": "r" * size, "timestamp": seq}
        assert at_rest("response.json") == {key: value for key, value in wanted.items() if value != ""}
        assert ends.controller.receive(0, never) is not None
        assert (ends.directory / "status.txt").read_text().strip() == "starting"


def test_messages_of_an_earlier_run_are_gone(ends: Ends, kind: str, connect: Callable[[str], Ends]) -> None:
    ends.ask(7, "old", "p" * 100_000)
    ends.worker.send(Response(7, "old", "r" * 100_000))
    ends.worker.write_status(Status.ERROR, "old")
    again = connect(kind)
    assert again.controller.read_status() == StatusLine(Status.STARTING)
    assert not again.controller.has_message()
    assert not again.worker.has_message()
    for seq, size in ((7, 3), (8, 100_000)):  # a long one has a file of its own, whose old name may be taken
        sent = again.ask(seq, "new", "p" * size)
        assert again.asked() == sent
        again.worker.send(Response(seq, "new", "r" * size))
        raw = again.controller.receive(0, never)
        assert raw is not None
        assert decode_response(raw).result == "r" * size


def test_whatever_lies_in_a_control_files_place_is_replaced(kind: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    for name in ("request.json", "response.json"):
        os.symlink(victim, tmp_path / name)
    os.mkfifo(tmp_path / "status.txt")
    controller = CHANNELS[kind].create(str(tmp_path))
    worker = CHANNELS[kind].attach(str(tmp_path), controller.doorbells)
    controller.send(Request(1, "x"))
    assert worker.receive(0, never) is not None
    assert controller.read_status().status is Status.STARTING
    assert victim.read_bytes() == b"mine"
    worker.close()
    controller.close()


def symlink(path: Path) -> None:
    target = path.with_name("target")
    os.rename(path, target)
    os.symlink(target, path)


def dangling_symlink(path: Path) -> None:
    path.unlink()
    os.symlink("/nowhere", path)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir(0o700)


def group_writable(path: Path) -> None:
    path.chmod(0o620)


def too_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


HOSTILE = [symlink, dangling_symlink, fifo, directory, group_writable]
CONTROL_FILES = ["request.json", "response.json", "status.txt"]


@pytest.mark.parametrize("spoil", [*HOSTILE, too_short], ids=lambda each: each.__name__)
@pytest.mark.parametrize("name", CONTROL_FILES)
def test_a_hostile_control_file_is_refused_when_a_worker_attaches(
    tmp_path: Path, name: str, spoil: Callable[[Path], None]
) -> None:
    controller = MappedChannel.create(str(tmp_path))
    spoil(tmp_path / name)
    before = open_fds()
    with pytest.raises(HostilePath) as caught:
        MappedChannel.attach(str(tmp_path), controller.doorbells)
    assert caught.value.path == str(tmp_path / name)
    assert open_fds() == before
    controller.close()


@pytest.mark.parametrize("spoil", HOSTILE, ids=lambda each: each.__name__)
@pytest.mark.parametrize("name", CONTROL_FILES)
def test_a_hostile_control_file_is_refused_when_it_is_read(
    connect: Callable[[str], Ends], name: str, spoil: Callable[[Path], None]
) -> None:
    ends = connect("files")
    look: Callable[[], object]
    if name == "request.json":
        ends.ask(1, "x")
        look = lambda: ends.worker.receive(0, never)  # noqa: E731
    elif name == "response.json":
        ends.worker.send(Response(1, "x"))
        look = lambda: ends.controller.receive(0, never)  # noqa: E731
    else:
        look = ends.controller.read_status
    spoil(ends.directory / name)
    before = open_fds()
    with pytest.raises(HostilePath) as caught:
        look()
    assert caught.value.path == str(ends.directory / name)
    assert open_fds() == before
    if name == "request.json" and spoil is not directory:  # it is out of the way: the next message is found
        assert ends.ask(2, "y") == ends.asked()


# --- life -------------------------------------------------------------------------------------------------------


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


def test_channels_keep_no_descriptors(kind: str, tmp_path: Path) -> None:
    before = open_fds()
    controller = CHANNELS[kind].create(str(tmp_path))
    worker = CHANNELS[kind].attach(str(tmp_path), controller.doorbells)
    controller.send(Request(1, "x", "p" * 100_000))
    assert worker.receive(0, never) is not None
    assert open_fds() == before
    worker.close()
    controller.close()


# --- two processes ----------------------------------------------------------------------------------------------


class Peer:
    """A real process, whose end is waited for and must be a good one."""

    def __init__(self, script: str, *arguments: object) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(tr_mmap.__file__).parent.parent)},
        )

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if error is None:
                assert self.popen.wait(BOUND_S) == 0
        finally:
            self.kill()

    def is_fine(self) -> bool:
        return self.popen.poll() in (None, 0)

    def wait_up(self) -> None:
        assert self.popen.stdout is not None
        assert self.popen.stdout.readline() == b"up\n"

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait(BOUND_S)
        for stream in (self.popen.stdin, self.popen.stdout):
            assert stream is not None
            stream.close()


ECHO = """
import sys
from tr_mmap.channel import CHANNELS, mapped
from tr_mmap.channel.files import PollRate
from tr_mmap.protocol import Response, decode_request
mapped._WAIT_SLICE_S = 0.001
PollRate.FIRST_MS = 1.0
kind, directory, count, *doorbells = sys.argv[1:]
channel = CHANNELS[kind].attach(directory, doorbells)
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
    controller = CHANNELS[kind].create(str(tmp_path))
    with Peer(ECHO, kind, tmp_path, count, *controller.doorbells):
        exchange(controller, count)
    controller.close()


@pytest.mark.parametrize("seed", [1, 2])
def test_doorbells_that_a_stranger_rings_and_steals_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(mapped, "_WAIT_SLICE_S", 0.001)  # what a stolen ring costs
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


# --- mapped -----------------------------------------------------------------------------------------------------


def poke(path: Path, offset: int, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, data, offset)
    os.close(fd)


def test_a_writer_that_dies_in_a_store_leaves_no_message(mapped_ends: Ends) -> None:
    path = mapped_ends.directory / "request.json"
    body = b',"command":"x","parameters":"' + b"p" * 3000 + b'"}\n'
    for length in (0, 1, 5, 500, len(body)):
        poke(path, 8, b"       0")
        poke(path, 16, body[:length])
        assert not mapped_ends.worker.has_message()
        assert mapped_ends.worker.receive(0, never) is None
    poke(path, 8, b"       5")  # the number is what makes it one
    assert mapped_ends.asked() == Request(5, "x", "p" * 3000)
    assert mapped_ends.ask(6, "y") == mapped_ends.asked()


def test_a_message_that_is_being_replaced_is_not_taken(mapped_ends: Ends) -> None:
    mapped_ends.ask(1, "old")
    poke(mapped_ends.directory / "request.json", 8, b"       0")
    assert not mapped_ends.worker.has_message()
    assert mapped_ends.worker.receive(0, never) is None
    assert mapped_ends.ask(2, "new") == mapped_ends.asked()


def test_the_number_is_where_the_format_says_and_as_large_as_it_may_be(mapped_ends: Ends) -> None:
    for seq in (1, 9, 10, MAX_SEQ - 1, MAX_SEQ, 1):
        mapped_ends.ask(seq, "x")
        raw = (mapped_ends.directory / "request.json").read_bytes()
        assert len(raw) == PAGE_NBYTES
        assert raw[:16] == b'{"seq": %8d' % seq
        assert raw.rstrip(b" ").endswith(b"}\n")
        assert mapped_ends.asked().seq == seq


@pytest.mark.parametrize("seq", [0, -1, MAX_SEQ + 1])
def test_a_number_that_has_no_place_is_refused(mapped_ends: Ends, seq: int) -> None:
    sent = mapped_ends.ask(1, "x")
    with pytest.raises(BadMessage):
        mapped_ends.ask(seq, "x")
    assert mapped_ends.asked() == sent


def test_a_message_without_an_end_is_refused_once(mapped_ends: Ends) -> None:
    poke(mapped_ends.directory / "request.json", 8, b"       3" + b"x" * (PAGE_NBYTES - 16))
    with pytest.raises(BadMessage, match="no end"):
        mapped_ends.worker.receive(0, never)
    assert mapped_ends.worker.receive(0, never) is None
    mapped_ends.worker.send(Response(1, "y"))
    assert mapped_ends.controller.receive(0, never) is not None


@pytest.mark.parametrize(
    "spill",
    [
        '"../victim.spill"',
        '"request./../victim.spill"',
        '"/etc/passwd"',
        '"victim.spill"',
        '"response.1.spill"',
        '""',
        "3",
        "[",
        '"request.gone.spill"',
    ],
)
def test_only_the_peers_own_long_messages_are_opened(mapped_ends: Ends, spill: str) -> None:
    for name in ("victim.spill", "response.1.spill"):
        (mapped_ends.directory / name).write_bytes(b"mine")
    poke(mapped_ends.directory / "request.json", 16, b',"spill":%b}\n' % spill.encode())
    poke(mapped_ends.directory / "request.json", 8, b"       3")
    with pytest.raises(BadMessage):
        mapped_ends.worker.receive(0, never)
    for name in ("victim.spill", "response.1.spill"):
        assert (mapped_ends.directory / name).read_bytes() == b"mine"


def test_an_old_end_cannot_disturb_the_new_one(connect: Callable[[str], Ends]) -> None:
    old = connect("mapped")
    new = connect("mapped")
    for size in (3, 100_000):
        old.ask(size, "old", "p" * size)
        old.worker.send(Response(size, "old", "r" * size))
        old.controller.ring()
        old.worker.ring()
        old.worker.write_status(Status.TERMINATED)
        assert not new.worker.has_message()
        assert not new.controller.has_message()
        assert new.controller.read_status() == StatusLine(Status.STARTING)
        sent = new.ask(size, "new", "q" * size)
        assert old.worker.receive(0, never) is not None
        assert old.controller.receive(0, never) is not None
        assert new.asked() == sent
    old.controller.close()
    old.worker.close()
    assert new.ask(4, "new") == new.asked()


def test_doorbells_have_names_only_until_both_ends_have_them(tmp_path: Path) -> None:
    controller = MappedChannel.create(str(tmp_path))
    names = [f"sem.{name[1:]}" for name in controller.doorbells]
    assert sorted(semaphores()) == sorted(names)
    assert all(os.stat(f"{SHM}/{name}").st_mode & 0o777 == 0o600 for name in names)
    worker = MappedChannel.attach(str(tmp_path), controller.doorbells)
    assert semaphores() == []
    controller.send(Request(1, "x"))
    assert worker.receive(None, never) is not None
    with pytest.raises(FileNotFoundError):
        MappedChannel.attach(str(tmp_path), controller.doorbells)
    worker.close()
    controller.close()


def test_a_controller_that_nobody_joined_takes_its_doorbells_along(tmp_path: Path) -> None:
    controller = MappedChannel.create(str(tmp_path))
    assert len(semaphores()) == 2
    controller.close()
    assert semaphores() == []


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("nbytes", [0, 31])
def test_a_doorbell_whose_file_is_too_short_is_refused(tmp_path: Path, index: int, nbytes: int) -> None:
    controller = MappedChannel.create(str(tmp_path))
    path = Path(f"{SHM}/sem.{controller.doorbells[index][1:]}")
    path.unlink()
    path.write_bytes(bytes(nbytes))
    with pytest.raises(HostilePath) as caught:
        MappedChannel.attach(str(tmp_path), controller.doorbells)
    assert caught.value.path == str(path)
    controller.close()


def test_a_full_file_system_lets_no_channel_begin_and_leaves_no_doorbells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count()

    def allocate(fd: int, nbytes: int, *, directory: str) -> None:
        if next(calls) == 2:
            raise OutOfSpace("full", needed_nbytes=nbytes, free_nbytes=0)

    before = open_fds()
    monkeypatch.setattr(system, "allocate", allocate)
    with pytest.raises(OutOfSpace):
        MappedChannel.create(str(tmp_path))
    assert semaphores() == []
    assert open_fds() == before


def test_rings_that_nobody_waited_for_are_one_hint_and_end_a_later_wait_no_sooner(
    mapped_ends: Ends, background: Callable[..., Future[Any]]
) -> None:
    for _ in range(100):
        mapped_ends.controller.ring()
    stop = Stop()
    waiting = background(mapped_ends.worker.receive, None, stop)
    for _ in range(2):  # before the first sleep, and after the hint
        stop.wait_until_asked()
    sent = mapped_ends.ask(1, "x")
    assert decode_request(waiting.result(BOUND_S)) == sent


# --- files ------------------------------------------------------------------------------------------------------


def test_the_rate_of_looking_falls_and_recovers() -> None:
    rate = PollRate()
    wanted = [interval for interval in (32, 64, 128, 256, 512, 1024) for _ in range(8)] + [1024] * 30
    assert [rate.found_nothing() for _ in wanted] == wanted
    rate.found_one()
    assert [rate.found_nothing() for _ in range(9)] == [32] * 8 + [64]
    rate.found_one()
    assert [rate.found_nothing() for _ in range(9)] == [32] * 8 + [64]


def test_a_message_sets_the_rate_of_looking_back(connect: Callable[[str], Ends]) -> None:
    ends = connect("files")
    assert isinstance(ends.worker, FileChannel)
    looks = iter([False] * 30 + [True])
    assert ends.worker.receive(None, lambda: next(looks)) is None
    assert ends.worker._rate.interval_ms == PollRate.LAST_MS
    ends.ask(1, "x")
    assert ends.asked().command == "x"
    assert ends.worker._rate.interval_ms == PollRate.FIRST_MS


def test_a_message_waits_until_the_one_before_it_was_taken(
    connect: Callable[[str], Ends], background: Callable[..., Future[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = connect("files")
    first = ends.ask(1, "first")
    monkeypatch.setattr(files, "_SEND_TIMEOUT_MS", 3.0)
    with pytest.raises(ResponseTimeout) as caught:
        ends.ask(2, "second")
    assert caught.value.command == "second"
    monkeypatch.setattr(files, "_SEND_TIMEOUT_MS", 1000 * BOUND_S)
    waiting = background(ends.ask, 3, "third")
    assert ends.asked() == first
    assert waiting.result(BOUND_S) == ends.asked()


def test_a_message_file_that_is_too_long_is_refused_and_removed(connect: Callable[[str], Ends]) -> None:
    ends = connect("files")
    path = ends.directory / "request.json"
    path.touch(0o600)
    os.truncate(path, MAX_MESSAGE_NBYTES + 1)
    with pytest.raises(BadMessage):
        ends.worker.receive(0, never)
    assert not path.exists()
    assert ends.ask(1, "x") == ends.asked()


def test_a_temporary_file_of_a_killed_writer_is_in_nobodys_way(connect: Callable[[str], Ends]) -> None:
    ends = connect("files")
    (ends.directory / f"request.json.{os.getpid()}.tmp").write_bytes(b"half")
    assert ends.ask(1, "x") == ends.asked()


def test_roles_name_the_file_that_each_end_writes() -> None:
    assert Role.CONTROLLER.value == "request"
    assert Role.WORKER.value == "response"
    assert Role.CONTROLLER.peer.peer is Role.CONTROLLER
