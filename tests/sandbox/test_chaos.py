"""Processes of the sandbox are killed, stopped and forked at any time: errors are typed, and nothing is left."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from support import wait_until
from wasm_modules import module

from tr_mmap import TRException
from tr_mmap.sandbox import Algorithm, Allow, Executor, LimitExceeded, Limits, Mount, Sandbox, SandboxBroken

eventually = partial(wait_until, bound_s=20)


def family(pid: int) -> list[psutil.Process]:
    """The zygotes of a process, and all that they forked."""
    zygotes: list[psutil.Process] = []
    forked: list[psutil.Process] = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # one that has ended hides none of the others
            if "tr_mmap.sandbox._zygote" in " ".join(child.cmdline()):
                zygotes.append(child)
                forked += child.children()
    return [*zygotes, *forked]


def is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    descriptors = len(os.listdir("/proc/self/fd"))
    before = {each.pid for each in family(os.getpid())}
    yield
    assert {each.pid for each in family(os.getpid())} <= before
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def test_a_host_that_was_killed_takes_all_with_it() -> None:
    program = (
        "import time\nfrom tr_mmap.sandbox import *\nbox = Sandbox(limits=Limits(wall_ms=1e6, cpu_ms=1e6))\n"
        "box.submit(box.register('f', 'while 1: output = 0'))\nbox.run(box.register('g', 'output = 1', reuse=True))\n"
        "print('up', flush=True)\ntime.sleep(1000)"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    host = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment)
    assert host.stdout is not None
    assert host.stdout.readline() == b"up\n"
    processes = family(host.pid)
    assert len(processes) >= 4
    host.kill()
    host.wait()
    host.stdout.close()
    eventually(lambda: all(is_gone(each) for each in processes))


def test_a_host_that_forked_still_takes_all_with_it() -> None:
    """Its child has copies of its descriptors, unless it closes them."""
    program = (
        "import os, time\nfrom tr_mmap.sandbox import *\nbox = Sandbox()\n"
        "if not os.fork(): time.sleep(1000)\n"
        "print('up', flush=True)\ntime.sleep(1000)"
    )
    root = Path(__file__).parents[2]
    host = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)}
    )
    assert host.stdout is not None
    assert host.stdout.readline() == b"up\n"
    processes = family(host.pid)
    child = next(each for each in psutil.Process(host.pid).children() if each not in processes)
    host.kill()
    host.wait()
    host.stdout.close()
    try:
        eventually(lambda: all(is_gone(each) for each in processes))
    finally:
        child.kill()
        eventually(lambda: is_gone(child))


def test_a_zygote_that_was_killed_is_named_and_takes_all_with_it() -> None:
    with Sandbox(limits=Limits(wall_ms=1e6, cpu_ms=1e6)) as box:
        box.execute("output = 1")
        running = box.submit(box.register("f", "import time; output = time.sleep(1000)"))
        processes = family(os.getpid())
        eventually(lambda: running.running())
        processes[0].kill()
        with pytest.raises(SandboxBroken):
            running.result(30)
        with pytest.raises(SandboxBroken, match="make a new sandbox"):
            box.execute("output = 1")
        eventually(lambda: all(is_gone(each) for each in processes))


def test_a_sandbox_is_closed_while_runs_go_on() -> None:
    box = Sandbox(limits=Limits(wall_ms=1e6, cpu_ms=1e6))
    algorithm = box.register("f", "import time\nprint('x'); output = time.sleep(1000)")
    results: list[BaseException] = []

    def run() -> None:
        try:
            box.run(algorithm)
        except TRException as error:
            results.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    futures = [box.submit(algorithm) for _ in range(2)]
    for each in threads:
        each.start()
    eventually(lambda: len(family(os.getpid())) >= 1 + 6)
    box.close()
    for each in threads:
        each.join(60)
    assert [type(each) for each in results] == [SandboxBroken] * 4
    assert all(isinstance(each.exception(30), SandboxBroken) for each in futures)
    box.close()
    with pytest.raises(SandboxBroken, match="closed"):
        box.execute("output = 1")


def test_limits_change_while_runs_go_on_and_those_end_well() -> None:
    with Sandbox(limits=Limits(wall_ms=60_000)) as box:
        algorithm = box.register("f", "import time\ndef f(inputs):\n  time.sleep(1)\n  return inputs['n']")
        futures = [box.submit(algorithm, {"n": n}) for n in range(4)]
        eventually(lambda: all(each.running() for each in futures))
        former = family(os.getpid())[0]
        box.set_limits(wall_ms=50_000)
        assert [each.result(60).outputs["output"] for each in futures] == [0, 1, 2, 3]
        assert box.run(algorithm, {"n": 9}).outputs["output"] == 9
        eventually(lambda: is_gone(former))


def test_limits_that_are_refused_change_nothing() -> None:
    with Sandbox() as box:
        with pytest.raises(TypeError):
            box.set_limits(no_such_limit=1)
        with pytest.raises(ValueError, match="wall_ms"):
            box.set_limits(wall_ms=0)
        assert box.limits == Limits()
        assert box.execute("output = 1").outputs == {"output": 1}


def test_a_closed_sandbox_stays_closed() -> None:
    box = Sandbox()
    box.close()
    with pytest.raises(SandboxBroken, match="make a new one"):
        box.set_limits(wall_ms=1000)
    assert box.health().state == "closed"
    assert not family(os.getpid())


def test_limits_that_change_while_a_sandbox_is_closed_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Sandbox()
    make, is_made, may_go_on = box._make_executor, threading.Event(), threading.Event()

    def make_slowly() -> Executor:
        made = make()
        is_made.set()
        assert may_go_on.wait(20)
        return made

    monkeypatch.setattr(box, "_make_executor", make_slowly)
    found: list[BaseException] = []

    def change() -> None:
        try:
            box.set_limits(wall_ms=1000)
        except SandboxBroken as error:
            found.append(error)

    thread = threading.Thread(target=change)
    thread.start()
    assert is_made.wait(60)
    box.close()
    may_go_on.set()
    thread.join(60)
    assert [type(each) for each in found] == [SandboxBroken]
    assert not family(os.getpid())


def test_a_sandbox_that_nobody_closed_leaves_nothing() -> None:
    threads = threading.active_count()
    for _ in range(2):
        box = Sandbox()
        box.run(box.register("kept", "output = 1", reuse=True))
        box.submit("kept", deadline_s=time.monotonic() + 60).result(60)
        box.set_limits(wall_ms=1000)
        box.execute("output = 1")
        del box
        gc.collect()
    eventually(lambda: not family(os.getpid()))
    eventually(lambda: threading.active_count() <= threads)


def kept_in(box: Sandbox) -> dict[object, list[object]]:
    found: dict[object, list[object]] = box._executor._host._kept  # type: ignore[attr-defined]
    return found


def test_processes_that_are_kept_are_bounded_in_all() -> None:
    with Sandbox() as box:
        for number in range(20):
            box.run(Algorithm(f"a{number}", f"output = {number}".encode(), None, is_reused=True))
        assert len(family(os.getpid())) <= 1 + 16 + 2 + 4  # the zygote, those that are kept, spares, those that end
        assert [each.name for each in kept_in(box)] == [f"a{number}" for number in range(4, 20)]  # type: ignore
        assert all(kept_in(box).values())


def test_a_thousand_algorithms_that_come_and_go_leave_nothing(is_full: bool) -> None:
    with Sandbox() as box:
        box.execute("output = 1")
        descriptors = len(os.listdir("/proc/self/fd"))
        for number in range(1000 if is_full else 30):
            box.register("a", f"def f(): return {number}\ndef process(inputs): return {number}", "process", reuse=True)
            if number % 10 == 0:
                assert box.run("a").outputs == {"output": number}
                assert box.call("a", "f") == number
                assert len(kept_in(box)) == 2
            box.unregister("a")
            assert not kept_in(box)
        with pytest.raises(KeyError, match="'a'"):
            box.unregister("a")
        with pytest.raises(KeyError, match="'a'"):
            box.run("a")
        eventually(lambda: len(family(os.getpid())) <= 1 + 2 + 4)
        assert len(os.listdir("/proc/self/fd")) <= descriptors + 2 * 4 * 3  # of spares, and those that end


def test_a_result_stays_though_another_thread_releases_its_process_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox() as box:
        host = box._executor._host  # type: ignore[attr-defined]
        end = host.end

        def end_and_release(process: Any) -> None:
            end(process)
            eventually(lambda: not process.is_alive())
            host._release_ended()

        monkeypatch.setattr(host, "end", end_and_release)
        double = box.register("double", "output = inputs['x'] * 2")
        for number in range(3):
            outputs = box.run(double, {"x": np.full(50_000, number)}).outputs
            assert (outputs["output"] == 2 * number).all()


def test_a_process_that_was_stopped_from_outside_is_ended_by_its_limit() -> None:
    with Sandbox(limits=Limits(wall_ms=1500)) as box:
        running = box.submit(box.register("f", "import time; output = time.sleep(1000)"))
        eventually(lambda: running.running() and bool(box._executor._runs._runs))  # type: ignore[attr-defined]
        for each in family(os.getpid())[1:]:  # that of the run, and the spares
            each.suspend()
        with pytest.raises(LimitExceeded) as caught:
            running.result(30)
        assert caught.value.limit == "wall_ms"
        for each in family(os.getpid())[1:]:
            each.resume()
        assert box.execute("output = 2").outputs == {"output": 2}


def test_a_full_dev_shm_takes_nothing_from_a_sandbox() -> None:
    """Its memory lies in no directory. The program fills one of its own."""
    program = (
        "import os, sys\nimport numpy as np\nfrom tr_mmap.sandbox import Sandbox, _kernel\n"
        "try:\n    _kernel.unshare(0x20000)\n    _kernel.mount('/', None, 1 << 14 | 1 << 18, '')\n"
        "    _kernel.mount('/dev/shm', 'tmpfs', 0, 'size=64k')\n"
        "except OSError as error:\n    sys.exit(f'refused: {error}')\n"
        "fd = os.open('/dev/shm/all', os.O_CREAT | os.O_WRONLY)\n"
        "try:\n    while True: os.write(fd, bytes(4096))\nexcept OSError: pass\n"
        "with Sandbox() as box:\n    x = box.empty((1 << 20,))\n"
        "    for reuse in (False, True):\n"
        "        f = box.register('f', 'def f(inputs): return {n: v + 1 for n, v in inputs.items()}', reuse=reuse)\n"
        "        for _ in range(3):\n            found = box.run(f, {'x': x, 'y': np.zeros(1 << 20)}).outputs\n"
        "            assert found['x'].sum() == found['y'].sum() == 1 << 20\nprint('well')"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=100
    )
    if ended.stderr.startswith("refused"):
        pytest.skip("NOT TESTED: a full /dev/shm (this kernel lets nobody here mount one)")
    assert ended.stdout == "well\n", ended.stderr


def test_ten_threads_run_at_once() -> None:
    with Sandbox(limits=Limits(wall_ms=60_000)) as box:
        algorithm = box.register("f", "def f(inputs): return {'y': inputs['x'] * inputs['n']}")
        reused = box.register("g", "def g(inputs): return {'y': inputs['x'] * inputs['n']}", reuse=True)
        wrong: list[object] = []

        def run(n: int) -> None:
            x = np.arange(1000.0)
            for step in range(10):
                try:
                    y = box.run((algorithm, reused)[step % 2], {"x": x, "n": n}).outputs["y"]
                    if not np.array_equal(y, x * n):
                        wrong.append((n, y))
                except BaseException as error:
                    wrong.append(error)

        threads = [threading.Thread(target=run, args=(n,)) for n in range(10)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert not wrong


def test_a_fork_of_the_host_leaves_its_sandbox_alone() -> None:
    with Sandbox() as box:
        algorithm = box.register("g", "output = 1", reuse=True)
        box.run(algorithm)
        pid = os.fork()
        if not pid:
            try:
                box.execute("output = 1")
            except SandboxBroken:
                box.close()
                os._exit(7)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert box.run(algorithm).outputs == {"output": 1}
        assert box.execute("output = 2").outputs == {"output": 2}


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_runs_whose_processes_are_killed_at_random(is_full: bool, figures: Callable[[str], None]) -> None:
    """Runs that may be retried are: fewer than one in a thousand fails; each failure is typed; nothing is left."""
    runs = 10_000 if is_full else 80
    chance = random.Random(14)
    is_over = threading.Event()
    kills = 0

    def kill() -> None:
        nonlocal kills
        while not is_over.wait(chance.uniform(0.01, 0.15)):
            victims = family(os.getpid())[1:]
            if victims:
                try:
                    chance.choice(victims).send_signal(signal.SIGKILL)
                    kills += 1
                except psutil.NoSuchProcess:
                    pass

    failures: list[BaseException] = []
    with Sandbox(limits=Limits(wall_ms=30_000)) as box:
        algorithm = box.register(
            "f", "import time\ndef f(inputs):\n  time.sleep(inputs['s'])\n  return inputs['x'] + 1"
        )
        killer = threading.Thread(target=kill)
        killer.start()
        try:
            for _ in range(runs):
                try:
                    result = box.run(algorithm, {"x": np.zeros(100), "s": chance.uniform(0, 0.02)}).outputs["output"]
                    assert result.sum() == 100
                except SandboxBroken as error:
                    failures.append(error)
        finally:
            is_over.set()
            killer.join()
    figures(f"{runs} runs, {kills} kills, {len(failures)} failures")
    assert kills > runs / 100
    assert len(failures) <= runs / 1000


def is_at_work(process: psutil.Process) -> bool:
    """Whether it is forked from a zygote and has used 0.2 s of a processor."""
    try:
        return process.ppid() != os.getpid() and process.cpu_times().user > 0.2
    except psutil.NoSuchProcess:
        return False


def test_a_module_whose_compiler_is_killed_is_compiled_by_another() -> None:
    code = module('(func (export "f") (param i32) (result i32)', "(local.get 0)", "(i32.popcnt)" * 400_000, ")")
    with Sandbox("wasm", limits=Limits(wall_ms=60_000, cpu_ms=60_000)) as box:
        future = box.submit(Algorithm("f", code, "f"), {"a": 1})
        compiler = None
        while compiler is None and not future.done():
            compiler = next((each for each in family(os.getpid()) if is_at_work(each)), None)
        assert compiler is not None
        compiler.kill()
        assert future.result(120).outputs == {"output": 1}


FORKS = ("fork", "clone", "clone3", "setsid")
LEAVES = """
import os, time
reading, writing = os.pipe()
if not os.fork():
    os.setsid()
    if not os.fork():
        os.write(writing, b"%d" % os.getsid(0))
        while not (inputs['forks'] and os.fork()):
            time.sleep(0.02)
        time.sleep(1000)
    os._exit(0)
output = int(os.read(reading, 99))
if inputs['stays']:
    with open(inputs['stays'] + '.new', 'w') as file:
        file.write(str(output))
    os.rename(inputs['stays'] + '.new', inputs['stays'])
    time.sleep(1000)
"""


def in_session(session: int) -> list[int]:
    """The processes in a session, the first of which has ended."""
    found = []
    for pid in psutil.pids():
        try:
            found += [pid] if os.getsid(pid) == session else []
        except ProcessLookupError:
            pass
    return found


@pytest.mark.parametrize("reuse", [False, True], ids=["fresh", "kept"])
@pytest.mark.parametrize("forks", [False, True], ids=["sleeps", "forks"])
def test_what_a_run_has_forked_into_a_session_of_its_own_ends_with_its_process(
    tmp_path: Path, reuse: bool, forks: bool
) -> None:
    path = tmp_path / "session"
    allow = Allow(mounts=(Mount(str(tmp_path), str(tmp_path), readonly=False),), syscalls=FORKS)
    with Sandbox(allow=allow, limits=Limits(wall_ms=100_000)) as box:
        leaves = box.register("leaves", LEAVES, reuse=reuse)
        sessions = [box.run(leaves, {"forks": forks, "stays": ""}).outputs["output"] for _ in range(3)]
        running = box.submit(leaves, {"forks": forks, "stays": str(path)}, request_id="stays")
        eventually(path.exists, bound_s=60)
        sessions.append(int(path.read_text()))
        box.cancel("stays")
        with pytest.raises(CancelledError):
            running.result(60)
        box.unregister("leaves")
        eventually(lambda: not any(map(in_session, sessions)))


def test_what_a_run_has_forked_ends_with_the_sandbox() -> None:
    with Sandbox(allow=Allow(syscalls=FORKS), limits=Limits(wall_ms=100_000)) as box:
        leaves = box.register("leaves", LEAVES, reuse=True)
        session = box.run(leaves, {"forks": False, "stays": ""}).outputs["output"]
        assert in_session(session)
    eventually(lambda: not in_session(session))


HELPED = """
import os, time
asked, ask = os.pipe()
answers, answer = os.pipe()
if not os.fork():
    if not os.fork():
        os.close(ask)
        os.close(answers)
        os.write(answer, os.read(asked, 1))
    os._exit(0)
os.close(asked)
os.close(answer)
os.wait()  # for the one between; the helper is an orphan now
open(inputs['folder'] + '/ready', 'w').close()
while not os.path.exists(inputs['folder'] + '/go'):
    time.sleep(0.01)
os.write(ask, b'x')
output = os.read(answers, 1).decode()
"""


def test_what_a_run_has_forked_lives_while_the_run_goes_on_though_other_runs_end(tmp_path: Path) -> None:
    folder = str(tmp_path)
    allow = Allow(mounts=(Mount(folder, folder, readonly=False),), syscalls=("fork", "clone", "clone3", "wait4"))
    with Sandbox(allow=allow, limits=Limits(wall_ms=60_000)) as box:
        running = box.submit(box.register("helped", HELPED), {"folder": folder})
        eventually((tmp_path / "ready").exists)
        for _ in range(5):
            assert box.execute("output = 1").outputs == {"output": 1}
        (tmp_path / "go").touch()
        assert running.result(60).outputs == {"output": "x"}
