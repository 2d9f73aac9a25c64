"""The soak, shortly: random traffic with kills and restarts is right, grows nothing and leaves nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from support import ROOT

SOAK = ROOT / "tools" / "soak"


def soak(parts: str, seconds: int, figures: Callable[[str], None]) -> None:
    done = subprocess.run(
        [sys.executable, str(SOAK), *parts.split(), "--seconds", str(seconds)],
        capture_output=True,
        text=True,
        timeout=seconds + 300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures(done.stdout)
    assert "nothing wrong, nothing grown, nothing left" in done.stdout


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("parts", ["--no-store", "--no-store --torch"])
def test_random_traffic_with_faults_is_right_and_flat_and_leaves_nothing(
    parts: str, is_full: bool, figures: Callable[[str], None]
) -> None:
    soak(parts, 600 if is_full else 4, figures)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_a_store_with_faults_is_right_and_flat_and_leaves_nothing(
    is_full: bool, figures: Callable[[str], None]
) -> None:
    soak("--no-sessions", 600 if is_full else 5, figures)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_a_pool_whose_workers_are_killed_and_come_and_go_is_right_and_flat_and_leaves_nothing(
    is_full: bool, figures: Callable[[str], None]
) -> None:
    soak("--pool", 600 if is_full else 5, figures)
    if is_full:
        soak("--pool --torch", 600, figures)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_a_gateway_whose_processes_are_killed_answers_right_and_leaves_nothing(
    is_full: bool, figures: Callable[[str], None]
) -> None:
    soak("--gateway", 600 if is_full else 8, figures)
