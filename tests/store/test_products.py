"""Products of many rows with a vector, by several threads: the same as by one, in a child too, and at the end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import ml_dtypes
import numpy as np
import pytest
from support import ROOT, environment

from tr_mmap.store.products import products


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int8, ml_dtypes.bfloat16])
@pytest.mark.parametrize("dim", [1, 3, 384, 400_000])
def test_products_are_right_whatever_the_sizes(dtype: type, dim: int) -> None:
    random_ = np.random.default_rng(1)
    most = max(1, 3_000_000 // dim)
    heights = [0, 1, most // 3, 1, most]
    parts = [(random_.random((height, dim)) * 9).astype(dtype) for height in heights]
    query = random_.random(dim)
    found = products(parts, query)
    for part, each in zip(parts, found, strict=True):
        assert each.shape == (len(part),)
        assert each.dtype == (np.float64 if dtype is np.float64 else np.float32)
        np.testing.assert_allclose(each, part.astype(np.float64) @ query, rtol=1e-4)


def test_many_threads_multiply_at_once() -> None:
    parts = [np.random.default_rng(number).random((9000, 384)).astype(np.float32) for number in range(3)]
    query = np.ones(384)
    wanted = [part.sum(axis=1) for part in parts]
    wrong: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                for each, right in zip(products(parts, query), wanted, strict=True):
                    np.testing.assert_allclose(each, right, rtol=1e-4)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert wrong == []


def test_a_forked_child_multiplies_with_threads_of_its_own() -> None:
    part, query = np.ones((9000, 384), np.float32), np.ones(384)
    assert products([part], query)[0].sum() == 9000 * 384
    pid = os.fork()
    if pid == 0:
        os._exit(0 if products([part], query)[0].sum() == 9000 * 384 else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_search_at_the_end_of_a_program_works_without_more_threads() -> None:
    program = (
        "import atexit, numpy as np\nfrom tr_mmap.store.products import products\n"
        "part, query = np.ones((9000, 384), np.float32), np.ones(384)\n"
        "products([part], query)\n"
        "atexit.register(lambda: print(products([part], query)[0].sum() == 9000 * 384))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "True\n"
