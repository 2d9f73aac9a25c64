"""``spare_workers``: a later start takes a process that waits, and the script cannot tell. None of them is left."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import TOOLS, WORKERS, environment, forks, has_ended, json_line, script, wait_until

from tr_mmap import BadMessage, PythonSession, ScriptNotFound, WorkerDied

PROBE = WORKERS / "start_probe.py"
SAYS = """
import os, sys
is_spare = "numpy" in sys.modules
from tr_mmap import Server
server = Server()
@server.command("say")
def say() -> str:
    return str(({what}))
server.run()
"""


def say(what: str) -> str:
    """A script whose command ``say`` answers with an expression's value."""
    return SAYS.format(what=what)


def spares_of(pid: int) -> list[psutil.Process]:
    """The processes that were started as spares, also those that have become workers."""
    found = []
    for child in psutil.Process(pid).children():
        try:
            if "TR_MMAP_SPARE" in child.environ():
                found.append(child)
        except psutil.Error:  # it has ended
            continue
    return found


def wait_for_spare(session: Any) -> int:
    """Wait until a spare can be taken; its number."""
    wait_until(lambda: session.stats().spare_workers == 1)
    (spare,) = [each for each in spares_of(os.getpid()) if each.pid != session.pid]
    return spare.pid


def again(session: Any, *, takes: bool = True) -> None:
    """End the worker, and start another one; see whether this takes the spare."""
    spare = wait_for_spare(session)
    session.terminate()
    session.start()
    assert (session.pid == spare) is takes


# -- what the script sees ---------------------------------------------------------------------------------------------


@contextmanager
def usual() -> Iterator[None]:
    yield


@contextmanager
def as_by_nohup() -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@contextmanager
def unusual() -> Iterator[None]:
    before, mask = (
        signal.signal(signal.SIGINT, signal.SIG_IGN),
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]),
    )
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("around", "has_options"),
    [(usual, False), (usual, True), (as_by_nohup, False), (unusual, False)],
    ids=["plain", "options", "nohup", "signals"],
)
def test_a_script_sees_the_same_as_in_a_start_without_a_spare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, around: Callable[[], Any], has_options: bool
) -> None:
    facts = tmp_path / "facts"
    path, others = PROBE, {}
    if has_options:
        path = tmp_path / "linked.py"
        path.symlink_to(PROBE)
        (tmp_path / "place").mkdir()
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "place"))
        monkeypatch.setenv("PYTHONWARNINGS", "ignore::ImportWarning")
        env = {"MINE": "a b=c\udcff\n", "HOME": None, "PYTHONHASHSEED": "7", "PYTHONSAFEPATH": "1"}
        others = {"env": env, "cwd": tmp_path / "place", "auth": True, "framework": "numpy", "channel": "files"}
    with around(), PythonSession(path, args=[str(facts), "-x", "ä\udcff"], spare_workers=1, **others) as session:
        again(session)
        assert session.fetch_response("hello") == "hello"
    normal, spare = map(json.loads, facts.read_text().splitlines())
    assert (normal["loaded"], spare["loaded"]) == ([], ["numpy", "tr_mmap"])
    assert spare["facts"] == normal["facts"]


def test_a_script_that_fails_leaves_the_same_output(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("")
    path = script(
        tmp_path,
        f"""
        import atexit, os
        starts = open({str(tmp_path / "count")!r}, "a+")
        atexit.register(lambda: print("at exit"))
        if starts.tell():
            print("before", flush=True)
            def inner(): raise KeyError("broken")
            inner()
        starts.write("1"); starts.close()
        from tr_mmap import Server
        Server().run()
        """.replace("\n        ", "\n"),
    )
    said = []
    with PythonSession(path, quiet_mode=True, spare_workers=1) as session:
        for is_spare in (True, False):
            if is_spare:
                again(session)
            else:
                session.start()  # no start was well since, so there is no other spare
            with pytest.raises(WorkerDied) as error:
                session.wait_until_ready()
            said.append((error.value.exit_code, error.value.log_tail))
    assert said[0] == said[1]
    assert "in <module>\n    inner()" in said[0][1]
    assert said[0][1].startswith("before\nTraceback (most recent call last):")
    assert said[0][1].endswith("at exit")


def test_the_default_worker_is_made_of_a_spare_too() -> None:
    with PythonSession(spare_workers=1, quiet_mode=True) as session:
        again(session)
        assert session.fetch_response("hello you") == "Hello You"
        assert json.loads(session.fetch_response("info"))["pid"] == session.pid


def test_a_spare_of_a_torch_session_has_imported_torch(tmp_path: Path) -> None:
    path = script(tmp_path, "import sys\nhas_torch = 'torch' in sys.modules\n" + say("has_torch"))
    with PythonSession(path, framework="torch", quiet_mode=True, spare_workers=1) as session:
        assert session.fetch_response("say") == "False"
        again(session)
        assert session.fetch_response("say") == "True"


# -- when a spare does not fit ----------------------------------------------------------------------------------------


def test_the_script_that_is_run_is_the_one_that_is_there_then(tmp_path: Path) -> None:
    path = script(tmp_path, say("'old', is_spare"))
    with PythonSession(path, quiet_mode=True, spare_workers=1) as session:
        wait_for_spare(session)
        script(tmp_path, say("'new', is_spare"))
        again(session)
        assert session.fetch_response("say") == "('new', True)"
        wait_for_spare(session)
        os.unlink(path)
        session.terminate()
        with pytest.raises(ScriptNotFound):
            session.start()


def _set_variable(patch: pytest.MonkeyPatch, place: Path) -> None:
    patch.setenv("MINE", "new")


def _change_directory(patch: pytest.MonkeyPatch, place: Path) -> None:
    patch.chdir(place)


def _set_umask(patch: pytest.MonkeyPatch, place: Path) -> None:
    before = os.umask(0o077)
    patch.callbacks.append(lambda: os.umask(before))  # type: ignore[attr-defined]


def _limit_core_files(patch: pytest.MonkeyPatch, place: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (4 << 20, before[1]))
    patch.callbacks.append(lambda: resource.setrlimit(resource.RLIMIT_STACK, before))  # type: ignore[attr-defined]


SEEN = "os.environ.get('MINE'), os.getcwd(), os.umask(os.umask(0)), __import__('resource').getrlimit(3)[0]"


@pytest.mark.parametrize("change", [_set_variable, _change_directory, _set_umask, _limit_core_files])
def test_a_worker_has_the_surroundings_of_the_moment_of_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[pytest.MonkeyPatch, Path], None]
) -> None:
    monkeypatch.callbacks = []  # type: ignore[attr-defined]
    path = script(tmp_path, f"import os\nseen = ({SEEN})\n" + say("seen"))
    try:
        with PythonSession(path, quiet_mode=True, spare_workers=1) as session:
            wait_for_spare(session)
            change(monkeypatch, tmp_path)
            again(session, takes=False)
            expected = str(eval(SEEN))
            assert session.fetch_response("say") == expected
            again(session)  # of the new kind
            assert session.fetch_response("say") == expected
    finally:
        for undo in monkeypatch.callbacks:  # type: ignore[attr-defined]
            undo()


def test_a_worker_has_the_scheduling_policy_of_the_moment_of_its_start(tmp_path: Path) -> None:
    path = script(tmp_path, "import os\nseen = os.sched_getscheduler(0)\n" + say("seen"))
    before = os.sched_getscheduler(0)
    with PythonSession(path, quiet_mode=True, spare_workers=1) as session:
        wait_for_spare(session)
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        try:
            again(session, takes=False)
            assert session.fetch_response("say") == str(os.SCHED_BATCH)
        finally:
            os.sched_setscheduler(0, before, os.sched_param(0))


def test_a_script_is_not_run_as_a_spare_by_an_interpreter_that_would_not_wait(tmp_path: Path) -> None:
    python, runs = tmp_path / "python", tmp_path / "runs"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -E "$@"\n')
    python.chmod(0o755)
    path = script(tmp_path, f"import sys\nprint(sys.argv[1:], file=open({str(runs)!r}, 'a'))\n" + say("1"))
    with PythonSession(path, "wrapped", quiet_mode=True, spare_workers=1, python=str(python)) as session:
        for _ in range(2):
            assert session.fetch_response("say") == "1"
            session.terminate()
            session.start()
        assert session.fetch_response("say") == "1"
        spares = session._open().resources.spares
        assert spares is not None
        assert spares._make_if_due() is None  # though one is missing, and it is time
        assert spares.loaded == 0
    assert "spare" not in runs.read_text()


def test_a_module_beside_the_script_comes_before_the_one_that_the_spare_has(tmp_path: Path) -> None:
    (tmp_path / "msgspec.py").write_text(
        "import sys\nplace = sys.path.pop(0)\ndel sys.modules['msgspec']\nimport msgspec\n"
        "sys.path.insert(0, place)\nmsgspec.OWN = True\n"
    )
    path = script(tmp_path, "import msgspec\nis_own = hasattr(msgspec, 'OWN')\n" + say("is_own"))
    with PythonSession(path, quiet_mode=True, spare_workers=1) as session:
        assert session.fetch_response("say") == "True"
        again(session)
        assert session.fetch_response("say") == "True"


def test_the_environments_own_sitecustomize_runs_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "sitecustomize.py").write_text("import sys\nsys.customized = sys.argv[:]\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "place"))
    path = script(tmp_path, say("is_spare, sys.customized[1:], sys.modules['sitecustomize'].__file__"))
    with PythonSession(path, "named", args=["more"], quiet_mode=True, spare_workers=1) as session:
        normal = session.fetch_response("say")
        again(session)
        assert session.fetch_response("say") == normal.replace("False", "True")
        assert "['named', 'more']" in normal


def test_a_script_in_a_zip_file_runs(tmp_path: Path) -> None:
    path = tmp_path / "worker.pyz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("__main__.py", say("__file__, sys.path[0], is_spare"))
    with PythonSession(path, quiet_mode=True, spare_workers=1) as session:
        normal = session.fetch_response("say")
        again(session)
        assert session.fetch_response("say") == normal


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_start_does_without_a_spare_that_is_dead_or_stopped(number: int) -> None:
    with PythonSession(TOOLS, quiet_mode=True, spare_workers=1) as session:
        spare = wait_for_spare(session)
        os.kill(spare, number)
        if number == signal.SIGKILL:
            assert has_ended(spare)
            wait_until(lambda: not psutil.pid_exists(spare))  # nor is it a zombie, though nobody asks
            assert session.stats().spare_workers == 0
        session.terminate()
        session.start()
        assert session.pid != spare
        assert int(session.fetch_response("pid")) == session.pid
        assert has_ended(spare)
        again(session)


# -- its end ----------------------------------------------------------------------------------------------------------


def test_a_session_that_ends_leaves_no_spare() -> None:
    session = PythonSession(TOOLS, quiet_mode=True, spare_workers=2)
    for end in (session.close, session.please_exit):
        with session:
            wait_until(lambda: session.stats().spare_workers == 2)
            pids = [each.pid for each in spares_of(os.getpid())]
            end()
            assert not any(map(psutil.pid_exists, pids))


CONTROLLER = """
import json, os, sys, time
from tr_mmap import PythonSession
session = PythonSession(sys.argv[1], quiet_mode=True, spare_workers=1)
session.start()
session.wait_until_ready()
while session.stats().spare_workers < 1:
    time.sleep(0.01)
child = os.fork() if sys.argv[2] == "forks" else 1
if child == 0:
    sys.stdin.read()
    os._exit(0)
print(json.dumps([session.pid, child]), flush=True)
time.sleep(60)
"""


@forks
@pytest.mark.parametrize("way", ["alone", "forks"])
def test_a_spare_ends_when_its_controller_is_killed(way: str) -> None:
    controller = subprocess.Popen(
        [sys.executable, "-c", CONTROLLER, str(TOOLS), way],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with controller:
        worker, child = json_line(controller, "the controller")  # type: ignore[misc]
        (spare,) = [each.pid for each in spares_of(controller.pid) if each.pid != worker]
        controller.kill()
        assert has_ended(spare)
        assert has_ended(worker)
        if way == "forks":
            os.kill(child, 0)  # lives on, with the descriptors that it has inherited
        assert controller.stdin is not None
        controller.stdin.close()
        assert way == "alone" or has_ended(child)


@forks
def test_a_forked_child_neither_takes_nor_ends_a_spare() -> None:
    with PythonSession(TOOLS, quiet_mode=True, spare_workers=1) as session:
        spare = wait_for_spare(session)
        child = os.fork()
        if child == 0:
            try:
                session.close()
                with PythonSession(TOOLS, "child", quiet_mode=True, spare_workers=1) as own:
                    is_right = own.pid != spare and int(own.fetch_response("pid")) == own.pid
                os._exit(0 if is_right else 1)
            except BaseException:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        again(session)
        assert int(session.fetch_response("pid")) == spare


def test_nothing_is_made_without_the_option() -> None:
    with PythonSession(TOOLS, quiet_mode=True) as session:
        assert session.stats().spare_workers == 0
        session.terminate()
        session.start()
        assert session.wait_until_ready()
        assert spares_of(os.getpid()) == []


@pytest.mark.parametrize("value", [-1, 65, 1.5, True, "1", None])
def test_a_number_of_spares_that_makes_no_sense_is_refused(value: Any) -> None:
    with pytest.raises(BadMessage, match="spare_workers") as error:
        PythonSession(TOOLS, spare_workers=value)
    assert error.value.detail == "spare_workers"


def test_a_legacy_worker_has_no_spares() -> None:
    with pytest.raises(BadMessage, match="legacy") as error:
        PythonSession(TOOLS, channel="legacy", spare_workers=1)
    assert error.value.detail == "spare_workers"
