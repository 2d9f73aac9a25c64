"""Starting a worker: scripts that never work, one owner a name, and the worker's surroundings."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from strategies import bits
from support import TOOLS, controller, empty_place, has_ended, leftovers, open_files, run_python, script

from tr_mmap import PythonSession, ResponseTimeout, ScriptNotFound, SessionInUse, WorkerDied, sweep
from tr_mmap.processes.interpreter import find_python

A = np.arange(1000.0)
HI_SERVER = "from tr_mmap import Server\nserver = Server()\nserver.command('hi')(lambda: 'there')\nserver.run()\n"


def test_a_script_that_does_not_exist_is_an_error_before_anything_is_made(workspace: Path) -> None:
    with pytest.raises(ScriptNotFound) as caught, PythonSession("nowhere/worker.py"):
        pass
    assert caught.value.path == os.path.abspath("nowhere/worker.py")
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


def _second(second: str, tmp_path: Path) -> None:
    """Do one thing that looks at the sessions that live."""
    with contextlib.suppress(SessionInUse, ScriptNotFound, WorkerDied):
        if second == "a sweep":
            sweep()
        elif second == "a refused start":
            PythonSession(TOOLS, "first", quiet_mode=True).start()
        elif second == "a refused with":
            with PythonSession(TOOLS, "first", quiet_mode=True):
                pass
        elif second == "another session":
            PythonSession(TOOLS, "second", quiet_mode=True).start()
        elif second == "a start that fails":
            PythonSession(TOOLS, "second", quiet_mode=True, python=script(tmp_path, "")).start()
        else:
            with PythonSession(script(tmp_path, ""), "second", quiet_mode=True):
                pass


SECONDS = [
    "a sweep",
    "a refused start",
    "a refused with",
    "another session",
    "a start that fails",
    "a worker that dies",
]


@pytest.mark.parametrize("second", SECONDS)
def test_a_session_that_nothing_names_any_more_ends_at_once_whatever_was_started_beside_it(
    workspace: Path, tmp_path: Path, second: str
) -> None:
    """Without a wait for the garbage collector, which may run much later."""

    def use() -> int:
        first = PythonSession(TOOLS, "first", quiet_mode=True)
        first.start()
        assert first.wait_until_ready()
        assert first.pid is not None
        _second(second, tmp_path)
        return first.pid

    gc.disable()
    try:
        worker = use()
        assert has_ended(worker, 0)
        assert not leftovers(workspace)
    finally:
        gc.enable()


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
    def count() -> tuple[Counter[str], int]:
        return open_files(), threading.active_count()

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


@pytest.mark.parametrize(
    ("executable", "is_frozen", "why"),
    [
        (sys.executable, True, "this program is frozen"),
        ("", False, "sys.executable is empty"),
        ("/nowhere/python3", False, "there is no such file"),
        ("/bin/sh", False, "by its name is no Python"),
    ],
)
def test_why_this_process_has_no_python_for_a_worker_is_said(
    monkeypatch: pytest.MonkeyPatch, executable: str, is_frozen: bool, why: str
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    monkeypatch.setattr(sys, "frozen", is_frozen, raising=False)
    with pytest.raises(ScriptNotFound, match=why) as caught:
        find_python(None, {})
    assert caught.value.path == executable
    assert "TR_PYTHON" in str(caught.value)
