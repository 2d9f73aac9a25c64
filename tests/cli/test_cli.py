"""The command line of the package."""

from __future__ import annotations

import re

from support import ROOT, run_python


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
