"""Which code a worker runs, by which interpreter, with which arguments and environment; and where its output goes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import TOOLS, environment, has_ended, leftovers, open_files, run_python, script

from tr_mmap import PythonSession, ScriptNotFound, SystemLimit, WorkerDied, sweep
from tr_mmap.controller.launch import advice_on, launch
from tr_mmap.controller.options import ChannelName
from tr_mmap.processes import worker_log
from tr_mmap.processes.interpreter import find_python
from tr_mmap.processes.spawn import WorkerProcess
from tr_mmap.processes.worker_log import MAX_LOG_NBYTES

POISON = "raise SystemExit('this code must not run')\n"
HELLO = (
    "from tr_mmap import PythonSession\nwith PythonSession(quiet_mode=True) as s: print(s.fetch_response('hello you'))"
)


# -- code ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def poisoned(tmp_path: Path) -> Path:
    """A directory whose modules have the names of the standard library's, of ours and of our dependencies'."""
    place = tmp_path / "poisoned"
    place.mkdir()
    for name in ("random", "queue", "numpy", "msgspec", "tr_mmap", "sitecustomize", "usercustomize", "default", "log"):
        (place / f"{name}.py").write_text(POISON)
    return place


def test_the_current_directory_does_not_decide_what_the_default_worker_runs(
    poisoned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(poisoned)
    with PythonSession(quiet_mode=True) as session:
        assert session.fetch_response("hello you") == "Hello You"


@pytest.mark.parametrize("variable", ["PYTHONPATH", "PYTHONSTARTUP"])
def test_the_environment_does_not_decide_what_the_default_worker_runs(
    poisoned: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    value = {"PYTHONPATH": f"{os.pathsep}{poisoned}", "PYTHONSTARTUP": str(poisoned / "random.py")}[variable]
    monkeypatch.setenv(variable, value)
    with PythonSession(quiet_mode=True) as session:
        assert session.fetch_response("hello you") == "Hello You"


def test_modules_beside_the_callers_script_do_not_run_in_the_default_worker(tmp_path: Path) -> None:
    (tmp_path / "caller.py").write_text(HELLO)
    (tmp_path / "statistics.py").write_text(POISON)
    (tmp_path / "platform.py").write_text(  # the worker needs it, and the caller too: only in the worker it would print
        "import sys\nif 'tr_mmap.worker' in sys.modules: print('poison')\n"
        "def python_version(): return 'poison'\ndef machine(): return 'x86_64'\ndef system(): return 'Linux'\n"
    )
    ended = run_python(str(tmp_path / "caller.py"))
    assert ended.stdout == "Hello You\n", ended.stderr


def test_the_default_worker_may_be_run_as_a_module_by_hand(tmp_path: Path) -> None:
    ended = run_python("-m", "tr_mmap.worker", "nowhere")
    assert ended.returncode != 0
    assert "SessionNotStarted" in ended.stderr


def test_a_script_has_its_own_directory_and_pythonpath(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "beside.py").write_text("word = 'beside'")
    (other / "elsewhere.py").write_text("word = 'elsewhere'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "other")
    text = (
        "import sys, beside, elsewhere\nfrom tr_mmap import Server\nserver = Server()\n"
        "server.command('words')(lambda: f'{beside.word} {elsewhere.word}')\nserver.run()\n"
    )
    with PythonSession(script(tmp_path, text), quiet_mode=True) as session:
        assert session.fetch_response("words") == "beside elsewhere"


# -- interpreter, arguments, environment -----------------------------------------------------------------------------


def test_the_interpreter_is_chosen_by_argument_then_variable_then_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).symlink_to(sys.executable)
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    assert find_python(None, {}) == sys.executable
    assert find_python(None, {"TR_PYTHON": ""}) == sys.executable
    assert find_python(None, {"TR_PYTHON": one}) == one
    assert find_python(two, {"TR_PYTHON": one}) == two
    assert find_python("two", {"PATH": str(tmp_path)}) == two
    monkeypatch.chdir(tmp_path)
    assert find_python("./two", {}) == two


@pytest.mark.parametrize("python", ["", "/nowhere/python", "no_such_python_anywhere", "."])
def test_an_interpreter_that_is_not_there_is_named(python: str) -> None:
    for call in (lambda: find_python(python, {"PATH": os.environ["PATH"]}), lambda: find_python(python or "/", {})):
        with pytest.raises(ScriptNotFound, match="interpreter"):
            call()


@pytest.mark.parametrize("executable", ["", None])
def test_a_program_with_python_inside_is_told_how_to_name_an_interpreter(
    monkeypatch: pytest.MonkeyPatch, executable: Any
) -> None:
    own = sys.executable
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(ScriptNotFound, match=r"python=.*TR_PYTHON"):
        find_python(None, {})
    monkeypatch.setenv("TR_PYTHON", own)
    with PythonSession(quiet_mode=True) as session:
        assert session.fetch_response("hello you") == "Hello You"


def test_a_frozen_program_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(ScriptNotFound, match="TR_PYTHON"):
        find_python(None, {})
    assert find_python(sys.executable, {}) == sys.executable


@pytest.mark.parametrize("name", ["tr_mmap", "numpy", "msgspec"])
def test_a_python_without_the_package_is_advised_of(name: str) -> None:
    output = f"Traceback\nModuleNotFoundError: No module named '{name}'"
    assert "TR_PYTHON" in advice_on(output)
    assert name in advice_on(output)
    assert advice_on("ModuleNotFoundError: No module named 'another'") == ""


def _death_of(python: str | Path, script_path: str | Path = "default", **options: Any) -> str:
    session = PythonSession(script_path, quiet_mode=True, python=python, **options)
    session.start()
    with pytest.raises(WorkerDied) as caught:
        session.fetch_response("hello you")
    session.close()
    return str(caught.value)


@pytest.mark.parametrize("channel", ["mapped", "files"])
@pytest.mark.parametrize(("code", "said"), [("exit 0", "it printed nothing"), ("echo no; exit 3", "no\n")])
def test_a_program_that_is_no_python_is_named_whatever_it_prints(
    tmp_path: Path, channel: ChannelName, code: str, said: str
) -> None:
    program = tmp_path / "false"
    program.write_text(f"#!/bin/sh\n{code}\n")
    program.chmod(0o755)
    for script_path in ("default", TOOLS):
        text = _death_of(program, script_path, channel=channel)
        assert said in text
        assert f"it was run by {str(program)!r}" in text
        assert "TR_PYTHON" in text


def test_a_python_is_named_if_its_worker_ends_before_it_is_ready_and_prints_nothing(tmp_path: Path) -> None:
    assert f"it was run by {sys.executable!r}" in _death_of(sys.executable, script(tmp_path, ""))
    assert "it was run by" not in _death_of(sys.executable, script(tmp_path, "print('nothing to do')"))


def test_no_interpreter_is_blamed_for_the_end_of_a_worker_that_was_ready() -> None:
    with PythonSession(quiet_mode=True) as session:
        session.terminate()
        with pytest.raises(WorkerDied) as caught:
            session.fetch_response("hello you")
    assert "it was run by" not in str(caught.value)


SHOW = """
import json, os, sys
print(json.dumps({
    "argv": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ), "executable": sys.executable, "path": sys.path,
}))
"""


@contextmanager
def _launched(tmp_path: Path, **options: Any) -> Iterator[WorkerProcess]:
    worker = launch(
        script(tmp_path, SHOW),
        "name",
        workspace_root=str(tmp_path),
        session_dir=str(tmp_path),
        mark="",
        quiet=True,
        **options,
    )
    try:
        assert worker.wait(60)
        yield worker
    finally:
        worker.terminate_tree(0)


def _shown(tmp_path: Path, **options: Any) -> dict[str, Any]:
    with _launched(tmp_path, **options) as worker:
        assert worker.exit_code == 0, worker.log_tail()
        found: dict[str, Any] = json.loads(Path(worker.log_path).read_text())
        return found


def test_arguments_environment_and_directory_reach_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "kept")
    monkeypatch.setenv("GONE", "gone")
    other = tmp_path / "a directory"
    other.mkdir()
    found = _shown(
        tmp_path, args=["--lr", "0.1", "", "a b"], env={"MADE": "ü", "GONE": None, "NEVER": None}, cwd=str(other)
    )
    assert found["argv"] == ["name", "--lr", "0.1", "", "a b"]
    assert found["cwd"] == str(other)
    assert found["env"]["KEPT"] == "kept"
    assert found["env"]["MADE"] == "ü"
    assert not {"GONE", "NEVER"} & set(found["env"])
    assert found["env"]["TR_WORKSPACE"] == str(tmp_path)


def test_a_script_and_pythonpath_given_by_relative_paths_are_ours_whatever_the_workers_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    script(tmp_path, SHOW)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "modules")
    worker = launch(
        "worker.py", "name", workspace_root="/", session_dir=str(tmp_path), mark="", quiet=True, cwd="other"
    )
    try:
        assert worker.wait(60)
        found = json.loads(Path(worker.log_path).read_text())
    finally:
        worker.terminate_tree(0)
    assert found["cwd"] == str(other)
    assert str(tmp_path / "modules") in found["path"]


def test_an_interpreter_given_by_name_runs_the_script(tmp_path: Path) -> None:
    (tmp_path / "mypython").symlink_to(sys.executable)
    found = _shown(tmp_path, python="mypython", env={"PATH": str(tmp_path)})
    assert found["executable"] == str(tmp_path / "mypython")


@pytest.mark.parametrize("options", [{"cwd": "nowhere"}, {"python": "nowhere"}])
def test_a_place_that_is_gone_is_refused_before_anything_is_made(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ScriptNotFound), _launched(tmp_path, **options):
        pass
    assert os.listdir(tmp_path) == ["worker.py"]


# -- the log ---------------------------------------------------------------------------------------------------------

CHATTY = """
import logging, os, sys
logging.basicConfig()  # which takes stderr as it is now
from tr_mmap import Server
server = Server()

@server.command("chat")
def chat():
    print("x" * 1023)
    return "ok"

@server.command("flood")
def flood(count: int):
    for number in range(count):
        print("y" * 1023)
        if number % 3 == 0:
            logging.warning("z" * 1023)
    return str(os.stat(2).st_size)

@server.command("native")
def native(count: int):
    os.write(1, b"n" * (1 << 20) + b"\\n")
    return "ok"

server.run()
"""


@contextmanager
def _chatty(tmp_path: Path, channel: str = "mapped", quiet: bool = True) -> Iterator[tuple[PythonSession, Path]]:
    with PythonSession(script(tmp_path, CHATTY), quiet_mode=quiet, channel=channel) as session:
        yield session, Path(session.session_dir()) / "worker.log"


@pytest.mark.parametrize("channel", ["mapped", "files"])
def test_a_worker_that_prints_for_ever_has_a_bounded_log(tmp_path: Path, channel: str) -> None:
    with _chatty(tmp_path, channel) as (session, log):
        for _ in range(3):
            within = int(session.fetch_response("flood 10000"))
            assert within <= MAX_LOG_NBYTES + (2 << 20)
            assert log.stat().st_size <= MAX_LOG_NBYTES + (2 << 20)
        for _ in range(100):
            session.fetch_response("native 1")
        assert log.stat().st_size <= MAX_LOG_NBYTES + (70 << 20)  # looked at every 64 requests
        size = session._worker_or_none().process.log_size()  # type: ignore[union-attr]
        assert size.nbytes == log.stat().st_size
        assert size.nbytes + size.dropped_nbytes >= 100 << 20
        assert log.read_text().startswith("[tr_mmap: ")


def test_a_sessions_log_takes_no_shared_memory_and_goes_with_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workspace: Path
) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setattr(worker_log, "_are_on_one_file_system", lambda *_: False)
    monkeypatch.setattr(worker_log.system, "is_dir_on_tmpfs", lambda _: True)
    with _chatty(tmp_path) as (session, log):
        session.fetch_response("chat")
        (real,) = place.iterdir()
        assert os.path.realpath(log) == str(real)
        assert log.is_symlink()
        assert real.stat().st_mode & 0o777 == 0o600
        assert json.loads((log.parent / "session.json").read_text())["log"] == str(real)
        assert "x" * 1023 in real.read_text()
        session.terminate()
        assert "x" * 1023 in log.read_text()  # until the next start
        session.start()
        assert session.wait_until_ready()
        (second,) = place.iterdir()
        assert second != real
        session.fetch_response("flood 10000")
        assert second.stat().st_size <= MAX_LOG_NBYTES + (2 << 20)
    assert not list(place.iterdir())
    assert not leftovers(workspace)


def test_a_dead_sessions_log_goes_with_a_sweep(tmp_path: Path, workspace: Path) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    text = (
        "import os, signal, sys\nfrom tr_mmap.processes import worker_log\nfrom tr_mmap import PythonSession\n"
        "worker_log._are_on_one_file_system = lambda *_: False\n"
        "worker_log.system.is_dir_on_tmpfs = lambda _: True\n"
        "session = PythonSession(quiet_mode=True)\nsession.start()\nsession.wait_until_ready()\n"
        "session._worker_or_none().process.terminate_tree(0)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", text], env={**environment(), "TMPDIR": str(place)}, check=False, timeout=60)
    assert len(list(place.iterdir())) == 1
    sweep()
    assert not list(place.iterdir())


def test_a_worker_that_outlives_its_controller_removes_its_log(tmp_path: Path, workspace: Path) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    text = (
        "import os, signal, sys\nfrom tr_mmap.processes import worker_log\nfrom tr_mmap import PythonSession\n"
        "worker_log._are_on_one_file_system = lambda *_: False\n"
        "worker_log.system.is_dir_on_tmpfs = lambda _: True\n"
        "session = PythonSession(sys.argv[1], quiet_mode=True)\nsession.start()\nsession.wait_until_ready()\n"
        "print(session._worker_or_none().process.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", text, str(TOOLS)],
        env={**environment(), "TMPDIR": str(place)}, check=False, timeout=60, capture_output=True, text=True,
    )  # fmt: skip
    assert has_ended(int(ended.stdout))
    assert not list(place.iterdir())


# -- interpreters that cannot run a worker ----------------------------------------------------------------------------


def no_shebang(path: Path) -> None:
    path.write_text("this is no program\n")
    path.chmod(0o755)


def lost_shebang(path: Path) -> None:
    path.write_text("#!/nowhere/python\n")
    path.chmod(0o755)


def a_file_on_the_way(path: Path) -> None:
    path.write_text(f"#!{path.parent}/file/python\n")
    (path.parent / "file").write_text("")
    path.chmod(0o755)


@pytest.mark.parametrize("make", [no_shebang, lost_shebang, a_file_on_the_way])
@pytest.mark.parametrize("way", ["python=", "env=", "TR_PYTHON", "sys.executable"])
def test_an_interpreter_that_the_system_cannot_run_is_named_with_what_to_do(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], way: str
) -> None:
    path = tmp_path / "python"
    make(path)
    options: dict[str, Any] = {}
    if way == "python=":
        options = {"python": path}
    elif way == "env=":
        options = {"env": {"TR_PYTHON": str(path)}}
    elif way == "TR_PYTHON":
        monkeypatch.setenv("TR_PYTHON", str(path))
    else:
        monkeypatch.setattr(sys, "executable", str(path))
    with pytest.raises(ScriptNotFound, match=r"python=.*TR_PYTHON") as caught:
        PythonSession(quiet_mode=True, **options).start()
    assert caught.value.path == str(path)
    assert "\n" not in str(caught.value)
    assert not leftovers(workspace)


@pytest.mark.parametrize("executable", ["/usr/sbin/uwsgi", "/bin/true", "/nowhere/python3", "/tmp"])
def test_a_program_that_is_no_python_is_not_run_with_a_workers_arguments(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, executable: str
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(ScriptNotFound, match=r"python=.*TR_PYTHON") as caught:
        PythonSession(quiet_mode=True).start()
    assert caught.value.path == executable


def test_an_interpreter_that_is_too_old_is_told_which_one_is_needed(workspace: Path, tmp_path: Path) -> None:
    old = tmp_path / "python3.8"
    old.write_text("#!/bin/sh\necho 'Unknown option: -P' >&2\necho 'usage: python3 [option] ...' >&2\nexit 2\n")
    old.chmod(0o755)
    with pytest.raises(WorkerDied, match=r"Python 3\.11 or later.*python=.*TR_PYTHON"), PythonSession(python=old):
        pass


@pytest.mark.parametrize(
    "variables", [{"PYTHONHOME": "/nowhere"}, {"PYTHONPLATLIBDIR": "x"}, {"PYTHONHOME": "", "PYTHONPLATLIBDIR": ""}]
)
def test_what_says_where_another_python_has_its_library_does_not_reach_the_worker_that_ships(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with PythonSession(quiet_mode=True) as session:
        assert session.fetch_response("hello you") == "Hello You"


def test_a_home_that_is_given_for_the_worker_is_the_workers(workspace: Path) -> None:
    with pytest.raises(WorkerDied), PythonSession(quiet_mode=True, env={"PYTHONHOME": "/nowhere"}):
        pass


def test_a_controller_that_has_its_library_where_a_variable_says_starts_its_worker_so_too(workspace: Path) -> None:
    text = (
        "from tr_mmap import PythonSession\nwith PythonSession(quiet_mode=True) as session:\n"
        "    with open(f'/proc/{session.pid}/environ') as file: print('PYTHONHOME=' in file.read())\n"
    )
    search = os.pathsep.join(path for path in sys.path if path.endswith("-packages"))
    done = subprocess.run(
        [os.path.realpath(sys.executable), "-c", text],
        env={**environment(), "PYTHONHOME": sys.base_prefix, "PYTHONPATH": f"{os.getcwd()}{os.pathsep}{search}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "True\n", done.stderr


@pytest.mark.each_value
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"args": ["x" * 200_000]}, r"args= has 200001 bytes \(the longest text 200001\), env= has 0 bytes"),
        ({"args": ["x" * 1000] * 5000}, r"args= has 5005000 bytes \(the longest text 1001\)"),
        ({"env": {"LONG": "ü" * 100_000, "SHORT": "x", "GONE": None}}, r"args= has 0 bytes .*env= has 200014 bytes"),
    ],
    ids=["one word", "many words", "a variable"],
)
@pytest.mark.parametrize("is_default", [True, False])
def test_a_command_line_that_is_too_long_is_a_limit_that_names_the_options(
    workspace: Path, tmp_path: Path, options: dict[str, Any], words: str, is_default: bool
) -> None:
    path = "default" if is_default else script(tmp_path, "from tr_mmap import Server\nServer().run()\n")
    before = open_files()
    session = PythonSession(path, quiet_mode=True, **options)
    for _ in range(2):
        with pytest.raises(SystemLimit, match=words) as caught:
            session.start()
        assert (caught.value.limit, caught.value.errno) == ("ARG_MAX", errno.E2BIG)
        assert "file" in str(caught.value)
        assert not leftovers(workspace)
    assert open_files() == before
    with PythonSession(path, quiet_mode=True) as session:  # the name is free again
        assert session.is_ready()


# -- a current directory that is not there ----------------------------------------------------------------------------


def test_a_relative_path_in_a_removed_directory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for arguments, options in (
        (("worker.py",), {}),
        ((), {"python": "./python"}),
        ((), {"cwd": "data"}),
        ((), {"env": {"TR_PYTHON": "bin/python"}}),
    ):
        with pytest.raises(ScriptNotFound, match="current directory has been removed") as caught:
            PythonSession(*arguments, **options)
        assert caught.value.path in ("worker.py", "./python", "data", "bin/python")
        assert caught.value.path in str(caught.value)


def test_a_removed_directory_does_not_keep_the_worker_that_ships_from_starting(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([".", "modules", str(tmp_path)]))
    monkeypatch.chdir(gone)
    gone.rmdir()
    path = script(tmp_path, "from tr_mmap import Server\nserver = Server()\nserver.run()\n")
    monkeypatch.setenv("PYTHONHOME", "")
    options: tuple[dict[str, Any], ...] = ({}, {"cwd": "/"}, {"script_path": path}, {"script_path": path, "cwd": "/"})
    for each in options:
        with PythonSession(**each, quiet_mode=True) as session:
            assert session.is_ready()


# -- paths mean what they mean to open() ------------------------------------------------------------------------------


@pytest.fixture
def current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``current`` leads to ``release/v1``, so ``current/..`` is ``release``. This process is beside it."""
    (tmp_path / "release" / "v1").mkdir(parents=True)
    (tmp_path / "current").symlink_to("release/v1")
    for place, word in ((tmp_path, "wrong"), (tmp_path / "release", "right")):
        script(
            place,
            f"from tr_mmap import Server\nserver = Server()\nserver.command('who')(lambda: {word!r})\nserver.run()\n",
        )
        (place / "data").mkdir()
        (place / "python").write_text(f'#!/bin/sh\necho {word} >> {tmp_path}/used\nexec {sys.executable} "$@"\n')
        (place / "python").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("start", ["", "./", "{here}/", "{here}/./", "{here}//"])
def test_the_script_directory_and_interpreter_are_those_that_the_kernel_finds(
    workspace: Path, current: Path, start: str
) -> None:
    before = start.format(here=current) + "current/../"
    options = {"script_path": before + "worker.py", "cwd": before + "data", "python": before + "python"}
    with PythonSession(**options, quiet_mode=True) as session:
        assert session.fetch_response("who") == "right"
        assert os.path.realpath(f"/proc/{session.pid}/cwd") == str(current / "release" / "data")
    assert (current / "used").read_text() == "right\n"


def test_the_interpreter_that_a_variable_or_a_path_names_is_the_one_that_the_kernel_finds(
    workspace: Path, current: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TR_PYTHON", "current/../python")
    with (
        PythonSession(quiet_mode=True),
        PythonSession(session_id="2", python="python", quiet_mode=True, env={"PATH": "current/.."}),
    ):
        pass
    assert (current / "used").read_text() == "right\n" * 2


def test_the_workspace_is_the_one_that_the_kernel_finds(current: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for given in ("current/../ws", "./current/../ws/", f"{current}/current/../ws"):
        monkeypatch.setenv("TR_WORKSPACE", given)
        with PythonSession("current/../worker.py", quiet_mode=True) as session:
            assert Path(session.session_dir()).resolve().parents[1] == current / "release" / "ws"
            assert session.fetch_response("who") == "right"
    assert not (current / "ws").exists()
