"""What programs of the original framework write, byte by byte, means to both of our sides what it means to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from legacy_peers import environment
from legacy_transcripts import CONTROLLER, WORKER, Step
from support import ROOT

from tr_mmap import PythonSession, RemoteError

REPLAY = ROOT / "tests" / "peers" / "replay.py"


def write_steps(path: Path, steps: list[Step]) -> str:
    texts = [[each.decode("latin-1") if isinstance(each, bytes) else each for each in step] for step in steps]
    path.write_text(json.dumps(texts))
    return str(path)


def play(session: PythonSession, name: str) -> None:
    kind, message, _, answer = WORKER[name]
    if kind == "text":
        assert session.fetch_response(message) == answer, name
    elif kind == "tensor":
        found = session.fetch_tensor(message)
        assert [each.tolist() for each in (found if isinstance(found, list) else [found])] == answer, name
    else:
        with pytest.raises(RemoteError, match=answer):
            session.fetch_response(message)


@pytest.mark.parametrize("names", [list(WORKER), list(reversed(WORKER))], ids=["in order", "in reverse"])
def test_a_session_with_an_original_worker_replays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    steps = [step for name in names for step in WORKER[name][2]]
    monkeypatch.setenv("REPLAY", write_steps(tmp_path / "steps.json", steps))
    with PythonSession(REPLAY, quiet_mode=True, channel="legacy") as session:
        session.send_tensor(np.float32([[1, 2], [3, 4]]), "a")
        session.send_tensor(np.float32([[5, 6], [7, 8]]), "b")
        for name in names:
            play(session, name)
        assert session.please_exit(ensure=False)


def test_a_session_with_an_original_controller_replays(tmp_path: Path) -> None:
    directory = tmp_path / "session"
    directory.mkdir()
    steps = [step for each in CONTROLLER.values() for step in each]
    ended = subprocess.run(
        [sys.executable, str(REPLAY), str(directory), sys.executable, "-m", "tr_mmap.worker", str(directory)],
        env=environment(REPLAY=write_steps(tmp_path / "steps.json", steps)),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "request.json" not in os.listdir(directory)
