"""Options are checked when they are given, and resolved then, once."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import FOREVER_MS, TOOLS, Gate, run_python, script

import tr_mmap
from tr_mmap import BadMessage, PythonSession, PyTorchSession, ResponseTimeout, ScriptNotFound, SessionInUse
from tr_mmap.controller.options import seconds_of, shown_ms

SHOW = """\
import json, os, sys
from tr_mmap import Server
server = Server()
@server.command("show")
def show():
    return json.dumps([sys.argv[2:], os.getcwd(), os.environ.get("GIVEN"), os.environ.get("TAKEN")])
server.run(sys.argv[1])
"""


class Number:
    """One that cannot be compared."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


WRONG: list[tuple[str, Any]] = [
    ("budget_nbytes", Number(-1)),
    ("spin_us", Number(1001)),
    ("start_timeout_ms", Number(-1)),
    ("framework", "jax"),
    ("framework", None),
    ("channel", "pipe"),
    ("at_budget", "wait"),
    ("budget_nbytes", "1"),
    ("budget_nbytes", -1),
    ("budget_nbytes", 1.5),
    ("budget_nbytes", True),
    ("spin_us", "1"),
    ("spin_us", -1),
    ("spin_us", 1001),
    ("spin_us", float("nan")),
    ("auth", 1),
    ("checksum", "yes"),
    ("views", "writable"),
    ("replace", None),
    ("start_timeout_ms", "5"),
    ("start_timeout_ms", -5),
    ("start_timeout_ms", np.array([1, 2])),
    ("start_timeout_ms", 10**400),
    ("budget_nbytes", np.array([1, 2])),
    ("spin_us", np.array([1.0])),
    ("quiet_mode", "no"),
    ("quiet_mode", 1),
    ("args", None),
    ("args", 5),
    ("args", "one text"),
    ("args", [1]),
    ("args", ["\ud800"]),
    ("args", torch.tensor(1)),
    ("args", np.array(1)),
    ("args", torch.tensor([1])),
    ("env", {"A": "\ud800"}),
    ("env", {"\udfff": "a"}),
    ("cwd", "\ud800"),
    ("python", "/bin/\ud800"),
    ("script_path", "\ud800.py"),
    ("session_id", ""),
    ("session_id", "a/b"),
    ("session_id", None),
    ("args", ["zero\0byte"]),
    ("args", {"--lr": "1"}),
    ("args", {"in no order"}),
    ("env", ["A=1"]),
    ("env", {"A=B": "1"}),
    ("env", {"": "1"}),
    ("env", {"A": 1}),
    ("env", {"A": "zero\0byte"}),
    ("cwd", "/nowhere/at/all"),
    ("cwd", 5),
    ("python", ""),
    ("script_path", ""),
    ("script_path", 5),
    ("script_path", "zero\0byte"),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=[f"{name}-{value!r:.20}" for name, value in WRONG])
def test_a_wrong_option_is_refused_by_name_when_it_is_given(name: str, value: Any) -> None:
    with pytest.raises(BadMessage, match="session id" if name == "session_id" else name) as caught:
        PythonSession(**{name: value})
    assert caught.value.detail == name
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["budget_nbytes", "spin_us", "start_timeout_ms"])
def test_a_number_of_any_class_is_an_option(name: str) -> None:
    options = PythonSession(**{name: Number(5)})._options
    assert getattr(options.transfer if name == "budget_nbytes" else options, name) == 5


def test_a_number_of_any_class_is_a_timeout() -> None:
    assert seconds_of(Number(5)) == 0.005
    with pytest.raises(BadMessage) as caught:
        seconds_of(Number(-5))
    assert caught.value.detail == "timeout_ms"


def test_a_text_with_bytes_that_are_no_utf_8_is_an_option() -> None:
    PythonSession(args=["\udcff"], env={"A": "\udcff"})


@pytest.mark.parametrize("end", ["/", "//", "/."])
def test_a_path_with_the_end_of_a_directorys_names_no_file(workspace: Path, end: str) -> None:
    script = workspace / "show.py"
    script.write_text(SHOW)
    with pytest.raises(ScriptNotFound, match="is no file"):
        PythonSession(f"{script}{end}").start()
    with pytest.raises(ScriptNotFound, match="no program"):
        PythonSession(python=sys.executable + end).start()
    with pytest.raises(BadMessage, match="cwd"):
        PythonSession(cwd=f"{script}{end}")
    PythonSession(cwd=f"{script.parent}{end}")
    script.unlink()


def test_an_option_that_there_is_not_is_refused_by_its_own_name() -> None:
    with pytest.raises(TypeError, match=r"^PythonSession has no option 'chanel'"):
        PythonSession(chanel="files")


def test_a_class_that_takes_no_options_says_how_to_make_it() -> None:
    class Derived(PythonSession[Any]):
        def __init__(self) -> None:
            pass

    for use in (repr, Derived.start, Derived.close, Derived.stats, lambda session: session.fetch_response("hello")):
        with pytest.raises(AttributeError, match=r"Derived.__init__\(\) must call super"):
            use(Derived())
    with pytest.raises(AttributeError, match=r"has no attribute 'nothing'$"):
        _ = Derived().nothing  # type: ignore[attr-defined]


def test_quiet_mode_is_true_or_false_later_too() -> None:
    with pytest.raises(BadMessage, match="quiet_mode"):
        PythonSession().set_quiet_mode("no")  # type: ignore[arg-type]


@pytest.mark.parametrize("take", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_session_is_not_copied(take: Any) -> None:
    with pytest.raises(TypeError, match="neither copied nor pickled") as caught:
        take(PythonSession())
    assert "\n" not in str(caught.value)


WITHOUT_TORCH = """
import sys
from importlib.machinery import PathFinder as real
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.split(".")[0] == "torch" else real.find_spec(name, path, target)
sys.meta_path = [Finder if each is real else each for each in sys.meta_path]
import tr_mmap
for make in (tr_mmap.PythonSession, tr_mmap.Server):
    make(framework="numpy")
    try:
        make(framework="torch")
    except tr_mmap.MissingPackage as error:
        print(error.package)
"""


def test_a_framework_that_is_not_installed_is_refused_when_it_is_given() -> None:
    assert run_python("-c", WITHOUT_TORCH).stdout.split() == ["torch", "torch"]


def test_to_look_for_a_framework_does_not_import_it() -> None:
    program = "import sys, tr_mmap\ntr_mmap.PythonSession(framework='torch')\ntr_mmap.Server('torch')\n"
    pytest.importorskip("torch")
    assert run_python("-c", program + "print('torch' in sys.modules)").stdout.split() == ["False"]


@pytest.mark.parametrize("make", [tr_mmap.Server, tr_mmap.TechRenaissanceServer])
@pytest.mark.parametrize("framework", ["jax", None, ["numpy"]])
def test_a_server_refuses_a_framework_that_there_is_not(make: Any, framework: Any) -> None:
    with pytest.raises(BadMessage, match="framework") as caught:
        make(framework=framework)
    assert caught.value.detail == "framework"


def test_numbers_of_numpy_are_options_too(workspace: Path) -> None:
    options: dict[str, Any] = {"budget_nbytes": np.int64(1 << 20), "spin_us": np.float32(1.5)}
    with PythonSession(quiet_mode=True, **options) as session:
        assert session.fetch_response("hello you") == "Hello You"


def test_the_worker_gets_arguments_variables_and_a_directory(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAKEN", "away")
    options: dict[str, Any] = {"args": ["--fast", "two words"], "env": {"GIVEN": "1", "TAKEN": None}, "cwd": tmp_path}
    with PythonSession(Path(script(tmp_path, SHOW)), "given", quiet_mode=True, **options) as session:
        shown = session.fetch_response("show")
    assert shown == f'[["--fast", "two words"], "{tmp_path.resolve()}", "1", null]'


def test_relative_paths_are_resolved_when_they_are_given(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path, "from tr_mmap import Server\nServer().run()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TR_WORKSPACE", os.path.relpath(workspace))
    session = PythonSession("worker.py", "moved", quiet_mode=True)
    monkeypatch.chdir("/")
    for _ in range(2):
        session.start()
        assert session.wait_until_ready(FOREVER_MS)
        assert os.path.samefile(Path(session.session_dir()).parents[1], workspace)
        session.terminate()
    session.close()


def test_the_interpreter_that_a_variable_names_is_resolved_when_the_session_is_made(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    mine, used = tmp_path / "bin" / "mine", tmp_path / "used"
    mine.write_text(f'#!/bin/sh\necho "$0" >> {used}\nexec {sys.executable} "$@"\n')
    mine.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TR_PYTHON", "bin/mine")
    sessions = [
        PythonSession(session_id="inherited", quiet_mode=True),
        PythonSession(session_id="given", quiet_mode=True, env={"TR_PYTHON": "./bin/mine"}),
    ]
    monkeypatch.chdir("/")
    for session in sessions:
        with session:
            assert session.fetch_response("hello you") == "Hello You"
    assert used.read_text().split() == [str(mine)] * 2


# -- sessions in the way --------------------------------------------------------------------------------------------


def test_with_over_a_session_that_runs_is_an_error_and_does_not_harm_it(workspace: Path) -> None:
    session = PythonSession(TOOLS, "runs", quiet_mode=True)
    session.start()
    assert session.wait_until_ready(FOREVER_MS)
    session.send_tensor(np.ones(3), "a")
    with pytest.raises(SessionInUse, match="started already"), session:
        pytest.fail("the block is not entered")
    with pytest.raises(SessionInUse):
        session.start()
    assert session.fetch_tensor("echo a").tolist() == [1, 1, 1]
    session.close()


def test_a_session_that_runs_is_not_made_again(workspace: Path) -> None:
    session = PythonSession(TOOLS, "again", quiet_mode=True)
    session.__init__(TOOLS, "other", quiet_mode=True)  # type: ignore[misc] # it is not started yet
    with session:
        with pytest.raises(SessionInUse, match="__init__"):
            session.__init__(TOOLS, "third", quiet_mode=True)  # type: ignore[misc]
        assert session.session_id() == "other"
        assert session.fetch_response("hello you") == "Hello You"
    session.__init__(TOOLS, "again", quiet_mode=True)  # type: ignore[misc] # it has ended
    with session:
        assert session.session_id() == "again"


def test_a_session_of_this_process_in_the_way_is_said_so_and_can_be_replaced(workspace: Path, gate: Gate) -> None:
    first = PythonSession(TOOLS, "cell", quiet_mode=True)
    first.start()
    assert first.wait_until_ready(FOREVER_MS)
    first.send_request(gate.message)  # it is even busy
    with pytest.raises(SessionInUse, match=r"this very process.*replace=True") as caught:
        PythonSession(TOOLS, "cell", quiet_mode=True).start()
    assert caught.value.pid == os.getpid()
    with PythonSession(TOOLS, "cell", quiet_mode=True, replace=True) as second:
        assert second.fetch_response("hello again") == "Hello Again"
        assert not first.is_alive()
        first.close()  # does not touch the one that took its place
        assert second.fetch_response("hello still") == "Hello Still"


def test_threads_that_replace_a_session_at_once_leave_the_last_one(workspace: Path) -> None:
    sessions = [PythonSession(TOOLS, "cell", quiet_mode=True, replace=True) for _ in range(4)]
    with ThreadPoolExecutor(len(sessions)) as pool:
        list(pool.map(PythonSession.start, sessions))
    [last] = [each for each in sessions if each.is_alive()]
    assert last.fetch_response("hello last") == "Hello Last"
    for each in sessions:
        each.close()


def test_replace_takes_no_session_of_another_process(workspace: Path) -> None:
    program = (
        "import sys, tr_mmap\ns = tr_mmap.PythonSession(session_id='theirs', quiet_mode=True)\ns.start()\nprint()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-uc", program + "sys.stdin.read()\ns.close()\n"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout is not None
    other.stdout.readline()
    with pytest.raises(SessionInUse) as caught:
        PythonSession(session_id="theirs", replace=True).start()
    assert caught.value.pid == other.pid
    other.communicate()


# -- what a session says of itself ----------------------------------------------------------------------------------


def test_a_session_shows_its_name_its_worker_and_what_that_does(workspace: Path) -> None:
    session = PythonSession(TOOLS, "shown", quiet_mode=True)
    assert repr(session) == f"<PythonSession 'shown': {TOOLS}, not started>"
    assert session.pid is None
    with session:
        assert repr(session) == f"<PythonSession 'shown': {TOOLS}, pid {session.pid}, idle>"
        assert session.fetch_response("pid") == str(session.pid)


def test_starts_are_logged(workspace: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "tr_mmap"), PythonSession(TOOLS, "logged", quiet_mode=True) as session:
        assert f"process {session.pid}" in caplog.text


@pytest.mark.each_value
@pytest.mark.parametrize("views", [None, "readonly", "copy_on_write"])
@pytest.mark.parametrize("count", [4, 100_000])
def test_received_arrays_are_of_the_kind_that_was_asked_for(workspace: Path, views: Any, count: int) -> None:
    x = np.arange(count)
    with PythonSession(TOOLS, "views", quiet_mode=True, views=views) as session:
        first, second = session.calculate("echo", x), session.calculate("echo", x)
        assert first.flags.writeable == (views == "copy_on_write")
        if first.flags.writeable:
            first += 1
        assert np.array_equal(second, x)
        for _ in range(4):  # both sides know the segments by now
            del first
            first = session.calculate("echo", x)
            assert np.array_equal(first, x)
            assert first.flags.writeable == (views == "copy_on_write")
            assert session.submit("echo", x).result().flags.writeable == (views == "copy_on_write")


def test_a_torch_view_may_be_read_only_and_keeps_its_lease(workspace: Path) -> None:
    torch = pytest.importorskip("torch")
    x = torch.arange(100_000)
    with PythonSession(TOOLS, "views", True, framework="torch", views="readonly") as session:
        kept = [session.calculate("echo", x + number) for number in range(20)]
        assert all(torch.equal(each, x + number) for number, each in enumerate(kept))


def test_what_programs_name_is_exported() -> None:
    for name in ("SessionStats", "WorkerState", "PoolStats", "SweepReport"):
        assert getattr(tr_mmap, name).__name__ == name
    assert isinstance(tr_mmap.native.IS_COMPILED, bool)


def test_options_given_by_position_are_refused_in_the_name_of_the_class_and_with_the_way_to_give_them() -> None:
    many: Any = (TOOLS, "many", True, "torch")
    for kind in (PythonSession, PyTorchSession):
        with pytest.raises(TypeError) as caught:
            kind(*many)
        text = str(caught.value)
        assert text.startswith(f"{kind.__name__} takes script_path, session_id and quiet_mode by position")
        assert "framework='torch'" in text
    with pytest.raises(TypeError, match="got 6 arguments"):
        PythonSession(*many, 1, 2)


@pytest.mark.parametrize("value", [1, b"text", "zero\0byte", "\ud800", ["list"]])
def test_a_wrong_value_of_a_variable_is_named_by_its_variable(value: Any) -> None:
    with pytest.raises(BadMessage, match=r"^env: SECOND is ") as caught:
        PythonSession(TOOLS, env={"FIRST": "right", "SECOND": value})
    assert caught.value.detail == "env"


@pytest.mark.parametrize(
    ("timeout_ms", "shown"),
    [(0.5, "0.5"), (-0.0, "0"), (0, "0"), (30, "30"), (1000 / 30, "33.33"), (999.97, "1000"), (1500.0, "1500")],
)
def test_a_timeout_is_shown_as_it_was_given_and_short(timeout_ms: float, shown: str) -> None:
    assert shown_ms(timeout_ms) == shown


def test_the_errors_of_short_waits_show_their_timeout(own: PythonSession, gate: Gate) -> None:
    for timeout_ms, shown in ((0.5, "0.5 ms"), (-0.0, "0 ms")):
        with pytest.raises(ResponseTimeout, match=f"within {shown}"):
            own.wait_for_response(timeout_ms)
    own.send_request(gate.message)
    for timeout_ms, shown in ((0.5, "0.5 ms"), (-0.0, "0 ms")):
        with pytest.raises(ResponseTimeout, match=f"within {shown}"):
            own.wait_for_response(timeout_ms)
    gate.let_go("open")
    own.wait_for_response()


def test_a_session_that_has_nothing_to_end_says_that_it_has_ended() -> None:
    session = PythonSession(TOOLS, "nothing", quiet_mode=True)
    assert session.please_exit()
    session.start()
    session.close()
    assert session.please_exit()
