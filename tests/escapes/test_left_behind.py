"""Escapes 10, 13, 14 and 16: inputs and results change for nobody; nothing runs at registration, nothing is left."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tr_mmap.sandbox import Algorithm, AlgorithmError, Allow, Limits, Mount, NotAllowed, Sandbox, SandboxBroken


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox() as box:
        yield box


RUNS_AT_ONCE = {
    "a decorator": "import sys\n@sys.exit\ndef process(inputs): return 1",
    "a default argument": "def process(inputs, x=1 / 0): return 1",
    "an annotation": "def process(inputs: 1 / 0): return 1",
    "the body of a class": "class A:\n  x = 1 / 0\ndef process(inputs): return 1",
    "the code itself": "1 / 0\ndef process(inputs): return 1",
}


@pytest.mark.parametrize("what", RUNS_AT_ONCE)
def test_nothing_is_executed_at_registration(box: Sandbox, what: str) -> None:
    algorithm = box.register("eager", RUNS_AT_ONCE[what])
    with pytest.raises(AlgorithmError):  # but by a run
        box.run(algorithm)


@pytest.mark.parametrize("code", ["def (", "x = \\x00", "(" * 500, "def process(inputs): return (yield)\nbreak"])
def test_an_error_of_syntax_is_found_at_registration(box: Sandbox, code: str) -> None:
    with pytest.raises(AlgorithmError):
        box.register("wrong", code)


LEFT = {
    "a builtin": ("import builtins; output = getattr(builtins, 'left', None); builtins.left = 1"),
    "a module's attribute": ("import numpy as np; output = np.pi if np.pi != 3.141592653589793 else None; np.pi = 3"),
    "a module": (
        "import sys, types; output = 'left' in sys.modules or None; sys.modules['left'] = types.ModuleType('left')"
    ),
    "an environment variable": ("import os; output = os.environ.get('LEFT'); os.environ['LEFT'] = '1'"),
    "a file": (
        "import os\noutput = os.path.exists('/tmp/left') or None\n"
        "try:\n  open('/tmp/left', 'w').close()\nexcept OSError:\n  pass"
    ),
    "a page of numpy's own memory": (
        "import ctypes, numpy as np\none = np.float64.__doc__\naddress = id(one) + 64\n"
        "output = ctypes.string_at(address, 4).decode() if ctypes.string_at(address, 4) == b'LEFT' else None\n"
        "ctypes.memmove(address, b'LEFT', 4)"
    ),
}


@pytest.mark.parametrize("what", LEFT)
def test_a_run_leaves_nothing_for_the_next(box: Sandbox, what: str) -> None:
    algorithm = box.register("leave", LEFT[what])
    assert [box.run(algorithm).outputs["output"] for _ in range(4)] == [None] * 4


@pytest.mark.parametrize("what", ["a builtin", "a module"])
def test_a_reused_process_does_keep_its_own(box: Sandbox, what: str) -> None:
    """The control: the same code shows what is left, where that was asked for."""
    algorithm = box.register("keep", LEFT[what], reuse=True)
    assert [box.run(algorithm).outputs["output"] for _ in range(2)][1] is not None
    other = box.register("other", LEFT[what] + "\n", reuse=True)
    assert box.run(other).outputs["output"] is None


LOOK = """
import os, stat, sys
import numpy as np

def is_file(fd):
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode)
    except OSError:
        return False

def process(inputs):  # piece by piece: what is looked for must not be overwritten by the look itself
    secret = np.uint64(0x5EC4E7).tobytes()
    areas = [fd for fd in range(3, 64) if is_file(fd)][:2]
    count = 0
    for fd in areas:
        start = 0
        try:
            while True:
                start = os.lseek(fd, start, os.SEEK_DATA)
                count += os.pread(fd, 1 << 16, start).count(secret)
                start += 1 << 16
        except OSError:  # ENXIO: there is no more
            pass
    for mapping in sys.modules['tr_mmap.sandbox.runner']._mappings.values():
        for start in range(0, len(mapping), 1 << 16):
            count += mapping[start : start + (1 << 16)].count(secret)
    outputs = {'count': count, 'areas': [os.fstat(fd).st_ino for fd in areas]}
    if inputs['gives']:
        outputs |= {'y': inputs['x'] + 0, 'z': inputs['x'][::-1]}  # in place, and copied
    return outputs
"""


@pytest.mark.parametrize("nbytes", [800_000, 20 << 20])
def test_memory_that_a_run_gets_is_empty_of_former_inputs_and_results(nbytes: int) -> None:
    """The large ones are given ahead: the next process maps its memory while a run goes on, and gets another job."""
    secret = np.full(nbytes // 8, 0x5EC4E7, np.uint64)
    with Sandbox(limits=Limits(wall_ms=60_000, cpu_ms=60_000, output_nbytes=48 << 20)) as box:
        look = box.register("look", LOOK, "process")
        found = box.run(look, {"x": secret, "gives": True}).outputs
        assert found["count"] >= secret.size  # the control
        assert all((found[name] == 0x5EC4E7).all() for name in "yz")
        areas = set(found["areas"])
        del found
        # Each of these needs more than the one before, so none gets the inputs' memory of that.
        for size in np.linspace(0.35 * nbytes, 0.95 * nbytes, 12):
            found = box.run(look, {"x": np.zeros(int(size) // 8), "gives": False}).outputs
            assert found["count"] == 0
            areas -= set(found["areas"])
        assert not areas, "they were not used again"


def test_memory_that_a_process_could_not_get_ahead_is_empty_too() -> None:
    """The host has fewer and fewer descriptors: for no process, or for none that is to have the memory."""
    secret = np.full(1 << 18, 0x5EC4E7, np.uint64)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Sandbox(limits=Limits(wall_ms=60_000, cpu_ms=60_000, output_nbytes=8 << 20)) as box:
        look = box.register("look", LOOK, "process")
        for free in (12, 9, 6, 4, 3, 2, 1, 0):
            for _ in range(3):
                assert box.run(look, {"x": secret, "gives": True}).outputs["count"]
            held = [os.dup(0)]
            resource.setrlimit(resource.RLIMIT_NOFILE, (held[0] + 64, hard))
            try:
                with contextlib.suppress(OSError):
                    while True:
                        held.append(os.dup(0))
                for _ in range(free):
                    os.close(held.pop())
                with contextlib.suppress(OSError, SandboxBroken):
                    box.run(look, {"x": secret, "gives": True})
            finally:
                for each in held:
                    os.close(each)
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for _ in range(2):
                assert box.run(look, {"x": np.zeros(1 << 18), "gives": False}).outputs["count"] == 0


def test_memory_of_runs_with_a_network_is_not_used_again() -> None:
    """What a socket has of it would be what others have there later."""
    limits = Limits(wall_ms=60_000)
    with Sandbox(allow=Allow(net=True), limits=limits) as box, Sandbox(limits=limits) as other:
        assert used_again(other)  # the control
        assert not used_again(box)


def used_again(box: Sandbox) -> bool:
    look = box.register("look", LOOK, "process")
    seen: list[int] = []
    for _ in range(12):
        seen += box.run(look, {"x": np.zeros(8), "gives": False}).outputs["areas"]
    return len(set(seen)) < len(seen)


SENDS = """
import os, socket
def process(inputs):
    connection = socket.create_connection(inputs['address'])
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    with open(os.__file__, 'rb') as file:
        return connection.sendfile(file)  # which copies, where the kernel does not give pages
"""


@pytest.mark.parametrize("option", ["zerocopy", "sendfile"])
def test_a_socket_gets_copies_and_never_the_memory_itself(option: str) -> None:
    code = {
        "zerocopy": "import socket; socket.socket().setsockopt(socket.SOL_SOCKET, 60, 1)",
        "sendfile": "import os, socket; os.sendfile(socket.socket().fileno(), os.open(os.__file__, os.O_RDONLY), 0, 8)",
    }
    with Sandbox(allow=Allow(net=True)) as box, socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(NotAllowed):
            box.execute(code[option])
        sent = box.submit(box.register("sends", SENDS, "process"), {"address": server.getsockname()})
        server.settimeout(30)
        connection, _ = server.accept()
        with connection, connection.makefile("rb") as file:
            received = file.read()
        assert sent.result(30).outputs["output"] == len(received)
        assert received == Path(os.__file__).read_bytes()


DESCRIPTORS = """
import fcntl, os, stat
import numpy as np
files, found = [], []
for fd in range(3, 64):
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            files.append(fd)
    except OSError:
        pass
for fd in files:  # some of them are two descriptors of one
    found.append([os.lseek(fd, 0, 1) == 0x5EC4E7, bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND)])
for fd in files:
    os.lseek(fd, 0x5EC4E7, 0)
    if inputs['sets_flags']:  # then it cannot give results itself
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
output = {'found': found, 'y': np.zeros(inputs['size'])}
"""


@pytest.mark.parametrize("size", [8, 1 << 18])
def test_a_run_sees_no_offsets_and_flags_of_another_s_descriptors(box: Sandbox, size: int) -> None:
    lent = box.empty(64)
    copied = np.zeros(size)
    for _ in range(6):
        inputs = {"lent": lent, "x": copied, "size": size, "sets_flags": True}
        with pytest.raises((NotAllowed, AlgorithmError)):
            box.execute(DESCRIPTORS, inputs)
        found = box.execute(DESCRIPTORS, {**inputs, "sets_flags": False}).outputs["found"]
        assert len(found) >= 3
        assert not any(map(any, found))
        assert box.execute("output = {'a': 1}").outputs == {"a": 1}  # O_APPEND would let it write nothing
    box.register("after", "output = 1")


def test_no_two_runs_get_the_same_random_numbers(box: Sandbox) -> None:
    code = "import os, random, numpy as np; output = [random.random(), np.random.rand(), os.urandom(6).hex()]"
    drawn = [box.execute(code).outputs["output"] for _ in range(4)]
    assert all(len(set(column)) == 4 for column in zip(*drawn, strict=True))


CHANGES = """
import mmap, os, stat, threading, time
import numpy as np
def write(area):
    while True:
        area[:] = b'\\xff' * len(area)
def process(inputs):
    fds = []
    for fd in range(3, 64):
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode): fds.append(fd)
        except OSError:
            pass
    for fd in fds:
        try:
            area = mmap.mmap(fd, 0)
        except OSError:
            continue
        threading.Thread(target=write, args=(area,), daemon=True).start()
    return {'y': np.arange(1 << 20, dtype=np.float64)}
"""


@pytest.mark.parametrize("reuse", [False, True])
def test_a_result_does_not_change_after_it_was_returned(reuse: bool) -> None:
    with Sandbox(limits=Limits(wall_ms=60_000, cpu_ms=60_000, output_nbytes=9 << 20)) as box:
        look_at_results(box, box.register("change", CHANGES, "process", reuse=reuse))


def look_at_results(box: Sandbox, algorithm: Algorithm) -> None:
    for _ in range(2):
        try:
            result = box.run(algorithm).outputs["y"]
        except AlgorithmError as error:  # it has overwritten its own answer
            if error.type != "ForgedAnswer":
                raise
            continue
        before = result.copy()
        box.execute("import time; time.sleep(0.05); output = 1")
        assert np.array_equal(result, before, equal_nan=True)
        with pytest.raises(ValueError, match="read-only"):
            result[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            result.flags.writeable = True


def test_a_kept_process_does_nothing_between_its_runs(box: Sandbox) -> None:
    code = (
        "import os, threading, time\ncount = [0]\ndef run():\n  while True:\n    count[0] += 1; time.sleep(0)\n"
        "def process(inputs):\n  if count[0] == 0: threading.Thread(target=run, daemon=True).start()\n"
        "  time.sleep(0.01)\n  return os.getpid()"
    )
    algorithm = box.register("busy", code, "process", reuse=True)
    pid = box.run(algorithm).outputs["output"]

    def states() -> set[str]:
        tasks = Path(f"/proc/{pid}/task")
        return {(each / "stat").read_text().rpartition(")")[2].split()[0] for each in tasks.iterdir()}

    for _ in range(1000):
        if states() == {"T"}:
            break
    assert states() == {"T"}
    assert box.run(algorithm).outputs["output"] == pid


CONTINUES = """
import ctypes, os, struct, threading, time
import numpy as np
from tr_mmap.sandbox._kernel import SYSCALLS
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    if libc.syscall(SYSCALLS[name], *arguments):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
def process(inputs):
    timer = ctypes.c_int()
    signal = ctypes.create_string_buffer(struct.pack('qii', 0, 18, 0), 64)
    call('timer_create', 1, signal, ctypes.byref(timer))
    call('timer_settime', timer, 0, ctypes.create_string_buffer(struct.pack('4q', 0, 50_000_000, 0, 50_000_000)), None)
    y = np.arange(1 << 18, dtype=np.float64)
    def change():
        time.sleep(0.2)
        y[:] = -1
    threading.Thread(target=change, daemon=True).start()
    return {'y': y}
"""


def test_a_process_cannot_let_itself_go_on_after_it_was_stopped(box: Sandbox) -> None:
    with pytest.raises(NotAllowed) as caught:
        box.run(box.register("continue", CONTINUES, "process", reuse=True))
    assert caught.value.rule == "syscalls"
    # Where the call is granted, what was given is a copy.
    with Sandbox(allow=Allow(syscalls=("timer_create", "timer_settime"))) as granted:
        response = granted.run(granted.register("continue", CONTINUES, "process", reuse=True))
        assert response.output_places == {"y": "copied"}
        before = response.outputs["y"].copy()
        granted.execute("import time; time.sleep(0.6); output = 1")
        assert np.array_equal(response.outputs["y"], before)


def test_a_timer_lets_a_plain_process_go_on() -> None:
    """The control."""
    program = CONTINUES + "process(None)\nprint('ready', flush=True)\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        assert os.waitid(os.P_PID, child.pid, os.WCONTINUED) is not None
        child.kill()


WAITS = """
import os, time
def process(inputs):
    open(inputs['folder'] + '/begun', 'w').close()
    while not os.path.exists(inputs['folder'] + '/go'):
        time.sleep(0.001)
    return inputs['x'].sum()
"""


@pytest.mark.parametrize("count", [8, 1 << 18])
def test_inputs_that_the_host_changes_later_do_not_change_for_a_run(tmp_path: Path, count: int) -> None:
    allow = Allow(mounts=(Mount(tmp_path, tmp_path, readonly=False),))
    x = np.zeros(count)
    with Sandbox(allow=allow, limits=Limits(wall_ms=60_000)) as box:
        future = box.submit(box.register("late", WAITS, "process"), {"x": x, "folder": str(tmp_path)})
        while not (tmp_path / "begun").exists():
            assert not future.done(), future.result()
        x[:] = 1
        (tmp_path / "go").touch()
        assert future.result(60).outputs["output"] == 0


WRITES_AT_ITS_END = """
import ctypes, os
import numpy as np
libc = ctypes.CDLL(None)
kept = []
def process(inputs):
    # A list of locks that the kernel marks as it ends the thread: each lies in the results.
    count = 2000
    y = np.full(count * 1024, os.getpid(), np.int32)
    z = np.zeros(count * 512, np.uint64)
    nodes = z.ctypes.data + 4096 * np.arange(count, dtype=np.uint64)
    head = np.zeros(3, np.uint64)
    z[::512] = np.append(nodes[1:], np.uint64(head.ctypes.data))
    head[:2] = nodes[0], (y.ctypes.data - z.ctypes.data) % 2**64
    assert libc.syscall(273, ctypes.c_void_p(head.ctypes.data), ctypes.c_size_t(24)) == 0
    kept.extend([y, z, head])
    libc.madvise(ctypes.c_void_p(z.ctypes.data), ctypes.c_size_t(z.nbytes), 4)
    libc.madvise(ctypes.c_void_p(y.ctypes.data), ctypes.c_size_t(y.nbytes), 4)
    return {'y': y}
"""


@pytest.mark.parametrize("reuse", [False, True])
def test_results_stay_as_they_are_though_the_kernel_writes_at_the_end_of_their_process(reuse: bool) -> None:
    held = []
    with Sandbox(limits=Limits(output_nbytes=32 << 20)) as box:
        algorithm = box.register("process", WRITES_AT_ITS_END, reuse=reuse)
        for _ in range(6):  # some of those that are kept are ended before the sandbox is closed
            response = box.run(algorithm)
            assert response.output_places == {"y": "in place"}
            held.append((response.outputs["y"], response.outputs["y"].copy()))
    for result, at_return in held:
        assert np.array_equal(result, at_return)
