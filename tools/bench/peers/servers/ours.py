"""The gateway of this package: with a contained process that is kept, and with a fresh one for each request."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

from ...load import request
from ..base import Array
from .base import WORKERS, ServerPeer

__all__ = ["CONFIG", "DOUBLE", "Ours"]

DOUBLE: Final = "def process(inputs):\n    return {'output': inputs['x'] * 2}\n"
CONFIG: Final = """
[server]
port = {port}
max_body_mb = 256
[auth]
key_file = "tr_mmap.key"
requests_per_minute = 0
[scheduler]
max_workers = {workers}
[sandbox]
memory_mb = 1024
output_mb = 65
cpu_cores = {cores}
"""
_EXECUTE: Final = "/api/v1/python/execute"


class Ours(ServerPeer):
    key = "ours"
    rows: ClassVar[Mapping[str, str]] = {
        "ours": "tr_mmap, process kept",
        "ours-fresh": "tr_mmap, a fresh process each",
    }
    takes_bytes = True
    note = "each request has a JSON Web Token and a line in the log, which those of the others have not"

    def command(self, folder: Path, port: int) -> list[str]:
        path = folder / "tr_mmap.toml"
        path.write_text(CONFIG.format(port=port, workers=WORKERS, cores=WORKERS // 2))
        made = subprocess.run(
            [sys.executable, "-m", "tr_mmap", "token", "--config", str(path), "--scope", "admin"],
            capture_output=True,
            text=True,
            check=True,
        )
        self.token = made.stdout.split()[-1]
        return [sys.executable, "-m", "tr_mmap", "serve", "--config", str(path)]

    def environment(self, folder: Path) -> dict[str, str]:  # noqa: ARG002
        return {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}

    def prepare(self) -> None:
        for name, is_reused in (("ours", True), ("ours-fresh", False)):
            status, answer = self.ask("/api/v1/python/algorithms", {"name": name, "code": DOUBLE, "reuse": is_reused})
            if status != 201:
                raise RuntimeError(f"{name} could not be registered: {answer}")

    def ask(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and body of the answer to one request of its own connection."""
        connection = HTTPConnection(*self.address)
        connection.request("POST", path, json.dumps(body), {"Authorization": f"Bearer {self.token}"})
        with connection.getresponse() as answer:
            found = answer.status, json.loads(answer.read())
        connection.close()
        return found

    def request(self, row: str, x: Array) -> bytes:
        said = {"dtype": "float32", "shape": list(x.shape), "data": x.tolist()}
        body = json.dumps({"algorithm": row, "inputs": {"x": said}}).encode()
        return request(_EXECUTE, body, self._headers("application/json"))

    def large_request(self, row: str, x: Array) -> bytes:
        said = {"dtype": "float32", "shape": list(x.shape), "offset": 0, "nbytes": x.nbytes}
        text = json.dumps({"algorithm": row, "inputs": {"x": said}}).encode()
        text += b" " * (-len(text) % 64)
        headers = self._headers("application/octet-stream")
        headers |= {"Accept": "application/octet-stream", "TR-JSON-Length": str(len(text))}
        return request(_EXECUTE, text + x.tobytes(), headers)

    def _headers(self, content_type: str) -> dict[str, str]:
        return {"Content-Type": content_type, "Authorization": f"Bearer {self.token}"}

    def result(self, answer: Any) -> list[float]:
        found: list[float] = answer["result"]["data"]
        return found

    def large_result(self, head: bytes, body: memoryview) -> Array:
        length = next(
            int(line.partition(b":")[2]) for line in head.splitlines() if line.lower().startswith(b"tr-json-length:")
        )
        said = json.loads(bytes(body[:length]))["result"]
        start = length + said["offset"]
        return np.frombuffer(body[start : start + said["nbytes"]], np.float32)
