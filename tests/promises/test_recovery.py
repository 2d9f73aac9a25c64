"""A session outlives its workers, whatever ended them; what an earlier worker says late is nobody's answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import FOREVER_MS, ROOT, TOOLS, Gate, open_files

from tr_mmap import PythonSession, RemoteError, ResponseTimeout, WorkerDied
from tr_mmap.wire.names import WORKER_MARK_VARIABLE

A = np.arange(100_000.0)


def killed(session: PythonSession, gate: Gate) -> None:
    """In the middle of a request."""
    session.send_request(gate.message)
    gate.wait_for_worker()
    os.kill(int(Path(session.session_dir(), "pid").read_text()), signal.SIGKILL)
    with pytest.raises(WorkerDied):
        session.wait_for_response(FOREVER_MS)


def killed_idle(session: PythonSession, gate: Gate) -> None:
    os.kill(int(Path(session.session_dir(), "pid").read_text()), signal.SIGKILL)
    assert session.join(FOREVER_MS)


def timed_out(session: PythonSession, gate: Gate) -> None:
    with pytest.raises(ResponseTimeout):
        session.fetch_response(gate.message, 1)
    gate.wait_for_worker()
    session.terminate()


def terminated(session: PythonSession, gate: Gate) -> None:
    session.terminate()


def terminated_with_an_answer_waiting(session: PythonSession, gate: Gate) -> None:
    session.send_request("say stale")
    assert session.wait_until_ok(FOREVER_MS)
    session.terminate()


def exited(session: PythonSession, gate: Gate) -> None:
    with pytest.raises(WorkerDied):
        session.fetch_response("leave 3", FOREVER_MS)


ENDS: list[Callable[[PythonSession, Gate], None]] = [
    killed,
    killed_idle,
    timed_out,
    terminated,
    terminated_with_an_answer_waiting,
    exited,
]


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("channel", ["mapped", "files"])
def test_a_session_recovers_again_and_again_and_knows_its_tags(
    is_full: bool, figures: Callable[[str], None], tmp_path: Path, channel: str
) -> None:
    times = (1000 if channel == "mapped" else 200) if is_full else len(ENDS)
    started = time.monotonic()
    with PythonSession(TOOLS, quiet_mode=True, channel=channel) as session:
        session.send_tensor(A, "a")
        digest = session.fetch_response("digest a", FOREVER_MS)
        session.send_tensor(A[:10], "gone")
        session.drop_tensor("gone")
        files, fds = set(os.listdir(session.session_dir())), open_files()
        for number in range(times):
            session.send_tensor(np.full(1000, number), "n")
            Path(session.session_dir(), "pid").write_text(session.fetch_response("pid"))
            gate = Gate(tmp_path)
            ENDS[number % len(ENDS)](session, gate)
            gate.close()
            os.unlink(gate.path)
            session.start()
            assert session.wait_until_ready(FOREVER_MS)
            assert session.read_response() in (None, "stale")  # an answer from before the end is still its taker's
            assert not session.new_response()
            assert session.fetch_response(f"say {number}", FOREVER_MS) == str(number)
            assert session.fetch_response("digest a", FOREVER_MS) == digest
            assert session.fetch_tensor("echo n", FOREVER_MS)[0] == number
            with pytest.raises(RemoteError, match="'gone'"):
                session.fetch_tensor("echo gone", FOREVER_MS)
        assert (open_files() - fds).total() <= 1  # but for what the last worker's watch needs
        more = {
            name
            for name in os.listdir(session.session_dir())
            if not name.startswith(("segment_", "result_", "result."))
        }
        assert more - files <= {"n.tsr", "pid"}
    ended = Counter(ENDS[number % len(ENDS)].__name__ for number in range(times))
    figures(
        f"{times} times in {time.monotonic() - started:.0f} s: {dict(ended)}\n"
        f"each time the tags sent before were there, a dropped one was not, and no old answer was taken"
    )


def test_a_worker_that_was_slow_to_start_does_not_join_a_later_start(tmp_path: Path) -> None:
    with PythonSession(TOOLS, quiet_mode=True) as session:
        late = subprocess.run(
            [sys.executable, str(TOOLS), "default"],
            env={**os.environ, "PYTHONPATH": str(ROOT), WORKER_MARK_VARIABLE: "1-of-an-earlier-start"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert late.returncode == 1
        assert "another worker" in late.stderr
        assert session.fetch_response("hello you") == "Hello You"
        assert session.is_alive()


def test_a_start_after_a_start_that_was_interrupted_has_one_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C at the moment when the process is there and nobody has heard of it yet."""
    real = subprocess.Popen._execute_child  # type: ignore[attr-defined]

    def interrupted(*arguments: object) -> None:
        real(*arguments)
        raise KeyboardInterrupt

    session = PythonSession(TOOLS, quiet_mode=True)
    with monkeypatch.context() as patch:
        patch.setattr(subprocess.Popen, "_execute_child", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.start()
    assert not session.is_alive()
    with session:
        assert session.fetch_response("hello you") == "Hello You"
