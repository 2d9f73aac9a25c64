"""Processes that claim, release and sweep at once: exactly one wins, nobody is disturbed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT
from workspace_content import everything, leave

from tr_mmap.processes.identity import Identity
from tr_mmap.sessions import manifest as manifests
from tr_mmap.sessions.workspace import Workspace

RACER = """
import os, sys
from tr_mmap.sessions import workspace as workspaces
from tr_mmap.errors import SessionInUse
from tr_mmap.processes.identity import Identity
from tr_mmap.sessions.manifest import Manifest
workspaces.SHM_DIR = sys.argv[1]
print('up', flush=True)
for line in sys.stdin:
    word, session_id = line.split()
    workspace = workspaces.Workspace.locate({})
    if word == 'claim':
        try:
            workspace.claim(session_id, Manifest(session_id=session_id, controller=Identity.current()))
            print('won', flush=True)
        except SessionInUse:
            print('lost', flush=True)
    elif word == 'churn':
        for i in range(100):
            own = f'{session_id}-{os.getpid()}'
            workspaces.Workspace.locate({}).claim(own, Manifest(session_id=own, controller=Identity.current()))
            assert workspace.release(own)
        print('churned', flush=True)
    elif word == 'sweep':
        print(len(workspace.sweep().removed), flush=True)
"""


class Racers:
    def __init__(self, count: int, parent: Path) -> None:
        self.popens = [
            subprocess.Popen(
                [sys.executable, "-W", "error", "-c", RACER, str(parent)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            for _ in range(count)
        ]
        assert self.answers() == ["up"] * count

    def ask(self, *lines: str) -> list[str]:
        """Tell all at once, hear all."""
        for popen, line in zip(self.popens, lines * len(self.popens), strict=False):
            assert popen.stdin is not None
            popen.stdin.write(line + "\n")
        for popen in self.popens:
            assert popen.stdin is not None
            popen.stdin.flush()
        return self.answers()

    def answers(self) -> list[str]:
        return [popen.stdout.readline().strip() for popen in self.popens if popen.stdout is not None]

    def kill(self) -> None:
        for popen in self.popens:
            popen.send_signal(signal.SIGKILL)
        for popen in self.popens:
            with popen:
                pass


@pytest.fixture
def racers(default_parent: Path) -> Iterator[Racers]:
    made = Racers(6, default_parent)
    yield made
    made.kill()


def test_of_processes_that_claim_one_session_exactly_one_wins(
    racers: Racers, default_parent: Path, dead: Identity
) -> None:
    ws = Workspace.locate({})
    for i in range(20):
        if i % 2:  # over what a dead owner left
            leave(ws, f"s{i}", dead, worker=dead)
        assert sorted(racers.ask(f"claim s{i}")) == ["lost"] * 5 + ["won"]
    sessions = Path(ws.root) / "python_session"
    assert sorted(os.listdir(sessions)) == sorted(f"tr_session_s{i}" for i in range(20))
    racers.kill()
    assert len(ws.sweep().removed) == 20
    assert everything(default_parent) == []


def test_a_claim_among_sweepers_wins_and_the_dead_session_is_removed_once(
    racers: Racers, default_parent: Path, dead: Identity
) -> None:
    ws = Workspace.locate({})
    for i in range(20):
        leave(ws, f"s{i}", dead)
        claimed, *swept = racers.ask(f"claim s{i}", *["sweep x"] * 5)
        assert claimed == "won"
        assert swept.count("1") <= 1
        manifest = manifests.read(ws.session_dir(f"s{i}"))
        assert manifest is not None
        assert manifest.controller.pid == racers.popens[0].pid


def test_sessions_that_come_and_go_side_by_side_do_not_disturb_each_other(racers: Racers, default_parent: Path) -> None:
    assert racers.ask("churn s") == ["churned"] * 6
    assert everything(default_parent) == []
