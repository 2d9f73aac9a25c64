"""LitServe, BentoML and Ray Serve, each with the few lines that its own pages show."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ...load import request
from ..base import Array
from .base import PROGRAMS, WORKERS, InOwnVenv

__all__ = ["BentoMl", "LitServe", "RayServe"]

_JSON = {"Content-Type": "application/json"}


class LitServe(InOwnVenv):
    key = "litserve"
    rows: ClassVar[Mapping[str, str]] = {"litserve": "LitServe"}
    packages = "litserve numpy"

    def command(self, folder: Path, port: int) -> list[str]:  # noqa: ARG002
        return [str(self.venv / "bin/python"), str(PROGRAMS / "serve_litserve.py"), str(port), str(WORKERS)]

    def request(self, row: str, x: Array) -> bytes:  # noqa: ARG002
        return request("/predict", json.dumps({"x": x.tolist()}).encode(), _JSON)

    def result(self, answer: Any) -> list[float]:
        found: list[float] = answer["output"]
        return found


class BentoMl(InOwnVenv):
    key = "bentoml"
    rows: ClassVar[Mapping[str, str]] = {"bentoml": "BentoML"}
    packages = "bentoml numpy"

    def command(self, folder: Path, port: int) -> list[str]:  # noqa: ARG002
        bentoml = [str(self.venv / "bin/bentoml"), "serve", "serve_bentoml:Double"]
        return [*bentoml, "--working-dir", str(PROGRAMS), "--host", "127.0.0.1", "--port", str(port)]

    def environment(self, folder: Path) -> dict[str, str]:
        return {"BENTOML_HOME": str(folder), "BENTOML_DO_NOT_TRACK": "True", "TR_WORKERS": str(WORKERS)}

    def request(self, row: str, x: Array) -> bytes:  # noqa: ARG002
        return request("/double", json.dumps({"x": x.tolist()}).encode(), _JSON)

    def result(self, answer: Any) -> list[float]:
        found: list[float] = answer
        return found


class RayServe(InOwnVenv):
    key = "ray"
    rows: ClassVar[Mapping[str, str]] = {"ray": "Ray Serve"}
    packages = "'ray[serve]' numpy"
    takes_bytes = True

    def command(self, folder: Path, port: int) -> list[str]:
        program = str(PROGRAMS / "serve_ray.py")
        return [str(self.venv / "bin/python"), program, str(port), str(WORKERS), str(folder)]

    def environment(self, folder: Path) -> dict[str, str]:  # noqa: ARG002
        return {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_ENABLE_TASK_EVENTS": "0"}

    def request(self, row: str, x: Array) -> bytes:  # noqa: ARG002
        return request("/", json.dumps({"x": x.tolist()}).encode(), _JSON)

    def large_request(self, row: str, x: Array) -> bytes:  # noqa: ARG002
        return request("/", x.tobytes(), {"Content-Type": "application/octet-stream"})

    def result(self, answer: Any) -> list[float]:
        found: list[float] = answer["output"]
        return found
