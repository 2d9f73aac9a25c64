"""NVIDIA's Triton Inference Server with its Python backend, as the package ``nvidia-pytriton`` has it. Needs no GPU."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

from ...load import request
from ..base import Array
from .base import PROGRAMS, WORKERS, InOwnVenv

__all__ = ["Triton"]

_PATH: Final = "/v2/models/double/infer"
_MODEL: Final = """
name: "double"
backend: "python"
max_batch_size: 0
input [ {{ name: "x", data_type: TYPE_FP32, dims: [ -1 ] }} ]
output [ {{ name: "output", data_type: TYPE_FP32, dims: [ -1 ] }} ]
instance_group [ {{ kind: KIND_CPU, count: {workers} }} ]
"""


class Triton(InOwnVenv):
    key = "triton"
    rows: ClassVar[Mapping[str, str]] = {"triton": "Triton, Python backend"}
    packages = "nvidia-pytriton 'numpy<2'"
    python = "/usr/bin/python3"
    takes_bytes = True
    note = "the server of nvidia-pytriton, with its HTTP front end alone"

    @property
    def _server(self) -> Path:
        return next(iter((self.venv / "lib").glob("python*/site-packages/pytriton/tritonserver")), self.venv / "none")

    @property
    def _python_version(self) -> str:
        return self._server.parents[2].name.removeprefix("python")

    def unavailable(self) -> str | None:
        return super().unavailable() or (None if self._server.exists() else f"no Triton in {self.venv}")

    def command(self, folder: Path, port: int) -> list[str]:
        version = folder / "models" / "double" / "1"
        version.mkdir(parents=True)
        (version.parent / "config.pbtxt").write_text(_MODEL.format(workers=WORKERS))
        (version / "model.py").write_text((PROGRAMS / "triton_model.py").read_text())
        backend = folder / "backends" / "python"
        backend.mkdir(parents=True)
        stub = self._server / "python_backend_stubs" / self._python_version / "triton_python_backend_stub"
        for each in (*(self._server / "backends" / "python").iterdir(), stub):
            (backend / each.name).symlink_to(each)
        return [
            str(self._server / "bin" / "tritonserver"),
            f"--model-repository={folder / 'models'}",
            f"--backend-directory={folder / 'backends'}",
            "--http-address=127.0.0.1",
            f"--http-port={port}",
            "--allow-grpc=false",
            "--allow-metrics=false",
            "--log-info=false",
            "--exit-timeout-secs=1",
            f"--backend-config=python,shm-region-prefix-name={self._prefix}",
        ]

    @property
    def _prefix(self) -> str:
        return f"tr_bench_triton_{os.getpid()}_"

    def close(self) -> None:
        super().close()
        for left in Path("/dev/shm").glob(f"{self._prefix}*"):  # of its stubs, when they are killed
            left.unlink(missing_ok=True)

    def environment(self, folder: Path) -> dict[str, str]:  # noqa: ARG002
        packages = self._server.parent.parent
        libraries = [packages / "nvidia_pytriton.libs", self._server / "lib"]
        return {
            "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
            "PYTHONPATH": str(packages),
            "PATH": f"{self.venv / 'bin'}:/usr/bin:/bin",
        }

    def request(self, row: str, x: Array) -> bytes:  # noqa: ARG002
        tensor = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.tolist()}
        return request(_PATH, json.dumps({"inputs": [tensor]}).encode(), {"Content-Type": "application/json"})

    def large_request(self, row: str, x: Array) -> bytes:  # noqa: ARG002
        tensor = {
            "name": "x",
            "shape": list(x.shape),
            "datatype": "FP32",
            "parameters": {"binary_data_size": x.nbytes},
        }
        text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(text))}
        return request(_PATH, text + x.tobytes(), headers)

    def result(self, answer: Any) -> list[float]:
        found: list[float] = answer["outputs"][0]["data"]
        return found

    def large_result(self, head: bytes, body: memoryview) -> Array:
        length = next(
            int(line.partition(b":")[2])
            for line in head.splitlines()
            if line.lower().startswith(b"inference-header-content-length:")
        )
        nbytes = (len(body) - length) // 4 * 4
        return np.frombuffer(bytes(body[length : length + nbytes]), np.float32)
