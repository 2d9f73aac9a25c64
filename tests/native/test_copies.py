"""A copy into mapped memory has the bytes of its source, whichever way it takes: past the caches or through them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tr_mmap import native
from tr_mmap.native import reference

KIB = 1 << 10


@pytest.fixture(params=["native", "reference"])
def copy(request: pytest.FixtureRequest) -> Any:
    return native.copy if request.param == "native" else reference.copy


@pytest.mark.parametrize("is_for_others", [False, True])
@pytest.mark.parametrize(
    "nbytes", [0, 1, 64 * KIB - 1, 64 * KIB, 64 * KIB + 63, KIB * KIB + 17, 4 * KIB * KIB, 9_000_001]
)
@pytest.mark.parametrize(("to", "start"), [(0, 0), (1, 0), (0, 3), (63, 1), (64, 64)])
def test_a_copy_has_the_bytes_of_its_source_and_touches_no_others(
    copy: Any, is_for_others: bool, nbytes: int, to: int, start: int
) -> None:
    source = np.arange(nbytes + start, dtype=np.uint32).view(np.uint8)[start : start + nbytes]
    target = np.full(nbytes + 200, 7, np.uint8)
    copy(target, to, source, is_for_others)
    assert np.array_equal(target[to : to + nbytes], source)
    assert set(target[:to].tolist()) | set(target[to + nbytes :].tolist()) == {7}


@pytest.mark.parametrize("distance", [1, 8, 64 * KIB])
def test_places_that_overlap_are_copied_right_past_the_caches_too(distance: int) -> None:
    memory = np.arange(1 << 18, dtype=np.uint32).view(np.uint8)
    expected = memory[: -2 * distance].copy()
    native.copy(memory, distance, memory[: -2 * distance], True)
    assert np.array_equal(memory[distance:-distance], expected)


def test_a_copy_past_the_caches_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        native.copy(bytearray(64 * KIB), 1, bytes(64 * KIB), True)
