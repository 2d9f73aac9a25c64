"""Life and death: whoever ends, and however, nothing is left; what the survivor promised still holds."""

from __future__ import annotations

import gc
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from strategies import bits
from support import FOREVER_MS, TOOLS, Gate, controller, empty_place, has_ended, leftovers, run_python

from tr_mmap import (
    PythonSession,
    ResponseTimeout,
    ScriptNotFound,
    SessionInUse,
    SessionNotStarted,
    WorkerDied,
)

DEATH_NOTICED_S = 1.0
A = np.arange(1000.0)
HI_SERVER = "from tr_mmap import Server\nserver = Server()\nserver.command('hi')(lambda: 'there')\nserver.run()\n"
CHANNELS = pytest.mark.parametrize("channel", ["mapped", "files"])


@pytest.fixture
def own() -> Iterator[PythonSession]:
    """A session of the test's own, to be ruined."""
    with PythonSession(TOOLS, "own", quiet_mode=True) as session:
        yield session


def worker_of(session: PythonSession) -> int:
    return int(session.fetch_response("pid"))


def script(directory: Path, text: str) -> str:
    path = directory / "worker.py"
    path.write_text(text)
    return str(path)


# -- nothing is left -------------------------------------------------------------------------------------------------


@CHANNELS
def test_nothing_is_left_after_the_with_block(workspace: Path, channel: str) -> None:
    with PythonSession(TOOLS, quiet_mode=True, channel=channel) as session:
        result = session.calculate("echo", A)
        session.send_tensor(A, "a")
        worker = worker_of(session)
    assert not leftovers(workspace)
    assert not psutil.pid_exists(worker)
    assert not session.is_alive()
    assert bits(result) == bits(A)


@CHANNELS
def test_nothing_is_left_after_an_exception_in_the_with_block(workspace: Path, channel: str) -> None:
    workers = []

    def body() -> None:
        with PythonSession(TOOLS, quiet_mode=True, channel=channel) as session:
            session.send_tensor(A, "a")
            workers.append(worker_of(session))
            raise ArithmeticError("in the body")

    with pytest.raises(ArithmeticError, match="body"):
        body()
    assert not leftovers(workspace)
    assert not psutil.pid_exists(workers[0])


def test_nothing_is_left_after_an_exception_while_the_worker_is_busy(workspace: Path, gate: Gate) -> None:
    def body() -> None:
        with PythonSession(TOOLS, quiet_mode=True) as session:
            session.send_request(gate.message)
            gate.wait_for_worker()
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        body()
    assert not leftovers(workspace)


def test_nothing_is_left_of_a_session_whose_body_closed_it(workspace: Path) -> None:
    with PythonSession(TOOLS, quiet_mode=True) as session:
        assert session.please_exit()
        assert not leftovers(workspace)
        with pytest.raises(SessionNotStarted):
            session.fetch_response("hello")
    session.close()
    session.close()


def test_nothing_is_left_of_a_session_that_was_forgotten(workspace: Path) -> None:
    session = PythonSession(TOOLS, quiet_mode=True)
    session.start()
    assert session.wait_until_ready()
    del session
    gc.collect()
    assert not leftovers(workspace)


def test_a_session_may_be_entered_again_and_knows_no_old_tags(workspace: Path) -> None:
    session = PythonSession(TOOLS, quiet_mode=True)
    for _ in range(2):
        with session:
            with pytest.raises(Exception, match="'a'"):
                session.fetch_tensor("echo a")
            session.send_tensor(A, "a")
            assert bits(session.fetch_tensor("echo a")) == bits(A)
        assert not leftovers(workspace)


@pytest.mark.parametrize("mode", ["raise", "exit", "no_with", "plain"])
def test_nothing_is_left_after_a_controller_that_ends_by_itself(workspace: Path, mode: str) -> None:
    with controller(mode) as running:
        worker = running.line()["worker"]
        said = running.end()
    assert running.returncode == {"raise": 1, "exit": 7, "no_with": 0, "plain": 0}[mode], said
    assert ("ArithmeticError: in the body" in said) == (mode == "raise")
    assert has_ended(worker)
    assert not leftovers(workspace)


@pytest.mark.parametrize("mode", ["wait", "fetch"])
def test_nothing_is_left_after_ctrl_c_in_a_wait(workspace: Path, gate: Gate, mode: str) -> None:
    with controller(mode, gate.path) as running:
        worker = running.line()["worker"]
        gate.wait_for_worker()
        said = running.end(signal.SIGINT)
    assert running.returncode == -signal.SIGINT, said
    assert "KeyboardInterrupt" in said
    assert said.count("Traceback") == 1
    assert not psutil.pid_exists(worker)
    assert not leftovers(workspace)


def test_nothing_is_left_after_ctrl_c_before_the_worker_is_ready(workspace: Path, tmp_path: Path, gate: Gate) -> None:
    never = script(tmp_path, f"import signal\nopen({str(gate.path)!r}).close()\nsignal.pause()")
    with controller("never_ready", never) as running:
        gate.wait_for_worker()  # it runs, and will never be ready
        said = running.end(signal.SIGINT)
    assert running.returncode == -signal.SIGINT, said
    assert not leftovers(workspace)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("mode", ["plain", "no_with"])
def test_nothing_is_left_after_the_controller_was_killed(workspace: Path, mode: str, number: int) -> None:
    with controller(mode) as running:
        worker = running.line()["worker"]
        running.end(number)
    assert running.returncode == -number
    assert has_ended(worker)
    assert not leftovers(workspace)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_nothing_is_left_after_the_controller_was_killed_during_a_long_command(
    workspace: Path, gate: Gate, number: int
) -> None:
    with controller("wait", gate.path) as running:
        worker = running.line()["worker"]
        gate.wait_for_worker()
        running.end(number)
    assert has_ended(worker)
    assert not leftovers(workspace)


def test_a_second_ctrl_c_does_not_keep_the_worker_alive(workspace: Path, gate: Gate) -> None:
    with controller("wait", gate.path) as running:
        worker = running.line()["worker"]
        gate.wait_for_worker()
        running.process.send_signal(signal.SIGINT)
        running.end(signal.SIGINT)
    assert has_ended(worker)
    sweep = run_python("-c", "import tr_mmap; print(tr_mmap.sweep())")
    assert sweep.returncode == 0, sweep.stderr
    assert not leftovers(workspace)


# -- the worker's death ----------------------------------------------------------------------------------------------


@CHANNELS
def test_a_killed_worker_is_noticed_within_a_second_and_start_works_again(gate: Gate, channel: str) -> None:
    with PythonSession(TOOLS, quiet_mode=True, channel=channel) as session:
        session.send_tensor(A, "told")
        kept = session.fetch_tensor("echo told")
        session.fetch_response("print these are my last words")
        session.send_tensor(A + 1, "untold")
        worker = worker_of(session)
        killed: list[float] = []

        def kill() -> None:
            gate.wait_for_worker()
            killed.append(time.monotonic())
            os.kill(worker, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(WorkerDied) as caught:
            session.fetch_response(gate.message, FOREVER_MS)
        noticed = time.monotonic()
        killer.join()
        assert noticed - killed[0] < DEATH_NOTICED_S
        assert caught.value.exit_code == -signal.SIGKILL
        assert "these are my last words" in caught.value.log_tail
        assert "THESE ARE MY LAST WORDS" in str(caught.value)
        assert not session.is_alive()
        assert not session.is_ready()
        assert session.join(0)
        with pytest.raises(SessionNotStarted):
            session.fetch_response("hello")
        gate.close()
        session.send_tensor(A + 2, "meanwhile")
        session.start()
        assert session.wait_until_ready()
        assert worker_of(session) != worker
        for tag, wanted in (("told", A), ("untold", A + 1), ("meanwhile", A + 2)):
            assert bits(session.fetch_tensor(f"echo {tag}")) == bits(wanted)
        for number in range(10):
            assert session.calculate("echo", A + number)[0] == number
        assert bits(kept) == bits(A)


def test_a_worker_killed_while_idle_is_noticed_at_the_next_request(own: PythonSession) -> None:
    worker = worker_of(own)
    os.kill(worker, signal.SIGKILL)
    assert own.join(5000)
    assert not own.is_alive()
    with pytest.raises(WorkerDied):
        own.fetch_response("hello")
    own.start()
    assert own.wait_until_ready()
    assert own.fetch_response("hello again") == "Hello Again"


def test_an_answer_given_before_the_workers_death_can_still_be_taken(own: PythonSession) -> None:
    own.send_tensor(A, "a")
    own.send_request("echo a")
    assert own.wait_until_ok()
    own.terminate()
    assert own.join(5000)
    try:
        assert bits(own.wait_for_tensor()) == bits(A)
    except WorkerDied:
        pass  # also right; what must not be is a wait, or another error


def test_waiting_for_a_dead_worker_ends_at_once(own: PythonSession) -> None:
    own.send_request("die 3 so long")
    with pytest.raises(WorkerDied, match="so long") as caught:
        own.wait_for_response(FOREVER_MS)
    assert caught.value.exit_code == 3
    assert "so long" in caught.value.log_tail


def test_a_death_can_be_survived_many_times(own: PythonSession) -> None:
    own.send_tensor(A, "a")
    for number in range(4):
        results = [own.fetch_tensor("echo a") for _ in range(3)]
        with pytest.raises(WorkerDied):
            own.fetch_response(f"die {number} bye")
        own.start()
        assert own.wait_until_ready()
        assert all(bits(each) == bits(A) for each in results)
    files = sorted(each.name for each in Path(own.session_dir()).glob("*.tsr"))
    assert len([name for name in files if name.startswith("result_")]) <= 1


def test_a_handler_that_exits_ends_the_worker_with_its_status(own: PythonSession) -> None:
    with pytest.raises(WorkerDied) as caught:
        own.fetch_response("leave 4")
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("is_busy", [False, True], ids=["idle", "busy"])
def test_sigint_and_sigterm_end_the_worker_cleanly(own: PythonSession, gate: Gate, number: int, is_busy: bool) -> None:
    worker = worker_of(own)
    if is_busy:
        own.send_request(f"spin {gate.path}")
        gate.wait_for_worker()
    os.kill(worker, number)
    assert own.join(10_000)
    assert "terminated" in (Path(own.session_dir()) / "status.txt").read_text()
    with pytest.raises(WorkerDied) as caught:
        own.wait_for_response() if is_busy else own.fetch_response("hello")
    assert caught.value.exit_code == 0
    assert "Traceback" not in caught.value.log_tail


# -- ending a worker -------------------------------------------------------------------------------------------------


def test_terminate_ends_the_whole_tree(own: PythonSession) -> None:
    worker, child = worker_of(own), int(own.fetch_response("child"))
    assert psutil.pid_exists(child)
    own.terminate()
    assert not own.is_alive()
    assert has_ended(worker)
    assert has_ended(child)
    own.terminate()


def test_the_end_of_the_with_block_ends_the_whole_tree() -> None:
    with PythonSession(TOOLS, quiet_mode=True) as session:
        child = int(session.fetch_response("child"))
    assert has_ended(child)


def test_what_a_dead_worker_started_ends_with_it(own: PythonSession) -> None:
    worker, child = worker_of(own), int(own.fetch_response("child"))
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(WorkerDied):
        own.fetch_response("hello")
    assert has_ended(child)


def test_terminate_ends_the_wait_of_another_thread(own: PythonSession, gate: Gate) -> None:
    errors: list[Exception] = []

    def wait() -> None:
        try:
            own.fetch_response(gate.message, FOREVER_MS)
        except Exception as error:
            errors.append(error)
        finally:  # if the worker never came to the gate, let this test's other half go
            os.close(os.open(gate.path, os.O_RDONLY | os.O_NONBLOCK))

    waiter = threading.Thread(target=wait)
    waiter.start()
    gate.wait_for_worker()
    own.terminate()
    waiter.join()
    assert [type(error) for error in errors] == [WorkerDied], errors


def test_please_exit_asks_and_says_whether_it_was_heard(own: PythonSession) -> None:
    assert own.please_exit(5000)
    assert not own.is_alive()


def test_please_exit_without_ensure_leaves_a_busy_worker_alive(own: PythonSession, gate: Gate) -> None:
    own.send_request(gate.message)
    gate.wait_for_worker()
    assert not own.please_exit(50, ensure=False)
    assert own.is_alive()
    gate.let_go("")
    assert own.join(10_000)  # it heard


def test_please_exit_with_ensure_ends_a_busy_worker(own: PythonSession, gate: Gate) -> None:
    worker = worker_of(own)
    own.send_request(gate.message)
    gate.wait_for_worker()
    assert not own.please_exit(50)
    assert not own.is_alive()
    assert has_ended(worker)


def test_join_says_whether_the_worker_has_ended(own: PythonSession) -> None:
    assert not own.join(20)
    own.terminate()
    assert own.join(20)
    assert own.join()


def test_the_word_exit_in_the_status_file_ends_the_worker(workspace: Path) -> None:
    """The older protocol's way; the portable channel looks there by itself."""
    with PythonSession(TOOLS, quiet_mode=True, channel="files") as session:
        (Path(session.session_dir()) / "status.txt").write_text("exit\n")
        assert session.join(10_000)


# -- workers that never work -----------------------------------------------------------------------------------------


def test_a_script_that_does_not_exist_is_an_error_before_anything_is_made(workspace: Path) -> None:
    with pytest.raises(ScriptNotFound) as caught, PythonSession("nowhere/worker.py"):
        pass
    assert caught.value.path == "nowhere/worker.py"
    with pytest.raises(FileNotFoundError):
        PythonSession(str(workspace)).start()
    assert not leftovers(workspace)


BAD_SCRIPTS = {
    "exits at once": ("import sys\nprint('my last words')\nsys.exit(3)", 3, "my last words"),
    "exits with status 0": ("print('nothing to do')", 0, "nothing to do"),
    "prints garbage": ("import sys\nsys.stdout.buffer.write(bytes(range(256)) * 9 + b' the end')", 0, "the end"),
    "prints very much": ("print('x' * 1_000_000)\nprint('the end')", 0, "the end"),
    "does not parse": ("def broken(:", 1, "SyntaxError"),
    "raises": ("raise LookupError('for a reason')", 1, "for a reason"),
    "kills itself": ("import os\nos.kill(os.getpid(), 9)", -9, ""),
    "says nothing": ("", 0, "printed nothing"),
    "needs what is not there": ("import no_such_module_anywhere", 1, "no_such_module_anywhere"),
}


@pytest.mark.parametrize("name", BAD_SCRIPTS)
def test_a_script_that_ends_before_it_is_ready_says_why(workspace: Path, tmp_path: Path, name: str) -> None:
    text, code, words = BAD_SCRIPTS[name]
    with pytest.raises(WorkerDied) as caught, PythonSession(script(tmp_path, text), quiet_mode=True):
        pass
    assert caught.value.exit_code == code
    assert words in str(caught.value)
    assert len(str(caught.value)) < 100_000
    assert not leftovers(workspace)


def test_a_script_that_never_connects_is_not_ready_in_time(workspace: Path, tmp_path: Path) -> None:
    session = PythonSession(script(tmp_path, "import signal\nsignal.pause()"), quiet_mode=True)
    session.start()
    assert not session.wait_until_ready(100)
    assert session.is_alive()
    assert not session.is_ready()
    with pytest.raises(ResponseTimeout):
        session.fetch_response("hello", 50)
    assert not session.please_exit(50)
    assert not session.is_alive()
    assert not leftovers(workspace)


def test_a_request_may_be_made_before_the_worker_is_ready() -> None:
    session = PythonSession(TOOLS, quiet_mode=True)
    session.start()
    session.send_tensor(A, "a")
    assert bits(session.fetch_tensor("echo a")) == bits(A)
    assert session.please_exit()


def test_a_session_that_failed_to_start_can_be_started_when_the_script_is_right(tmp_path: Path) -> None:
    path = script(tmp_path, "raise SystemExit(1)")
    session = PythonSession(path, quiet_mode=True)
    session.start()
    with pytest.raises(WorkerDied):
        session.wait_until_ready()
    Path(path).write_text(HI_SERVER)
    session.start()
    assert session.wait_until_ready()
    assert session.fetch_response("hi") == "there"
    session.please_exit()


# -- one owner a name ------------------------------------------------------------------------------------------------


def test_a_second_session_of_an_id_is_refused_also_to_another_process(workspace: Path) -> None:
    with PythonSession(TOOLS, "wanted", quiet_mode=True) as session:
        with controller("try", session_id="wanted") as running:
            said = running.end()
        assert running.returncode == 1
        assert "SessionInUse" in said
        assert str(os.getpid()) in said
        assert session.fetch_response("hello owner") == "Hello Owner"
        assert os.path.isdir(session.session_dir())
    with controller("try", session_id="wanted") as running:
        running.line()
        assert running.end() == ""


def test_another_processs_session_is_refused_here_and_free_when_that_process_is_dead(workspace: Path) -> None:
    with controller("plain", session_id="wanted") as running:
        first = running.line()
        with pytest.raises(SessionInUse) as caught:
            PythonSession(TOOLS, "wanted").start()
        assert caught.value.pid == running.pid
        assert caught.value.session_id == "wanted"
        running.end(signal.SIGKILL)
    with PythonSession(TOOLS, "wanted", quiet_mode=True) as session:
        assert session.session_dir() == first["dir"]
        assert session.fetch_response("hello heir") == "Hello Heir"
    assert has_ended(first["worker"])


# -- the worker's surroundings ---------------------------------------------------------------------------------------


def test_the_worker_runs_where_the_controller_does_and_finds_the_session_anyway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with PythonSession(TOOLS, "elsewhere", quiet_mode=True) as session:
        where = json.loads(session.fetch_response("where_am_i"))
    assert where["cwd"] == str(tmp_path)
    assert where["argv"][-1] == "elsewhere"
    assert where["ppid"] == os.getpid()


def test_a_script_given_by_a_relative_path_or_with_odd_characters_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "a b; $(c) 'ü'"
    directory.mkdir()
    (directory / "my worker.py").write_text(HI_SERVER)
    monkeypatch.chdir(directory)
    with PythonSession("my worker.py", quiet_mode=True) as session:
        assert session.fetch_response("hi") == "there"


def test_the_workers_output_is_seen_unless_the_session_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with PythonSession(TOOLS) as session:
        session.fetch_response("print loud and clear")
    seen = capsys.readouterr().err
    assert "loud and clear" in seen
    assert "LOUD AND CLEAR" in seen
    with PythonSession(TOOLS, quiet_mode=True) as session:
        session.fetch_response("print in secret")
        assert "in secret" in (Path(session.session_dir()) / "worker.log").read_text()
    seen = capsys.readouterr()
    assert "secret" not in seen.err + seen.out


def test_quiet_mode_can_be_changed_while_the_worker_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with PythonSession(TOOLS, quiet_mode=True) as session:
        session.fetch_response("print before")
        session.set_quiet_mode(False)
        session.fetch_response("print between")
        session.set_quiet_mode(True)
        session.fetch_response("print afterwards")
    seen = capsys.readouterr().err
    assert "between" in seen
    assert "before" not in seen
    assert "afterwards" not in seen


def test_the_workspace_is_where_the_environment_says(workspace: Path) -> None:
    with PythonSession(TOOLS, "placed", quiet_mode=True) as session:
        assert session.session_dir() == str(workspace / "python_session" / "tr_session_placed")
        names = {each.name for each in Path(session.session_dir()).iterdir()}
        assert {"request.json", "response.json", "status.txt", "session.json", "worker.log"} <= names
        for each in Path(session.session_dir()).iterdir():
            assert each.stat().st_mode & 0o077 == 0
        assert Path(session.session_dir()).stat().st_mode & 0o077 == 0


def test_a_workspace_that_changes_meanwhile_does_not_part_the_two_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    with empty_place() as other:
        with PythonSession(TOOLS, quiet_mode=True) as session:
            monkeypatch.setenv("TR_WORKSPACE", str(other))
            session.terminate()
            session.start()
            assert session.wait_until_ready()
            assert session.fetch_response("hello you") == "Hello You"
        assert not list(other.iterdir())


def test_sessions_come_and_go_without_leaving_descriptors_or_threads() -> None:
    def count() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    def once(channel: str) -> None:
        with PythonSession(TOOLS, quiet_mode=True, channel=channel) as session:
            session.calculate("echo", A)

    once("mapped")
    before = count()
    for channel in ("mapped", "files", "mapped"):
        once(channel)
    assert count() == before


def test_a_session_may_be_used_by_a_thread_that_ends(workspace: Path) -> None:
    """The worker belongs to the process, not to the thread that started it."""
    session = PythonSession(TOOLS, quiet_mode=True)
    starter = threading.Thread(target=lambda: (session.start(), session.wait_until_ready()))
    starter.start()
    starter.join()
    assert session.fetch_response("hello you") == "Hello You"
    assert session.please_exit()


def test_python_options_do_not_get_between() -> None:
    text = (
        "from tr_mmap import PythonSession\n"
        "import numpy as np\n"
        "with PythonSession(quiet_mode=True) as session:\n"
        "    print(session.calculate('add', np.ones(2), np.ones(2)))\n"
    )
    for options in (["-O"], ["-W", "error"], ["-X", "dev", "-W", "error"]):
        ended = run_python(*options, "-c", text)
        assert ended.stdout.strip() == "[2. 2.]", ended.stderr
        assert ended.stderr == ""
