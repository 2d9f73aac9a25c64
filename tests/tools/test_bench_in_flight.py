"""The benchmark's table, targets and picture of many requests in flight. Nothing here bounds a speed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from test_bench import QUICK_BUILD, TOOLS, report, results, stats, targets


def in_flight_results(**changes) -> dict:
    us = {"blocking": 20, "one_by_one": 25, "submit": 10, "await": 50, "gather": 20, "gather_many": 25, "pool": 100}
    us |= {"cpp_one_by_one": 20, "cpp_submit": 5}
    cells = {row: stats.summarise([1000 * each]).to_json() for row, each in {**us, "pool_many": 130, **changes}.items()}
    return {**cells, "depth": 32, "many": 4, "awaits": 10_000}


@pytest.mark.parametrize("worse", [{"submit": 11}, {"await": 51}, {"gather": 21}, {"gather_many": 27}])
def test_targets_of_requests_in_flight(worse):
    def judged(found):
        return [
            each.is_met
            for each in targets.judge([], {"in_flight": found})
            if "at once" in each.what or "text" in each.what
        ]

    assert judged(in_flight_results()).count(True) == 4
    assert judged(in_flight_results(**worse)).count(True) == 3


def test_requests_in_flight_are_reported_and_drawn(tmp_path):
    found = results(sweep=[], extras={"in_flight": in_flight_results()})
    text = report.to_markdown(found)
    assert "| submit(), 32 in flight | 100,000 | 10.0 µs | 1 |" in text
    assert "| from C++, submit(), 32 in flight | 200,000 | 5.00 µs | 1 |" in text
    assert "| an await | 50.0 µs | 50.0 µs | 1 |" in text
    assert report.headlines(found)["in flight: gather / pool"] == pytest.approx(0.2)
    assert report.headlines(found)["in flight: cpp_submit / cpp_one_by_one"] == pytest.approx(0.25)
    plots = pytest.importorskip("bench.plots", exc_type=ImportError)
    assert {path.name for path in plots.draw_all(found, tmp_path)} == {"in_flight.png", "in_flight.svg"}


def test_a_tiny_run_measures_every_way(tmp_path):
    run = subprocess.run(
        [sys.executable, str(TOOLS / "bench"), "--quick", "--only", "in_flight", "--out", str(tmp_path), "--no-plots"],
        env={**os.environ, **QUICK_BUILD},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads((tmp_path / "bench.json").read_text())
    assert len(found["targets"]) == 4
    assert all(each["is_met"] is not None for each in found["targets"])
    has_compiler = shutil.which(QUICK_BUILD["CXX"]) is not None
    assert ("cpp_submit" in found["extras"]["in_flight"]) == has_compiler
