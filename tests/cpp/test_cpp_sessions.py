"""The C++ suite's own tests, and C++ controllers that are killed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import support
from cpp_programs import SOURCES, run
from support import leftovers

import tr_mmap
from tr_mmap import PythonSession, ResponseTimeout, TRException
from tr_mmap.wire.messages import PROTOCOL_VERSION, RING_NBYTES, STATUS_NBYTES

pytestmark = pytest.mark.timeout(400)  # the first test that needs the suite compiles it


def test_formats_in_cpp(ask: Any) -> None:
    assert " 0 failed" in ask("test", "format")


def test_sessions_from_cpp(ask: Any) -> None:
    assert " 0 failed" in ask("test", "session")


def test_forks_beside_threads_in_cpp(ask_forks: Any) -> None:
    assert " 0 failed" in ask_forks("test", "session_forked")


@pytest.mark.full_only
def test_threads_that_share_a_session_in_cpp_race_for_nothing(ask_at_once: Any) -> None:
    assert " 0 failed" in ask_at_once("test", "session_many", TR_TEST_KILLS="20")


def test_values_in_cpp(ask: Any) -> None:
    assert " 0 failed" in ask("test", "value")


def texts_of_python() -> Iterator[str]:
    """As ``show_texts`` in tools.cpp."""

    def text_of(action: Callable[[], object]) -> str:
        with pytest.raises(TRException) as caught:
            action()
        return str(caught.value).replace("\n", "\\n")

    def ask(message: str, timeout_ms: float) -> str:
        return text_of(lambda: session.fetch_response(message, timeout_ms))

    session = PythonSession(SOURCES / "worker.py", "texts", quiet_mode=True)
    try:
        yield ask("pid", 30)
        session.start()
        session.wait_until_ready(60_000)
        yield text_of(lambda: session.wait_for_response(30))
        for message in ("unheard", "fail nope", "kill", "pid"):
            yield ask(message, 60_000)
        session.start()
        session.wait_until_ready(60_000)
        yield ask("die 3", 60_000)
        session.start()
        session.wait_until_ready(60_000)
        session.send_request("sleep 600")
        while True:
            with pytest.raises(ResponseTimeout) as caught:
                session.wait_for_response(1)
            if caught.value.is_taken_up and caught.value.state == "waiting":
                break
        yield text_of(lambda: session.wait_for_response(30))
        yield ask("pid", 30)
    finally:
        session.close()
    yield ask("pid", 30)


def test_errors_of_cpp_say_what_those_of_python_say(ask: Any) -> None:
    here = [text.replace(", or use it as a context manager", "") for text in texts_of_python()]
    there = ask("texts").splitlines()
    number = re.compile(r"(?<=process )\d+|(?<=-ABRT )\d+|(?<=moved )[\d.]+")
    assert [number.sub("N", each) for each in there] == [number.sub("N", each) for each in here]


@pytest.mark.skipif(shutil.which("localedef") is None, reason="there is no localedef")
def test_numbers_in_cpp_where_the_decimal_point_is_a_comma(ask: Any, tmp_path: Path) -> None:
    made = subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "UTF-8", tmp_path / "de_DE.UTF-8"], capture_output=True, check=False
    )
    if made.returncode > 1:  # 1 is a warning
        pytest.skip(f"no locale can be made here: {made.stderr.decode()}")
    assert " 0 failed" in ask("test", "value", LOCPATH=str(tmp_path), TR_TEST_LOCALE="de_DE.UTF-8")


@pytest.mark.parametrize("way", ["global", "static", "thread_local", "atexit", "waiting", "busy", "exit", "joined"])
def test_a_session_that_is_open_when_the_process_ends_leaves_nothing(suite: Path, way: str, workspace: Path) -> None:
    environment = {**support.environment(), "TR_PYTHON": sys.executable}
    result = subprocess.run(
        [suite, "end", way], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert set(result.stdout.splitlines()) == {"Hello End"}
    assert leftovers(workspace) == []


@pytest.mark.parametrize(
    ("mounts", "code"),
    [
        ("mount -t tmpfs -o ro none /dev/shm", errno.EROFS),
        ("mount -t tmpfs none /dev && mknod /dev/null c 1 3 && mknod /dev/urandom c 1 9", errno.ENOENT),
        ("mount -t tmpfs -o mode=555 none /dev/shm", errno.EACCES),
    ],
    ids=["read-only", "missing", "not writable"],
)
def test_without_semaphores_a_start_from_cpp_says_so_and_leaves_nothing(
    suite: Path, workspace: Path, tmp_path: Path, mounts: str, code: int
) -> None:
    kind, message = _refusal(suite, mounts, tmp_path)
    assert kind == f"SemaphoresUnavailable {code} {os.strerror(code)}"
    assert os.strerror(code) in message
    assert "mount a tmpfs there that this user may write" in message
    assert leftovers(tmp_path) == []


def test_full_shared_memory_is_out_of_space_in_cpp_and_leaves_nothing(suite: Path, tmp_path: Path) -> None:
    kind, message = _refusal(suite, "mount -t tmpfs -o nr_inodes=1 none /dev/shm", tmp_path)
    assert kind.startswith("OutOfSpace ")
    assert "no room for a semaphore in /dev/shm" in message
    assert leftovers(tmp_path) == []


def test_a_cpp_controller_gets_the_room_that_its_worker_keeps_for_later(suite: Path) -> None:
    large = str(9 << 20)
    lines = _run_among(suite, "mount -t tmpfs -o size=64M,mode=700 none /dev/shm", "room", "/dev/shm")
    assert [lines[0], lines[1]] == ["9.43718e+06"] * 2
    assert lines[2:] == [large, "RemoteOutOfSpace", "3072"]


def _refusal(suite: Path, mounts: str, place: Path) -> list[str]:
    return _run_among(suite, mounts, "refusal", str(place))


def _run_among(suite: Path, mounts: str, tool: str, place: str) -> list[str]:
    """Run a tool as a root who has no more rights than others, where other things are mounted."""
    as_user = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    command = ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh", *as_user]
    if os.geteuid() != 0 or not all(shutil.which(each) for each in ("unshare", "setpriv")):
        pytest.skip("NOT TESTED: mounts (needs root, unshare and setpriv)")
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("NOT TESTED: mounts (they are forbidden here)")
    return run([*command, suite, tool], TR_WORKSPACE=place).splitlines()


def test_a_worker_stuck_in_native_code_ends_after_a_killed_controller(
    suite: Path, workspace: Path, tmp_path: Path, is_full: bool
) -> None:
    """Its interpreter runs nothing any more: the kernel ends it, 16 seconds after the controller."""
    if not is_full:
        pytest.skip("takes 16 s; that the worker has the pipe is a test of the suite")
    environment = {**support.environment(), "TR_PYTHON": sys.executable, "TR_TEST_FOLDER": str(tmp_path)}
    environment["TR_TEST_WORKER"] = str(SOURCES / "worker.py")
    process = subprocess.Popen([str(suite), "stage", "stuck"], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "stuck\n"
    process.kill()
    process.communicate()
    assert support.processes_of(workspace)
    deadline = time.monotonic() + 40
    while support.processes_of(workspace) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not support.processes_of(workspace)
    tr_mmap.sweep()


def test_a_worker_of_a_cpp_controller_serves_both_it_and_a_request_by_hand(
    suite: Path, workspace: Path, tmp_path: Path
) -> None:
    """The rings are between the two processes; the files beside them show what is there, and take what people write."""
    environment = {**support.environment(), "TR_PYTHON": sys.executable, "TR_TEST_FOLDER": str(tmp_path)}
    environment["TR_TEST_WORKER"] = str(SOURCES / "worker.py")
    process = subprocess.Popen([str(suite), "stage", "holding"], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "holding\n"
        (place,) = (workspace / "python_session").glob("tr_session_*")
        manifest = json.loads((place / "session.json").read_text())
        assert (manifest["protocol"], manifest["channel"]) == (PROTOCOL_VERSION, "mapped")
        mapped = ("requests.ring", "responses.ring", "status.page")
        assert [(place / each).stat().st_size for each in mapped] == [RING_NBYTES, RING_NBYTES, STATUS_NBYTES]
        _wait_until(lambda: json.loads((place / "request.json").read_text()).get("command") == "keep")
        _wait_until(lambda: json.loads((place / "response.json").read_text()).get("result") == "kept")
        _wait_until(lambda: (place / "status.txt").read_text().strip() == "ok")
        (place / "request.json").write_text(json.dumps({"cmd": "length", "params": "abcd"}))
        _wait_until(lambda: json.loads((place / "response.json").read_text()).get("params") == "4")
    finally:
        process.kill()
        process.communicate()
    _wait_until(lambda: leftovers(workspace) == [])


def _wait_until(is_so: Callable[[], bool], within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while True:
        try:
            if is_so():
                return
        except ValueError:  # a mirror that is being written
            pass
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def test_each_language_judges_the_other_s_processes_of_another_namespace_of_pids_by_their_locks(
    suite: Path, ask: Any, workspace: Path, tmp_path: Path
) -> None:
    """Their manifests say that the pids are of a namespace that is not ours, as those of another container do."""
    environment = {**support.environment(), "TR_PYTHON": sys.executable, "TR_TEST_FOLDER": str(tmp_path)}
    environment["TR_TEST_WORKER"] = str(SOURCES / "worker.py")
    theirs = subprocess.Popen([str(suite), "stage", "ready"], env=environment, stdout=subprocess.PIPE, text=True)
    assert theirs.stdout is not None
    try:
        with tr_mmap.PythonSession("default", "ours") as ours:
            assert theirs.stdout.readline() == "ready\n"
            places = [Path(ours.session_dir()), Path(ours.session_dir()).with_name("tr_session_stage")]
            own_manifest = (places[0] / "session.json").read_text()
            workers = [_move_to_another_namespace(each) for each in places]
            half_made = [places[0].with_name(f".{kind}-2147483647-1-ab") for kind in ("new", "pool")]
            with ExitStack() as files:
                for each in half_made:
                    each.mkdir()
                    fcntl.flock(files.enter_context((each / "controller.lock").open("w")), fcntl.LOCK_EX)
                for look in (tr_mmap.sweep, lambda: ask("sweep")):
                    look()
                    assert [each.exists() for each in (*places, *half_made)] == [True] * 4
            in_use = subprocess.run(
                [suite, "stage", "claim"], env=environment, capture_output=True, text=True, timeout=120, check=False
            )
            assert in_use.returncode == 1
            assert "of another container or namespace of pids, is alive" in in_use.stderr
            ask("sweep")
            assert [each.exists() for each in (*places, *half_made)] == [True, True, False, False]
            os.kill(workers[1], signal.SIGSTOP)  # or it would remove the session itself
            theirs.kill()
            theirs.wait()
            ask("sweep")
            assert places[1].exists()  # the worker lives
            os.kill(workers[1], signal.SIGKILL)
            deadline = time.monotonic() + 20
            while places[1].exists() and time.monotonic() < deadline:
                ask("sweep")
            assert not places[1].exists()
            (places[0] / "session.json").write_text(own_manifest)  # or our own session would not be ours to remove
    finally:
        theirs.kill()
        theirs.communicate()
    assert leftovers(workspace) == []


def _move_to_another_namespace(directory: Path) -> int:
    """Let a manifest say so; returns the worker's pid."""
    path = directory / "session.json"
    manifest = json.loads(path.read_text())
    for role in ("controller", "worker"):
        manifest[role]["pid_namespace"] = 1
    new = path.with_name("new.json")
    new.write_text(json.dumps(manifest))
    new.chmod(0o600)
    new.rename(path)
    return int(manifest["worker"]["pid"])


def test_a_cpp_controller_ends_the_stuck_worker_of_a_dead_one(suite: Path, workspace: Path, tmp_path: Path) -> None:
    """It claims the same session: no sweep and no other program is needed."""
    environment = {**support.environment(), "TR_PYTHON": sys.executable, "TR_TEST_FOLDER": str(tmp_path)}
    environment["TR_TEST_WORKER"] = str(SOURCES / "worker.py")
    process = subprocess.Popen([str(suite), "stage", "stuck"], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "stuck\n"
    process.kill()
    process.communicate()
    (orphan,) = support.processes_of(workspace)
    assert "answered" in run([suite, "stage", "claim"], TR_TEST_WORKER=str(SOURCES / "worker.py"))
    assert not orphan.is_running() or orphan.status() == "zombie"
    assert leftovers(workspace) == []


@pytest.mark.parametrize(
    ("stage", "delay_s"),
    [
        *(("started", 0.0), ("started", 0.1), ("ready", 0.0), ("sent", 0.0), ("holding", 0.0), ("asking", 0.1)),
        *(("answered", 0.0), ("busy", 0.01), ("busy", 0.0173), ("busy", 0.0311)),
    ],
)
def test_a_killed_controller_leaves_nothing(
    suite: Path, stage: str, delay_s: float, workspace: Path, tmp_path: Path
) -> None:
    environment = {**support.environment(), "TR_PYTHON": sys.executable, "TR_TEST_FOLDER": str(tmp_path)}
    environment["TR_TEST_WORKER"] = str(SOURCES / "worker.py")
    environment["TMPDIR"] = str(tmp_path)  # of the worker's log
    process = subprocess.Popen([str(suite), "stage", stage], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == f"{stage}\n"
        time.sleep(delay_s)  # which moment of it is hit does not matter, as long as it is not always the same
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    deadline = time.monotonic() + 20
    while (left := leftovers(workspace) + support.semaphores_of({process.pid})) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == []
    assert [each for each in os.listdir(tmp_path) if each.startswith("tr_mmap-log-")] == []


@pytest.mark.long
def test_controllers_killed_at_random_moments_leave_nothing(
    suite: Path, workspace: Path, tmp_path: Path, is_full: bool
) -> None:
    """From before the session exists to the middle of its work; a worker ends by itself, a sweep finds the rest."""
    environment = {**support.environment(), "TR_PYTHON": sys.executable, "TR_TEST_FOLDER": str(tmp_path)}
    environment["TR_TEST_WORKER"] = str(SOURCES / "worker.py")
    source = random.Random(5)
    for _ in range(200 if is_full else 6):
        process = subprocess.Popen([str(suite), "stage", "busy"], env=environment, stdout=subprocess.DEVNULL)
        try:
            time.sleep(source.uniform(0.0, 0.9))
        finally:
            process.send_signal(signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 20
        # Again and again: a process that is at exec(2) has no environment to be known by.
        while left := leftovers(workspace) + support.semaphores_of({process.pid}):
            assert time.monotonic() < deadline, left
            if not support.processes_of(workspace):
                tr_mmap.sweep()
            time.sleep(0.02)
