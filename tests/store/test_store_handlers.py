"""A signal handler may come at any step of a change. It reads; its own change is done, or is refused by name at once;
and nothing that it does, or raises, keeps others from their changes.
"""

from __future__ import annotations

import faulthandler
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import Mother, say

from tr_mmap.store import Store, StoreBusy

TOO_LONG_S = 60  # of a child that hangs: then it says where


def at_step(nth: int, action: Callable[[], None], arrive: Callable[[], None]) -> bool:
    """Have a signal arrive at the nth step at which Python looks for signals: where a function begins, and after a
    call of C. Returns whether there was such a step.
    """
    seen = 0

    def profile(frame: Any, event: str, _: Any) -> None:
        nonlocal seen
        name = frame.f_code.co_filename
        if event in ("call", "c_return") and ("tr_mmap" in name or name.endswith("contextlib.py")):
            seen += 1
            if seen == nth:
                arrive()

    sys.setprofile(profile)
    try:
        action()
    finally:
        sys.setprofile(None)
    return seen >= nth


def interrupt(root: str, kind: str, is_caught: bool, stride: int) -> None:
    """In a child: a change that is interrupted at each of its steps in turn, or at some of them."""
    store = Store("shared", root)
    store.add("one", id="it", vector=np.ones(3))
    counts = {"done": 0, "refused": 0, "raised": 0}

    def handler(*_: Any) -> None:
        assert store.get("it") is not None
        assert store.search(np.ones(3))
        try:
            if kind == "open":
                Store("other", root).close()
            store.add("of the handler")
            counts["done"] += 1
        except StoreBusy:
            counts["refused"] += 1
            if not is_caught:
                raise

    def change() -> None:
        if kind == "add":
            store.add("two", vector=np.ones(3))
        elif kind == "update":
            store.update("it", content="three")
        elif kind == "open":
            Store("other", root).close()
        else:
            store.compact()

    def other() -> None:
        """Another thread's change, while the exception is still there."""
        thread = threading.Thread(target=store.add, args=("of another thread",))
        thread.start()
        thread.join()

    signal.signal(signal.SIGUSR1, handler)
    nth, is_there = 1, True
    while is_there:
        faulthandler.dump_traceback_later(TOO_LONG_S, exit=True)
        try:
            is_there = at_step(nth, change, lambda: signal.raise_signal(signal.SIGUSR1))
        except StoreBusy:
            counts["raised"] += 1
            other()
        else:
            other()
        nth += stride
    say(store.check(), counts)


@pytest.mark.each_value
@pytest.mark.parametrize("kind", ["add", "update", "compact", "open"])
@pytest.mark.parametrize("is_caught", [True, False])
def test_a_handler_that_comes_at_any_step_of_a_change_writes_or_is_refused_and_holds_up_nobody(
    mother: Mother, root: Path, kind: str, is_caught: bool, is_full: bool
) -> None:
    stride = 1 if is_full or kind != "open" else 7
    said, status = mother.run("test_store_handlers.interrupt", str(root), kind, is_caught, stride)
    assert status == 0, said
    wrong, counts = said[0]
    assert wrong == []
    assert counts["done"] > 10
    assert counts["refused"] > 10
    assert counts["raised"] == (0 if is_caught else counts["refused"])
    with Store("shared", root) as store:  # in another process
        assert store.add("after it")
