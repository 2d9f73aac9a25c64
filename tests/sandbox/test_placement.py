"""Which tensors a contained process reads in place, by a descriptor of their file, and which are copied first."""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from support import grandchildren

import tr_mmap
from tr_mmap import PythonSession
from tr_mmap.sandbox import Allow, Limits, Sandbox, SandboxBroken

COUNT = 200_000  # of float64: more than what is always copied


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox(limits=Limits(wall_ms=30_000, cpu_ms=30_000)) as box:
        yield box


def an_array() -> np.ndarray:
    return np.arange(float(COUNT))


def a_raw_file(path: Path) -> np.ndarray:
    an_array().tofile(path)
    return np.memmap(path, np.float64, "r")


def an_npy_file(path: Path) -> np.ndarray:
    np.save(path.with_suffix(".npy"), an_array())
    return np.load(path.with_suffix(".npy"), mmap_mode="r")


def a_writable_map(path: Path) -> np.ndarray:
    found = np.memmap(path, np.float64, "w+", shape=(COUNT,))
    found[:] = an_array()
    return found


def a_tsr_file(path: Path) -> np.ndarray:
    tr_mmap.save(path.with_suffix(".tsr"), an_array())
    return tr_mmap.load(path.with_suffix(".tsr"))


def look(box: Sandbox, array: np.ndarray, **options: bool) -> str:
    """Where the input was; what the algorithm gets is checked."""
    algorithm = box.register("double", "output = {'y': inputs['x'] * 2}", **options)
    response = box.run(algorithm, {"x": array, "n": 1, "small": np.zeros(3)})
    assert np.array_equal(response.outputs["y"], np.asarray(array) * 2)
    assert response.input_places["small"] == "copied"
    assert set(response.input_places) == {"x", "small"}
    assert (response.copied_nbytes > 24) == (response.input_places["x"] == "copied")
    return response.input_places["x"]


def is_one_busy() -> bool:
    """Whether a contained process has computed for longer than a short run takes."""
    for each in grandchildren():
        try:
            if each.cpu_times().user > 0.3:
                return True
        except psutil.NoSuchProcess:
            pass
    return False


def open_in(directory: Path) -> int:
    """How many descriptors of this process are of files there."""
    paths = []
    for each in os.listdir("/proc/self/fd"):
        try:
            paths.append(os.readlink(f"/proc/self/fd/{each}"))
        except FileNotFoundError:
            pass
    return sum(each.startswith(str(directory)) for each in paths)


FILES = [a_raw_file, an_npy_file, a_writable_map, a_tsr_file]


@pytest.mark.parametrize("make", FILES, ids=lambda each: each.__name__)
def test_an_array_in_a_file_is_read_in_place(box: Sandbox, tmp_path: Path, make: Callable[[Path], np.ndarray]) -> None:
    array = make(tmp_path / "file")
    assert look(box, array) == "in place"
    assert look(box, array.reshape(2, -1)) == "in place"
    before = open_in(tmp_path)
    for _ in range(3):
        look(box, array)
    assert open_in(tmp_path) == before


def test_loans_and_received_tensors_of_sessions_are_read_in_place(box: Sandbox) -> None:
    with PythonSession() as session:
        lent = session.empty((COUNT,), "float64")
        lent[:] = an_array()
        assert look(box, lent) == "in place"
        received = session.calculate("relu", an_array())
        assert look(box, received) == "in place"
        # A process that is kept would see what the worker puts there next.
        assert look(box, received, reuse=True) == "copied"
        for _ in range(4):
            box.run("double", {"x": received})
            assert np.array_equal(received, an_array())


def test_a_lease_is_held_until_the_run_is_over(box: Sandbox) -> None:
    """The worker fills no segment again that a run still reads, though nobody else has the tensor any more."""
    code = "import time\nbefore = float(inputs['x'][0])\ntime.sleep(0.5)\noutput = [before, float(inputs['x'][0])]"
    with PythonSession() as session:
        algorithm = box.register("slow", code)
        futures = []
        for number in range(1, 4):
            received = session.calculate("relu", np.full(COUNT, float(number)))
            futures.append(box.submit(algorithm, {"x": received}))
            del received
        for number in range(10, 30):
            session.calculate("relu", np.full(COUNT, float(number)))
        responses = [each.result(60) for each in futures]
    assert [each.outputs["output"] for each in responses] == [[float(n), float(n)] for n in range(1, 4)]
    assert all(each.input_places == {"x": "in place"} for each in responses)


def test_what_has_more_in_its_file_than_the_tensor_is_copied(box: Sandbox, tmp_path: Path) -> None:
    whole = a_raw_file(tmp_path / "file")
    assert look(box, whole[COUNT // 10 :]) == "copied"
    assert look(box, whole[: -COUNT // 10]) == "copied"
    with open(tmp_path / "head", "wb") as file:
        file.write(b"secret".ljust(4096, b"\0"))
        file.write(an_array().tobytes())
    assert look(box, np.memmap(tmp_path / "head", np.float64, "r", offset=4096)) == "copied"
    with open(tmp_path / "tail", "wb") as file:
        file.write(an_array().tobytes())
        file.write(b"\0" * 5000 + b"secret")
    assert look(box, np.memmap(tmp_path / "tail", np.float64, "r", shape=(COUNT,))) == "copied"


def test_a_segment_with_the_end_of_a_former_tensor_is_copied(box: Sandbox) -> None:
    secret = float(0x5EC4E7)
    code = (
        "import os, stat\nimport numpy as np\nfound = 0\nfor fd in range(3, 64):\n"
        "  try:\n    is_file = stat.S_ISREG(os.fstat(fd).st_mode)\n  except OSError:\n    continue\n"
        "  if is_file: found += os.pread(fd, 1 << 25, 0).count(np.float64(0x5EC4E7).tobytes())\noutput = found"
    )
    assert box.execute(code, {"x": np.full(COUNT, secret)}).outputs["output"] >= COUNT  # the control
    with PythonSession() as session:
        names = set()
        for _ in range(3):
            first = session.calculate("relu", np.full(COUNT, secret))
            names.add(mapping_of(first))
            del first
            second = session.calculate("relu", np.ones(COUNT - 1000))
            names.add(mapping_of(second))
            response = box.execute(code, {"x": second})
            assert response.outputs["output"] == 0
            assert response.input_places == {"x": "copied"}
            del second
        assert len(names) == 1  # the control: all were in one file


def mapping_of(array: np.ndarray) -> str:
    address = array.ctypes.data
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, _, end = line.split()[0].partition("-")
        if int(start, 16) <= address < int(end, 16):
            return line.split()[-1]
    raise AssertionError


def test_what_does_not_show_the_file_is_copied(box: Sandbox, tmp_path: Path) -> None:
    path = tmp_path / "file"
    whole = a_raw_file(path)
    private = np.memmap(path, np.float64, "c")
    private[3] = -1
    assert look(box, private) == "copied"
    assert look(box, whole[::2]) == "copied"
    assert look(box, whole[::-1]) == "copied"
    assert look(box, whole.astype(">f8")) == "copied"
    other = tmp_path / "other"
    np.zeros(COUNT).tofile(other)
    os.replace(other, path)  # the name leads to another file now
    assert look(box, whole) == "copied"
    os.unlink(path)
    assert look(box, whole) == "copied"
    path.symlink_to("/etc/passwd")
    assert look(box, whole) == "copied"


def test_files_are_copied_where_processes_may_fork_or_are_kept(box: Sandbox, tmp_path: Path) -> None:
    array = a_raw_file(tmp_path / "file")
    assert look(box, array, reuse=True) == "copied"
    with Sandbox(allow=Allow(syscalls=("fork", "clone"))) as forking:
        assert look(forking, array) == "copied"


def test_torch_tensors_over_files_are_read_in_place(box: Sandbox, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    array = a_writable_map(tmp_path / "file")
    response = box.execute("output = {'y': inputs['x'] + 1}", {"x": torch.from_numpy(array), "z": torch.ones(COUNT)})
    assert response.input_places == {"x": "in place", "z": "copied"}
    assert np.array_equal(response.outputs["y"], array + 1)


def test_results_say_where_they_lie(box: Sandbox) -> None:
    code = "import numpy as np\noutput = {'large': np.ones(300_000), 'small': np.ones(3), 'n': 1}"
    assert box.execute(code).output_places == {"large": "in place", "small": "in place"}
    kept = box.register("kept", "import numpy as np\noutput = {'y': np.ones(inputs['n'])}", reuse=True)
    assert box.run(kept, {"n": 3}).output_places == {"y": "copied"}
    assert box.run(kept, {"n": 300_000}).output_places == {"y": "in place"}


# -- files that are truncated -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reuse", [False, True], ids=["in place", "copied"])
def test_12_a_file_that_was_truncated_is_an_error_and_not_an_end(box: Sandbox, tmp_path: Path, reuse: bool) -> None:
    """The control: whoever touches the lost pages is ended by the kernel."""
    path = tmp_path / "file"
    array = a_raw_file(path)
    algorithm = box.register("sum", "output = float(inputs['x'].sum())", reuse=reuse)
    assert box.run(algorithm, {"x": array}).input_places["x"] == ("copied" if reuse else "in place")
    os.truncate(path, 8192)
    with pytest.raises(SandboxBroken, match="truncated"):
        box.run(algorithm, {"x": array})
    with pytest.raises(SandboxBroken, match="truncated"):
        box.run(algorithm, {"x": array[::2]})
    child = os.fork()
    if not child:
        faulthandler.disable()
        os._exit(int(array[-1] != 0))
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGBUS
    assert box.run(algorithm, {"x": an_array()}).outputs["output"] == an_array().sum()


def test_12_a_file_that_is_truncated_while_it_is_read_in_place(box: Sandbox, tmp_path: Path) -> None:
    path = tmp_path / "file"
    array = a_writable_map(path)
    array[:] = 0
    code = "while not inputs['x'][0]: pass\noutput = float(inputs['x'][-1])"
    future = box.submit(box.register("wait", code), {"x": array})
    while not is_one_busy():  # it waits
        time.sleep(0.01)
    os.truncate(path, 4096)
    array[0] = 1
    with pytest.raises(SandboxBroken, match="truncated"):
        future.result(60)
    assert box.execute("output = 1").outputs["output"] == 1


def test_a_handler_of_faults_that_is_set_while_a_file_is_copied_stays() -> None:
    """As faulthandler.enable() in another thread sets one. A fault that is nobody's ends the process all the same."""
    program = """
import ctypes, faulthandler, mmap, re, sys, threading
import numpy as np
from tr_mmap.sandbox import _kernel

def has_handler():
    caught = re.search(r"SigCgt:\\s*(\\w+)", open("/proc/self/status").read())
    return bool(int(caught[1], 16) >> 6 & 1)

assert not has_handler()
source, target = np.ones(64 << 20, np.uint8), bytearray(64 << 20)
is_over = threading.Event()

def copy():
    while not is_over.is_set():
        assert _kernel.copy_guarded(target, 0, source.ctypes.data, source.nbytes)

thread = threading.Thread(target=copy)
thread.start()
while not has_handler():
    pass
faulthandler.enable()
is_over.set()
thread.join()
assert has_handler(), "it is lost"
assert _kernel.copy_guarded(target, 0, source.ctypes.data, 1)
assert has_handler(), "it is lost by the next copy"
file = open(sys.argv[1], "r+b")
lost = mmap.mmap(file.fileno(), 4096)
file.truncate(0)
address = np.frombuffer(lost, np.uint8).ctypes.data
assert not _kernel.copy_guarded(target, 0, address, 4096)
print("well", flush=True)
ctypes.string_at(address, 1)
"""
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(4096))
        file.flush()
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        ended = subprocess.run(
            [sys.executable, "-c", program, file.name], capture_output=True, text=True, env=environment, timeout=100
        )
    assert ended.stdout == "well\n", ended.stderr
    assert ended.returncode == -signal.SIGBUS
    assert "Bus error" in ended.stderr
