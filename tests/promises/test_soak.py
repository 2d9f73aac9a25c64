"""The soak, shortly: random traffic with kills and restarts is right, grows nothing and leaves nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from support import ROOT

SOAK = ROOT / "tools" / "soak"


@pytest.mark.long
@pytest.mark.timeout(0)
def test_random_traffic_with_faults_is_right_and_flat_and_leaves_nothing(
    is_full: bool, figures: Callable[[str], None]
) -> None:
    seconds = 600 if is_full else 10
    done = subprocess.run(
        [sys.executable, str(SOAK), "--seconds", str(seconds)],
        capture_output=True,
        text=True,
        timeout=seconds + 300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures(done.stdout)
    assert "nothing wrong, nothing grown, nothing left" in done.stdout
