"""Calls of native objects in the wrong order, with the wrong arguments, and with callbacks that change what is used."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import sys
import threading
from typing import Any

import numpy as np
import posix_ipc
from native_objects import (
    DEATHS,
    FLOATS,
    REF,
    REFUSALS,
    REPLY,
    REQUEST,
    TAGS,
    Ref,
    Request,
    Server,
    answered,
    asked,
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
    print(path.receive(1, 0.2))
    again.join()
    print(*seen)


def init_again_in_a_signal_handler_during_a_wait() -> None:
    path = n.ControllerFastPath(*controller_arguments())
    seen: list[str] = []
    signal.signal(signal.SIGALRM, lambda *_: seen.append(refusal(path.__init__, *controller_arguments())))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    print(path.receive(1, 0.2))
    print(*seen)


def init_again_while_a_response_is_made() -> None:
    arguments = controller_arguments()
    seen: list[str] = []
    arguments[-1] = lambda *_: seen.append(refusal(path.__init__, *controller_arguments()))
    path = answered(arguments)
    print(path.receive(1, 0))
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
        if name.startswith("_") or name in {"serve", "wait"}:
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
    for name in ("wait", "serve"):
        if hasattr(made, name):
            for value in (*values[:4], "x"):
                refusal(getattr(made, name), value, *[0.0, 0.001, bool][: 3 if name == "wait" else 0])
    for name in dir(type(made)):
        if not name.startswith("_"):
            for value in values:
                refusal(setattr, made, name, value)
            refusal(delattr, made, name)
            refusal(getattr, made, name)
            refusal(delattr, made, name)


def use_before_init() -> None:
    for kind, _ in makers():
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
    dead[8].append(1)
    segment = owner()
    segment.set_layout(FLOATS, np.dtype("f4"))
    made = [n.LeaseWords(memory()), segment, reader(), ring(), n.FreeLists(), mirror(memory()), n.Heartbeat(memory())]
    made += [n.ControllerFastPath(*dead), n.WorkerFastPath(*arguments)]
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
    controller = [*controller_arguments(), mirror(memory())]
    for kind, arguments in ((n.ControllerFastPath, controller), (n.WorkerFastPath, worker_arguments())):
        for index, part in enumerate(arguments):
            if type(part).__module__ == "tr_mmap.native":
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


def held_that_shrinks_while_it_is_released() -> None:
    arguments = controller_arguments()
    held = arguments[7]

    class Segment:
        def release(self) -> None:
            held.clear()

    path = answered(arguments)
    held.extend(Segment() for _ in range(2000))
    print(path.receive(1, 0), held)


def held_that_grows_while_it_is_released() -> None:
    arguments = controller_arguments()
    held = arguments[7]

    class Segment:
        def release(self) -> None:
            held.append(self)

    path = answered(arguments)
    held.extend([Segment(), Segment()])
    print(path.receive(1, 0) is not None, len(held))


def held_whose_release_raises() -> None:
    arguments = controller_arguments()

    class Segment:
        attempts = 0

        def release(self) -> None:
            self.attempts += 1
            if self.attempts == 1:
                raise ValueError("not now")

    path = answered(arguments)
    arguments[7].extend([owner(), Segment(), owner()])
    print(refusal(path.receive, 1, 0), len(arguments[7]))
    print(path.receive(1, 0) is not None, arguments[7])  # the response waits to be taken


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
    print(path.quick_fetch("a"), tags)


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
    path = answered(controller_arguments(), b',"command":"\xff","result":"\xff","message":"\xff","timestamp":5}')
    print(path.receive(1, 0))
    arguments = worker_arguments()
    peer = incoming(arguments)
    arguments[DEATHS].append(1)
    path = n.WorkerFastPath(*arguments)
    peer.store(1, b'{"seq":1,"command":"\xff","parameters":"\xff","timestamp":5,"tensors":[["\xff","\xff",5]]}')
    print(path.serve(Server()))


if __name__ == "__main__":
    globals()[sys.argv[2]]()
