"""Actions in a signal handler of the main thread, at a moment that the test names."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LoneHandler = Callable[[Callable[[], object]], None]


@contextmanager
def once(is_so: Callable[[], object]) -> Iterator[LoneHandler]:
    """Gives a function that lets an action run once, in a signal handler, as soon as something is so."""
    previous = signal.getsignal(signal.SIGALRM)

    def arm(action: Callable[[], object]) -> None:
        def on_alarm(*_: object) -> None:
            if is_so():
                signal.setitimer(signal.ITIMER_REAL, 0)
                action()

        signal.signal(signal.SIGALRM, on_alarm)
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)

    yield arm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)
