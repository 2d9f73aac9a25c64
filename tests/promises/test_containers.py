"""Containers that share a workspace, and not their pids: the living are left alone, what the killed left is removed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from namespaces import container
from support import BOUND_S, TOOLS, leftovers

from tr_mmap import PythonSession, SessionInUse, sweep

PROGRAM = """
import os, signal, sys
from tr_mmap import PythonSession
session = PythonSession({tools!r}, "shared", quiet_mode=True, channel=sys.argv[1])
session.start()
session.wait_until_ready()
pid = int(session.fetch_response("pid"))
print(os.getpid(), pid, flush=True)
for line in sys.stdin:
    word = line.strip()
    if word == "kill worker":
        os.kill(pid, signal.SIGKILL)
        session.join()
    elif word == "ask":
        print(session.fetch_response("hello you"), flush=True)
    print("done", flush=True)
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "controller.py"
    path.write_text(PROGRAM.format(tools=str(TOOLS)))
    return path


def ask(running, word: str) -> str:  # type: ignore[no-untyped-def]
    running.popen.stdin.write(word + "\n")
    running.popen.stdin.flush()
    return str(running.line())


def sweep_until_removed() -> list[str]:
    """The processes of a container that is killed end one after another."""
    until_s = time.monotonic() + BOUND_S
    while time.monotonic() < until_s:
        if removed := sweep().removed:
            return removed
    return []


@pytest.mark.parametrize("channel", ["mapped", "files"])
def test_what_a_killed_container_left_is_removed_and_a_living_ones_is_not(
    workspace: Path, program: Path, channel: str
) -> None:
    with container(program, channel) as running:
        assert running.line().startswith("1 ")
        assert "another container" in sweep().kept["shared"]
        with pytest.raises(SessionInUse, match="another container"):
            PythonSession(TOOLS, "shared", quiet_mode=True).start()
        assert ask(running, "ask") == "Hello You"
        running.line()
        assert ask(running, "kill worker") == "done"
        assert list(sweep().kept) == ["shared"]  # its controller lives
    assert sweep_until_removed() == ["shared"]
    assert not leftovers(workspace)


def test_the_name_of_a_killed_containers_session_can_be_used_again_from_another_container(
    workspace: Path, program: Path
) -> None:
    with container(program, "mapped") as first:
        assert first.line().startswith("1 ")
    with container(program, "mapped") as second:
        assert second.line().startswith("1 ")
        assert ask(second, "ask") == "Hello You"
    with PythonSession(TOOLS, "shared", quiet_mode=True) as session:
        assert session.fetch_response("hello you") == "Hello You"
    assert not leftovers(workspace)
