"""Escape 11: a contained process that answers for the runner, and lies. Its host believes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from tr_mmap.sandbox import AlgorithmError, Limits, Sandbox

SAY = """
import array, os, socket, stat, sys, time
fds = [fd for fd in range(3, 64) if (lambda: os.path.exists('/') and True)() and os.fstat in (os.fstat,)]
def kind(fd):
    try:
        return os.fstat(fd).st_mode
    except OSError:
        return 0
def process(inputs):
    sockets = [fd for fd in range(3, 64) if stat.S_ISSOCK(kind(fd))]
    areas = [fd for fd in range(3, 64) if stat.S_ISREG(kind(fd))]
    end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, sockets[0])
    os.pwrite(areas[1], (inputs.get('area', '') * inputs.get('times', 1)).encode('latin-1'), 0)
    for packet in inputs['packets']:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [0] * inputs.get('fds', 0)))
        end.sendmsg([packet.encode('latin-1')], [rights] if inputs.get('fds') else [])
    if inputs.get('shut'):
        end.shutdown(socket.SHUT_RDWR)
    time.sleep(1000)
""".replace(
    "fds = [fd for fd in range(3, 64) if (lambda: os.path.exists('/') and True)() and os.fstat in (os.fstat,)]\n", ""
)


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox(limits=Limits(wall_ms=3000, output_nbytes=1 << 20)) as box:
        box.register("lie", SAY)
        yield box


def answer(*tensors: object, values: tuple[int, int] = (0, 2), **fields: object) -> str:
    return json.dumps(
        {"type": "answer", "values_offset": values[0], "values_nbytes": values[1], "tensors": tensors, **fields}
    )


def test_the_way_of_these_lies_is_the_way_of_a_true_answer(box: Sandbox) -> None:
    response = box.run("lie", {"packets": [answer(["y", "float64", [2], 64])], "area": "{}"})
    assert response.outputs["y"].tolist() == [0.0, 0.0]


LIES = {
    "no JSON": "x",
    "an empty packet": "",
    "another message": json.dumps({"type": "ended", "status": -99999}),
    "ready again": "ready",
    "deep JSON": "[" * 60000,
    "deep JSON in a field": answer(more=json.loads("[" * 50 + "]" * 50)),
    "a shape that overflows": answer(["y", "float64", [1 << 62, 1 << 62], 0]),
    "a size beyond 64 bits": answer(["y", "float64", [0, 1 << 70], 0]),
    "a size that overflows to nothing": answer(["y", "float64", [0, (1 << 63) - 1, (1 << 63) - 1], 0]),
    "a negative size": answer(["y", "float64", [-1, -8], 0]),
    "too many dimensions": answer(["y", "float64", [1] * 65, 0]),
    "a negative offset": answer(["y", "float64", [1], -64]),
    "an offset past the end": answer(["y", "float64", [1], 1 << 40]),
    "an offset beyond 64 bits": answer(["y", "float64", [1], 1 << 80]),
    "an offset between": answer(["y", "float64", [1], 3]),
    "more than there is": answer(["y", "float64", [1 << 18], 64]),
    "no such dtype": answer(["y", "object", [1], 0]),
    "a dtype of Python": answer(["y", "O", [1], 0]),
    "two of one name": answer(["y", "float64", [1], 0], ["y", "float64", [1], 0]),
    "values past the end": answer(values=(0, 1 << 40)),
    "values before the start": answer(values=(-5, 10)),
    "values of negative size": answer(values=(64, -2)),
    "values that are no JSON": answer(values=(1, 9)),
    "a bool that is neither": answer(["y", "bool", [2], 0]),
    "a loan for a place": answer(["y", "float64", [1], 0, 1]),
    "a place before the first": answer(["y", "float64", [1], 0, -1]),
    "a place that there is not": answer(["y", "float64", [1], 0, 99999999999]),
    "a name that is none": answer([3, "float64", [1], 0]),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_named_a_forged_answer(box: Sandbox, lie: str) -> None:
    with pytest.raises(AlgorithmError) as caught:
        box.run("lie", {"packets": [LIES[lie]], "area": "{}" + "\xff" * 100})
    assert caught.value.type == "ForgedAnswer"


@pytest.mark.parametrize("fds", [1, 8, 200])
def test_descriptors_that_come_with_an_answer_are_closed(box: Sandbox, fds: int) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(AlgorithmError):
        box.run("lie", {"packets": ["x"], "fds": fds})
    after = sorted(os.listdir("/proc/self/fd"))
    assert len(after) <= len(before)


def test_a_socket_that_it_shuts_is_named(box: Sandbox) -> None:
    with pytest.raises(AlgorithmError) as caught:
        box.run("lie", {"packets": [], "shut": True})
    assert caught.value.type == "ForgedAnswer"


@pytest.mark.parametrize("type_", ["__class__", "cpu_cores", "wall_ms", "__init__", "x" * 1000])
def test_a_fault_that_names_no_limit_is_an_error_of_the_algorithm(box: Sandbox, type_: str) -> None:
    with pytest.raises(AlgorithmError):
        box.run("lie", {"packets": [answer(fault={"kind": "limit", "type": type_, "message": "m"})]})


def test_a_time_that_it_did_not_take_is_cut(box: Sandbox) -> None:
    forged = answer(execution_time_ms=1e300)
    assert box.run("lie", {"packets": [forged], "area": "{}"}).execution_time_ms <= 3000
    forged = answer(execution_time_ms=-5)
    assert box.run("lie", {"packets": [forged], "area": "{}"}).execution_time_ms == 0


def test_a_process_that_fills_its_socket_does_not_stop_others(box: Sandbox) -> None:
    """The zygote, which has to say how it ended, must not wait for it."""
    flood = SAY.replace("time.sleep(1000)", "end.setblocking(False)\n    while True: end.send(b'x' * 1000)")
    for _ in range(3):
        with pytest.raises(AlgorithmError):
            box.run(box.register("flood", flood, "process", reuse=True), {"packets": []})
        assert box.execute("output = 7").outputs == {"output": 7}


def test_a_signal_without_a_name_is_an_ordinary_end(box: Sandbox) -> None:
    code = "import ctypes, os; ctypes.CDLL(None).raise_(40) if 0 else ctypes.CDLL(None)['raise'](40)"
    with pytest.raises(AlgorithmError) as caught:
        box.execute(code)
    assert caught.value.type == "ProcessEnded"
    assert "40" in str(caught.value)


def test_what_is_printed_is_bounded_wherever_its_offset_was_moved(box: Sandbox) -> None:
    assert len(box.execute("for _ in range(3000): print('x' * 1000)\noutput = 1").stdout) <= 1 << 20
    moved = box.execute("import os; os.lseek(1, 1 << 50, os.SEEK_SET); output = 1")
    assert len(moved.stdout) <= 1 << 20
    assert np.array_equal(box.execute("import numpy as np; output = np.ones(3)").outputs["output"], np.ones(3))


def test_values_that_would_grow_in_the_host_are_refused() -> None:
    """Three bytes of text are an object of sixty."""
    with Sandbox(limits=Limits(wall_ms=20_000, output_nbytes=32 << 20)) as box:
        box.register("lie", SAY)
        for nbytes, is_refused in ((3 << 20, False), (9 << 20, True)):
            text = '{"y":"' + "x" * (nbytes - 8) + '"}'
            work = {"packets": [answer(values=(0, nbytes))], "area": text}
            if is_refused:
                with pytest.raises(AlgorithmError, match="values at 0") as caught:
                    box.run("lie", work)
                assert caught.value.type == "ForgedAnswer"
            else:
                assert len(box.run("lie", work).outputs["y"]) == nbytes - 8


DEEP_HOST = f"""
import sys, threading
from tr_mmap.sandbox import AlgorithmError, Sandbox
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_forged_answers import SAY, answer
depth, limit, stack_nbytes = map(int, sys.argv[1:])
sys.setrecursionlimit(limit)
threading.stack_size(stack_nbytes)
def run():
    text = '{{"a":' + "[" * depth + "]" * depth + "}}"
    with Sandbox() as box:
        box.register("lie", SAY)
        halves = {{"packets": [answer(values=(0, len(text)))], "area": text}}
        try:
            print(len(box.run("lie", halves).outputs))
        except AlgorithmError as error:
            print(error.type)
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""


@pytest.mark.parametrize(
    ("depth", "limit", "stack_nbytes"), [(900, 1000, 256 << 10), (40_000, 50_000, 0), (99_000, 100_000, 0)]
)
def test_values_however_deep_end_no_host_whatever_its_recursion_limit_and_stack(
    depth: int, limit: int, stack_nbytes: int
) -> None:
    command = [sys.executable, "-c", DEEP_HOST, str(depth), str(limit), str(stack_nbytes)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "ForgedAnswer\n"), ended.stderr


def test_values_are_taken_as_deep_as_a_true_answer_may_be_and_no_deeper(box: Sandbox) -> None:
    for depth, is_refused in ((100, False), (101, True)):
        text = '{"a":' + "[" * depth + "]" * depth + ',"b":"' + "[" * 200 + '"}'
        work = {"packets": [answer(values=(0, len(text)))], "area": text}
        if is_refused:
            with pytest.raises(AlgorithmError, match="nested deeper"):
                box.run("lie", work)
        else:
            assert box.run("lie", work).outputs["b"] == "[" * 200
