"""The command line of the package."""

from __future__ import annotations

import gc
import re

import pytest
from support import ROOT, run_python

from tr_mmap.cli.gateway import _kept


def run_cli(argument: str) -> str:
    """What it prints; fails the test if it fails."""
    ended = run_python("-m", "tr_mmap.cli", argument)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_tr_mmap_include_prints_where_the_headers_are() -> None:
    assert run_cli("include") == f"{ROOT / 'tr_mmap' / 'cpp' / 'include'}\n"


def test_tr_mmap_cmake_dir_prints_where_the_cmake_package_is() -> None:
    assert run_cli("cmake-dir") == f"{ROOT / 'tr_mmap' / 'cpp' / 'cmake'}\n"


def test_tr_mmap_version() -> None:
    assert re.fullmatch(r"tr-mmap \d+\.\d+\.\d+\n", run_cli("--version"))


def test_garbage_collection_goes_on_after_a_gateways_imports_and_after_one_that_fails() -> None:
    before = gc.get_freeze_count()
    with _kept():
        kept = [[] for _ in range(1000)]
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(kept)
    with pytest.raises(ModuleNotFoundError), _kept():
        import no_such_module  # noqa: F401
    assert gc.isenabled()
