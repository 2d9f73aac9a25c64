"""Interpreters that are not as usual: without posix_ipc, with replaced threads, on another processor, with warnings."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from support import BOUND_S, ROOT, TOOLS, environment, has_ended, leftovers


def run(tmp_path: Path, text: str, *arguments: str, options: tuple[str, ...] = (), **variables: str) -> list[str]:
    """The lines that a program prints, which also prints nothing to its stderr."""
    path = tmp_path / "program.py"
    path.write_text(text)
    env = {**environment(), **variables}
    done = subprocess.run(
        [sys.executable, *options, str(path), *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


# -- without posix_ipc -----------------------------------------------------------------------------------------------

WITHOUT_POSIX_IPC = """
import sys
sys.modules["posix_ipc"] = None  # its import fails
import numpy as np
import tr_mmap
from tr_mmap import PythonSession, Server
tr_mmap.save("t.tsr", np.arange(3))
print(tr_mmap.load("t.tsr"), tr_mmap.sweep().removed)
for channel in sys.argv[2:]:
    try:
        with PythonSession(sys.argv[1], channel=channel, quiet_mode=True) as session:
            print(channel, session.calculate("double", np.ones(2)))
    except tr_mmap.TRException as error:
        print(type(error).__name__, error.package, 'channel="files"' in str(error))
"""
ITS_WORKER = """
import sys
sys.modules["posix_ipc"] = None
from tr_mmap import Server
server = Server(framework="numpy")

@server.command("double")
def double(x):
    return 2 * x

server.run()
"""


@pytest.mark.parametrize("is_pure", ["0", "1"], ids=["compiled", "plain"])
def test_without_posix_ipc_all_works_but_what_needs_it_which_says_so(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_pure: str
) -> None:
    from tr_mmap.native import IS_COMPILED

    (tmp_path / "worker.py").write_text(ITS_WORKER)
    monkeypatch.chdir(tmp_path)
    said = run(tmp_path, WITHOUT_POSIX_IPC, "worker.py", "files", "mapped", TR_MMAP_PURE=is_pure)
    assert said[:2] == ["[0 1 2] []", "files [2. 2.]"]
    is_missed = is_pure == "1" or not IS_COMPILED or sys.platform != "linux"
    assert said[2] == ("MissingPackage posix_ipc True" if is_missed else "mapped [2. 2.]")
    assert not leftovers(workspace)


HIDDEN = """
import sys
if sys.argv[2] == "stub":
    sys.modules[sys.argv[1]] = object()  # as a program puts there that replaces what it does not want
else:
    sys.modules[sys.argv[1]] = None
from tr_mmap import PythonSession
for channel in sys.argv[3:]:
    with PythonSession(channel=channel, quiet_mode=True) as session:
        print(session.fetch_response("hello you"))
"""


@pytest.mark.each_value
@pytest.mark.parametrize("how", ["none", "stub"])
@pytest.mark.parametrize("package", ["ml_dtypes", "posix_ipc", "psutil"])
def test_a_package_that_a_program_hides_from_itself_is_as_good_as_not_installed(
    workspace: Path, tmp_path: Path, package: str, how: str
) -> None:
    assert run(tmp_path, HIDDEN, package, how, "files", "mapped", TR_MMAP_PURE="0") == ["Hello You"] * 2


BROKEN = """
import sys
sys.path.insert(0, sys.argv[1])
import tr_mmap
try:
    tr_mmap.PythonSession(quiet_mode=True).start()
except tr_mmap.MissingPackage as error:
    print(error.package, "undefined symbol: sem_what" in str(error), 'channel="files"' in str(error))
"""


def test_why_posix_ipc_cannot_be_loaded_is_said(workspace: Path, tmp_path: Path) -> None:
    place = tmp_path / "broken"
    place.mkdir()
    (place / "posix_ipc.py").write_text("raise ImportError('posix_ipc.so: undefined symbol: sem_what')\n")
    assert run(tmp_path, BROKEN, str(place), TR_MMAP_PURE="1") == ["posix_ipc True True"]


WITH_ANOTHER = """
import sys
import numpy as np
import tr_mmap
from tr_mmap import PythonSession
tr_mmap.save("t.tsr", np.arange(3))
print(tr_mmap.load("t.tsr"), tr_mmap.sweep().removed)
with PythonSession(sys.argv[1], channel="files", quiet_mode=True) as session:
    print(session.fetch_response("hello you"))
try:
    PythonSession(quiet_mode=True).start()
except tr_mmap.MissingPackage as error:
    print(error.package, sys.argv[2] in str(error), 'channel="files"' in str(error))
"""
OTHERS = {
    "raise OSError('sem_open: not here')": "OSError: sem_open: not here",
    "1 / 0": "ZeroDivisionError: division by zero",
    "import what_it_needs": "No module named 'what_it_needs'",
    "x = 1": "is not the package posix_ipc",
    "class Semaphore: pass": "is not the package posix_ipc",
    "import": "SyntaxError",
}


@pytest.mark.parametrize("text", OTHERS)
def test_a_posix_ipc_that_cannot_be_used_is_as_good_as_none(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    place = tmp_path / "broken"
    place.mkdir()
    (place / "posix_ipc.py").write_text(text + "\n")
    monkeypatch.chdir(tmp_path)
    said = run(tmp_path, WITH_ANOTHER, str(TOOLS), OTHERS[text], PYTHONPATH=f"{ROOT}:{place}", TR_MMAP_PURE="1")
    assert said == ["[0 1 2] []", "Hello You", "posix_ipc True True"]
    assert not leftovers(workspace)


# -- plain Python on another processor -------------------------------------------------------------------------------

ON_ARM = """
import platform
platform.machine = lambda: "aarch64"
"""
RECYCLING = """
import logging, os, sys
import numpy as np
from tr_mmap import PythonSession
lines = []
logging.getLogger("tr_mmap").addHandler(handler := logging.Handler())
handler.emit = lambda record: lines.append(record.getMessage())
for _ in range(2):
    with PythonSession(sys.argv[1], channel=sys.argv[2], quiet_mode=True) as session:
        names = set()
        for i in range(10):
            assert session.calculate("double", np.full(5000, i))[0] == 2 * i
            session.empty(5000)
            names |= {each for each in os.listdir(session.session_dir()) if each.startswith("result_")}
        stats = session.stats()
        assert '"channel":"files"' in open(os.path.join(session.session_dir(), "session.json")).read()
print(len(lines), stats.published, stats.created, len(names))
print(*lines)
"""


@pytest.mark.parametrize("channel", ["mapped", "files"])
def test_plain_python_fills_no_segment_again_on_a_processor_that_reorders_stores(
    workspace: Path, tmp_path: Path, channel: str
) -> None:
    (tmp_path / "worker.py").write_text(ON_ARM + ITS_WORKER)
    said = run(tmp_path, ON_ARM + RECYCLING, str(tmp_path / "worker.py"), channel, TR_MMAP_PURE="1")
    assert said[0] == "1 10 20 10"  # one line in the process; each tensor and each loan has a segment of its own
    assert "aarch64" in said[1]
    assert 'channel="files"' in said[1]


# -- with replaced threads -------------------------------------------------------------------------------------------

REPLACED = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "eventlet": "import warnings; warnings.simplefilter('ignore'); import eventlet; eventlet.monkey_patch()",
}


@pytest.fixture(params=sorted(REPLACED))
def replacing(request: pytest.FixtureRequest) -> str:
    """The line that replaces the threads, locks and waits of the standard library."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"NOT TESTED: programs with {request.param} (it is not installed)")
    return REPLACED[request.param]


REPLACED_WORKER = """
{replacing}
import os, time
from tr_mmap import Server
server = Server(framework="numpy")

@server.command("die")
def die():
    os.kill(os.getpid(), 9)

@server.command("sleep")
def sleep():
    time.sleep(1000)

@server.command("spin")
def spin():
    while True:
        pass

@server.command("pid")
def pid() -> str:
    return str(os.getpid())

server.run()
"""
REPLACED_CONTROLLER = """
{replacing}
import os, sys, time
from tr_mmap import PythonSession, ResponseTimeout, WorkerDied
session = PythonSession(sys.argv[1], channel=sys.argv[2], quiet_mode=True)
for is_forked in (False, True):
    session.start()
    assert session.wait_until_ready()
    if is_forked:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
    began_s = time.monotonic()
    try:
        session.fetch_response("die", 60_000)
    except WorkerDied as error:
        print(error.exit_code, time.monotonic() - began_s < 30)
session.start()
try:
    session.fetch_response("sleep", 200)
except ResponseTimeout:
    session.close()
    print("closed")
"""


@pytest.mark.each_value
@pytest.mark.parametrize("channel", ["mapped", "files"])
def test_a_program_with_replaced_threads_notices_a_workers_death_and_can_close(
    workspace: Path, tmp_path: Path, replacing: str, channel: str
) -> None:
    (tmp_path / "worker.py").write_text(REPLACED_WORKER.replace("{replacing}", ""))
    text = REPLACED_CONTROLLER.replace("{replacing}", replacing)
    said = run(tmp_path, text, str(tmp_path / "worker.py"), channel, options=("-W", "ignore"))
    assert said == ["-9 True", "-9 True", "closed"]
    assert not leftovers(workspace)


REPLACED_LATE = """
import sys
from tr_mmap import PythonSession
script, old_worker = sys.argv[1:]
running = PythonSession(script, "running", quiet_mode=True)
made = PythonSession(script, "made", quiet_mode=True)
old = PythonSession(old_worker, "old", quiet_mode=True, channel="legacy")
running.start()
running.wait_until_ready()
{replacing}
print(running.fetch_response("hello you"), running.please_exit())
for session in (running, made):
    session.start()
    print(session.wait_until_ready(), session.fetch_response("hello you"), session.please_exit())
old.start()
print(old.is_alive())
old.close()
"""


def test_a_program_may_replace_its_threads_after_it_has_made_a_session(
    workspace: Path, tmp_path: Path, replacing: str
) -> None:
    old_worker = ROOT / "tests" / "peers" / "old_worker.py"
    text = REPLACED_LATE.replace("{replacing}", replacing)
    said = run(tmp_path, text, str(TOOLS), str(old_worker), options=("-W", "ignore"))
    assert said == ["Hello You True", "True Hello You True", "True Hello You True", "True"]
    assert not leftovers(workspace)


ENDING = """
import os, sys
from tr_mmap import PythonSession
session = PythonSession(sys.argv[1], quiet_mode=True)
session.start()
print(session.fetch_response("pid"), flush=True)
if sys.argv[2]:
    session.send_request(sys.argv[2])
    while not session._dispatcher.resources.worker.channel.is_taken_up():
        pass
os.kill(os.getpid(), 9)
"""


@pytest.mark.each_value
@pytest.mark.parametrize("handler", ["", "sleep", "spin"])
def test_a_worker_with_replaced_threads_ends_with_its_controller(
    workspace: Path, tmp_path: Path, replacing: str, handler: str
) -> None:
    (tmp_path / "worker.py").write_text(REPLACED_WORKER.replace("{replacing}", replacing))
    done = subprocess.run(
        [sys.executable, "-c", ENDING, str(tmp_path / "worker.py"), handler],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
    assert done.returncode == -9, done.stderr
    assert has_ended(int(done.stdout), BOUND_S)
    assert not leftovers(workspace)


# -- with warnings as errors -----------------------------------------------------------------------------------------

FORKING = """
import multiprocessing, os
threads = []
count = lambda: threads.append(len(os.listdir("/proc/self/task")))
os.register_at_fork(before=count)  # before the import, so that it runs last
from tr_mmap import PythonSession
if __name__ == "__main__":
    with PythonSession(quiet_mode=True) as one, PythonSession(session_id="two", quiet_mode=True) as two:
        os.register_at_fork(after_in_parent=count)
        process = multiprocessing.get_context("fork").Process(target=int)
        process.start()
        process.join()
        for _ in range(5):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
        print(one.fetch_response("hello you"), two.fetch_response("hello you"))
    print(threads)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_a_fork_beside_sessions_warns_of_no_thread_of_ours(workspace: Path, tmp_path: Path) -> None:
    """Python 3.12 and later warn where there is one; here the threads are counted in every version."""
    options = ("-W", "error")
    if sys.version_info[:2] == (3, 13):  # counts them after the fork, when they have begun again
        options += ("-W", "ignore:This process:DeprecationWarning")
    said = run(tmp_path, FORKING, options=options, OPENBLAS_NUM_THREADS="1")
    assert said == ["Hello You Hello You", str([1, 3] * 6)]  # at each fork, and after it
