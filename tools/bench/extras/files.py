"""A file of 256 MiB, from its path to its first element, with the file in the page cache."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import Any, Final

import numpy as np

import tr_mmap

from ..peers.base import missing
from .common import interleave

__all__ = ["run"]

_NBYTES: Final = 256 << 20


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    say("file load: writing 256 MiB in each format")
    x = np.random.default_rng(3).random(_NBYTES // 4, dtype=np.float32)
    with tempfile.TemporaryDirectory(prefix="tr_bench_load_") as directory:
        ours, numpy_path, safe_path = (os.path.join(directory, name) for name in ("x.tsr", "x.npy", "x.safetensors"))
        tr_mmap.save(ours, x)
        np.save(numpy_path, x)
        actions: dict[str, Callable[[], object]] = {
            "ours": lambda: float(tr_mmap.load(ours)[0]),
            "numpy_mmap": lambda: float(np.load(numpy_path, mmap_mode="r")[0]),
        }
        absent: dict[str, str] = {}
        reason = missing("safetensors")
        if reason:
            absent["safetensors"] = reason
        else:
            from safetensors import safe_open
            from safetensors.numpy import save_file

            save_file({"x": x}, safe_path)

            def load(framework: str) -> float:
                with safe_open(safe_path, framework) as file:
                    return float(file.get_tensor("x")[0])

            actions["safetensors_numpy"] = lambda: load("np")
            if missing("torch") is None:
                actions["safetensors_torch"] = lambda: load("pt")
                actions["ours_torch"] = lambda: float(tr_mmap.load(ours, framework="torch")[0])
        for name, action in actions.items():
            if action() != float(x[0]):
                raise RuntimeError(f"{name} read a wrong first element")
        say("file load: first element of 256 MiB")
        found = interleave(actions, rounds=2 if quick else 10, batch=3 if quick else 10, warm=1)
    return {**{name: summary.to_json() for name, summary in found.items()}, "absent": absent, "nbytes": _NBYTES}
