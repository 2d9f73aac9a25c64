"""From a pool's start to its end: limits of a worker's life, reload, forks, interrupts, and nothing that is left."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from pool_ways import POOL_TOOLS, Way
from support import BOUND_S, Gate, environment, forks, wait_until

from tr_mmap import OutOfSpace, SessionNotStarted, SessionPool
from tr_mmap.pool.worker import State, Worker


def run(text: str, **options: object) -> subprocess.CompletedProcess[str]:
    """A program that has POOL_TOOLS, and what it says."""
    program = f"TOOLS = {str(POOL_TOOLS)!r}\n{textwrap.dedent(text)}"
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100, env=environment(), check=False
    )


def test_a_state_only_moves_forward() -> None:
    for first in State:
        for second in State:
            worker = Worker(None, 0, 1, 0.0)  # type: ignore[arg-type] # its session is not used
            worker.state = first
            if list(State).index(second) > list(State).index(first):
                worker.advance(second)
            else:
                with pytest.raises(AssertionError):
                    worker.advance(second)


def test_each_worker_answers_as_many_as_it_may_and_all_is_done(open_blocking: Callable[..., Way]) -> None:
    way = open_blocking(2, max_tasks_per_child=5)
    pids = [way.result(each) for each in [way.submit("pid") for _ in range(13)]]
    assert max(pids.count(each) for each in pids) <= 5
    assert len(set(pids)) >= 3
    assert way.stats().died == 0
    wait_until(lambda: len(way.stats().workers) == 2)  # those that are over have gone


def test_descriptors_and_threads_do_not_grow_with_workers_that_come_and_go() -> None:
    process = psutil.Process()
    with SessionPool(POOL_TOOLS, 1, quiet_mode=True, max_tasks_per_child=1) as pool:
        pool.calculate("say x")
        wait_until(lambda: len(pool.stats().workers) == 1 and pool.stats().workers[0].state == "ready")
        before = process.num_fds(), process.num_threads()
        for _ in range(3):
            pool.calculate("say x")
        wait_until(lambda: len(pool.stats().workers) == 1 and pool.stats().workers[0].state == "ready")
        assert process.num_fds() <= before[0] + 2
        assert process.num_threads() <= before[1] + 2


def _versioned(path: Path, version: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(
        f"from tr_mmap import Server\nserver = Server()\n"
        f"@server.command('version')\ndef version():\n    return {version!r}\nserver.run()\n"
    )
    new.replace(path)


def test_workers_are_replaced_when_their_script_has_changed(open_blocking: Callable[..., Way], tmp_path: Path) -> None:
    path = tmp_path / "worker.py"
    _versioned(path, "one")
    way = open_blocking(2, script=path, reload=True)
    assert way.ask("version") == "one"
    _versioned(path, "two")
    wait_until(lambda: {way.ask("version") for _ in range(4)} == {"two"})
    wait_until(lambda: len(way.stats().workers) == 2)
    assert way.stats().died == 0


def test_a_changed_script_that_cannot_start_leaves_the_old_workers(tmp_path: Path) -> None:
    path = tmp_path / "worker.py"
    _versioned(path, "one")
    with SessionPool(path, 1, quiet_mode=True, reload=True) as pool:
        assert pool.calculate("version") == "one"
        path.write_text("this is no Python\n")
        wait_until(lambda: pool.stats().started >= 2 and len(pool.stats().workers) == 1)
        assert pool.calculate("version") == "one"
        _versioned(path, "two")
        wait_until(lambda: pool.calculate("version") == "two")


def test_a_pool_that_is_dropped_ends_by_itself() -> None:
    pool = SessionPool(POOL_TOOLS, 1, quiet_mode=True)
    future = pool.submit("pid")
    gone, dispatcher = weakref.ref(pool), pool._dispatcher
    del pool
    gc.collect()
    assert gone() is None
    pid = int(future.result(BOUND_S))  # what was submitted is done first
    assert dispatcher.has_ended.wait(BOUND_S)
    assert not psutil.pid_exists(pid)


def test_the_interpreter_ends_when_all_is_done_and_leaves_nothing(workspace: Path) -> None:
    ended = run(
        """
        from tr_mmap import SessionPool
        pool = SessionPool(TOOLS, 2, quiet_mode=True)
        for number in range(20):
            pool.submit("say", number).add_done_callback(lambda future: print(future.result(), flush=True))
        pool.submit("sleep 0.2").add_done_callback(lambda future: print("last", flush=True))
        """
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert sorted(ended.stdout.split()) == sorted([*map(str, range(20)), "last"])


def test_a_pool_that_hangs_does_not_keep_an_interpreter_that_ends_it(workspace: Path) -> None:
    ended = run(
        """
        from tr_mmap import SessionPool
        pool = SessionPool(TOOLS, 1, quiet_mode=True)
        future = pool.submit("sleep 1000")
        while not future.running():
            pass
        pool.kill_workers()
        print("ended")
        """
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ended\n", "")


@pytest.mark.parametrize("action", ["pool.calculate('sleep', 1000)", "list(pool.map('sleep', [1000] * 9))"])
def test_ctrl_c_ends_the_pool_at_once_without_a_word_of_its_own(action: str, workspace: Path) -> None:
    program = f"""
from tr_mmap import SessionPool
try:
    with SessionPool({str(POOL_TOOLS)!r}, 2, quiet_mode=True) as pool:
        assert pool.wait_until_ready()
        print("go", flush=True)
        {action}
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=BOUND_S)
    assert (said, errors, process.returncode) == ("interrupted\n", "", 0)


def test_a_killed_program_leaves_no_worker(workspace: Path) -> None:
    program = f"""
from tr_mmap import SessionPool
pool = SessionPool({str(POOL_TOOLS)!r}, 2, quiet_mode=True)
assert pool.wait_until_ready()
print(*(each.pid for each in pool.stats().workers), flush=True)
pool.calculate("sleep 1000")
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment())
    assert process.stdout is not None
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(pids) == 2
    process.kill()
    process.communicate()
    wait_until(lambda: not any(psutil.pid_exists(each) for each in pids))


@forks
def test_a_forked_child_is_told_that_the_pool_is_its_parents(gate: Gate) -> None:
    with SessionPool(POOL_TOOLS, 1, quiet_mode=True) as pool:
        assert pool.calculate("say x") == "x"
        waiting = pool.submit(gate.message)
        pid = os.fork()
        if not pid:
            code = 1
            try:
                try:
                    pool.submit("say y")
                except SessionNotStarted as error:
                    pool.shutdown()
                    code = 0 if "parent" in str(error) and "parent" in repr(pool) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        gate.let_go("through")
        assert waiting.result() == "through"
        assert pool.calculate("say x") == "x"


@forks
def test_a_forked_child_ends_although_its_parents_pool_is_open(workspace: Path) -> None:
    ended = run(
        """
        import os
        from tr_mmap import SessionPool
        pool = SessionPool(TOOLS, 1, quiet_mode=True)
        pool.calculate("say x")
        pid = os.fork()
        if pid:
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), pool.calculate("say x"))
        """
    )
    assert ended.stdout == "0 x\n"


def in_child(action: Callable[[], object]) -> int:
    """What a forked child exits with: 0 if the action has ended in it, -14 if it never does."""
    pid = os.fork()
    if not pid:
        signal.alarm(20)
        try:
            action()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@forks
def test_a_forked_child_leaves_the_with_block_of_its_parents_pool_by_an_error(pool: SessionPool) -> None:
    assert in_child(lambda: pool.__exit__(SystemExit, SystemExit(), None)) == 0
    assert in_child(pool.kill_workers) == 0
    assert pool.calculate("say x") == "x"


@forks
def test_a_forked_child_is_not_kept_waiting_for_results_of_its_parent(
    pool: SessionPool, gate: Gate, tmp_path: Path
) -> None:
    second = Gate(tmp_path)
    waiting = pool.submit(gate.message)
    results = pool.map("gate", [second.path])

    def wait() -> None:
        for each in (waiting.result, results.__next__):
            with pytest.raises(SessionNotStarted, match="parent"):
                each()
        results.close()

    assert in_child(wait) == 0
    for each in (gate, second):
        each.let_go("through")
    assert (waiting.result(), list(results)) == ("through", ["through"])


def test_a_slow_iterable_holds_up_no_result_and_no_other_request() -> None:
    with SessionPool(POOL_TOOLS, 1, quiet_mode=True) as pool:
        reached, go_on = threading.Event(), threading.Event()

        def slow() -> object:
            yield np.ones(1)
            reached.set()
            go_on.wait(BOUND_S)
            yield np.ones(1)

        taken: list[object] = []
        thread = threading.Thread(target=lambda: taken.extend(pool.map("twice", slow())))  # type: ignore[arg-type]
        thread.start()
        assert reached.wait(BOUND_S)
        assert pool.calculate("say x") == "x"
        go_on.set()
        thread.join()
        assert len(taken) == 2


def test_a_budget_that_is_used_up_slows_and_fails_nothing() -> None:
    with SessionPool(POOL_TOOLS, 1, quiet_mode=True, budget_nbytes=3 << 20, max_in_flight=20) as pool:
        futures = [pool.submit("total", np.full(1 << 17, 1.0)) for _ in range(40)]  # 1 MiB each
        assert {each.result() for each in futures} == {str(1 << 17)}


@pytest.mark.skipif(sys.platform != "linux", reason="NOT TESTED: the other channel")
def test_a_pool_works_over_the_channel_of_files(open_blocking: Callable[..., Way]) -> None:
    way = open_blocking(1, channel="files")
    assert [way.result(each) for each in [way.submit("say", number) for number in range(4)]] == ["0", "1", "2", "3"]
    error = way.ask("kill_me")
    assert type(error).__name__ == "WorkerDied"
    assert way.ask("say x") == "x"


def test_importing_the_package_does_not_import_the_pool() -> None:
    ended = run("import sys, tr_mmap, tr_mmap.aio\nprint('tr_mmap.pool' in sys.modules)\n")
    assert ended.stdout == "False\n"


def test_a_request_that_exceeds_the_budget_holds_up_nobody(gate: Gate) -> None:
    with SessionPool(POOL_TOOLS, 2, quiet_mode=True, budget_nbytes=1 << 20) as pool:
        assert pool.wait_until_ready()
        running = pool.submit(gate.message)
        gate.wait_for_worker()
        large = pool.submit("twice", np.ones(1 << 20))
        assert pool.submit("say x").result(BOUND_S) == "x"
        assert isinstance(large.exception(BOUND_S), OutOfSpace)
        gate.let_go("through")
        assert running.result() == "through"


@pytest.mark.parametrize("count", [8, 70])
def test_requests_without_tensors_pass_those_that_wait_for_a_budget(gate: Gate, count: int) -> None:
    with SessionPool(POOL_TOOLS, 1, quiet_mode=True, budget_nbytes=3 << 20, max_in_flight=30) as pool:
        assert pool.wait_until_ready()
        running = pool.submit(gate.message)
        gate.wait_for_worker()
        large = [pool.submit("total", np.ones(1 << 17)) for _ in range(count)]  # 1 MiB each
        behind = [pool.submit("say", number) for number in range(9)]
        if count == 8:  # many are not passed: each one costs a look
            wait_until(lambda: pool.stats().workers[0].in_flight >= 1 + 1 + 9)
        else:
            wait_until(lambda: pool.stats().workers[0].in_flight >= 1 + 1)
            assert pool.stats().waiting >= count - 3
        gate.let_go("through")
        assert {each.result(BOUND_S) for each in large} == {str(1 << 17)}
        assert [each.result(BOUND_S) for each in behind] == [str(number) for number in range(9)]
        assert running.result() == "through"
