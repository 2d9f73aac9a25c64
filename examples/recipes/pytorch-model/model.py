"""A model that threads may share. A worker that died or hangs is replaced by a new one."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tr_mmap import PythonSession, ResponseTimeout, WorkerDied


class Model:
    def __init__(self, session: PythonSession) -> None:
        self.session = session
        self._turn = threading.Lock()  # held while a thread asks, or starts the worker

    def predict(self, images: torch.Tensor, timeout_ms: float = 10_000) -> torch.Tensor:
        """Class probabilities. After an error you may ask again: that starts a worker if there is none."""
        if not self._turn.acquire(timeout=timeout_ms / 1000):
            raise TimeoutError(f"other requests took longer than {timeout_ms:g} ms")
        try:
            if self.session.pid is None:  # there is no worker, also if the last start failed
                self.session.start()
            if not self.session.wait_until_ready(timeout_ms):  # True at once, unless it was just started
                raise TimeoutError("the model is still being loaded; ask again")  # and let it load on
            ask, batches = self.session.calculate, images.split(256)  # as many as the worker's memory allows
            return torch.cat([ask("predict", x, timeout_ms=timeout_ms) for x in batches])
        except (ResponseTimeout, WorkerDied):
            self.session.close()  # a worker that hangs does not end by itself
            raise
        finally:
            self._turn.release()


@contextmanager
def serve(session_id: str = "model") -> Iterator[Model]:
    worker = Path(__file__).with_name("worker.py")  # which ends by itself if it loads for too long
    with PythonSession(worker, session_id, framework="torch", start_timeout_ms=None) as session:
        yield Model(session)
