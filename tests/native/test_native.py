"""The operations of the hot path: one suite for both implementations, and sessions that mix them."""

from __future__ import annotations

import contextlib
import importlib.util
import mmap
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import posix_ipc
import psutil
import pytest
from rings import ring_memory
from support import TOOLS, never, processes_of

import tr_mmap.native
from tr_mmap import PythonSession
from tr_mmap.errors import BadMessage
from tr_mmap.native import reference as plain

compiled = importlib.util.find_spec("tr_mmap.native._native")
if compiled is not None:
    from tr_mmap.native import _native

IMPLEMENTATIONS = [plain] if compiled is None else [plain, _native]
SEQ, LAYOUT, LEASE, GUEST, SEQ_COPY = 8, 9, 10, 11, 15  # words of a segment's header
RETIRED = 2**64 - 1


@pytest.fixture(params=IMPLEMENTATIONS, ids=lambda module: module.__name__.rpartition(".")[2])
def native(request: pytest.FixtureRequest) -> ModuleType:
    module: ModuleType = request.param
    return module


def memory(nbytes: int = 65536, content: bytes = b"") -> memoryview:
    view = memoryview(mmap.mmap(-1, nbytes))
    view[: len(content)] = content
    return view


def test_the_extension_is_there_where_it_can_be_built() -> None:
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if shutil.which("cc") and header.exists() and sys.platform == "linux":
        assert compiled is not None, "install the project again: pip install -e ."
    assert (compiled is not None and os.environ.get("TR_MMAP_PURE", "") in ("", "0")) == tr_mmap.native.IS_COMPILED


NOT_THERE = """
import sys, types
from importlib.machinery import ModuleSpec
other = types.ModuleType("other")
other.__spec__ = ModuleSpec("other", None)
sys.modules["tr_mmap.native._native"] = None if sys.argv[1] == "absent" else other
import numpy as np
from tr_mmap import PythonSession, native
print(native.IS_COMPILED, native.WHY_NOT_COMPILED)
for name in ("first", "second"):
    with PythonSession(sys.argv[2], name, quiet_mode=True) as session:
        print(session.calculate("echo", np.ones(3)).tolist(), session.stats().is_compiled)
"""
CANNOT_LOAD = "ImportError: cannot import name 'ControllerFastPath'"


@pytest.mark.parametrize(
    ("extension", "is_chosen", "reason", "line"),
    [
        ("absent", False, "ModuleNotFoundError: import of tr_mmap", "tr_mmap was installed without compiled code"),
        ("of another version", False, CANNOT_LOAD, f"tr_mmap cannot load its compiled code ({CANNOT_LOAD}"),
        ("absent", True, "TR_MMAP_PURE is set", ""),
    ],
)
def test_a_missing_extension_is_said_once_with_its_reason(
    extension: str, is_chosen: bool, reason: str, line: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TR_MMAP_PURE"}
    environment |= {"TR_MMAP_PURE": "1"} if is_chosen else {}
    command = [sys.executable, "-c", NOT_THERE, extension, str(TOOLS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    said = done.stdout.splitlines()
    assert said[0].startswith(f"False {reason}")
    assert said[1:] == ["[1.0, 1.0, 1.0] False"] * 2
    assert done.stderr.startswith(line)
    assert len(done.stderr.splitlines()) == bool(line)


# -- lines -------------------------------------------------------------------------------------------------------------


def test_a_reader_enters_what_was_stamped_and_nothing_else(native: ModuleType) -> None:
    buffer = memory()
    words = buffer.cast("Q")
    line = native.LeaseWords(buffer)
    words[LAYOUT] = 3
    for wanted in (0, 5, RETIRED, -1, 2**64, 2**200):
        assert line.acquire(wanted) == 0
    line.stamp(5)
    assert (words[SEQ], words[SEQ_COPY]) == (5, 5)
    assert line.acquire(5) == 3
    assert line.acquire(4) == line.acquire(6) == 0
    words[SEQ_COPY] = 4
    assert line.acquire(5) == 0
    line.stamp(RETIRED - 1)
    assert line.acquire(RETIRED - 1) == 3


def test_a_lease_keeps_the_owner_away_until_it_is_given_back(native: ModuleType) -> None:
    buffer = memory()
    words = buffer.cast("Q")
    owner, reader = native.LeaseWords(buffer), native.LeaseWords(buffer)
    words[LAYOUT] = 1
    owner.stamp(1)
    assert reader.acquire(1) == 1
    assert owner.claim() == 1
    assert words[SEQ] == 0
    assert reader.acquire(1) == 0  # nobody enters while the owner is at it
    words[LEASE] = 0
    assert owner.claim() == 0


@pytest.mark.parametrize("operation", ["claim", "retire"])
def test_a_guest_or_a_pin_keeps_a_segment_for_ever(native: ModuleType, operation: str) -> None:
    buffer = memory()
    words = buffer.cast("Q")
    line = native.LeaseWords(buffer)
    assert getattr(line, operation)() == 0
    words[GUEST] = 1
    assert getattr(line, operation)() == 2
    words[GUEST] = 0
    words[LEASE] = 2
    assert getattr(line, operation)() == 2


def test_what_is_retired_is_never_entered(native: ModuleType) -> None:
    buffer = memory()
    line = native.LeaseWords(buffer)
    line.stamp(7)
    assert line.retire() == 0
    assert buffer.cast("Q")[SEQ] == buffer.cast("Q")[SEQ_COPY] == RETIRED
    assert line.acquire(7) == line.acquire(RETIRED) == 0


def test_owner_and_reader_never_both_have_a_segment(native: ModuleType) -> None:
    """A race of two threads; the payload says whether a reader has ever looked while the owner filled it."""
    buffer = memory()
    words, payload = buffer.cast("Q"), buffer[4096:].cast("Q")
    owner, reader = native.LeaseWords(buffer), native.LeaseWords(buffer)
    words[LAYOUT] = 1
    torn: list[tuple[int, int]] = []
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            seq = words[SEQ]
            if seq not in (0, RETIRED) and reader.acquire(seq):
                seen = payload[0], payload[1]
                if seen != (seq, seq):
                    torn.append(seen)
            words[LEASE] = 0

    previous_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=read)
    thread.start()
    try:
        for seq in range(1, 3000):
            while owner.claim() != 0:
                pass
            payload[0] = payload[1] = seq
            owner.stamp(seq)
    finally:
        is_over.set()
        thread.join()
        sys.setswitchinterval(previous_s)
    assert not torn


LINES, LINE = 64, 8  # words of a segment's header page


def test_an_owner_asks_the_lines_of_members_only_and_the_strongest_lease_counts(native: ModuleType) -> None:
    buffer, page = memory(), memory(4096)
    words = buffer.cast("Q")
    owner = native.LeaseWords(buffer, page)
    for line in (0, 7, 8, 55):
        words[LINES + line * LINE] = 1
        assert owner.lease() == owner.claim() == 0
        native.set_member(page, line, True)
        assert page[line] == 1
        assert owner.lease() == owner.claim() == owner.retire() == 1
        words[LEASE] = 2
        assert owner.lease() == 2
        words[LEASE] = 0
        words[LINES + line * LINE] = 2
        assert owner.lease() == owner.claim() == 2
        words[LINES + line * LINE] = 0
        assert owner.lease() == 0
        native.set_member(page, line, False)
    assert bytes(page[:64]) == bytes(64)
    words[GUEST] = 1
    assert owner.lease() == 0
    assert owner.claim() == 2


def test_readers_with_lines_of_their_own_do_not_touch_each_others_leases(native: ModuleType) -> None:
    buffer, page = memory(), memory(4096)
    words = buffer.cast("Q")
    owner = native.LeaseWords(buffer, page)
    readers = [native.LeaseWords(buffer, None, line) for line in range(56)]
    words[LAYOUT] = 1
    owner.stamp(1)
    for line, reader in enumerate(readers):
        native.set_member(page, line, True)
        assert reader.acquire(1) == 1
    assert [words[LINES + line * LINE] for line in range(56)] == [1] * 56
    assert words[LEASE] == 0
    for line in range(56):
        assert owner.claim() == 1
        words[LINES + line * LINE] = 0
    assert owner.claim() == 0


class Truth:
    """Its truth is told by code that handles an exception of its own."""

    def __bool__(self) -> bool:
        with contextlib.suppress(KeyError):
            {}[1]
        return True


def test_lines_that_are_not_there_are_refused(native: ModuleType) -> None:
    for line in (-1, 56, 2**40):
        with pytest.raises(ValueError, match="no lease line"):
            native.LeaseWords(memory(), None, line)
        with pytest.raises(ValueError, match="no lease line"):
            native.set_member(memory(4096), line, True)
        with pytest.raises(ValueError, match="no lease line"):
            native.set_member(memory(4096), line, Truth())
    with pytest.raises(ValueError, match=r"."):
        native.LeaseWords(memory(4088), None, 0)
    with pytest.raises(ValueError, match=r"."):
        native.LeaseWords(memory(), memory(48))


def test_a_view_leases_the_line_of_its_reader(native: ModuleType) -> None:
    file, page = memory(8192), memory(4096)
    words = file.cast("Q")
    owner = native.OwnerSegment(file, page)
    leased = native.ReaderSegment(file, file.toreadonly(), 9)
    words[LAYOUT] = 1
    owner.stamp(1)
    native.set_member(page, 9, True)
    leased.set_layout(1, np.dtype("f4"), (8,), 4096)
    assert native.view_of(np.zeros(3)) is None
    view = leased.view(1)
    assert native.view_of(view[2:]) is leased
    assert (words[LEASE], words[LINES + 9 * LINE], owner.claim()) == (0, 1, 1)
    del view
    native.drain()
    assert owner.claim() == 0


@pytest.mark.parametrize("buffer", [bytes(4096), bytearray(100), memoryview(bytearray(4104))[1:]])
def test_what_cannot_hold_a_line_is_refused(native: ModuleType, buffer: Any) -> None:
    if native is plain and isinstance(buffer, memoryview):
        pytest.skip("memoryview.cast knows nothing of alignment")
    with pytest.raises((TypeError, ValueError, BufferError)):
        native.LeaseWords(buffer).stamp(1)


# -- bells -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def name() -> Iterator[str]:
    name = f"/tr_{os.getpid()}_native"
    posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode=0o600).close()
    yield name
    posix_ipc.unlink_semaphore(name)


def test_all_rings_before_a_look_are_one_hint(native: ModuleType, name: str) -> None:
    bell = native.Semaphore(name)
    assert bell.wait(0) is False
    for _ in range(5):
        bell.post()
    assert bell.wait(0) is True
    assert bell.wait(0) is False


def test_a_wait_ends_with_a_ring_or_with_its_time(native: ModuleType, name: str) -> None:
    bell, other = native.Semaphore(name), native.Semaphore(name)
    began_s = time.monotonic()
    assert bell.wait(0.05) is False
    assert time.monotonic() - began_s >= 0.05
    ringer = threading.Timer(0.05, other.post)
    ringer.start()
    assert bell.wait(60) is True
    ringer.join()


def test_what_a_signal_handler_raises_ends_a_wait(native: ModuleType, name: str) -> None:
    def stop(*_: Any) -> None:
        raise InterruptedError("stop")

    previous = signal.signal(signal.SIGUSR1, stop)
    alarm = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
    alarm.start()
    try:
        with pytest.raises(InterruptedError, match="stop"):
            native.Semaphore(name).wait(60)
    finally:
        alarm.join()
        signal.signal(signal.SIGUSR1, previous)


def test_a_signal_that_another_thread_was_given_ends_a_wait_too(native: ModuleType, name: str) -> None:
    def stop(*_: Any) -> None:
        raise InterruptedError("stop")

    def receive() -> None:  # as the kernel may choose: the sleeping thread is not woken
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    previous = signal.signal(signal.SIGUSR1, stop)
    ring, bell = native.Ring(ring_memory()), native.Semaphore(name)
    receiver = threading.Timer(0.05, receive)
    receiver.start()
    try:
        with pytest.raises(InterruptedError, match="stop"):
            ring.sleep(bell, 60, 0.02, bool)  # `bool()` is False, and calls nothing that would look for signals
    finally:
        receiver.join()
        signal.signal(signal.SIGUSR1, previous)


def test_other_threads_run_during_a_wait(native: ModuleType, name: str) -> None:
    bell = native.Semaphore(name)
    seen: list[bool] = []
    waiter = threading.Thread(target=lambda: seen.append(bell.wait(60)))
    waiter.start()
    bell.post()  # by this thread, which can only run if the other lets it
    waiter.join()
    assert seen == [True]


def test_a_bell_that_is_not_there_is_an_os_error(native: ModuleType) -> None:
    with pytest.raises(FileNotFoundError):
        native.Semaphore(f"/tr_{os.getpid()}_nowhere")


@pytest.mark.parametrize("spin_us", [0.0, 200.0])
def test_a_ring_sleeps_until_a_message_is_there_or_time_is_over(native: ModuleType, name: str, spin_us: float) -> None:
    buffer = ring_memory()
    ring, peer, bell = native.Ring(buffer), native.Ring(buffer), native.Semaphore(name)
    ring.set_spin(spin_us)
    assert ring.sleep(bell, 0, 1.0, never) is False
    assert ring.sleep(bell, 0.01, 1.0, never) is False
    bell.post()  # a hint that was wrong
    assert ring.sleep(bell, 0.01, 1.0, never) is False
    peer.store(1, b"}")
    assert ring.sleep(bell, 60, 1.0, always) is True  # whatever else is the case
    assert ring.peek() == b'{"seq":        1}'
    assert ring.advance(0, True)
    assert ring.sleep(bell, 60, 1.0, always) is False

    def answer() -> None:
        bell.post()  # too early
        peer.store(2, b"}")
        bell.post()

    ringer = threading.Timer(0.02, answer)
    ringer.start()
    assert ring.sleep(bell, 60, 1.0, never) is True
    ringer.join()
    assert ring.peek() == b'{"seq":        2}'


def test_a_wait_asks_whether_to_stop_whenever_it_is_woken(native: ModuleType, name: str) -> None:
    ring, bell = native.Ring(ring_memory()), native.Semaphore(name)
    answers = iter([False, False, True])
    bell.post()

    def stop() -> bool:
        bell.post()
        return next(answers)

    assert ring.sleep(bell, 60, 1.0, stop) is False
    assert not list(answers)
    with pytest.raises(ZeroDivisionError):
        ring.sleep(bell, 60, 1.0, lambda: 1 // 0)


def always() -> bool:
    return True


# -- copies ------------------------------------------------------------------------------------------------------------

LARGE = (4 << 20) + 4097  # bytes; enough for two threads, and no multiple of a memory page


@pytest.mark.parametrize("nbytes", [0, 1, 4096, 65536, LARGE])
def test_a_copy_has_every_byte_and_touches_no_other(native: ModuleType, nbytes: int) -> None:
    source = np.random.default_rng(1).integers(0, 256, nbytes, np.uint8)
    target = memory(nbytes + 4096)
    native.copy(target, 100, source)
    result = np.frombuffer(target, np.uint8)
    assert np.array_equal(result[100 : 100 + nbytes], source)
    assert not result[:100].any()
    assert not result[100 + nbytes :].any()


@pytest.mark.parametrize("source", [np.zeros((4, 4))[:, 0], np.zeros((4, 4), order="F"), 3])
def test_only_contiguous_buffers_are_copied(native: ModuleType, source: Any) -> None:
    with pytest.raises((BufferError, ValueError, TypeError)):
        native.copy(memory(), 0, source)


@pytest.mark.parametrize("offset", [-1, 65529, 1 << 40])
def test_nothing_is_copied_beyond_the_target(native: ModuleType, offset: int) -> None:
    target = memory()
    with pytest.raises(ValueError, match="fit"):
        native.copy(target, offset, np.ones(1))
    assert not any(target)


@pytest.mark.parametrize("dtype", [object, [("number", "f8"), ("name", object)]], ids=["objects", "records"])
def test_nothing_is_copied_over_python_objects(native: ModuleType, dtype: Any) -> None:
    target = np.zeros(4, dtype)
    before = target.tolist()
    with pytest.raises(ValueError, match="Python objects"):
        native.copy(target, 0, np.ones(1))
    assert target.tolist() == before


def test_a_read_only_target_is_refused(native: ModuleType) -> None:
    with pytest.raises((BufferError, ValueError, TypeError)):
        native.copy(memory().toreadonly(), 0, np.ones(1))


# -- sessions ----------------------------------------------------------------------------------------------------------

MIXED = """
import os, sys
import numpy as np
from tr_mmap import PythonSession, native
assert native.IS_COMPILED == (sys.argv[2] == "compiled"), native.IS_COMPILED
os.environ["TR_MMAP_PURE"] = "" if sys.argv[3] == "compiled" else "1"
with PythonSession(sys.argv[1], "mixed", quiet_mode=True) as session:
    assert session.fetch_response("hello there") == "Hello There"
    for number in range(200):
        x = np.full((3, number), number, np.float32)
        assert np.array_equal(session.calculate("echo", x), x)
        loan = session.empty(number + 1)
        loan[:] = number
        assert np.array_equal(session.calculate("echo", loan), loan)
"""


@pytest.mark.skipif(compiled is None, reason="there is no compiler here, so there is one implementation only")
@pytest.mark.parametrize(
    ("controller", "worker"),
    [
        ("plain", "compiled"),
        ("compiled", "plain"),
        pytest.param("plain", "plain", marks=pytest.mark.full_only),  # as of ``sh tools/test --plain``
        pytest.param("compiled", "compiled", marks=pytest.mark.full_only),  # as of all other tests
    ],
)
def test_the_implementations_understand_each_other(controller: str, worker: str) -> None:
    environment = os.environ | {"TR_MMAP_PURE": "" if controller == "compiled" else "1"}
    arguments = [sys.executable, "-W", "error", "-c", MIXED, str(TOOLS), controller, worker]
    subprocess.run(arguments, env=environment, check=True, timeout=60)


def test_a_session_that_spins_works_and_still_sleeps(workspace: Path) -> None:
    with PythonSession(TOOLS, "spin", quiet_mode=True, spin_us=200) as session:
        for number in range(100):
            assert session.calculate("echo", np.full(5, number)).tolist() == [number] * 5
        worker = psutil.Process(processes_of(workspace)[0].pid)
        before_s = sum(worker.cpu_times()[:2])
        assert not session.join(400)
        assert sum(worker.cpu_times()[:2]) - before_s < 0.2  # of the 0.4 that spinning would have used


@pytest.mark.parametrize("spin_us", [-1, 1e9, float("nan")])
def test_a_spin_that_makes_no_sense_is_refused(spin_us: float) -> None:
    with pytest.raises(BadMessage, match="spin_us"):
        PythonSession(spin_us=spin_us)
