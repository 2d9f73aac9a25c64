"""Buffers, layouts and copies that make no sense, and objects that end at the wrong time."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import signal
import sys
import threading
from typing import Any

import numpy as np
from native_objects import (
    FLOATS,
    HELD,
    IN_FLIGHT,
    NBYTES,
    OFFSET,
    POOL,
    REPLY,
    RESPONSE,
    controller_arguments,
    memory,
    n,
    owner,
    reader,
    refusal,
    worker_arguments,
)

from tr_mmap.wire.messages import RING_NBYTES

# -- memory ------------------------------------------------------------------------------------------------------------


def a_mapping_that_is_resized_or_released() -> None:
    segment = reader()
    mapping = bytearray(NBYTES)
    array = segment.view(5, mapping)
    print(refusal(mapping.clear), refusal(mapping.extend, b"x"))
    del array
    assert segment.spare is mapping
    mapping.clear()
    view = memoryview(bytearray(NBYTES))
    array = segment.view(5, view)
    print(refusal(view.release))
    array[:] = 3
    del array
    view.release()
    print(segment.views)


def a_mapping_that_does_not_fit() -> None:
    segment = reader()
    aligned = memoryview(np.zeros(NBYTES // 8 + 1).data).cast("B")
    for mapping in (bytearray(NBYTES - 1), bytearray(NBYTES + 1), bytes(NBYTES), 3, aligned[1 : NBYTES + 1]):
        print(refusal(segment.view, 5, mapping).partition(":")[0], segment.views)


def a_buffer_that_is_resized() -> None:
    for kind in (n.LeaseWords, n.OwnerSegment, n.Ring):
        buffer = bytearray(RING_NBYTES)
        made = kind(buffer)
        print(refusal(buffer.clear).partition(":")[0])
        del made
        buffer.clear()


def copies_that_overlap() -> None:
    for nbytes in (100, 70_000, 9 << 20):
        data = np.random.default_rng(1).integers(0, 256, nbytes, np.uint8)
        for source, target in ((0, 1), (1, 0), (0, nbytes // 3), (nbytes // 3, 0), (0, 0)):
            size = nbytes - max(source, target)
            buffer = bytearray(data.tobytes())
            n.copy(buffer, target, memoryview(buffer)[source : source + size])
            wanted = bytearray(data.tobytes())
            wanted[target : target + size] = data.tobytes()[source : source + size]
            assert buffer == wanted, (nbytes, source, target)
    print("ok")


def elements_that_are_not_numbers() -> None:
    dtypes: list[Any] = [object, "S0", "V0", "U0", ("f4", (2,)), [("a", object)], np.dtypes.StringDType()]
    for dtype in map(np.dtype, dtypes):
        for setter in (
            lambda dtype: owner().set_layout(("x", (4,), OFFSET), dtype),
            lambda dtype: reader().set_layout(1, dtype, (4,), OFFSET),
        ):
            assert refusal(setter, dtype).startswith("ValueError: the elements"), dtype
    for bad in (None, "f4", 3, float):
        assert not refusal(owner().set_layout, FLOATS, bad).startswith("accepted"), bad
    print("ok")


def payloads_that_are_not_aligned() -> None:
    for dtype, offset in (("f8", 257), ("f4", 258), ("c16", 4100), ("i2", 4097)):
        print(refusal(owner().set_layout, ("x", (4,), offset), np.dtype(dtype)))
        print(refusal(reader().set_layout, 1, np.dtype(dtype), (4,), offset))


def layouts_that_fail() -> None:
    class Failing:
        def __index__(self) -> int:
            raise ValueError("no size")

    big = 2**62
    for shape in ((-5,), (-1, -4), (big, big), (big, 0, big), (4, Failing()), (NBYTES,), (0, -1), [4], (1,) * 33):
        segment, other = owner(), reader()
        segment.set_layout(FLOATS, np.dtype("f4"))
        for setter, arguments in (
            (segment.set_layout, [("x", shape, OFFSET), np.dtype("f4")]),
            (other.set_layout, [2, np.dtype("f4"), shape, OFFSET]),
        ):
            if shape != (big, 0, big) or n.__name__.endswith("_native"):
                assert not refusal(setter, *arguments).startswith("accepted"), shape
        if shape != (big, 0, big) or n.__name__.endswith("_native"):
            assert segment.layout is None
            assert refusal(segment.loan) == "ValueError: the segment has no layout"
            assert other.view(5) is None
            assert other.views == 0
        segment.set_layout(FLOATS, np.dtype("f4"))
        assert segment.loan().shape == (4,)
    print("ok")


def layouts_whose_end_changes_the_layout() -> None:
    floats = np.dtype("f4")
    for change in ("set", "clear"):
        segment = owner()

        class Ending:
            def __del__(self) -> None:
                if change == "set":  # noqa: B023 - runs in this turn of the loop
                    segment.set_layout(("inner", (2,), OFFSET), floats)  # noqa: B023
                else:
                    segment.clear_layout()  # noqa: B023

        for shape in ((4,), (-5,)):
            segment.set_layout((Ending(), (4,), OFFSET), floats)
            refusal(segment.set_layout, ("outer", shape, OFFSET), floats)
            if segment.layout is not None:
                assert segment.loan().shape == segment.layout[1]
        segment.set_layout((Ending(), (4,), OFFSET), floats)
        array = segment.loan()
        segment.set_layout(("outer", (4,), OFFSET), floats)
        del array
        segment.set_layout((Ending(), (4,), OFFSET), floats)
        first = segment.loan()
        segment.set_layout(("outer", (4,), OFFSET), floats)
        print(segment.loan().shape, first.shape)
        del first
        segment.set_layout(FLOATS, floats)
        gc.collect()


def two_loans_of_different_layouts() -> None:
    segment = owner()
    segment.set_layout(FLOATS, np.dtype("f4"))
    first = segment.loan()
    other = ("int32", (2,), OFFSET)
    segment.set_layout(other, np.dtype("i4"))
    second = segment.loan()
    del first
    gc.collect()
    n.drain()
    print(segment.loaned_layout == other, segment.holds)
    del second
    n.drain()
    print(segment.loaned_layout, segment.holds)


def chains() -> None:
    """Each object keeps the next one; to free them one within the other would overflow the small stack.

    CPython 3.13 frees 10,000 of its own lists within each other, for which 256 KiB are too few.
    """
    threading.stack_size(1 << 20)
    thread = threading.Thread(target=free_chains, args=(20_000,))
    thread.start()
    thread.join()
    print("ok")


def free_chains(length: int) -> None:
    last: Any = None
    for _ in range(length):
        made = n.OwnerSegment.__new__(n.OwnerSegment)
        made.requested_dtype, last = last, made
    del made, last
    last = None
    for _ in range(length):
        made = n.ReaderSegment.__new__(n.ReaderSegment)
        made.spare, last = last, made
    del made, last
    fd = os.memfd_create("chain")
    os.truncate(fd, 4096)
    last = None
    for _ in range(length):
        made = n.map_file(fd, 4096, 0, False, False)
        made.kept, last = last, made
    del made, last
    arguments = controller_arguments()
    for _ in range(length):
        arguments[RESPONSE] = n.ControllerFastPath(*arguments)
    arguments.clear()
    arguments = worker_arguments()
    for _ in range(length):
        arguments[REPLY] = n.WorkerFastPath(*arguments)
    arguments.clear()
    last = None
    segment = None
    for _ in range(length):  # through an array, which lies in a loan
        segment = n.OwnerSegment.__new__(n.OwnerSegment)
        segment.name, segment.pool_token = last, (last,)
        last = [segment]
    del last, segment


def an_array_that_is_resized_while_another_is_copied() -> None:
    count = 4 << 20
    layout = ("float32", (count,), OFFSET)
    arguments = controller_arguments()
    pool = arguments[POOL]
    free_list = pool.free.setdefault(count, [])
    for name in ("a", "b"):
        segment = n.OwnerSegment(memory(nbytes=OFFSET + 4 * count))
        segment.set_layout(layout, np.dtype("f4"))
        segment.name, segment.free_list, segment.is_header_current = name, free_list, True
        segment.restore(0, free_list)
    path = n.ControllerFastPath(*arguments)
    arrays: list[Any] = []
    signal.signal(signal.SIGALRM, lambda *_: arrays[1].resize(1, refcheck=False))
    is_sent = True
    for _ in range(100):  # until the signal comes during the first copy, as it does the first time or soon
        arrays[:] = [np.ones(count, "f4"), np.ones(count, "f4")]
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        pending = n.Pending("run")
        is_sent = path.send(pending, tuple(arrays))
        if not is_sent:
            break
        arguments[IN_FLIGHT].clear()
        while pending.held:
            pending.held.pop().release()
    print(is_sent, pending.held, arguments[HELD], len(free_list))


def a_fault_in_the_second_thread_of_a_copy() -> None:
    faulthandler.enable()
    nbytes = 16 << 20
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    address = libc.mmap(None, nbytes, 3, 0x22, -1, 0)
    fd = os.memfd_create("short")
    os.truncate(fd, nbytes)
    assert libc.mmap(address, nbytes // 2, 3, 0x11, fd, 0) == address  # the half that the second thread copies
    os.truncate(fd, 0)
    source = (ctypes.c_char * nbytes).from_address(address)
    n.copy(bytearray(nbytes), 0, source)


if __name__ == "__main__":
    globals()[sys.argv[2]]()
