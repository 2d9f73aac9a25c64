"""A child that a handler forks never answers, writes no status and cleans nothing up: only the worker does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support import WORKERS, script

from tr_mmap import PythonSession

SABOTEUR = WORKERS / "saboteur.py"


@pytest.fixture(params=["mapped", "files"])
def forking(request: pytest.FixtureRequest) -> Iterator[PythonSession]:
    with PythonSession(SABOTEUR, quiet_mode=True, channel=request.param) as session:
        pid, files = session.fetch_response("pid"), set(os.listdir(session.session_dir()))
        yield session
        assert set(os.listdir(session.session_dir())) >= files
        assert session.is_ready()
        assert {session.fetch_response("pid") for _ in range(20)} == {pid}
        assert session.wait_until_ready()


def log_of(session: PythonSession) -> str:
    return (Path(session.session_dir()) / "worker.log").read_text()


# The handler waits for its child's end, so that whatever the child does is done when the answer comes.
@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("returns", 0),
        ("returns_tensor", 0),
        ("exits", 0),
        ("exits_3", 3),
        ("exits_text", 1),
        ("raises", 1),
        ("interrupted", 1),
        ("_exit", 4),
        ("prints", 0),
        ("grandchild", 0),
    ],
)
def test_a_child_that_comes_back_from_its_handler_ends_and_the_worker_answers(
    forking: PythonSession, how: str, code: int
) -> None:
    assert forking.fetch_response(f"fork {how}") == f"{code} "


def test_a_childs_words_are_in_the_log(forking: PythonSession) -> None:
    forking.fetch_response("fork prints")
    forking.fetch_response("fork exits_text")
    forking.fetch_response("fork raises")
    log = log_of(forking)
    assert log.count("the child prints") == 1
    assert log.count("words") == 1
    assert log.count("ValueError: in the child") == 1


def test_a_child_that_wants_to_answer_is_refused(forking: PythonSession) -> None:
    answer = forking.fetch_response("fork answers")
    # The text goes nowhere, tensors and statuses are refused, and there is nothing to clean up.
    assert answer == "0 done SessionNotStarted SessionNotStarted SessionNotStarted done "


def test_a_child_may_read_the_views_that_its_handler_has(forking: PythonSession) -> None:
    x = np.arange(1000.0)
    answer = forking.calculate("fork_with_array", x)
    assert answer == f"0 {x.sum()}"
    assert np.array_equal(x, np.arange(1000.0))


def test_multiprocessing_and_forks_in_threads_work(forking: PythonSession) -> None:
    assert forking.fetch_response("multiprocess") == "0"
    assert forking.fetch_response("fork_in_thread").startswith("0 ")


def test_a_server_made_before_a_fork_serves_in_the_child(tmp_path: Path) -> None:
    """A program that forks first, and then runs its server, is a worker like any other."""
    text = """
import os, sys
from tr_mmap import Server
server = Server()
server.command("pid")(lambda: str(os.getpid()))
child = os.fork()
if child:
    os.waitpid(child, 0)
    os._exit(0)
server.run()
"""
    with PythonSession(script(tmp_path, text), quiet_mode=True) as session:
        first = session.fetch_response("pid")
        assert first == session.fetch_response("pid")
        assert int(first) != session._worker_or_none().process.pid  # type: ignore[union-attr]
