"""A DataLoader whose images are augmented by workers: one for each process that loads."""

import os
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from tr_mmap import PythonSession

WORKER = Path(__file__).with_name("worker.py")


class Augmented(Dataset):
    def __init__(self, images: torch.Tensor) -> None:
        self.images = images
        self._session: PythonSession | None = None
        self._pid = 0

    def session(self) -> PythonSession:
        """This process's own: a session that was inherited by fork refuses requests."""
        if self._session is None or self._pid != os.getpid():
            self._pid = os.getpid()
            self._session = PythonSession(WORKER, f"loader-{self._pid}", framework="torch")
            self._session.start()
            self._session.wait_until_ready(60_000)
        return self._session

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_session": None}  # for spawn: a session cannot be pickled

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
        """All items of a batch at once, so that a batch is one request."""
        seed = int(torch.randint(2**31, ()))  # DataLoader seeds each process differently
        images = self.images[indices]
        return list(self.session().calculate(f"augment {seed}", images, timeout_ms=60_000))


if __name__ == "__main__":
    dataset = Augmented(torch.rand(256, 8, 8))
    for method in sys.argv[1:] or ["none", "fork", "spawn"]:
        processes = {"num_workers": 2, "multiprocessing_context": method}
        options = {} if method == "none" else processes
        loader = DataLoader(dataset, batch_size=32, shuffle=True, **options)
        total = sum(batch.sum() for batch in loader)
        is_whole = torch.allclose(total, dataset.images.sum())
        print(f"{method}: {len(loader)} batches, every pixel came back: {is_whole}")
