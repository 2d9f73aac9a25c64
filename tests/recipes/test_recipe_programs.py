"""The recipes that are one program: each runs by itself, says what its page says, and leaves nothing behind."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes import EXAMPLES, run_recipe
from support import forks, leftovers, wait_until
from torch.utils.data import DataLoader, Dataset

from tr_mmap import PythonSession, SessionNotStarted


def test_a_model_gets_a_new_worker_after_its_worker_died_and_after_it_hung() -> None:
    printed = run_recipe(EXAMPLES / "pytorch-model" / "main.py")
    expected = ["right: True"]
    expected += ["WorkerDied after SIGKILL", "a new worker answers: True"]
    expected += ["ResponseTimeout after SIGSTOP", "a new worker answers: True"]
    loaded = [line for line in printed.splitlines() if line.startswith("model loaded on")]
    assert [line for line in printed.splitlines() if line not in loaded] == expected
    assert len(loaded) == 3  # once for each worker, however many batches it gets


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
