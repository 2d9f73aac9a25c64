"""The controller's side: a model that threads may share, and that gets a new worker when its worker died or hung."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tr_mmap import PythonSession, WorkerDied

BATCH = 256  # images in one request; choose what the worker's memory allows


class Model:
    def __init__(self, session: PythonSession) -> None:
        self.session = session
        self._turn = threading.Lock()  # whoever has it is the only one that asks, and restarts the worker if need be

    def predict(self, images: torch.Tensor, timeout_ms: float = 10_000) -> torch.Tensor:
        """Class probabilities. A TimeoutError or WorkerDied has started a new worker already: you may ask again."""
        if not self._turn.acquire(timeout=timeout_ms / 1000):
            raise TimeoutError(f"other requests took longer than {timeout_ms:g} ms")  # the worker is well: no restart
        try:
            self.session.wait_until_ready(60_000)  # returns at once, unless the worker is just starting
            return torch.cat([self.session.calculate("predict", x, timeout_ms=timeout_ms) for x in images.split(BATCH)])
        except (TimeoutError, WorkerDied):
            self.session.terminate()  # a worker that hangs does not end by itself
            self.session.start()  # returns at once; the next request waits until the worker is ready
            raise
        finally:
            self._turn.release()


@contextmanager
def serve(session_id: str = "model") -> Iterator[Model]:
    with PythonSession(Path(__file__).with_name("worker.py"), session_id, framework="torch") as session:
        yield Model(session)
