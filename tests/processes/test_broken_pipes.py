"""A program whose stderr nobody reads any more may be ended by that, but not before its sessions have cleaned up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import environment, leftovers, script

TALKING_WORKER = """
import atexit, os
from tr_mmap import Server

atexit.register(print, "bye", flush=True)
server = Server(framework="numpy")

@server.command("talk")
def talk() -> str:
    print("talk", flush=True)
    return "talked"

server.run()
"""

PROGRAM = """
import os, signal, sys
from tr_mmap import PythonSession

signal.signal(signal.SIGPIPE, signal.SIG_DFL)
with PythonSession(sys.argv[1], channel=sys.argv[2], quiet_mode=False) as session:
    assert session.fetch_response("talk") == "talked"
    if sys.argv[3] == "handled":
        signal.signal(signal.SIGPIPE, lambda *_: os._exit(1))
    session.fetch_response("talk")
print("done")
"""


@pytest.mark.each_value
@pytest.mark.parametrize("sigpipe", ["default", "handled"])
@pytest.mark.parametrize("channel", ["mapped", "files"])
def test_nothing_is_left_where_nobody_reads_what_a_worker_prints(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channel: str, sigpipe: str
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    monkeypatch.setenv("TMPDIR", str(logs))
    reading, writing = os.pipe()
    os.close(reading)
    program = [sys.executable, "-c", PROGRAM, script(tmp_path, TALKING_WORKER), channel, sigpipe]
    try:
        done = subprocess.run(
            program, env=environment(), stdout=subprocess.PIPE, stderr=writing, text=True, timeout=60, check=False
        )
    finally:
        os.close(writing)
    assert done.stdout == "done\n"
    assert done.returncode == 0
    assert not leftovers(workspace)
    assert not list(logs.iterdir())
