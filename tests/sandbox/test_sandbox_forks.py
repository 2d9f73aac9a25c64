"""A program that has sandboxes forks: the child keeps the results that it has, and is told that it has no sandbox."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tr_mmap.sandbox import Limits, Sandbox, SandboxBroken

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
_PATIENCE_S = 30


def in_child(work: Callable[[], None]) -> int:
    """Fork a child that works; returns its pid. A child that hangs is ended by an alarm."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_PATIENCE_S)
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(1)


def ending_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextmanager
def busy(box: Sandbox) -> Iterator[None]:
    """Threads use it all the time, so that a child finds any of its locks taken."""
    is_over = threading.Event()
    kept = box.register("kept", "output = 1", reuse=True)

    def use() -> None:
        while not is_over.is_set():
            box.run(kept)
            box.submit(kept).result()
            box.execute("output = 1", {"x": box.empty(8)})

    threads = [threading.Thread(target=use) for _ in range(3)]
    for each in threads:
        each.start()
    try:
        yield
    finally:
        is_over.set()
        for each in threads:
            each.join()


def test_every_call_in_a_forked_child_of_a_busy_program_is_told_at_once() -> None:
    with Sandbox(limits=Limits(wall_ms=60_000)) as box:
        known = box.register("known", "output = 1")
        calls: dict[str, Callable[[], object]] = {
            "run": lambda: box.run(known),
            "execute": lambda: box.execute("output = 1"),
            "submit": lambda: box.submit(known),
            "call": lambda: box.call(known, "known"),
            "register": lambda: box.register("other", "output = 2"),
            "unregister": lambda: box.unregister("known"),
            "set_limits": lambda: box.set_limits(wall_ms=100),
            "cancel": lambda: box.cancel("mine"),
        }

        def work() -> None:
            for name, call in calls.items():
                print("calls", name, file=sys.__stderr__)  # to be seen if it hangs
                with pytest.raises(SandboxBroken, match="make a new one after a fork"):
                    call()
            assert box.health().state != "ready"
            box.close()

        with busy(box):
            children = [in_child(work) for _ in range(12)]
            assert [ending_of(each) for each in children] == [0] * 12
        assert box.run(known).outputs == {"output": 1}


def test_a_forked_child_of_a_busy_program_may_have_a_sandbox_of_its_own() -> None:
    def work() -> None:
        with Sandbox() as own:
            x = own.empty(8)
            x[:] = 2
            assert own.execute("output = inputs['x'].sum()", {"x": x}).outputs == {"output": 16}

    with Sandbox(limits=Limits(wall_ms=60_000)) as box, busy(box):
        children = [in_child(work) for _ in range(2)]
        assert [ending_of(each) for each in children] == [0] * 2


FILL = "import numpy as np\ndef fill(inputs): return {'y': np.full(300_000, inputs['n'])}"


@pytest.mark.parametrize("reuse", [False, True])
def test_results_that_a_forked_child_has_stay_as_they_are_whatever_the_parent_runs(reuse: bool) -> None:
    asked, ask = os.pipe()
    with Sandbox(limits=Limits(wall_ms=60_000)) as box:
        fill = box.register("fill", FILL, reuse=reuse)
        results = [box.run(fill, {"n": 7}).outputs["y"] for _ in range(3)]

        def work() -> None:
            os.close(ask)
            os.read(asked, 1)
            assert all((each == 7).all() for each in results)

        child = in_child(work)
        os.close(asked)
        results.clear()
        seen = [set(box.run(fill, {"n": -1}).outputs["y"].tolist()) for _ in range(20)]
        assert seen == [{-1}] * 20
        os.close(ask)
        assert ending_of(child) == 0


def test_a_kept_process_serves_on_behind_a_fork_unless_the_child_has_a_result_of_it() -> None:
    code = "import os, numpy as np\ndef process(i): return {'pid': os.getpid(), 'y': np.zeros(300_000)}"
    with Sandbox(limits=Limits(wall_ms=60_000)) as box:
        kept = box.register("kept", code, "process", reuse=True)
        first = box.run(kept).outputs["pid"]
        assert ending_of(in_child(lambda: None)) == 0
        held = box.run(kept).outputs
        assert held["pid"] == first
        assert ending_of(in_child(lambda: None)) == 0
        assert not held["y"].any()
        del held
        assert box.run(kept).outputs["pid"] != first
