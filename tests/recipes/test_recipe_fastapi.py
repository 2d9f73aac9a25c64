"""The FastAPI recipe, run by uvicorn and asked over HTTP as its page says."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest
from recipes import EXAMPLES
from support import environment, processes_of, wait_until

IMAGE = [[0.5] * 8] * 8


def is_dead(process: psutil.Process) -> bool:
    """Whether all its threads have ended; its parent need not have noticed."""
    return process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1


@dataclass
class Uvicorn:
    """A running app. What it prints is collected by a thread, so that its pipe is never full."""

    process: subprocess.Popen[str]
    workspace: Path
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as printed:
            self.lines.extend(iter(printed.readline, ""))

    @property
    def text(self) -> str:
        return "".join(self.lines)

    @property
    def url(self) -> str:
        wait_until(lambda: "Uvicorn running on" in self.text or self.process.poll() is not None)
        found = re.search(r"Uvicorn running on (http://\S+)", self.text)
        assert found is not None, self.text
        return found[1] + "/predict"

    def worker(self) -> psutil.Process:
        """The model's process."""
        (found,) = [each for each in processes_of(self.workspace) if each.pid != self.process.pid]
        return found

    def kill_worker(self) -> None:
        """Kill it, and wait until it is dead; the app's process need not have noticed."""
        worker = self.worker()
        worker.kill()
        wait_until(lambda: not worker.is_running() or is_dead(worker))

    def ask(self, count: int = 3, **parameters: float) -> httpx.Response:
        body = {"images": [IMAGE] * count}
        return httpx.post(self.url, json=body, params=parameters, timeout=100)

    def end(self) -> str:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self.reader.join(60)
        return self.text


@contextmanager
def uvicorn(folder: Path, workspace: Path) -> Iterator[Uvicorn]:
    """The app of a folder."""
    arguments = ["-m", "uvicorn", "--app-dir", str(folder), "app:app", "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=workspace,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    running = Uvicorn(process, workspace)
    try:
        yield running
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(60)
        running.reader.join(60)


@pytest.fixture
def app(workspace: Path) -> Iterator[Uvicorn]:
    with uvicorn(EXAMPLES / "fastapi", workspace) as running:
        yield running


def test_a_worker_that_died_idle_costs_nobody_anything_and_one_that_stops_a_504(app: Uvicorn) -> None:
    answered = app.ask()
    assert answered.status_code == 200, answered.text
    first = answered.json()
    assert len(first["classes"]) == 3

    app.kill_worker()
    assert app.ask(timeout_ms=60_000).json() == first

    worker = app.worker()
    worker.suspend()
    late = app.ask(timeout_ms=300)
    assert late.status_code == 504
    assert "process" not in late.text  # what the error says is for the log
    assert app.ask(timeout_ms=0.001).status_code == 422
    worker.resume()
    assert app.ask(timeout_ms=60_000).json() == first
    assert app.worker() == worker  # it is the server that says whether a worker hangs, not a client

    with ThreadPoolExecutor(8) as pool:  # one request at a time, and each gets its own answer
        assert all(each.json() == first for each in pool.map(lambda _: app.ask(timeout_ms=60_000), range(24)))
    wrong = httpx.post(app.url, json={"images": [[[0.5]]]})
    assert wrong.status_code == 422

    printed = app.end()
    assert "Application shutdown complete" in printed
    assert "ERROR:    no response to 'predict' within " in printed  # for whoever reads the log
    assert "Traceback" not in printed


FAILING = """\
from tr_mmap import Server

server = Server(framework="numpy")


@server.command("predict")
def predict(images):
    if len(images) == 1:
        raise KeyError("a secret")
    if len(images) == 2:
        open(GATE).read()  # a FIFO
    return images[:, 0]


server.run()
"""


def test_what_fails_is_in_the_log_and_not_in_the_answer_and_a_failed_start_is_tried_again(
    tmp_path: Path, workspace: Path
) -> None:
    for name in ("app.py", "model.py"):
        (tmp_path / name).write_text((EXAMPLES / "fastapi" / name).read_text())
    worker = tmp_path / "worker.py"
    os.mkfifo(tmp_path / "gate")
    worker.write_text(FAILING.replace("GATE", repr(str(tmp_path / "gate"))))
    with uvicorn(tmp_path, workspace) as app:
        failed = app.ask(1)
        assert (failed.status_code, failed.json()) == (500, {"detail": "the model raised KeyError"})
        assert app.ask(timeout_ms=60_000).status_code == 200

        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(app.ask, 2, timeout_ms=60_000)
            with (tmp_path / "gate").open("w"):  # returns when the worker computes
                app.kill_worker()
            died = asked.result()
        assert (died.status_code, died.headers["retry-after"]) == (503, "5")
        assert app.ask(timeout_ms=60_000).status_code == 200

        worker.rename(tmp_path / "gone.py")
        app.kill_worker()
        assert [app.ask(timeout_ms=60_000).status_code for _ in range(3)] == [503, 503, 503]
        (tmp_path / "gone.py").rename(worker)
        assert app.ask(timeout_ms=60_000).status_code == 200
        printed = app.end()
    assert printed.count("Traceback") == 1  # the worker's own
    assert "ERROR:    'predict' failed in the worker: KeyError: 'a secret'\n" in printed
    assert f"ERROR:    the worker of session 'fastapi-{app.process.pid}'" in printed
    assert "is no file" in printed  # ScriptNotFound
