"""A gateway whose disk and shared memory have no room left: what needs none goes on, and the rest says so."""

from __future__ import annotations

import base64
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gateways import RunningGateway, running
from support import WORKERS
from wheels import make_wheel

NBYTES = 48 << 20
ALGORITHMS, EXECUTE, STORE = "/api/v1/python/algorithms", "/api/v1/python/execute", "/api/v1/store/first"


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system with little room."""
    path = tmp_path / "small"
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={NBYTES},mode=700", "tr_mmap-test", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"NOT TESTED: a gateway with a full disk, for this user may mount none ({done.stderr.strip()})")
    try:
        (path / "sessions").mkdir(mode=0o700)
        monkeypatch.setenv("TR_WORKSPACE", str(path / "sessions"))
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(small: Path) -> None:
    info = os.statvfs(small)
    with (small / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, info.f_bavail * info.f_frsize)


@pytest.fixture
def gateway(small: Path, tmp_path: Path) -> Iterator[RunningGateway]:
    """All that it writes lies there, and so do the sessions of its workers."""
    make_wheel(tmp_path / "wheels", "words", "1.0")
    more = f"""
[store]
dir = "{small}/stores"
[python.dependencies]
cache_dir = "{small}/cache"
auto_install = true
allow = ["words"]
wheel_dir = "{tmp_path}/wheels"
[workers.one]
script = "{WORKERS / "gateway_worker.py"}"
"""
    auth = f'requests_per_minute = 0\naudit_log = "{small}/audit.jsonl"'
    with running(tmp_path, more, auth=auth) as started:
        yield started


def test_a_full_disk_is_said_and_what_needs_none_goes_on_and_all_does_when_there_is_room(
    gateway: RunningGateway, small: Path
) -> None:
    x = {"dtype": "float32", "shape": [300_000], "base64": base64.b64encode(bytes(1_200_000)).decode()}
    # Those that need room: method, path, body, and how it is said that there is none.
    needy: dict[str, tuple[str, str, Any, int, str]] = {
        "a record": ("POST", f"{STORE}/records", {"content": "long " * 1000}, 507, "StoreFull"),
        "a store": ("PUT", "/api/v1/store/second", {}, 507, "StoreFull"),
        "packages": (
            *("POST", ALGORITHMS, {"name": "w", "code": "import words\noutput = 1", "dependencies": ["words==1.0"]}),
            *(503, "InstallFailed"),
        ),
        "a worker": (
            *("POST", EXECUTE, {"algorithm": "one", "function": "scale", "inputs": {"x": x, "factor": 2.0}}),
            *(503, "OutOfSpace"),
        ),
    }
    assert gateway.ask("PUT", STORE, {}).status_code == 201
    assert gateway.ask("POST", f"{STORE}/records", {"id": "first", "content": "hello"}).status_code == 201
    fill(small)
    for what, (method, path, body, status, kind) in needy.items():
        answer = gateway.ask(method, path, body)
        assert (answer.status_code, answer.json()["type"]) == (status, kind), f"{what}: {answer.text}"
        assert str(small) not in answer.text
    assert gateway.register("here", "output = 1")["status"] == "registered"
    assert gateway.execute(code="output = float(inputs['x'].sum())", inputs={"x": x}) == 0
    assert gateway.ask("GET", f"{STORE}/records/first").json()["content"] == "hello"
    for _ in range(60):  # the last page of the audit log has room for some of their lines
        gateway.register("here", "output = 1")
    missed = re.search(r"^tr_audit_missed_total (.*)$", gateway.ask("GET", "/metrics").text, re.MULTILINE)
    assert missed
    assert float(missed[1]) > 0
    (small / "filler").unlink()
    for what, (method, path, body, *_) in needy.items():
        answer = gateway.ask(method, path, body)
        assert answer.status_code in (200, 201), f"{what}: {answer.text}"
    assert gateway.ask("GET", f"{STORE}/records/first").json()["content"] == "hello"
    assert gateway.execute(algorithm="w") == 1
    left = {each.name for each in (small / "cache").iterdir()} | {each.name for each in (small / "stores").iterdir()}
    assert len(left) == 3  # the environment and two stores: nothing half made
