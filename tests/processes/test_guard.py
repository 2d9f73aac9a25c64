"""The guard of a legacy session: a killed controller of ours leaves no worker that knows nothing of controllers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import ROOT, TOOLS, WORKERS, environment, has_ended, json_line, leftovers, wait_until

from tr_mmap import PythonSession

OLD_WORKER = ROOT / "tests" / "peers" / "old_worker.py"
LEGACY_WORK = WORKERS / "legacy_work.py"
GUARD_PROGRAM = ROOT / "tr_mmap" / "processes" / "guard_program.py"


class Work:
    """workers/legacy_work.py, running, in a process group of its own."""

    def __init__(self, script: Path, *how: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(LEGACY_WORK), str(script), "one", *how],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        started = self.line()
        self.worker, self.guard = started["worker"], started["guard"]
        self.child: int = started["child"]
        self.directory = Path(started["directory"])

    def line(self) -> dict[str, Any]:
        return json_line(self.process, "the controller")


@contextmanager
def work(script: Path = OLD_WORKER, *how: str) -> Iterator[Work]:
    running = Work(script, *how)
    try:
        yield running
    finally:
        running.process.kill()
        if running.child:
            os.kill(running.child, signal.SIGKILL)
        running.process.communicate()
        assert has_ended(running.guard)


def wait_until_nothing_is_left(workspace: Path, *pids: int) -> None:
    assert all(has_ended(pid) for pid in pids)
    wait_until(lambda: not leftovers(workspace))


def guard_of(session: PythonSession) -> psutil.Process:
    (found,) = [each for each in children() if str(GUARD_PROGRAM) in each.cmdline()]
    return found


def children() -> list[psutil.Process]:
    """This process's, but for those that have ended: an earlier test may not have waited for its own."""
    return [each for each in psutil.Process().children() if each.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.each_value
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
@pytest.mark.parametrize("worker", [OLD_WORKER, TOOLS], ids=["old", "ours"])
def test_a_controller_that_is_killed_leaves_nothing(workspace: Path, worker: Path, number: int) -> None:
    with work(worker) as running:
        assert running.line() == {"working": True}
        running.process.send_signal(number)
        wait_until_nothing_is_left(workspace, running.worker, running.guard)
        assert running.process.wait() == -number


def test_a_controllers_whole_group_may_be_killed(workspace: Path) -> None:
    with work() as running:
        assert os.getsid(running.guard) == running.guard
        assert len({os.getpgid(pid) for pid in (running.process.pid, running.guard, running.worker)}) == 3
        os.killpg(running.process.pid, signal.SIGKILL)
        wait_until_nothing_is_left(workspace, running.worker, running.guard)


def test_ctrl_c_at_the_terminal_is_for_the_controller_and_leaves_nothing(workspace: Path) -> None:
    with work() as running:
        running.line()
        os.killpg(running.process.pid, signal.SIGINT)
        wait_until_nothing_is_left(workspace, running.worker, running.guard)
        assert "KeyboardInterrupt" in running.process.communicate()[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_asks_all_processes_to_end_does_not_end_the_guard_before_its_controller(
    workspace: Path, number: int
) -> None:
    with work() as running:
        running.line()
        wait_until(lambda: has_signals_ignored(running.guard))
        os.kill(running.guard, number)
        running.process.kill()
        wait_until_nothing_is_left(workspace, running.worker, running.guard)


def has_signals_ignored(pid: int) -> bool:
    (line,) = [each for each in Path(f"/proc/{pid}/status").read_text().splitlines() if each.startswith("SigIgn:")]
    return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def test_a_forked_child_that_holds_the_controllers_descriptors_keeps_no_worker(workspace: Path) -> None:
    with work(OLD_WORKER, "fork") as running:
        running.line()
        running.process.kill()
        assert has_ended(running.worker)
        assert has_ended(running.guard)
        assert not running.directory.exists()
        assert psutil.Process(running.child).status() != psutil.STATUS_ZOMBIE


def test_the_end_of_the_thread_that_started_the_session_is_no_death(workspace: Path) -> None:
    """The kernel's signal for a parent's death would take it for one."""
    with work(OLD_WORKER, "thread") as running:
        assert running.line() == {"working": True}
        assert psutil.pid_exists(running.guard)
        running.process.kill()
        wait_until_nothing_is_left(workspace, running.worker, running.guard)


def test_what_an_old_worker_has_started_ends_too_although_it_does_not_want_to(workspace: Path, tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(999)"
    )
    starting = (
        "\nimport subprocess\n"
        f"child = subprocess.Popen([sys.executable, '-c', {stubborn!r}], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
    )
    script.write_text(OLD_WORKER.read_text().replace("\nimport time\n", "\nimport time\n" + starting, 1))
    with work(script) as running:
        running.line()
        children = psutil.Process(running.worker).children()
        assert len(children) == 1
        running.process.kill()
        wait_until_nothing_is_left(workspace, running.worker, running.guard, children[0].pid)


def test_a_stopped_worker_ends_too(workspace: Path) -> None:
    with work() as running:
        running.line()
        os.kill(running.worker, signal.SIGSTOP)
        running.process.kill()
        wait_until_nothing_is_left(workspace, running.worker, running.guard)


def test_a_normal_end_leaves_neither_the_guard_nor_a_zombie() -> None:
    before = children()
    for end in (PythonSession.close, PythonSession.please_exit):
        session = PythonSession(OLD_WORKER, quiet_mode=True, channel="legacy")
        session.start()
        guard = guard_of(session)
        assert session.fetch_response("say hi") == "hi"
        end(session)
        assert not psutil.pid_exists(guard.pid)
    assert children() == before


def test_a_session_that_cannot_start_leaves_no_guard(tmp_path: Path) -> None:
    before = children()
    session = PythonSession(OLD_WORKER, quiet_mode=True, channel="legacy", python=tmp_path / "none")
    with pytest.raises(Exception, match="none"):
        session.start()
    assert children() == before


def test_a_session_works_without_its_guard_and_the_next_start_has_one() -> None:
    before = children()
    with PythonSession(OLD_WORKER, quiet_mode=True, channel="legacy") as session:
        guard = guard_of(session)
        guard.kill()
        assert session.fetch_response("say hi") == "hi"
        session.terminate()
        session.start()
        assert session.fetch_response("say hi") == "hi"
        assert guard_of(session).pid != guard.pid
    assert children() == before


def test_a_worker_that_was_started_again_has_the_same_guard(workspace: Path) -> None:
    with work() as running:
        running.line()
        os.kill(running.worker, signal.SIGKILL)
        again = running.line()["worker"]
        assert again != running.worker
        running.process.kill()
        wait_until_nothing_is_left(workspace, again, running.guard)


@pytest.mark.parametrize("channel", ["mapped", "files"])
def test_the_other_channels_need_no_guard(channel: str) -> None:
    before = children()
    with PythonSession(quiet_mode=True, channel=channel) as session:
        assert [each.pid for each in children() if each not in before] == [session.pid]


def test_the_guard_holds_nothing_of_the_controllers(workspace: Path) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    try:
        with PythonSession(OLD_WORKER, quiet_mode=True, channel="legacy") as session:
            guard = guard_of(session)
            wait_until(lambda: has_signals_ignored(guard.pid))
            held = {os.readlink(f"/proc/{guard.pid}/fd/{each}") for each in os.listdir(f"/proc/{guard.pid}/fd")}
            assert {each for each in held if "pidfd" not in each} == {"/dev/null"}
            assert guard.cwd() == "/"
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("is_with_mark", [True, False])
def test_the_guard_touches_no_other_controllers_directory_nor_a_process_without_the_mark(
    workspace: Path, is_with_mark: bool
) -> None:
    """The name may be another's by the time that the controller dies."""
    directory = workspace / "python_session" / "tr_session_one"
    directory.mkdir(parents=True)
    own = psutil.Process()
    stranger = subprocess.Popen(["sleep", "1000"], start_new_session=True, env={"TR_MMAP_WORKER": "other-1"})
    kin = subprocess.Popen(["sleep", "1000"], start_new_session=True, env={"TR_MMAP_WORKER": "mine-1"})
    manifest = {"controller": {"pid": own.pid, "start_ticks": 1}, "worker": {"pid": stranger.pid, "start_ticks": 2}}
    (directory / "session.json").write_text(json.dumps(manifest))
    try:
        mark = "mine" if is_with_mark else "none"
        # Its parent is no process of that number, so it finds its controller dead.
        subprocess.run(
            [sys.executable, "-I", "-S", GUARD_PROGRAM, "1", "1", mark, directory.parent, directory.name, "2"],
            check=True,
        )
        assert stranger.poll() is None
        assert kin.poll() == (-signal.SIGTERM if is_with_mark else None)
        assert [each.name for each in directory.iterdir()] == ["session.json"]
    finally:
        for each in (stranger, kin):
            each.kill()
            each.wait()
        (directory / "session.json").unlink()
        directory.rmdir()
        directory.parent.rmdir()
