"""A model that threads may share. A worker that died or hangs is replaced by a new one."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tr_mmap import PythonSession


class Model:
    """Asks the worker of a session. A batch that takes longer than ``hang_ms`` hangs: its worker is ended."""

    def __init__(self, session: PythonSession, hang_ms: float) -> None:
        self.session, self._hang_s = session, hang_ms / 1000
        self._hangs_from = 0.0  # from this time on, the batch that was sent last takes too long
        self._turn = threading.Lock()  # held while a thread asks, or starts the worker

    def predict(self, images: torch.Tensor, timeout_ms: float = 10_000) -> torch.Tensor:
        """Class probabilities. After an error you may ask again: that starts a worker if there is none."""
        deadline = time.monotonic() + timeout_ms / 1000  # one for everything that follows
        if not self._turn.acquire(timeout=timeout_ms / 1000):
            raise TimeoutError(f"other requests took longer than {timeout_ms:g} ms")
        try:
            self._make_ready(deadline)
            return torch.cat([self._ask(batch, deadline) for batch in images.split(256)])  # what its memory allows
        finally:
            self._turn.release()

    def _make_ready(self, deadline: float) -> None:
        session = self.session
        if session.is_busy():  # with a batch of an earlier request, whose time was over
            has_ended = session.wait_until_ready(ms_until(min(deadline, self._hangs_from)))
            if not has_ended and time.monotonic() >= self._hangs_from:
                session.terminate()
        if not session.is_alive():  # it hung, or has died, or the last start failed
            session.start()
        if not session.wait_until_ready(ms_until(deadline)):
            raise TimeoutError("the model is being loaded, or computes an earlier batch; ask again")

    def _ask(self, batch: torch.Tensor, deadline: float) -> torch.Tensor:
        self._hangs_from = time.monotonic() + self._hang_s
        return self.session.calculate("predict", batch, timeout_ms=ms_until(deadline))


def ms_until(moment: float) -> float:
    return max(0.0, moment - time.monotonic()) * 1000


@contextmanager
def serve(session_id: str = "model", hang_ms: float = 60_000) -> Iterator[Model]:
    worker = Path(__file__).with_name("worker.py")  # which ends by itself if it loads for too long
    with PythonSession(worker, session_id, framework="torch", start_timeout_ms=None) as session:
        yield Model(session, hang_ms)
