"""The recipes that are one program: each runs by itself, says what its page says, and leaves nothing behind."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from recipes import EXAMPLES, run_recipe
from support import forks, leftovers, wait_until
from torch.utils.data import DataLoader, Dataset

from tr_mmap import PythonSession, SessionNotStarted


def test_a_model_gets_a_new_worker_after_its_worker_died_and_after_it_hung() -> None:
    printed = run_recipe(EXAMPLES / "pytorch-model" / "main.py")
    expected = ["right: True", "it died; a new worker answers: True"]
    expected += ["no answer in 1 s", "it hung; a new worker answers: True"]
    loaded = [line for line in printed.splitlines() if line.startswith("model loaded on")]
    assert [line for line in printed.splitlines() if line not in loaded] == expected
    assert len(loaded) == 3  # once for each worker, however many batches it gets


QUICK_WORKER = """\
import sys
from tr_mmap import Server

server = Server(framework="numpy")


@server.command("predict")
def predict(images):
    if images[0, 0, 0] == 2:
        open(GATE).read()
    return images


open(GATE).read()  # a FIFO: the model is loaded when the test says so
server.run()
"""
RESTARTS = """\
import os, signal
import torch
from model import serve
from tr_mmap import ScriptNotFound

images = torch.rand(2, 8, 8)
with serve("restarts") as model:
    os.rename("worker.py", "gone.py")  # a deployment, say
    os.kill(model.session.pid, signal.SIGKILL)
    model.session.join()
    for _ in range(3):
        try:
            model.predict(images, 60_000)
        except ScriptNotFound as error:
            assert error.__context__ is None, error.__context__  # it hides no other error
    os.rename("gone.py", "worker.py")
    print(torch.equal(model.predict(images, 90_000), images))
"""
LOADS = """\
import os, signal, threading
import torch
from model import serve

images = torch.rand(2, 8, 8)


def open_gate():
    with open("gate", "w"):
        pass


threading.Thread(target=open_gate).start()
with serve("loads") as model:
    os.kill(model.session.pid, signal.SIGKILL)
    model.session.join()  # on a busy machine a killed process may live on for a moment
    errors = []
    for _ in range(3):
        try:
            model.predict(images, 300)
        except Exception as error:
            errors.append((type(error).__name__, model.session.pid))
    assert errors == [("TimeoutError", model.session.pid)] * 3, errors  # one worker, which still loads
    threading.Thread(target=open_gate).start()
    print(torch.equal(model.predict(images, 90_000), images))
"""
IMPATIENT = """\
import torch
from model import serve

images = torch.rand(2, 8, 8)
with serve("impatient") as model:
    pid = model.session.pid
    for slow in (torch.full((2, 8, 8), 2.0), images, images):
        try:
            model.predict(slow, 100)
        except TimeoutError as error:
            print(type(error).__name__)
    with open("gate", "w"):
        pass
    print(torch.equal(model.predict(images, 90_000), images), model.session.pid == pid)
"""
HANGS = """\
import torch
from model import serve

images = torch.rand(2, 8, 8)
with serve("hangs", hang_ms=1_000) as model:
    pid = model.session.pid
    try:
        model.predict(torch.full((2, 8, 8), 2.0), 100)
    except TimeoutError as error:
        print(type(error).__name__)
    print(torch.equal(model.predict(images, 90_000), images), model.session.pid == pid)
"""


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """The recipe's ``model.py`` beside a worker that has nothing to load."""
    (tmp_path / "model.py").write_text((EXAMPLES / "pytorch-model" / "model.py").read_text())
    os.mkfifo(tmp_path / "gate")
    return tmp_path


def run_served(folder: Path, worker: str, program: str) -> str:
    (folder / "worker.py").write_text(worker)
    start = "import gc, os\ngc.disable()\nos.chdir(os.path.dirname(__file__))\n"
    (folder / "main.py").write_text(f"{start}{program}gc.freeze()\n")
    return run_recipe(folder / "main.py")


def gated(folder: Path) -> str:
    """A worker that is ready when the test opens the gate."""
    return QUICK_WORKER.replace("GATE", repr(str(folder / "gate")))


def ready(folder: Path) -> str:
    """One that is ready at once."""
    return gated(folder).replace("\nopen(", "\n# open(")


def test_a_model_whose_worker_cannot_be_started_is_started_by_a_later_request(served: Path) -> None:
    assert run_served(served, ready(served), RESTARTS) == "True\n"


def test_a_model_that_is_still_loading_is_let_load_on_by_requests_that_give_up(served: Path) -> None:
    assert run_served(served, gated(served), LOADS) == "True\n"


def test_a_caller_that_gives_up_soon_takes_the_worker_away_from_nobody(served: Path) -> None:
    printed = run_served(served, ready(served), IMPATIENT).splitlines()
    assert printed == ["ResponseTimeout", "TimeoutError", "TimeoutError", "True True"]


def test_a_worker_at_one_batch_for_longer_than_the_models_own_limit_is_replaced(served: Path) -> None:
    assert run_served(served, ready(served), HANGS).splitlines() == ["ResponseTimeout", "True False"]


class SlowSession:
    """A session whose worker takes 0.9 s for a batch, by a clock of its own."""

    now_s = 0.0

    def __init__(self) -> None:
        self.timeouts: list[int] = []

    def is_busy(self) -> bool:
        return False

    def is_alive(self) -> bool:
        return True

    def wait_until_ready(self, _timeout_ms: float) -> bool:
        return True

    def calculate(self, _command: str, batch: torch.Tensor, timeout_ms: float) -> torch.Tensor:
        self.timeouts.append(round(timeout_ms))
        self.now_s += 0.9
        return batch


def test_all_batches_of_a_request_have_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = ModuleType("model")
    exec((EXAMPLES / "pytorch-model" / "model.py").read_text(), recipe.__dict__)
    session = SlowSession()
    monkeypatch.setattr(recipe, "time", SimpleNamespace(monotonic=lambda: session.now_s))
    recipe.Model(session, hang_ms=60_000).predict(torch.rand(1024, 8, 8), timeout_ms=2_000)
    assert session.timeouts == [2_000, 1_100, 200, 0]


def test_a_data_loader_gets_augmented_batches_without_processes_by_fork_and_by_spawn(workspace: Path) -> None:
    printed = run_recipe(EXAMPLES / "dataloader" / "main.py")
    said = "8 batches, every pixel came back: True"
    assert printed.splitlines() == [f"{method}: {said}" for method in ("none", "fork", "spawn")]
    wait_until(lambda: not leftovers(workspace))  # workers of processes that have just ended


class Squares(Dataset[torch.Tensor]):
    """One that has a session of the process that made it."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def __len__(self) -> int:
        return 3

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.session.calculate("square", torch.full((2,), float(number)))


@forks
def test_a_session_of_the_main_process_is_refused_by_name_in_a_data_loaders_processes() -> None:
    with PythonSession(framework="torch", quiet_mode=True) as session:
        data = Squares(session)
        with pytest.raises(SessionNotStarted, match="start a session of its own here"):
            list(DataLoader(data, num_workers=1, multiprocessing_context="fork"))
        with pytest.raises(TypeError, match="make another session"):
            pickle.dumps(data)  # as spawn and forkserver do
        assert [batch.tolist() for batch in DataLoader(data)] == [[[0, 0]], [[1, 1]], [[4, 4]]]


def test_preprocessed_images_are_in_files_after_the_session(tmp_path: Path) -> None:
    lines = run_recipe(EXAMPLES / "preprocessing" / "main.py", str(tmp_path / "results")).splitlines()
    assert lines[0] == "copied to the worker: 0 bytes"
    said = "float32 (16, 240, 320, 3), deviation 1.000"
    assert lines[1:] == [f"batch-{number}.tsr: {said}" for number in range(3)]
    assert len(list((tmp_path / "results").iterdir())) == 3
