"""Workers that override ``run`` and put it together themselves, and the files of tensors that they read and write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import ROOT, has_ended, script, wait_until

import tr_mmap
from tr_mmap import PythonSession, RemoteError, SessionNotStarted, TechRenaissanceServer
from tr_mmap.worker.tensor_files import read_tsr_file, write_tsr_file

X = np.arange(6, dtype=np.float32).reshape(2, 3)

WORKER = """
import json, os, sys
import numpy as np
from tr_mmap import TechRenaissanceServer

class Worker(TechRenaissanceServer):
    def main_logic(self, command, parameters):
        words = parameters.split()
        if command == "where":
            self.write_response("", json.dumps([self.session_id, self.session_dir]))
        elif command == "read":
            self.send_tensors(self.read_tsr_file(words[0]))
        elif command == "copy":
            self.write_tsr_file(words[1], self.read_tsr_file(words[0]))
        elif command == "swapped":
            self.write_tsr_file(self.read_tsr_file(words[0]), words[1])
        elif command == "leave":
            self.write_status("exiting")
        else:
            return False
        return True

    def run(self, session_id=None):
        RUN

Worker(framework="numpy").run(*sys.argv[1:])
"""
# As documents write it; each ends with what it has counted.
RUNS = {
    "loop": """
        self.session_id = session_id
        self.setup_session_dir()
        self.write_status("ready")
        while self.should_continue():
            self.process_request()
        self.cleanup_session_dir()
""",
    "bool": """
        self.setup_session_dir(session_id)
        self.write_status("ready")
        answered = 0
        while self.process_request():
            answered += 1
        print("answered", answered, "and again", self.process_request(), flush=True)
        self.cleanup_session_dir()
""",
    "command line": """
        self.setup_session_dir()
        self.write_status("ready")
        while True:
            if not self.process_request():
                break
        self.cleanup_session_dir()
""",
}


@pytest.fixture(params=["mapped", "files", "legacy"])
def channel(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def worker(tmp_path: Path, run: str = "loop") -> str:
    return script(tmp_path, WORKER.replace("        RUN\n", RUNS[run].lstrip("\n")))


# -- run -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", RUNS)
def test_a_worker_that_puts_its_run_together_serves_and_ends(tmp_path: Path, channel: str, run: str) -> None:
    session = PythonSession(worker(tmp_path, run), "parts", quiet_mode=True, channel=channel)
    session.start()
    try:
        assert json.loads(session.fetch_response("where")) == ["parts", session.session_dir()]
        with pytest.raises(RemoteError):  # an unknown command, which in the legacy dialect is an error like others
            session.fetch_response("dance")
        assert session.please_exit()
    finally:
        session.close()


@pytest.mark.parametrize("run", RUNS)
def test_it_ends_by_a_status_of_its_own(tmp_path: Path, channel: str, run: str) -> None:
    with PythonSession(worker(tmp_path, run), "parts", quiet_mode=True, channel=channel) as session:
        session.fetch_response("where")
        assert session.fetch_response("leave") == "ok"
        assert session.join(30_000)


def test_process_request_says_true_once_for_each_request_that_it_answers(tmp_path: Path, channel: str) -> None:
    with PythonSession(worker(tmp_path, "bool"), "parts", quiet_mode=True, channel=channel) as session:
        for _ in range(7):
            session.fetch_response("where")
        with pytest.raises(RemoteError):
            session.fetch_response("dance")
        log = Path(session.session_dir(), "worker.log").resolve()
        session.fetch_response("leave")
        assert session.join(30_000)
        assert "answered 9 and again False\n" in log.read_text()


def test_a_request_by_hand_is_one_answer_too(tmp_path: Path) -> None:
    with PythonSession(worker(tmp_path, "bool"), "parts", quiet_mode=True) as session:
        answer = Path(session.session_dir(), "response.json")
        log = Path(session.session_dir(), "worker.log").resolve()
        session.fetch_response("where")
        wait_until(lambda: b"parts" in answer.read_bytes())  # it is shown a moment after it has come
        before = answer.read_bytes()
        Path(session.session_dir(), "request.json").write_text('{"cmd": "where", "params": "by hand"}')
        wait_until(lambda: answer.read_bytes() != before and b"parts" in answer.read_bytes())
        session.fetch_response("leave")
        assert session.join(30_000)
        assert "answered 3 and again False\n" in log.read_text()


def test_a_worker_ends_when_its_controller_dies_although_run_is_its_own(tmp_path: Path, workspace: Path) -> None:
    program = f"""
import os, sys
from tr_mmap import PythonSession
session = PythonSession({worker(tmp_path)!r}, "parts", quiet_mode=True)
session.start()
session.fetch_response("where")
print(session.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert has_ended(int(ended.stdout))


def test_without_a_session_it_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    server = TechRenaissanceServer()
    assert server.session_id == ""
    monkeypatch.setattr(sys, "argv", ["worker.py"])
    with pytest.raises(SessionNotStarted, match="usage"):
        server.setup_session_dir()
    server.session_id = "no_such_session"
    with pytest.raises(SessionNotStarted, match="no_such_session"):
        server.setup_session_dir()


def test_a_subclass_may_name_its_session_before_our_init() -> None:
    class Named(TechRenaissanceServer):
        def __init__(self) -> None:
            self.session_id = "mine"
            super().__init__()

    assert Named().session_id == "mine"


# -- files -----------------------------------------------------------------------------------------------------------


def test_a_tag_is_read_by_its_name_and_by_the_path_of_its_file(tmp_path: Path, channel: str) -> None:
    with PythonSession(worker(tmp_path), "parts", quiet_mode=True, channel=channel) as session:
        session.send_tensor(X, "x")
        # An old worker finds what the words of the request name, and so does this one in its dialect.
        for name in ("x",) if channel == "legacy" else ("x", "x.tsr", f"{session.session_dir()}/x.tsr"):
            assert np.array_equal(session.calculate(f"read {name}"), X)


def test_a_file_elsewhere_is_read_and_written(tmp_path: Path, channel: str) -> None:
    ours, theirs = tmp_path / "in.tsr", tmp_path / "out.tsr"
    write_tsr_file(ours, X)
    with PythonSession(worker(tmp_path), "parts", quiet_mode=True, channel=channel) as session:
        assert np.array_equal(session.calculate(f"read {ours}"), X)
        for command in ("copy", "swapped"):
            session.fetch_response(f"{command} {ours} {theirs}")
            assert np.array_equal(read_tsr_file(theirs, "numpy"), X)
            theirs.unlink()


@pytest.mark.parametrize(("words", "error"), [("read nothing", "MissingTag"), ("read /no/such.tsr", "FileNotFound")])
def test_what_is_not_there_is_an_error_of_the_request(tmp_path: Path, channel: str, words: str, error: str) -> None:
    with PythonSession(worker(tmp_path), "parts", quiet_mode=True, channel=channel) as session:
        with pytest.raises(RemoteError, match=r"nothing|No such file") as caught:
            session.fetch_response(words)
        if channel != "legacy":
            assert caught.value.error_type.startswith(error)
        session.fetch_response("where")


@pytest.mark.parametrize("name", ["segment_1", "result_5", "../x", "a:b"])
def test_a_worker_never_writes_over_the_files_of_the_session(tmp_path: Path, name: str) -> None:
    with PythonSession(worker(tmp_path), "parts", quiet_mode=True) as session:
        session.send_tensor(X, "x")
        before = sorted(os.listdir(session.session_dir()))
        if "/" in name:
            name = f"{session.session_dir()}/{name[3:]}:"
        with pytest.raises(RemoteError) as caught:
            session.fetch_response(f"copy x {name}")
        assert caught.value.error_type == "BadTag"
        assert sorted(os.listdir(session.session_dir())) == before


def test_what_was_read_is_memory_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "x.tsr"
    write_tsr_file(path, X)
    for framework in ("numpy", "torch"):
        found = read_tsr_file(path, framework)
        os.truncate(path, 0)  # as a program does that overwrites the file in place: a mapping would not survive
        found += 1
        assert np.array_equal(np.asarray(found), X + 1)
        write_tsr_file(path, X)


@pytest.mark.parametrize("dtype", ["float32", "int8", "int32"])
def test_the_file_is_one_that_the_original_reads(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "x.tsr"
    write_tsr_file(X.astype(dtype), path)
    raw = path.read_bytes()
    assert (raw[:4], raw[4], raw[8]) == (b"TSR!", 1, 64)
    assert np.array_equal(tr_mmap.load(path), X.astype(dtype))


def test_a_tensor_that_the_original_lacks_has_a_file_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "x.tsr"
    for x in (np.ones((1, 1, 1, 1, 2), np.float32), np.ones(3, np.complex64)):
        write_tsr_file(path, x)
        assert np.array_equal(read_tsr_file(path, "numpy"), x)


def test_the_order_of_path_and_tensor_is_found_or_refused(tmp_path: Path) -> None:
    write_tsr_file(X, str(tmp_path / "a.tsr"))
    write_tsr_file(tmp_path / "b.tsr", X)
    assert (tmp_path / "a.tsr").read_bytes() == (tmp_path / "b.tsr").read_bytes()
    for one, other in ((X, X), ("a", "b")):
        with pytest.raises(tr_mmap.BadMessage, match="a path and a tensor"):
            write_tsr_file(one, other)
