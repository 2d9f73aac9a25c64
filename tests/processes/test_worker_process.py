"""Workers as processes: their log, their exit status; ending one ends its whole tree and nobody else."""

from __future__ import annotations

import gc
import os
import select
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from other_process import in_forked_child
from support import BOUND_S, check_open_files, forks, open_files, run_python, wait_until

from tr_mmap.base import background
from tr_mmap.processes import spawn as processes
from tr_mmap.processes.spawn import WorkerProcess


class Tree:
    """A worker and what it starts. All of them hold the writing end of one pipe: its end is the end of them all."""

    def __init__(self, tmp_path: Path) -> None:
        self.log_path = str(tmp_path / "worker.log")
        self.reading, self._writing = os.pipe()

    def spawn(self, script: str, *, quiet: bool = True) -> WorkerProcess:
        prelude = (
            "import os, select, signal, sys\n"
            f"FD = {self._writing}\n"
            "def up():\n"
            "    os.write(FD, b'.')\n"
            "    poller = select.poll()\n"
            "    poller.register(FD, 0)\n"
            "    poller.poll()\n"  # until the test closes its end: one that failed leaves no processes either
            "    os._exit(0)\n"
            "def child(body):\n"
            "    if os.fork() == 0:\n"
            "        try: body()\n"
            "        finally: os._exit(0)\n"
        )
        worker = WorkerProcess.spawn(
            [sys.executable, "-S", "-c", prelude + script],
            env={"LANG": "C"},
            log_path=self.log_path,
            pass_fds=[self._writing],
            quiet=quiet,
        )
        os.close(self._writing)
        self._writing = -1
        return worker

    def wait_up(self, count: int) -> None:
        for _ in range(count):
            assert self._read() == b"."

    def is_all_dead(self) -> bool:
        return self._read() == b""

    def is_any_alive(self) -> bool:
        return not select.select([self.reading], [], [], 0)[0]

    def _read(self) -> bytes:
        readable, _, _ = select.select([self.reading], [], [], BOUND_S)
        assert readable, "neither a sign of life nor the end of all"
        return os.read(self.reading, 1)

    def close(self) -> None:
        os.close(self.reading)
        if self._writing >= 0:
            os.close(self._writing)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    made = Tree(tmp_path)
    yield made
    made.close()


def test_output_goes_to_a_private_log_and_the_exit_status_is_known(tree: Tree) -> None:
    worker = tree.spawn("print('out'); print('err', file=sys.stderr); print(repr(sys.stdin.read())); sys.exit(3)")
    assert worker.wait(BOUND_S)
    assert worker.exit_code == 3
    assert not worker.is_alive()
    assert not worker.identity.is_alive()
    assert sorted(worker.log_tail().splitlines()) == ["''", "err", "out"]
    assert stat.S_IMODE(os.stat(tree.log_path).st_mode) == 0o600


def test_the_signal_that_ended_it_is_its_exit_code(tree: Tree) -> None:
    worker = tree.spawn("os.kill(os.getpid(), signal.SIGKILL)")
    assert worker.wait(BOUND_S)
    assert worker.exit_code == -signal.SIGKILL


def test_a_worker_has_a_session_of_its_own_and_no_other_descriptors(tree: Tree) -> None:
    others = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
    os.set_inheritable(others[1], True)
    worker = tree.spawn("fds = set(os.listdir('/proc/self/fd')); print(os.getsid(0) == os.getpid(), len(fds), FD)")
    for fd in others:
        os.close(fd)
    assert worker.wait(BOUND_S)
    # stdin, stdout, stderr, the one that was passed, and the one that lists the directory
    is_leader, count, _ = worker.log_tail().split()
    assert (is_leader, count) == ("True", "5")


def test_the_tail_of_the_log_is_bounded_and_survives_bytes_that_are_no_text(tree: Tree) -> None:
    worker = tree.spawn("os.write(1, b'x' * 100_000 + bytes([10, 255, 10]) + b'last')")
    assert worker.wait(BOUND_S)
    assert worker.log_tail(2) == "\ufffd\nlast"
    assert len(worker.log_tail(10)) <= 16 << 10
    assert worker.log_tail(0) == ""
    os.unlink(tree.log_path)
    assert worker.log_tail() == ""


def test_a_new_log_replaces_a_symlink_and_never_writes_through_it(tree: Tree, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    os.symlink(victim, tree.log_path)
    worker = tree.spawn("print('spilt')")
    assert worker.wait(BOUND_S)
    assert victim.read_text() == "precious"
    assert worker.log_tail() == "spilt"


def test_a_program_that_is_not_there_is_an_error_and_leaves_no_descriptor(tmp_path: Path) -> None:
    before = open_files()
    with pytest.raises(FileNotFoundError):
        WorkerProcess.spawn([str(tmp_path / "nothing")], env={}, log_path=str(tmp_path / "log"))
    check_open_files(before)


def test_a_wait_that_times_out_says_so_and_may_be_repeated(tree: Tree) -> None:
    worker = tree.spawn("up()")
    tree.wait_up(1)
    assert not worker.wait(0)
    assert worker.exit_code is None
    os.kill(worker.pid, signal.SIGKILL)
    assert worker.wait(BOUND_S)


def test_an_interrupted_wait_leaves_a_worker_that_can_be_waited_for(tree: Tree) -> None:
    worker = tree.spawn("up()")
    tree.wait_up(1)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before, previous = open_files(), signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with pytest.raises(KeyboardInterrupt):
            worker.wait(BOUND_S)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    check_open_files(before)
    assert worker.is_alive()
    worker.terminate_tree(grace_s=0)
    assert worker.exit_code is not None


def test_output_is_forwarded_when_not_quiet(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    before = open_files()
    worker = tree.spawn("print('hällo', flush=True); up()", quiet=False)
    tree.wait_up(1)
    worker.terminate_tree(grace_s=0)
    said: list[str] = []
    wait_until(lambda: said.append(capsys.readouterr().err) or "".join(said) == "hällo\n")  # by a thread
    assert (before - open_files()).total() == 1  # the pipe's writing end went to the worker


def test_forwarding_copies_all_there_is_to_the_very_end(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    worker = tree.spawn("os.write(1, 'ü'.encode() * 50_000 + b'end')", quiet=False)
    assert worker.wait(BOUND_S)
    worker.terminate_tree()
    said: list[str] = []
    wait_until(lambda: said.append(capsys.readouterr().err) or "".join(said).endswith("end"))  # by a thread
    assert "".join(said) == "ü" * 50_000 + "end"


def test_terminate_ends_children_and_grandchildren(tree: Tree) -> None:
    worker = tree.spawn("child(lambda: (child(up), up())); up()")
    tree.wait_up(3)
    worker.terminate_tree(grace_s=BOUND_S)
    assert tree.is_all_dead()
    assert worker.exit_code == -signal.SIGTERM
    worker.terminate_tree()


def test_terminate_lets_a_worker_end_cleanly_within_its_grace(tree: Tree) -> None:
    worker = tree.spawn("signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); up()")
    tree.wait_up(1)
    worker.terminate_tree(grace_s=BOUND_S)
    assert worker.exit_code == 7


def test_terminate_kills_those_who_ignore_sigterm(tree: Tree) -> None:
    worker = tree.spawn("signal.signal(signal.SIGTERM, signal.SIG_IGN); child(up); up()")
    tree.wait_up(2)
    worker.terminate_tree(grace_s=0.05)
    assert tree.is_all_dead()
    assert worker.exit_code == -signal.SIGKILL


def test_terminate_kills_a_stopped_tree(tree: Tree) -> None:
    worker = tree.spawn("child(up); up()")
    tree.wait_up(2)
    os.kill(worker.pid, signal.SIGSTOP)
    worker.terminate_tree(grace_s=0.05)
    assert tree.is_all_dead()


def test_terminate_finds_a_child_that_made_a_session_of_its_own(tree: Tree) -> None:
    worker = tree.spawn("child(lambda: (os.setsid(), signal.signal(signal.SIGTERM, signal.SIG_IGN), up())); up()")
    tree.wait_up(2)
    # At SIGTERM the worker dies and the child is nobody's descendant any more: it must have been noted before.
    worker.terminate_tree(grace_s=0.05)
    assert tree.is_all_dead()


def test_terminate_finds_the_children_of_such_a_child(tree: Tree) -> None:
    away = "(os.setsid(), {}, up())"
    worker = tree.spawn(f"child(lambda: {away.format(f'child(lambda: {away.format(0)})')}); up()")
    tree.wait_up(3)
    worker.terminate_tree(grace_s=BOUND_S)  # at SIGTERM all the links between them go
    assert tree.is_all_dead()


def test_terminate_finds_an_orphan_in_the_workers_session(tree: Tree) -> None:
    worker = tree.spawn("child(lambda: child(up)); os.wait(); up()")
    tree.wait_up(2)
    worker.terminate_tree()
    assert tree.is_all_dead()


def test_terminate_ends_what_a_dead_and_reaped_worker_left(tree: Tree) -> None:
    worker = tree.spawn("child(up)")
    tree.wait_up(1)
    assert worker.wait(BOUND_S)
    assert worker.exit_code == 0
    worker.terminate_tree()
    assert tree.is_all_dead()


def test_terminate_spares_strangers_in_a_session_that_got_the_workers_number(tree: Tree) -> None:
    worker = tree.spawn("child(up)")
    tree.wait_up(1)
    assert worker.wait(BOUND_S)
    mark, worker._mark = worker._mark, "another"  # the same, seen from a worker that had the pid before
    worker.terminate_tree()
    assert tree.is_any_alive()
    worker._mark = mark
    worker.terminate_tree()
    assert tree.is_all_dead()


def test_terminate_catches_a_tree_that_keeps_forking(tree: Tree) -> None:
    script = "signal.signal(signal.SIGTERM, lambda *_: child(up)); child(up); up()"
    worker = tree.spawn(script)
    tree.wait_up(2)
    worker.terminate_tree(grace_s=0.1)
    while not tree.is_all_dead():  # signs of life that were written before the end
        pass
    assert not worker.is_alive()


def test_an_interrupt_during_the_grace_kills_at_once(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = tree.spawn("signal.signal(signal.SIGTERM, signal.SIG_IGN); child(up); up()")
    tree.wait_up(2)
    real, calls = processes.wait_for_ends, []

    def interrupted(*arguments: object) -> bool:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(processes, "wait_for_ends", interrupted)
    with pytest.raises(KeyboardInterrupt):
        worker.terminate_tree(grace_s=BOUND_S)
    assert tree.is_all_dead()
    assert worker.exit_code == -signal.SIGKILL


def test_terminate_works_without_pidfds(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    worker = tree.spawn("child(up); up()")
    tree.wait_up(2)
    worker.terminate_tree(grace_s=BOUND_S)
    assert tree.is_all_dead()
    assert worker.exit_code == -signal.SIGTERM


def test_two_threads_that_ask_at_once_agree_that_it_ended(tree: Tree) -> None:
    worker = tree.spawn("up()")
    tree.wait_up(1)
    answers: list[bool] = []
    threads = [threading.Thread(target=lambda: answers.append(worker.wait(BOUND_S))) for _ in range(8)]
    for thread in threads:
        thread.start()
    os.kill(worker.pid, signal.SIGKILL)
    for thread in threads:
        thread.join(BOUND_S)
    assert answers == [True] * 8


def test_a_signal_handler_may_ask_while_the_same_is_asked(tree: Tree) -> None:
    worker = tree.spawn("up()")
    tree.wait_up(1)
    answers: list[bool] = []
    real = worker._child.poll

    def poll() -> int | None:
        if not answers:
            answers.append(True)
            answers.append(worker.is_alive())  # what a handler does that runs here
        return real()

    worker._child.poll = poll  # type: ignore[method-assign]
    asker = threading.Thread(target=worker.is_alive, daemon=True)
    asker.start()
    asker.join(10)
    assert not asker.is_alive()
    assert answers == [True, True]
    worker.terminate_tree(0)


def test_a_start_without_descriptors_names_the_limit(tmp_path: Path) -> None:
    script = """
import os, sys, tr_mmap
from tr_mmap.processes.spawn import WorkerProcess
def spawn():
    worker = WorkerProcess.spawn([sys.executable, "-S", "-c", ""], env={}, log_path=sys.argv[1])
    worker.terminate_tree(0)
spawn()
taken = []
try:
    while True:
        taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
kinds = []
while "started" not in kinds:
    try:
        spawn()
        kinds.append("started")
    except OSError as error:
        kinds.append(f"{type(error).__name__} {getattr(error, 'limit', '')} {'None' in str(error)}")
    os.close(taken.pop())
print(set(kinds[:-1]), len(kinds) > 3)
"""
    done = run_python("-c", script, str(tmp_path / "log"))
    assert done.stdout == "{'SystemLimit RLIMIT_NOFILE False'} True\n", done.stderr


@forks
def test_a_fork_does_not_wait_for_a_stderr_that_takes_nothing(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that forks may be the one that reads it."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    stream = os.fdopen(writing, "w", 1)
    monkeypatch.setattr(sys, "stderr", stream)
    joins: list[bool] = []
    real = background._Thread.join
    monkeypatch.setattr(background._Thread, "join", lambda *a: (joins.append(real(*a)), joins[-1])[1])
    worker = tree.spawn("os.write(1, b'x' * 300_000 + b'end'); up()", quiet=False)
    tree.wait_up(1)
    wait_until(lambda: not select.select([], [writing], [], 0)[1])
    assert in_forked_child(lambda: None) == 0
    assert all(joins)
    text = b""
    while not text.endswith(b"end"):
        if select.select([reading], [], [], BOUND_S)[0]:
            text += os.read(reading, 1 << 16)
    assert text == b"x" * 300_000 + b"end"
    worker.terminate_tree(0)
    stream.close()
    os.close(reading)


@forks
def test_a_forks_child_cannot_end_its_parents_worker(tree: Tree) -> None:
    worker = tree.spawn("up()")
    tree.wait_up(1)

    def body() -> None:
        assert worker.is_alive()
        worker.terminate_tree()
        assert worker.exit_code is None

    assert in_forked_child(body) == 0
    assert worker.is_alive()
    worker.terminate_tree()


def test_a_forgotten_worker_is_ended_and_warns_nobody(tree: Tree) -> None:
    worker = tree.spawn("up()")
    tree.wait_up(1)
    pid = worker.pid
    del worker
    gc.collect()  # a ResourceWarning here would fail the test as an unraisable exception
    assert tree.is_all_dead()
    with pytest.raises(ChildProcessError):  # it is reaped, too
        os.waitpid(pid, 0)


class _Interrupt(Exception):
    pass


@pytest.mark.parametrize("error", [KeyboardInterrupt, _Interrupt, RuntimeError])
@pytest.mark.parametrize("is_second", [False, True], ids=["one", "two"])
def test_a_signal_in_the_middle_of_a_start_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], is_second: bool
) -> None:
    """Between the fork and the first moment at which anybody could note the child's number."""
    real, pids, interrupts = subprocess._fork_exec, [], []  # type: ignore[attr-defined]

    def interrupt(*_: object) -> None:
        interrupts.append(True)
        raise error("a handler's")

    def interrupted(*arguments: Any) -> Any:
        pids.append(real(*arguments))
        for count in (1, 2) if is_second else (1,):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)  # type: ignore[arg-type]
            wait_until(lambda count=count: len(interrupts) >= count)
        return pids[0]

    fds, previous = open_files(), signal.signal(signal.SIGALRM, interrupt)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "_fork_exec", interrupted)
            with pytest.raises(error, match="a handler's"):
                WorkerProcess.spawn(["/bin/sleep", "300"], env={}, log_path=str(tmp_path / "log"))
    finally:
        signal.signal(signal.SIGALRM, previous)
    with pytest.raises(ChildProcessError):
        os.waitpid(pids[0], os.WNOHANG)
    check_open_files(fds)


def test_a_start_needs_no_thread(tree: Tree) -> None:
    previous = threading.stack_size(1 << 46)  # more than any process can have: no thread starts
    try:
        with pytest.raises(RuntimeError):
            threading.Thread(target=print).start()
        worker = tree.spawn("up()")
    finally:
        threading.stack_size(previous)
    tree.wait_up(1)
    worker.terminate_tree(grace_s=0)
    assert tree.is_all_dead()


@forks
def test_a_fork_in_the_middle_of_a_start_leaves_the_worker_to_the_parent(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, statuses = subprocess._fork_exec, []  # type: ignore[attr-defined]

    def fork(*_: object) -> None:
        if (pid := os.fork()) == 0:
            return
        statuses.append(os.waitpid(pid, 0)[1])

    def forked(*arguments: Any) -> Any:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)  # type: ignore[arg-type]
        wait_until(lambda: statuses)
        return real(*arguments)

    own_pid, previous = os.getpid(), signal.signal(signal.SIGALRM, fork)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "_fork_exec", forked)
            worker = tree.spawn("up()")
    except ChildProcessError:
        os._exit(7 if os.getpid() != own_pid else 1)
    finally:
        if os.getpid() != own_pid:
            os._exit(1)
        signal.signal(signal.SIGALRM, previous)
    assert [os.waitstatus_to_exitcode(status) for status in statuses] == [7]
    tree.wait_up(1)
    worker.terminate_tree(grace_s=0)
    assert tree.is_all_dead()
