"""Signals that come at any moment of a wait, and peers that ring without pause."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import posix_ipc
from native_objects import (
    ENDED,
    call,
    controller_arguments,
    n,
    ring,
    semaphore,
)

FOREVER_S = 3600.0  # a wait that misses its signal would end after this


class Stopped(Exception):
    """Raised by a signal handler."""


def stop(*_: Any) -> None:
    raise Stopped


@contextlib.contextmanager
def rung_without_pause() -> Iterator[Any]:
    """A semaphore that another process posts all the time."""
    name = f"/tr_{os.getpid()}_rung"
    posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode=0o600).close()
    made = n.Semaphore(name)
    code = (
        f"import posix_ipc\nring = posix_ipc.Semaphore({name!r}).release\nring()\nprint(flush=True)\nwhile True: ring()"
    )
    ringer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert ringer.stdout is not None
    ringer.stdout.readline()
    posix_ipc.unlink_semaphore(name)
    try:
        yield made
    finally:
        ringer.kill()
        ringer.wait()
        ringer.stdout.close()


def waits(bell: Any, spin_us: float) -> list[Any]:
    """All that wait, without end."""
    a_ring = ring()
    a_ring.set_spin(spin_us)
    made = [lambda: a_ring.sleep(bell, FOREVER_S, FOREVER_S, bool)]  # `bool()` is False, and looks for no signal
    if hasattr(n, "ControllerFastPath"):
        arguments = controller_arguments()
        arguments[1].set_spin(spin_us)
        arguments[3], arguments[4] = bell, FOREVER_S
        path = n.ControllerFastPath(*arguments)
        made.append(lambda: call(path, FOREVER_S))
    return made


def stopped(wait: Any) -> None:
    try:
        wait()
    except Stopped:
        return
    raise AssertionError("not stopped")


def while_the_peer_rings_without_pause() -> None:
    signal.signal(signal.SIGALRM, stop)
    with rung_without_pause() as bell:
        for spin_us in (0.0, 1000.0):
            for wait in waits(bell, spin_us):
                signal.setitimer(signal.ITIMER_REAL, 0.02)
                stopped(wait)
    print("ok")


def while_it_polls() -> None:
    signal.signal(signal.SIGALRM, stop)
    for number in range(20):
        for wait in waits(semaphore(), 1000.0):

            def set_and_wait(wait: Callable[[], Any] = wait, seconds: float = 0.0002 + 0.00005 * number) -> None:
                signal.setitimer(signal.ITIMER_REAL, seconds)  # on a busy machine the signal may come before this ends
                wait()

            stopped(set_and_wait)
    print("ok")


def given_to_another_thread() -> None:
    """The sleep goes on, as with a signal that comes just before it begins."""
    signal.signal(signal.SIGUSR1, stop)
    bell = semaphore()
    for wait in [*waits(bell, 0.0), lambda: bell.wait(FOREVER_S), lambda: bell.wait(float("inf"))]:
        receiver = threading.Timer(0.02, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGUSR1))

        def start_and_wait(receiver: threading.Timer = receiver, wait: Callable[[], Any] = wait) -> None:
            receiver.start()  # on a busy machine the signal may come before this ends
            wait()

        stopped(start_and_wait)
        receiver.join()
    print("ok")


def whose_handler_returns_changes_whether_to_stop() -> None:
    is_over: list[bool] = []
    signal.signal(signal.SIGUSR1, lambda *_: is_over.append(True))
    receiver = threading.Timer(0.02, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGUSR1))
    receiver.start()
    print(ring().sleep(semaphore(), FOREVER_S, FOREVER_S, lambda: bool(is_over)))
    receiver.join()


def other_threads_run_while_the_peer_rings_without_pause() -> None:
    arguments = controller_arguments()
    arguments[4] = FOREVER_S
    with rung_without_pause() as bell:
        arguments[3] = bell
        path = n.ControllerFastPath(*arguments)
        watch = threading.Timer(0.02, arguments[ENDED].append, (1,))  # the worker has ended
        watch.start()
        print(call(path, FOREVER_S).outcome)
        watch.join()


def switches() -> int:
    """How often this thread has gone to sleep."""
    with open(f"/proc/self/task/{threading.get_native_id()}/status") as file:
        return int(file.read().partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def a_wait_of_a_second_wakes_twenty_times_at_most() -> None:
    counts: dict[str, int] = {}

    def count(name: str) -> None:
        before = switches()
        ring().sleep(semaphore(), 1.0, FOREVER_S, bool)
        counts[name] = switches() - before

    count("main")
    other = threading.Thread(target=count, args=("other",))
    other.start()
    while other.is_alive():
        time.sleep(0.1)
    # a few more where the interpreter's lock is asked for
    print(1 < counts["main"] < 60, counts["other"] < 20)


if __name__ == "__main__":
    globals()[sys.argv[2]]()
