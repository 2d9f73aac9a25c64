"""A project of the original framework: where its worker's script and its sessions lie, and what is left of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from support import ROOT, TOOLS, json_line, wait_until

PEERS = ROOT / "tests" / "peers"
FOLDERS = ("python_session", "pytorch_session")


def bare_environment() -> dict[str, str]:
    """What says nothing of a session; only where the package is, which need not be installed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TR_")}
    return {**kept, "PYTHONPATH": str(ROOT)}


class Project:
    """``root/python/module`` has the worker's script, ``root/workspace`` the sessions."""

    def __init__(self, root: Path, folder: str | None = "python_session") -> None:
        self.root = root
        self.module = root / "python" / "module"
        self.module.mkdir(parents=True)
        self.workspace = root / "workspace"
        if folder is not None:
            (self.workspace / folder).mkdir(parents=True)

    def our_worker(self, name: str = "worker.py") -> Path:
        """A worker of ours, in the project."""
        return Path(shutil.copy(TOOLS, self.module / name))

    def old_worker(self, folder: str = "python_session") -> Path:
        """A worker of the legacy dialect, in the project, which looks in that folder."""
        shutil.copy(PEERS / "old_worker.py", self.module)
        script = self.module / "project_worker.py"
        script.write_text((PEERS / "project_worker.py").read_text().replace("python_session", folder))
        return script

    def processes(self) -> list[psutil.Process]:
        """Living processes that have a path of this project in their command line."""
        found = []
        for each in psutil.process_iter():
            try:
                if each.status() != psutil.STATUS_ZOMBIE and str(self.root) in " ".join(each.cmdline()):
                    found.append(each)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def sessions(self) -> list[str]:
        """Whatever lies where sessions do."""
        return sorted(str(each.relative_to(self.workspace)) for each in self.workspace.glob("*_session/*"))

    def wait_until_nothing_is_left(self) -> None:
        wait_until(lambda: not self.processes())
        assert self.sessions() == []

    def kill_all(self) -> None:
        for each in self.processes():
            each.kill()


@contextmanager
def running(
    command: Sequence[object], environ: Mapping[str, str], *, cwd: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A program in a process group of its own, which is killed at the end."""
    process = subprocess.Popen(
        [str(each) for each in command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(environ),
        cwd=cwd,
        process_group=0,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)


def shell_controller(project: Project, script: Path, session_id: str, folder: str = "python_session") -> list[object]:
    """The command of an old controller that starts that worker through a shell."""
    return [sys.executable, PEERS / "shell_controller.py", project.root, folder, session_id, script]


def begin(process: subprocess.Popen[str], **step: Any) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(step) + "\n")
    process.stdin.flush()


def do(process: subprocess.Popen[str], **step: Any) -> dict[str, Any]:
    begin(process, **step)
    return json_line(process, "the old controller")
