"""Ray: an actor's method, with arguments and results in its object store."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import warnings

from .base import Array, Peer, missing

__all__ = ["RayActor"]

_STORE_NBYTES = 256 << 20


class RayActor(Peer):
    key = "ray"
    label = "Ray actor"
    payloads = 4

    def __init__(self) -> None:
        self._ray = None

    def unavailable(self) -> str | None:
        return missing("ray")

    def start(self, max_nbytes: int) -> None:
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")
        os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        self._directory = tempfile.mkdtemp(prefix="trb_")  # short: it holds sockets, whose paths are bounded
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray

            self._ray = ray
            ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                configure_logging=True,
                logging_level=logging.CRITICAL,
                log_to_driver=False,
                object_store_memory=_STORE_NBYTES + 6 * max_nbytes,
                _temp_dir=self._directory,
            )

        @ray.remote(num_cpus=1)
        class Worker:
            def increment(self, x):
                return x + 1

        self._worker = Worker.remote()
        ray.get(self._worker.increment.remote(1))

    def roundtrip(self, x: Array) -> Array:
        return self._ray.get(self._worker.increment.remote(x))

    def close(self) -> None:
        ray, self._ray = self._ray, None
        if ray is not None:
            self._worker = None
            ray.shutdown()
            shutil.rmtree(self._directory, ignore_errors=True)
