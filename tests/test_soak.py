"""The soak, shortly: random traffic with kills and restarts is right, grows nothing and leaves nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).resolve().parent.parent / "tools" / "soak"


@pytest.mark.timeout(0)
def test_random_traffic_with_faults_is_right_and_flat_and_leaves_nothing(pytestconfig: pytest.Config) -> None:
    seconds = 1800 if pytestconfig.getoption("--full") else 10
    done = subprocess.run(
        [sys.executable, str(SOAK), "--seconds", str(seconds)],
        capture_output=True,
        text=True,
        timeout=seconds + 300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing wrong, nothing grown, nothing left" in done.stdout
