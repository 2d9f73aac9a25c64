"""The recipes that are one program: each runs by itself, says what its page says, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

from recipes import EXAMPLES, run_recipe
from support import leftovers, wait_until


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


def test_preprocessed_images_are_in_files_after_the_session(tmp_path: Path) -> None:
    lines = run_recipe(EXAMPLES / "preprocessing" / "main.py", str(tmp_path / "results")).splitlines()
    assert lines[0] == "copied to the worker: 0 bytes"
    said = "float32 (16, 240, 320, 3), mean 0.000, deviation 1.000"
    assert lines[1:] == [f"batch-{number}.tsr: {said}" for number in range(3)]
    assert len(list((tmp_path / "results").iterdir())) == 3
