"""A worker and a controller of different versions of the control protocol."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import TOOLS, environment

from tr_mmap import PythonSession, SessionNotStarted
from tr_mmap.channel.authenticated import RejectionCounter
from tr_mmap.wire.messages import PROTOCOL_VERSION
from tr_mmap.worker.attach import attach


@pytest.fixture
def manifest(workspace: Path) -> Iterator[Path]:
    """Of a session whose worker has ended, so that another one may come."""
    session = PythonSession(TOOLS, "versions", quiet_mode=True)
    session.start()
    session.terminate()
    yield workspace / "python_session" / "tr_session_versions" / "session.json"
    session.close()


@pytest.mark.parametrize("version", [1, PROTOCOL_VERSION + 1, 0, -1])
def test_a_worker_refuses_a_session_of_another_version_in_one_line(manifest: Path, version: int) -> None:
    fields = json.loads(manifest.read_text())
    assert fields["protocol"] == PROTOCOL_VERSION == 2
    manifest.write_text(json.dumps({**fields, "protocol": version}))
    with pytest.raises(SessionNotStarted, match=rf"version {version} .* version {PROTOCOL_VERSION}: ") as caught:
        attach("versions", RejectionCounter())
    assert "\n" not in str(caught.value)
    ended = subprocess.run(
        [sys.executable, str(TOOLS), "versions"], env=environment(), capture_output=True, text=True, check=False
    )
    assert ended.returncode != 0
    assert f"speaks version {version} of the control protocol" in ended.stderr
