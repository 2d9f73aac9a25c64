"""A model that threads may share. A worker that died or hangs is replaced by a new one."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tr_mmap import PythonSession, WorkerDied


class Model:
    def __init__(self, session: PythonSession) -> None:
        self.session = session
        self._turn = threading.Lock()  # held while a thread asks, or restarts the worker

    def predict(self, images: torch.Tensor, timeout_ms: float = 10_000) -> torch.Tensor:
        """Class probabilities. After a TimeoutError or WorkerDied you may ask again."""
        if not self._turn.acquire(timeout=timeout_ms / 1000):
            raise TimeoutError(f"other requests took longer than {timeout_ms:g} ms")
        try:
            self.session.wait_until_ready(60_000)  # at once, unless it was just started
            batches = images.split(256)  # as many as the worker's memory allows
            ask = self.session.calculate
            return torch.cat([ask("predict", x, timeout_ms=timeout_ms) for x in batches])
        except (TimeoutError, WorkerDied):
            self.session.terminate()  # a worker that hangs does not end by itself
            self.session.start()  # does not wait until it is ready: the next request does
            raise
        finally:
            self._turn.release()


@contextmanager
def serve(session_id: str = "model") -> Iterator[Model]:
    worker = Path(__file__).with_name("worker.py")
    with PythonSession(worker, session_id, framework="torch") as session:
        yield Model(session)
