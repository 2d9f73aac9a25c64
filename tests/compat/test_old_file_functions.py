"""The original's functions on files, and its errors."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import tr_mmap
from tr_mmap.compat.files import ServerError, TSRError, export_tsr, get_tsr_info, import_tsr
from tr_mmap.compat.files import read_tsr_file as read_it
from tr_mmap.compat.files import write_tsr_file as write_it

X = torch.arange(6, dtype=torch.float32).reshape(2, 3)


def test_what_is_exported_is_imported_in_either_order_of_arguments(tmp_path: Path) -> None:
    for number, export in enumerate((export_tsr, write_it)):
        for order in (1, -1):
            path = str(tmp_path / f"{number}{order}.tsr")
            export(*(X, path)[::order])
            for found in (import_tsr(path), read_it(path)):
                assert type(found) is torch.Tensor
                assert torch.equal(found, X)
    assert np.array_equal(import_tsr(path, framework="numpy"), X.numpy())


def test_the_description_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.tsr"
    export_tsr(X, path)
    info = get_tsr_info(path)
    assert (info["version"], info["dtype"], info["shape"], info["ndim"]) == (1, "float32", (2, 3), 2)
    assert (info["num_elements"], info["data_size"], info["header_size"], info["file_size"]) == (6, 24, 64, 88)


def spoiled(tmp_path: Path, what: str) -> Path:
    path = tmp_path / "spoiled.tsr"
    if what == "cut":
        export_tsr(X, path)
        path.write_bytes(path.read_bytes()[:-1])
    elif what == "text":
        path.write_text("no tensor, but long enough for a header of sixty-four bytes and then some")
    elif what == "empty":
        path.touch()
    elif what == "directory":
        path.mkdir()
    return path


@pytest.mark.parametrize("what", ["cut", "text", "empty", "missing", "directory"])
@pytest.mark.parametrize("function", [import_tsr, read_it, get_tsr_info])
def test_whatever_is_wrong_with_a_file_is_a_tsr_error(tmp_path: Path, what: str, function: object) -> None:
    path = spoiled(tmp_path, what)
    with pytest.raises(TSRError, match=r"spoiled\.tsr") as caught:
        function(path)  # type: ignore[operator]
    error = caught.value
    assert isinstance(error, ServerError)
    assert isinstance(error, FileNotFoundError) is (what == "missing")
    assert isinstance(error, tr_mmap.TSRFormatError) is (what in ("cut", "text", "empty"))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_what_cannot_be_written_is_a_tsr_error(tmp_path: Path) -> None:
    for tensor, path in (("text", tmp_path / "x"), ({}, tmp_path / "x"), (X, tmp_path / "no" / "x"), (X, X)):
        with pytest.raises(TSRError):
            export_tsr(tensor, path)
    assert not list(tmp_path.iterdir())


def test_a_program_may_raise_the_errors_itself() -> None:
    for kind in (TSRError, ServerError):
        with pytest.raises(kind, match="my own"):
            raise kind("my own")
    assert str(TSRError()) == ""
