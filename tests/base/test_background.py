"""A task's thread comes back after every fork, whatever a signal handler does meanwhile, and no fork waits for long."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from support import BOUND_S, check_open_files, forks, open_files, run_python, wait_until

from tr_mmap.base import background, fork_safety
from tr_mmap.base.background import Background
from tr_mmap.base.fork_safety import ForkAware

interrupted = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
OUR_FILES = (background.__file__, fork_safety.__file__)


def sleep_on(task: Background) -> bool:
    while not task.has_to_return:
        task.sleep(None)
    return False


def fork() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


class Interrupts:
    """Runs something at the nth moment at which a signal handler can run in the code around a fork.

    These are the beginnings of functions, and the returns of functions in C.
    """

    def __init__(self, action: Callable[[], None], nth: int) -> None:
        self._action = action
        self._left = nth
        self.has_come = False

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event not in ("call", "c_return") or frame.f_code.co_filename not in OUR_FILES:
            return
        self._left -= 1
        if self._left == 0:
            self.has_come = True
            sys.setprofile(None)
            self._action()


def each_moment(action: Callable[[], None], attempt: Callable[[], None]) -> Iterator[int]:
    """Attempt it with an interrupt at moment 1, 2, ... until no such moment is reached any more."""
    for nth in range(1, 2000):
        interrupts = Interrupts(action, nth)
        sys.setprofile(interrupts)
        try:
            attempt()
        finally:
            sys.setprofile(None)
        if not interrupts.has_come:
            return
        yield nth
    pytest.fail("it never came to an end")


def raise_interrupt() -> None:
    raise KeyboardInterrupt


def look(tasks: list[Background]) -> None:
    assert all(each.has_thread and not each._forking for each in tasks)
    wait_until(lambda: all(each.is_running() for each in tasks))


def in_small_interpreter(action: str) -> None:
    """Let an action come at each moment around a fork; hundreds of forks of this process, with all tests, take long."""
    tests = os.path.dirname(os.path.dirname(__file__))
    program = f"import runpy, sys; sys.path.insert(0, {tests!r}); runpy.run_path({__file__!r}, run_name='__main__')"
    warned = ("-W", "ignore:This process:DeprecationWarning")  # by Python 3.13, which counts threads after the fork
    done = run_python(*warned if sys.version_info[:2] == (3, 13) else (), "-c", program, action)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_a_handler_that_raises_at_any_moment_around_a_fork_costs_no_thread() -> None:
    in_small_interpreter("raise_interrupt")


def test_a_handler_may_fork_at_any_moment_around_a_fork() -> None:
    """Here concurrent.futures would have a hook that waits for ever if a fork comes in a fork."""
    in_small_interpreter("fork")


def test_a_handler_may_stop_a_task_at_any_moment_of_its_pause_its_end_and_its_beginning() -> None:
    before = open_files()
    made: list[Background] = []

    def attempt() -> None:
        made[:] = []
        task = Background(sleep_on)
        made.append(task)
        task.pause()
        task.resume()
        task.stop(BOUND_S)

    def stop() -> None:
        for each in made:
            each.stop(BOUND_S)

    for _ in each_moment(stop, attempt):
        assert not made[0].is_running()
    made.clear()
    check_open_files(before)


@interrupted
def test_a_member_is_told_of_a_fork_although_a_handler_raised_while_it_was_told() -> None:
    is_over: list[bool] = []

    class Member(ForkAware):
        told = 0

        def forked_in_parent(self) -> None:
            self.told += 1
            if self.told % 2 and not is_over:
                raise KeyboardInterrupt

    members = [Member(), Member()]
    fork()
    is_over.append(True)
    assert all(each.told >= 4 and each.told % 2 == 0 for each in members)


def test_a_member_need_not_have_a_hash() -> None:
    class Member(ForkAware):
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            return True

    members = [Member(), Member()]
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, b"%d" % all(each.is_foreign for each in members))
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reading, 1) == b"1"
    assert not any(each.is_foreign for each in members)
    os.close(reading)
    os.close(writing)


@forks
def test_a_fork_does_not_wait_for_a_task_that_cannot_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_PAUSE_S", 0.01)
    has_begun, go_on = threading.Event(), threading.Event()
    runs: list[bool] = []

    def stuck(task: Background) -> bool:
        runs.append(True)
        if len(runs) == 1:
            has_begun.set()
            go_on.wait()
        return sleep_on(task)

    task = Background(stuck)
    assert has_begun.wait(BOUND_S)
    fork()
    assert task.is_running()
    go_on.set()
    task.pause()  # the thread hears of later ones
    wait_until(lambda: not task.is_running())
    task.resume()
    assert task.is_running()
    task.stop(BOUND_S)


def test_a_task_that_was_waited_for_in_vain_sleeps_after_the_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wake for the fork must not keep it awake: it would use a whole processor."""
    monkeypatch.setattr(background, "_PAUSE_S", 0.0)
    task = Background(sleep_on)
    task.pause()
    task.resume()
    wait_until(task.is_running)
    wake = task._wake
    assert wake is not None
    assert background.readable([wake.reading], 0) == set()
    task.stop(BOUND_S)


def test_a_task_that_raises_has_no_thread_any_more_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda event: said.append(str(event.exc_value)))

    def fail(_: Background) -> bool:
        raise OSError("no descriptor is left")

    task = Background(fail)
    wait_until(lambda: not task.is_running())
    assert not task.has_thread
    wait_until(lambda: bool(said))
    assert said == ["no descriptor is left"]
    task.stop(BOUND_S)


@forks
@pytest.mark.parametrize("end", ["stop", "fork"])
def test_a_thread_that_dies_before_it_runs_our_code_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(background, "_BEGIN_S", 0.01)
    start, late, runs = background._start_new_thread, [], []
    monkeypatch.setattr(background, "_start_new_thread", lambda run, _: late.append(run))

    def task_of(task: Background) -> bool:
        runs.append(True)
        return sleep_on(task)

    task = Background(task_of)
    monkeypatch.setattr(background, "_start_new_thread", start)
    if end == "stop":
        task.stop()
        task.stop()
        assert not task.is_running()
    else:
        fork()
        wait_until(lambda: bool(runs))  # in a new thread
    count = len(runs)
    late[0]()  # it did not die, it was slow
    assert len(runs) == count
    task.stop()
    assert not task.is_running()


def test_threads_that_stop_one_task_at_once_all_go_on_when_its_thread_has_died(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_BEGIN_S", 0.01)
    start = background._start_new_thread
    monkeypatch.setattr(background, "_start_new_thread", lambda *_: None)
    task = Background(sleep_on)
    monkeypatch.setattr(background, "_start_new_thread", start)
    stopping = [threading.Thread(target=task.stop) for _ in range(4)]
    for each in stopping:
        each.start()
    for each in stopping:
        each.join(BOUND_S)
        assert not each.is_alive()


def test_numbers_that_the_program_closed_and_uses_anew_are_left_alone(tmp_path: Any) -> None:
    path = tmp_path / "precious"
    path.write_text("precious")
    has_begun = threading.Event()
    go_on = threading.Event()
    task = Background(lambda _: (has_begun.set(), go_on.wait(), True)[2])
    assert has_begun.wait(BOUND_S)
    wake = task._wake
    assert wake is not None
    number = wake.reading
    other = os.open(path, os.O_RDWR)
    os.dup2(other, number)
    task.stop(0.0)
    go_on.set()
    wait_until(lambda: not task.is_running())
    del wake
    assert os.fstat(number).st_ino == path.stat().st_ino
    assert path.read_text() == "precious"
    os.close(number)
    os.close(other)


def test_a_signal_handler_may_end_what_it_interrupts() -> None:
    """A real signal, in the middle of the wait for a thread."""
    has_begun, go_on = threading.Event(), threading.Event()
    task = Background(lambda _: (has_begun.set(), go_on.wait(), True)[2])
    assert has_begun.wait(BOUND_S)

    def handler(*_: object) -> None:
        task.stop(0.0)
        go_on.set()

    previous = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        task.stop(BOUND_S)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert not task.is_running()


if __name__ == "__main__":
    assert "concurrent.futures.thread" not in sys.modules
    come: Callable[[], None] = {"fork": fork, "raise_interrupt": raise_interrupt}[sys.argv[1]]
    if come is raise_interrupt:
        sys.unraisablehook = lambda _: None  # a hook of a fork that raises is told
    running = [Background(sleep_on) for _ in range(2)]
    for _ in each_moment(come, fork):
        look(running)
    fork()
    look(running)
    for each in running:
        each.stop(BOUND_S)
