"""``bentoml serve serve_bentoml:Double``: ``x * 2`` by BentoML."""

import os

import bentoml
import numpy as np


@bentoml.service(workers=int(os.environ["TR_WORKERS"]), logging={"access": {"enabled": False}})
class Double:
    @bentoml.api
    def double(self, x: list[float]) -> list[float]:
        return (np.asarray(x, np.float32) * 2).tolist()
