"""How the host gives jobs to processes, keeps their limits and ends them, where something goes wrong on the way."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from tr_mmap.sandbox import (
    Algorithm,
    Allow,
    DeadlineExceeded,
    LimitExceeded,
    Limits,
    NotAllowed,
    Sandbox,
    SandboxBroken,
    process,
)

BUSY = "while True: output = 0"


@contextlib.contextmanager
def killed_from_outside(box: Sandbox, cpu_s: float) -> Iterator[None]:
    """Kill each process of a sandbox that has had so much processor time."""
    zygote = psutil.Process(box._executor._host._zygote.pid)  # type: ignore[attr-defined]
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.01):
            for each in zygote.children():
                with contextlib.suppress(psutil.Error):
                    if sum(each.cpu_times()[:2]) >= cpu_s:
                        each.kill()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()


@pytest.mark.parametrize("reuse", [False, True])
def test_a_run_whose_processes_are_killed_gets_no_more_time_than_its_limit(reuse: bool) -> None:
    """It is tried again within what is left of its limits; not where a process is kept, which may have changed."""
    with Sandbox(limits=Limits(wall_ms=1000, cpu_ms=60_000)) as box, killed_from_outside(box, 0.4):
        algorithm = box.register("busy", BUSY, reuse=reuse)
        with pytest.raises((SandboxBroken, LimitExceeded) if reuse else LimitExceeded) as caught:
            box.run(algorithm)
    assert reuse or caught.value.limit == "wall_ms"  # type: ignore[union-attr]


def test_the_processor_time_of_all_tries_counts() -> None:
    with (
        Sandbox(limits=Limits(wall_ms=60_000, cpu_ms=1000)) as box,
        killed_from_outside(box, 0.4),
        pytest.raises(LimitExceeded) as caught,
    ):
        box.execute(BUSY)
    assert caught.value.limit == "cpu_ms"


def test_a_run_that_was_killed_four_times_is_not_tried_again() -> None:
    with (
        Sandbox(limits=Limits(wall_ms=60_000, cpu_ms=60_000)) as box,
        killed_from_outside(box, 0.1),
        pytest.raises(SandboxBroken, match="killed from outside"),
    ):
        box.execute(BUSY)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize(
    "code", ["signal.raise_signal({})", "signal.pthread_kill(threading.get_ident(), {})", "os.kill(os.getpid(), {})"]
)
def test_a_process_that_would_kill_or_stop_itself_is_denied_and_not_taken_for_one_killed_from_outside(
    code: str, number: int
) -> None:
    with Sandbox() as box, pytest.raises(NotAllowed) as caught:
        box.execute(f"import os, signal, threading\n{code.format(int(number))}\noutput = 1")
    assert caught.value.rule == "syscalls"


def test_native_code_that_would_kill_itself_goes_on() -> None:
    with Sandbox() as box:
        assert box.execute("import ctypes; output = ctypes.CDLL(None)['raise'](9)").outputs == {"output": -1}


def test_a_process_may_send_itself_signals_that_it_handles() -> None:
    code = "import signal\noutput = []\nsignal.signal(15, lambda *_: output.append(1))\nsignal.raise_signal(15)"
    with Sandbox() as box:
        assert box.execute(code).outputs == {"output": [1]}


def test_a_run_that_may_signal_is_not_tried_again() -> None:
    """Its process may have killed itself."""
    with (
        Sandbox(allow=Allow(syscalls=("tgkill",)), limits=Limits(wall_ms=60_000, cpu_ms=400)) as box,
        pytest.raises(SandboxBroken),
    ):
        box.execute("import signal, time\nwhile time.process_time() < 0.15: pass\nsignal.raise_signal(9)")


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module whose processes never become ready."""
    (tmp_path / "hanging_module.py").write_text(
        "import os, time\nos.register_at_fork(after_in_child=lambda: time.sleep(1000))"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "hanging_module"


def test_a_run_whose_process_does_not_become_ready_ends_at_its_deadline(hanging: str) -> None:
    algorithm = Algorithm("one", b"output = 1", None)
    with Sandbox(preload=("numpy", hanging)) as box, pytest.raises(DeadlineExceeded, match="ready"):
        box.run(algorithm, deadline_s=time.monotonic() + 0.5)


def test_a_run_whose_process_does_not_become_ready_ends(hanging: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "START_S", 0.5)
    with Sandbox(preload=("numpy", hanging)) as box, pytest.raises(SandboxBroken, match="ready"):
        box.execute("output = 1")


@contextlib.contextmanager
def descriptors(free: int | None, above: int = 0) -> Iterator[None]:
    """Let this process have so many free descriptors, or any number, but all of them above a number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    try:
        if above:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2 * above), hard))
            while not held or held[-1] < above:
                held.append(os.dup(0))
        if free is not None:
            used = max(map(int, os.listdir("/proc/self/fd"))) + 1
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + free, hard))
            with contextlib.suppress(OSError):
                while True:
                    held.append(os.dup(0))
            for _ in range(free):
                os.close(held.pop())
        yield
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("reuse", [False, True])
def test_descriptors_may_have_high_numbers(reuse: bool) -> None:
    with descriptors(None, above=1100), Sandbox() as box:
        algorithm = box.register("one", "output = 1", reuse=reuse)
        assert [box.run(algorithm).outputs["output"] for _ in range(4)] == [1] * 4


@pytest.mark.timeout(120)
def test_runs_go_on_after_there_were_no_descriptors() -> None:
    """A process that could not be taken is lost, but nobody waits for it; its areas and descriptors are released."""
    with Sandbox() as box:
        algorithm = Algorithm("one", b"output = 1", None)
        for _ in range(10):
            box.run(algorithm)
        counts = []
        for _ in range(2):  # the first time, areas, spares and ends come that stay
            for free in range(14):
                with descriptors(free), contextlib.suppress(SandboxBroken):
                    box.run(algorithm)
                if free % 4 == 0:
                    began_s = time.monotonic()
                    assert box.run(algorithm).outputs == {"output": 1}
                    assert time.monotonic() - began_s < process.START_S / 2  # which it would wait for a lost one
            for _ in range(10):
                box.run(algorithm)
            counts.append(len(os.listdir("/proc/self/fd")))
        assert counts[1] <= counts[0] + 10


def test_the_limit_on_addresses_of_a_process_that_is_kept_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_FREE_INPUT_NBYTES", 1 << 20)
    x = np.zeros(1 << 18)
    with Sandbox() as box:
        algorithm = box.register(
            "limit", "import resource\noutput = resource.getrlimit(resource.RLIMIT_AS)[0]", reuse=True
        )
        first = box.run(algorithm).outputs["output"]
        found = [box.run(algorithm, {"x": x}).outputs["output"] for _ in range(30)]
    assert found[0] >= first + x.nbytes
    assert found[-1] == found[14] <= first + 13 * 2 * x.nbytes


def test_results_that_are_copied_are_no_longer_than_they_have_to_be() -> None:
    """Where a process might leave a writer, its results are copied: up to their end, not all of its memory."""
    with Sandbox(allow=Allow(syscalls=("fork",)), limits=Limits(output_nbytes=64 << 20)) as box:
        result = box.execute("import numpy as np\noutput = {'y': np.arange(1000.0), 'z': 'text'}").outputs
        assert np.array_equal(result["y"], np.arange(1000.0))
        assert result["z"] == "text"
        root = result["y"]
        while isinstance(root, np.ndarray | memoryview):
            root = root.base if isinstance(root, np.ndarray) else root.obj
        assert len(root) < 64 << 20


def test_where_memory_runs_out_a_run_is_ended_before_its_host() -> None:
    with Sandbox() as box:
        pid = box.run(box.register("kept", "import os; output = os.getpid()", reuse=True)).outputs["output"]
        assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n"
