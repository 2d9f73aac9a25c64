"""Calls of native objects in the wrong order, with the wrong arguments, and with callbacks that change what is used."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import sys
import threading
import weakref
from typing import Any

import numpy as np
import posix_ipc
from native_objects import (
    CONSUMING,
    COUNTERS,
    DEATHS,
    ENDED,
    FLOATS,
    HELD,
    IN_FLIGHT,
    POOL,
    REF,
    REFUSALS,
    REPLY,
    REQUEST,
    RESPONSE,
    TAGS,
    Ref,
    Request,
    Server,
    answered,
    asked,
    call,
    controller_arguments,
    incoming,
    memory,
    mirror,
    n,
    owner,
    reader,
    refusal,
    ring,
    worker_arguments,
)

RECORDS = (n.TurnWords, n.Counters, n.SentResults)  # there is no __init__ that could not have run

# -- __init__ ----------------------------------------------------------------------------------------------------------


def makers() -> list[tuple[type, list[Any]]]:
    buffer = memory()
    name = f"/tr_{os.getpid()}_again"
    return [
        (n.Semaphore, [name]),
        (n.LeaseWords, [buffer]),
        (n.OwnerSegment, [buffer]),
        (n.ReaderSegment, [buffer, buffer]),
        (n.Ring, [buffer]),
        (n.FreeLists, []),
        (n.Mirror, [buffer, "/proc/nothing", b""]),
        (n.Heartbeat, [buffer]),
        (n.Pending, ["run"]),
        (n.ControllerFastPath, controller_arguments()),
        (n.WorkerFastPath, worker_arguments()),
    ]


def init_again() -> None:
    name = f"/tr_{os.getpid()}_again"
    posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode=0o600).close()
    for kind, arguments in makers():
        made = kind(*arguments)
        print(kind.__name__, refusal(made.__init__, *arguments))
    posix_ipc.unlink_semaphore(name)


def init_again_in_another_thread_during_a_wait() -> None:
    path = n.ControllerFastPath(*controller_arguments())
    seen: list[str] = []
    again = threading.Timer(0.05, lambda: seen.append(refusal(path.__init__, *controller_arguments())))
    again.start()
    print(call(path, 0.2).outcome)
    again.join()
    print(*seen)


def init_again_in_a_signal_handler_during_a_wait() -> None:
    path = n.ControllerFastPath(*controller_arguments())
    seen: list[str] = []
    signal.signal(signal.SIGALRM, lambda *_: seen.append(refusal(path.__init__, *controller_arguments())))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    print(call(path, 0.2).outcome)
    print(*seen)


def init_again_while_a_response_is_made() -> None:
    arguments = controller_arguments()
    seen: list[str] = []
    arguments[RESPONSE] = lambda *_: seen.append(refusal(path.__init__, *controller_arguments()))
    path, pending = answered(arguments)
    print(path.consume(), pending.outcome)
    print(*seen)


def init_again_while_its_arguments_are_read() -> None:
    for kind, make in ((n.ControllerFastPath, controller_arguments), (n.WorkerFastPath, worker_arguments)):
        path = kind.__new__(kind)

        class Slice:
            def __float__(self) -> float:
                path.__init__(*make())  # noqa: B023 - called in this turn of the loop
                return 1.0

        arguments = make()
        arguments[4] = Slice()
        print(refusal(path.__init__, *arguments))


def attempts(made: Any) -> None:
    """Call whatever there is with arguments that fit and with some that do not."""
    values: list[Any] = [None, 0, 1, -1, 2**64, 0.0, "x", b"x", (), [], {}, np.zeros(4, "f4"), np.dtype("f4"), made]
    for name in dir(type(made)):
        if name.startswith("_") or name in {"serve", "wait", "sleep"}:
            continue
        try:
            attribute = getattr(made, name)
        except REFUSALS:
            continue
        if callable(attribute):
            for count in range(3):
                for arguments in itertools.product(values, repeat=count):
                    refusal(attribute, *arguments)
            for value in values:
                refusal(attribute, value, value, value)
                refusal(attribute, value, value, value, value)
    for name in ("wait", "sleep", "serve"):
        if hasattr(made, name):
            for value in (*values[:4], "x"):
                refusal(getattr(made, name), value, *[0.0, 0.001, bool][: 0 if name == "serve" else 3])
    for name in dir(type(made)):
        if not name.startswith("_"):
            for value in values:
                refusal(setattr, made, name, value)
            refusal(delattr, made, name)
            refusal(getattr, made, name)
            refusal(delattr, made, name)


def use_before_init() -> None:
    for kind in (*(kind for kind, _ in makers()), *RECORDS):
        made = kind.__new__(kind)
        attempts(made)
        gc.collect()
        del made
    gc.collect()
    print("ok")


def use_with_any_argument() -> None:
    arguments = worker_arguments()
    arguments[DEATHS].append(1)  # the controller has ended, so that no call waits
    dead = controller_arguments()
    dead[ENDED].append(1)
    segment = owner()
    segment.set_layout(FLOATS, np.dtype("f4"))
    made = [n.LeaseWords(memory()), segment, reader(), ring(), n.FreeLists(), mirror(memory()), n.Heartbeat(memory())]
    made += [n.ControllerFastPath(*dead), n.WorkerFastPath(*arguments)]
    made += [n.Pending("run"), *(kind() for kind in RECORDS)]
    for each in made:
        attempts(each)
    del made, each, segment
    gc.collect()
    for name in ("copy", "freeze", "has_as_many_colons", "loan_of", "map_file", "quick_load"):
        for count in range(6):
            for value in (None, 0, -1, 2**70, "x", b"x", (), np.zeros(3), object()):
                refusal(getattr(n, name), *[value] * count)
    print("ok")


def parts_whose_init_has_not_run() -> None:
    print(refusal(ring().set_mirrors, (n.Mirror.__new__(n.Mirror),)))
    for kind, arguments in ((n.ControllerFastPath, controller_arguments()), (n.WorkerFastPath, worker_arguments())):
        for index, part in enumerate(arguments):
            if type(part).__module__ == "tr_mmap.native" and type(part) not in RECORDS:
                blank = part.__new__(type(part))
                said = refusal(kind, *arguments[:index], blank, *arguments[index + 1 :])
                print(kind.__name__, index, said.partition(":")[0])


def the_wrong_types_of_arguments() -> None:
    for kind, good in ((n.ControllerFastPath, controller_arguments()), (n.WorkerFastPath, worker_arguments())):
        for index in range(len(good)):
            for bad in (None, 3, "x", b"12345678", bytearray(3), object()):
                arguments = list(good)
                arguments[index] = bad
                refusal(kind, *arguments)
    for bad in (None, 3, bytes(8192), bytearray(100), memory()[1:], memory().toreadonly(), np.zeros((4, 4))[:, 0]):
        for kind in (n.LeaseWords, n.OwnerSegment, n.Ring):
            assert not refusal(kind, bad).startswith("accepted"), (kind, bad)
        assert not refusal(n.ReaderSegment, bad, memory()).startswith("accepted"), bad
    assert not refusal(n.ReaderSegment, memory(), None).startswith("accepted")
    print("ok")


# -- lists, dicts and callbacks ----------------------------------------------------------------------------------------


def numbers_that_do_not_fit() -> None:
    for made in (owner(), n.FreeLists()):
        made.seq = 2**64 - 1
        for value in (-1, -(2**63), 2**64, 1.0, "1", None):
            print(refusal(setattr, made, "seq", value).split(":")[0])
        print(refusal(delattr, made, "seq").split(":")[0], made.seq == 2**64 - 1)


def releasing(arguments: list[Any], held: Any) -> Any:
    """A controller's fast path that finds the answer to a request which holds these."""
    path, pending = answered(arguments)
    pending.held = held
    return path


def held_whose_end_uses_the_fast_path() -> None:
    arguments = controller_arguments()
    seen: list[Any] = []

    class Ending(n.OwnerSegment):  # type: ignore[misc, name-defined]
        def __del__(self) -> None:
            seen.append((path.consume(), path.send(n.Pending("run"), ())))

    path = releasing(arguments, [Ending(memory()), Ending(memory())])
    print(path.consume(), *seen)


def held_that_is_no_list_of_segments() -> None:
    for held in (3, "text", (owner(),), [owner(), 3, None, owner()], {}, []):
        print(releasing(controller_arguments(), held).consume())


def links_of_any_kind() -> None:
    """A view of another pool's tensor is sent by a link's name only; for all else that stands there Python is asked."""

    class Reader(n.ReaderSegment):  # type: ignore[misc, name-defined]
        __slots__ = ("__weakref__",)

    class Reference:
        """Equal to all others."""

        def __init__(self, segment: Any) -> None:
            self.segment = segment

        def __hash__(self) -> int:
            return hash(self.segment)

        def __eq__(self, other: object) -> bool:
            raise ZeroDivisionError

    count = (1 << 16) // 4
    file = memory(nbytes=4096 + 4 * count)
    written = n.OwnerSegment(file)
    for kind in (Reader, n.ReaderSegment):
        made = kind(file, file.toreadonly())
        made.set_layout(0, np.dtype("f4"), (count,), 4096)
        file[72:80] = (1).to_bytes(8, "little")  # the layout's number
        made.set_layout(1, np.dtype("f4"), (count,), 4096)
        file[64:72] = file[120:128] = (5).to_bytes(8, "little")
        made.is_givable = True
        array = made.view(5)
        key = weakref.ref(made) if kind is Reader else Reference(made)
        names = [("given-0_1.tsr", 3), ("",), (), (5,), 5, "given", ("x" * 5000,), ("a\ud800",), None]
        for link in names:
            arguments = controller_arguments()
            arguments[POOL].hands_on = True
            arguments[-1][key] = link
            path = n.ControllerFastPath(*arguments)
            print(
                path.send(n.Pending("run"), (array,)), len(arguments[HELD]), path.send(n.Pending("run"), (array[1:],))
            )
        made.links = {1: b"/nothing/there", 2: 5, "x": None} if kind is Reader else 5
        made.is_orphan = True
        del array, made, key
        print(written.lease(), int.from_bytes(file[64:72], "little") == (1 << 64) - 1)


def held_when_nothing_was_sent() -> None:
    """Whatever stands in the list of what is being sent stays as it is, and nothing is sent."""
    arguments = controller_arguments()

    class Segment:
        def release(self) -> None:
            raise ValueError("not now")

    path = n.ControllerFastPath(*arguments)
    arguments[HELD].extend([owner(), Segment()])
    print(path.send(n.Pending("run"), ()), len(arguments[HELD]), arguments[COUNTERS].sent)


def an_outcome_whose_taker_does_all_there_is() -> None:
    arguments = controller_arguments()
    seen: list[Any] = []
    path, pending = answered(arguments)

    def again(done: Any) -> None:
        done.held = [owner()]
        seen.append((path.consume(), path.send(n.Pending("run"), ()), done.outcome is not None))
        arguments[IN_FLIGHT].clear()

    pending.on_done = again
    print(path.consume(), *seen, pending.on_done)


def an_outcome_whose_taker_raises() -> None:
    path, pending = answered(controller_arguments())

    def fail(done: Any) -> None:
        raise ValueError("from the taker")

    pending.on_done = fail
    print(refusal(path.consume), pending.outcome is not None, path.consume())


def requests_that_are_no_requests() -> None:
    for other in (3, None, "x", object()):
        arguments = controller_arguments()
        path, _ = answered(arguments)
        arguments[IN_FLIGHT][1] = other
        print(path.consume(), refusal(path.send, other, ()).partition(":")[0])


def a_turn_whose_queue_raises() -> None:
    class Queue:
        def __len__(self) -> int:
            raise ZeroDivisionError

    arguments = controller_arguments()
    arguments[CONSUMING].queue = Queue()
    print(call(n.ControllerFastPath(*arguments)), arguments[COUNTERS].sent)


def a_ref_that_drops_its_tag_when_it_is_read() -> None:
    arguments = worker_arguments()
    tags = arguments[TAGS]

    class Dropping:
        @property
        def segment(self) -> str:
            tags.clear()
            gc.collect()
            return "s"

        seq = 5

    path = n.WorkerFastPath(*arguments)
    tags["a"] = Dropping()
    print(path.quick_fetch("a", "numpy"), tags)


def a_ref_whose_end_drops_all_tags() -> None:
    arguments = worker_arguments()
    tags = arguments[TAGS]

    class Ending(Ref):
        def __del__(self) -> None:
            tags.clear()
            gc.collect()

    arguments[REF] = Ending
    path = asked(arguments, tensors=',"tensors":[["$0","s",5],["$1","s",6],["$2","s",7],["a","s",8]]')
    print(path.serve(Server()), tags)


def refs_that_the_request_empties() -> None:
    arguments = worker_arguments()

    class Emptying(Request):
        def __init__(self, *fields: Any) -> None:
            super().__init__(*fields)
            fields[-1].clear()

    arguments[REQUEST] = Emptying
    path = asked(arguments, tensors=',"tensors":[["a","s",5],["b","s",6]]')
    print(path.serve(Server()), arguments[TAGS])


def a_reply_whose_attributes_raise() -> None:
    def failing(*names: str) -> type:
        def get(self: object, name: str) -> Any:
            if name in names:
                raise RuntimeError(name)
            return ""

        return type("Failing", (), {"__getattr__": get})

    every = ("command", "result", "message", "complaint")
    for names in (("command",), ("message",), every, ("result", "complaint")):
        path = asked(worker_arguments(failing(*names)))
        try:
            print(path.serve(Server()))
        except RuntimeError as error:
            print(error, error.__context__)


def a_reply_or_a_request_that_cannot_be_made() -> None:
    class Nothing:
        def __init__(self, *_: Any) -> None:
            raise RuntimeError("no")

    for index in (REQUEST, REF, REPLY):
        arguments = worker_arguments()
        arguments[index] = Nothing
        path = asked(arguments, tensors=',"tensors":[["a","s",5],["b","s",6]]')
        try:
            print(path.serve(Server()))
        except RuntimeError as error:
            print(error)
    path = asked(worker_arguments())
    print(refusal(path.serve, object()).partition(":")[0])  # it takes no attribute


def texts_that_are_no_utf8() -> None:
    said = b',"command":"\xff","result":"\xff","message":"\xff","timestamp":5}'
    path, pending = answered(controller_arguments(), said)
    print(path.consume(), pending.outcome)
    arguments = worker_arguments()
    peer = incoming(arguments)
    arguments[DEATHS].append(1)
    path = n.WorkerFastPath(*arguments)
    peer.store(1, b'{"seq":1,"command":"\xff","parameters":"\xff","timestamp":5,"tensors":[["\xff","\xff",5]]}')
    print(path.serve(Server()))


if __name__ == "__main__":
    globals()[sys.argv[2]]()
