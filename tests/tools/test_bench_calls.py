"""The benchmark's tables of what a call costs, and their targets. Nothing here bounds a speed."""

from __future__ import annotations

import pytest
from test_bench import report, results, stats, targets

SMALL = {
    "numpy decorator": {"text": 5, "copied": 10, "loaned": 12, "loaned_large": 14, "error": 300},
    "torch decorator": {"text": 5, "copied": 15, "loaned": 18, "loaned_large": 21, "error": 300},
    "torch subclass": {"text": 5, "copied": 14},
}
PLAIN = {each: {"here": 10_000, "tag": 11_000, "calculate": 14_000} for each in ("numpy", "torch")}


def summaries(found: dict) -> dict:
    return {
        row: {call: stats.summarise([1000 * us]).to_json() for call, us in calls.items()}
        for row, calls in found.items()
    }


def judged(small: dict, plain: dict) -> dict:
    found = {"calls": {"small": summaries(small), "plain": summaries(plain)}}
    return {
        each.what: each.is_met
        for each in targets.judge([], found)
        if any(part in each.what for part in ("torch", "x * 1.5", "64 MiB, loaned"))
    }


def test_targets_of_kinds_of_calls():
    right = judged(SMALL, PLAIN)
    assert len(right) == 8
    assert set(right.values()) == {True}
    worse = judged(SMALL | {"torch decorator": {"copied": 16, "loaned": 18, "loaned_large": 21}}, PLAIN)
    assert [what for what, is_met in worse.items() if not is_met] == ["torch, 1 KiB, copied"]
    numpys = SMALL["numpy decorator"] | {"loaned_large": 15}
    worse = judged(SMALL | {"numpy decorator": numpys}, PLAIN)
    assert [what for what, is_met in worse.items() if not is_met] == ["64 MiB, loaned on both sides"]
    worse = judged(SMALL, PLAIN | {"numpy": {"here": 10_000, "tag": 11_000, "calculate": 14_100}})
    assert [what for what, is_met in worse.items() if not is_met] == ["`x * 1.5`, 64 MiB, numpy, by calculate"]
    assert set(judged({}, {}).values()) == {None}


@pytest.mark.parametrize("has_torch", [False, True])
def test_kinds_of_calls_are_reported_for_each_way_that_was_measured(has_torch):
    small = {row: cells for row, cells in SMALL.items() if has_torch or "numpy" in row}
    plain = {row: cells for row, cells in PLAIN.items() if has_torch or row == "numpy"}
    text = report.to_markdown(
        results(sweep=[], extras={"calls": {"small": summaries(small), "plain": summaries(plain)}})
    )
    lines = [
        line for line in text.splitlines() if "`calculate`, 1 KiB, copied" in line or "in the worker, input" in line
    ]
    assert ("| 10.0 µs | 15.0 µs | 14.0 µs |" in lines[0]) == has_torch
    assert "11.0 ms (1.10 ×)" in lines[1]
