"""Schemathesis, which asks what the OpenAPI document lets it ask, and holds every answer against it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from gateways import RunningGateway, running
from support import BOUND_S, environment

_AUTH = "requests_per_minute = 0\nfailures_per_minute = 0"
_SECTIONS = """
[sandbox]
wall_ms = 1000
memory_mb = 256
most_memory_mb = 512
[python.models]
model_dir = "models"
[store]
dir = "stores"
"""
_CONFIG = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "4xx", 503, 504] # too many sandboxes at once, and deadlines that are too short

[checks.positive_data_acceptance]
# What a schema cannot say: that code is Python, that a name is registered, that a kind goes with its field.
expected-statuses = ["2xx", 400, 401, 403, 404, 409, 413, 422, 503, 504]
"""


@pytest.mark.long
@pytest.mark.timeout(900)
def test_schemathesis_finds_nothing(folder: Path, is_full: bool) -> None:
    most = 200 if is_full else 4
    (folder / "schemathesis.toml").write_text(_CONFIG)
    (folder / "models").mkdir()
    (folder / "stores").mkdir()
    with running(folder, _SECTIONS, auth=_AUTH) as gateway:
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(folder / "schemathesis.toml")),
            *("run", f"{gateway.url}/openapi.json", "--max-examples", str(most), "--seed", "1"),
            *("--header", f"Authorization: Bearer {gateway.token('admin')}"),
            *("--request-timeout", str(BOUND_S), "--generation-database", "none", "--no-color"),
        ]
        done = subprocess.run(
            command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=800, check=False
        )
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
        assert not [each for each in gateway.logged() if each["level"] == "error"]
        check_statuses(gateway)


def check_statuses(gateway: RunningGateway) -> None:
    """Every status that a route gave is in the document."""
    paths = gateway.ask("GET", "/openapi.json").json()["paths"]
    seen = {(each["route"], each["method"], str(each["status"])) for each in gateway.logged() if "route" in each}
    for route, method, status in sorted(seen):
        if route in paths and method.lower() in paths[route] and status != "405":
            assert status in paths[route][method.lower()]["responses"], (route, method, status)
