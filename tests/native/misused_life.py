"""Times that make no sense, subclasses, cycles, collections, forks and other interpreters."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from native_objects import (
    COUNTERS,
    EMPTY_RING,
    FLOATS,
    HELD,
    IN_FLIGHT,
    MAPPED,
    NBYTES,
    OFFSET,
    POOL,
    RESPONSE,
    Server,
    answered,
    asked,
    call,
    controller_arguments,
    memory,
    n,
    owner,
    reader,
    refusal,
    ring,
    semaphore,
    worker_arguments,
)

# -- waits -------------------------------------------------------------------------------------------------------------


def times_that_make_no_sense() -> None:
    nan, inf = float("nan"), float("inf")
    a_ring, bell = ring(), semaphore()
    for slice_s in (0, 0.0, -1.0, nan, inf, -inf, None, "1"):
        assert not refusal(a_ring.sleep, bell, 0, slice_s, bool).startswith("accepted"), slice_s
        if hasattr(n, "ControllerFastPath"):
            for kind, arguments in (
                (n.ControllerFastPath, controller_arguments()),
                (n.WorkerFastPath, worker_arguments()),
            ):
                arguments[4] = slice_s
                assert not refusal(kind, *arguments).startswith("accepted"), slice_s
    for timeout_s in (nan, None, "1"):
        assert not refusal(a_ring.sleep, bell, timeout_s, 1.0, bool).startswith("accepted"), timeout_s
        assert not refusal(bell.wait, timeout_s).startswith("accepted"), timeout_s
        if hasattr(n, "ControllerFastPath"):
            path = n.ControllerFastPath(*controller_arguments())
            assert not refusal(call, path, timeout_s).startswith("accepted"), timeout_s
    assert not refusal(a_ring.set_spin, nan).startswith("accepted")
    for timeout_s in (0, -1, -inf):
        assert bell.wait(timeout_s) is False
        assert a_ring.sleep(bell, timeout_s, 1.0, bool) is False
    began_s = time.process_time()
    assert a_ring.sleep(bell, 0.1, 1e-300, bool) is False  # sleeps for a millisecond at a time
    assert time.process_time() - began_s < 0.09
    print("ok")


# -- life and death ----------------------------------------------------------------------------------------------------


def subclasses_that_override_everything() -> None:
    def override(kind: type) -> type:
        def other(self: object, *arguments: object) -> object:
            return None

        names = [name for name in dir(kind) if not name.startswith("_")]
        return type("Sub", (kind,), dict.fromkeys(names, other))

    segment_type, reader_type, lists_type = map(override, (n.OwnerSegment, n.ReaderSegment, n.FreeLists))
    segment = segment_type(memory(nbytes=NBYTES))
    n.OwnerSegment.set_layout(segment, FLOATS, np.dtype("f4"))
    lists = lists_type()
    n.FreeLists.free.__get__(lists)[NBYTES] = [segment]
    print(n.FreeLists.quick_publish(lists, np.zeros(4, "f4")))
    array = n.OwnerSegment.loan(segment)
    print(n.loan_of(array) is segment, n.freeze(array))
    made = reader_type(memory(nbytes=NBYTES), memory(nbytes=NBYTES))
    arguments = controller_arguments()
    arguments[POOL] = lists
    arguments[MAPPED]["s"] = made
    path, pending = answered(arguments, b',"command":"run","result":"x","timestamp":5,"tensors":[["","s",5]]}')
    pending.held = [segment]
    print(path.consume(), path.send(n.Pending("run"), (np.zeros(4, "f4"),)))
    for kind in (n.Semaphore, n.Ring, n.ControllerFastPath, n.WorkerFastPath):
        print(refusal(type, "Sub", (kind,), {}).partition(":")[0])


def cycles() -> None:
    class Sentinel:
        pass

    def cycle(make: Callable[[Any], Any]) -> None:
        sentinel = Sentinel()
        made = make(sentinel)
        sentinel.made = made  # type: ignore[attr-defined]
        ended = weakref.ref(sentinel)
        del sentinel, made
        gc.collect()
        assert ended() is None, make

    def with_attribute(made: Any, name: str) -> Callable[[Any], Any]:
        def make(sentinel: Any) -> Any:
            setattr(made[0], name, sentinel)
            return made.pop()

        return make

    for name in ("name", "requested_dtype", "free_list", "pool_token"):
        cycle(with_attribute([owner()], name))
    cycle(with_attribute([reader()], "spare"))
    for index in (MAPPED, HELD, RESPONSE, IN_FLIGHT):
        arguments = controller_arguments()

        def make(sentinel: Any, index: int = index, arguments: list[Any] = arguments) -> Any:
            if index == RESPONSE:
                arguments[index] = lambda *_: sentinel
            elif index != HELD:
                arguments[index]["x"] = sentinel
            else:
                arguments[index].append(sentinel)
            made = n.ControllerFastPath(*arguments)
            arguments.clear()
            return made

        cycle(make)

    def layout(sentinel: Any) -> Any:
        segment = owner()
        segment.set_layout((sentinel, (4,), OFFSET), np.dtype("f4"))
        return segment

    cycle(layout)
    print("ok")


def collections_during_every_call() -> None:
    gc.set_threshold(1)

    class Ending:
        """A cycle whose end runs code whenever something is allocated."""

        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            lists.next_seq()

    lists = n.FreeLists()
    for _ in range(50):
        Ending()
        arguments = worker_arguments()
        path = asked(arguments, tensors=',"tensors":[["a","s",5],["$0","s",6]]')
        Ending()
        assert path.serve(Server(Ending)) is not None
        Ending()
        path, pending = answered(controller_arguments())
        assert (path.consume(), pending.outcome[1]) == (False, [])
        Ending()
        assert call(n.ControllerFastPath(*controller_arguments())).seq == 1
        segment = owner()
        segment.set_layout(FLOATS, np.dtype("f4"))
        Ending()
        arrays = [segment.loan() for _ in range(3)]
        other = reader()
        arrays += [other.view(5), other.view(5, bytearray(NBYTES))]
        del arrays, other, segment
    print("ok")


def objects_in_a_forked_child() -> None:
    arguments = controller_arguments()
    lists = arguments[POOL]
    segment = owner()
    segment.set_layout(FLOATS, np.dtype("f4"))
    segment.is_header_current = True
    lists.free[NBYTES] = [segment]
    path, pending = answered(arguments)
    worker = asked(worker_arguments())
    child = os.fork()
    if child == 0:
        zeros = np.zeros(4, "f4")
        outcome = [
            path.send(n.Pending("run"), (zeros,)),
            path.consume(),
            call(path, float("inf")),
            worker.serve(Server()),
            lists.quick_publish(zeros),
            lists.quick_publish(zeros, []),
            lists.quick_loan((4,), "float32", "numpy"),
        ]
        os._exit(0 if outcome == [False, True, *[None] * 5] else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(path.consume(), pending.outcome, worker.serve(Server()))


def a_handler_that_forks() -> None:
    arguments = worker_arguments()
    buffer = memory(EMPTY_RING)
    arguments[0] = n.Ring(buffer)
    path = asked(arguments)
    children: list[int] = []

    def fork() -> bool:
        children.append(os.fork())
        if not children[0]:
            buffer[:] = bytes(len(buffer))  # the child's answer would overwrite this
        else:
            print(os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]))
        return True

    left = path.serve(Server(fork))
    if not children[0]:
        os._exit(0 if left is not True and not any(buffer) else 1)
    print(left)


def a_module_that_is_made_again() -> None:
    spec = importlib.util.find_spec("tr_mmap.native._native")
    assert spec is not None
    assert spec.loader is not None
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    for kind in (again.OwnerSegment, again.Mirror):
        print(refusal(setattr, kind, "release", None).partition(":")[0])
    print(refusal(again.ControllerFastPath, *controller_arguments()))  # the parts are of the first module's types
    found = weakref.ref(again)
    segment = again.OwnerSegment(memory(nbytes=NBYTES))
    del again, kind
    gc.collect()
    segment.set_layout(FLOATS, np.dtype("f4"))
    loan = segment.loan()  # of a type that only the module's state knows
    print(found() is not None, loan.shape, loan.base is not None)
    del segment, loan
    gc.collect()
    print(found())


def a_subinterpreter() -> None:
    refused_in(is_isolated=True)


def a_subinterpreter_that_shares_all_it_can() -> None:
    """CPython itself does not refuse its imports."""
    refused_in(is_isolated=False)


def refused_in(*, is_isolated: bool) -> None:
    if sys.version_info >= (3, 13):
        interpreters = importlib.import_module("_interpreters")
        made = interpreters.create("isolated" if is_isolated else "legacy")
    else:
        interpreters = importlib.import_module("_xxsubinterpreters")
        made = interpreters.create(isolated=is_isolated)
    interpreters.run_string(
        made,
        "import sys\n"
        "from importlib import machinery, util\n"
        f"loader = machinery.ExtensionFileLoader('tr_mmap.native._native', {n.__file__!r})\n"
        "spec = util.spec_from_loader('tr_mmap.native._native', loader)\n"
        "try:\n"
        "    loader.exec_module(util.module_from_spec(spec))\n"
        "except ImportError as error:\n"
        "    print(error, flush=True)\n",
    )
    interpreters.destroy(made)


# -- allocations that fail ---------------------------------------------------------------------------------------------


def each_allocation_failing(operation: Callable[[], object], check: Callable[[], object]) -> None:
    """Have each allocation of an operation fail in turn."""
    testcapi = importlib.import_module("_testcapi")
    for number in range(500):
        has_failed = False
        gc.disable()
        testcapi.set_nomemory(number, number + 1)
        try:
            operation()
        except MemoryError:
            has_failed = True
        finally:
            testcapi.remove_mem_hooks()
            gc.enable()
        check()
        if number > 20 and not has_failed:
            return
    raise AssertionError("it never succeeds")


def allocations_that_fail() -> None:
    floats = np.dtype("f4")
    zeros = np.zeros(4, "f4")
    lists = n.FreeLists()
    segment = owner()
    segment.set_layout(FLOATS, floats)
    segment.name = "s"
    segment.requested_dtype = "float32"
    segment.is_header_current = True
    free = segment.free_list = lists.free.setdefault(NBYTES, [])
    free.append(segment)
    held: list[Any] = []
    kept: list[Any] = []

    def published() -> None:
        assert [each.holds for each in held] == [1] * len(held), held
        while held:
            held.pop().release()
        kept.clear()
        assert (segment.holds, free) == (0, [segment]), (segment.holds, free)

    each_allocation_failing(lambda: lists.quick_publish(zeros, held), published)
    each_allocation_failing(lambda: lists.quick_loan((4,), "float32", "numpy"), published)

    def publish_a_loan() -> None:
        kept.append(lists.quick_loan((4,), "float32", "numpy"))
        lists.quick_publish(kept[0], held)

    def loan_published() -> None:
        assert len(held) <= 1
        while held:
            held.pop().release()
        kept.clear()
        assert (segment.holds, free) == (0, [segment]), (segment.holds, free)

    each_allocation_failing(publish_a_loan, loan_published)

    arguments = controller_arguments()
    arguments[POOL], arguments[HELD] = lists, held
    other = arguments[MAPPED]["r"] = reader()
    buffer = memory(EMPTY_RING)
    arguments[1], peer = n.Ring(buffer), n.Ring(buffer)
    path = n.ControllerFastPath(*arguments)
    in_flight, counters = arguments[IN_FLIGHT], arguments[COUNTERS]

    def ask() -> None:
        if peer.stored_seq <= counters.seq:
            peer.store(
                counters.seq + 1, b',"command":"run","result":"x","timestamp":5,"tensors":[["","r",5],["","r",5]]}'
            )
        kept.append(call(path, 0, (zeros,)))

    def answered_now() -> None:
        assert held == []
        while in_flight:  # sent, but what came is still there
            (pending,) = in_flight.values()
            assert pending.is_abandoned
            pending.is_abandoned = False
            assert path.consume() is False
            del pending
        published()
        assert other.views == 0

    each_allocation_failing(ask, answered_now)

    def view() -> None:
        kept.append(other.view(5))
        kept.append(other.view(5, bytearray(NBYTES)))

    def viewed() -> None:
        kept.clear()
        assert other.views == 0
        assert other.claim() == 0
        n.LeaseWords.stamp(other, 5)

    each_allocation_failing(view, viewed)

    paths: list[Any] = []

    def serve() -> None:
        paths[0].serve(Server())

    def served() -> None:
        paths[:] = [asked(worker_arguments(), tensors=',"tensors":[["a","s",5],["$0","s",6]]')]

    served()
    each_allocation_failing(serve, served)

    fd = os.memfd_create("nothing")
    os.truncate(fd, 4096)
    path_of_fd = f"/proc/self/fd/{fd}"
    fresh = owner()
    worker, controller = worker_arguments(), controller_arguments()
    blocks = [memory(nbytes=NBYTES) for _ in range(3)]
    for operation in (
        lambda: n.map_file(fd, 4096, 0, False, False),
        lambda: n.quick_load(path_of_fd, b"\1\2\4", False),
        lambda: fresh.set_layout(FLOATS, floats),
        lambda: n.copy(blocks[0], 0, zeros),
        lambda: n.WorkerFastPath(*worker),
        lambda: n.ControllerFastPath(*controller),
        lambda: n.ReaderSegment(blocks[0], blocks[1]),
        lambda: n.OwnerSegment(blocks[2]),
        lambda: n.Ring(buffer).store(1, b"}"),
        n.FreeLists,
    ):
        each_allocation_failing(operation, lambda: None)
    os.close(fd)


def allocations_that_fail_leak_nothing() -> None:
    for _ in range(3):
        allocations_that_fail()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(5):
        allocations_that_fail()
    gc.collect()
    assert sys.getallocatedblocks() - before < 500, sys.getallocatedblocks() - before
    print("ok")


if __name__ == "__main__":
    globals()[sys.argv[2]]()
