"""What names a tensor in the legacy dialect: a file of the session's directory, and nothing beyond it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tr_mmap import MissingTag, save
from tr_mmap.transfer.legacy_files import LegacyWorkerTransfer


@pytest.fixture
def transfer(tmp_path: Path) -> LegacyWorkerTransfer:
    directory = tmp_path / "session"
    directory.mkdir(mode=0o700)
    for path in (directory / "a.tsr", directory / "result_0.tsr", tmp_path / "beyond.tsr", tmp_path / ".hidden.tsr"):
        save(path, np.arange(3.0), version=1)
    return LegacyWorkerTransfer(str(directory))


@pytest.mark.parametrize("word", ["a", "result_0"])
def test_a_file_of_the_directory_is_a_tag(transfer: LegacyWorkerTransfer, word: str) -> None:
    assert word in transfer.tags
    assert transfer.fetch(word, "numpy").tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    "word", ["../beyond", "../session/a", "./a", "/etc/passwd", ".hidden", "", "b", "a\0", "a" * 129, "ä", "a b"]
)
def test_any_other_word_is_a_word_and_no_tag(transfer: LegacyWorkerTransfer, word: str) -> None:
    assert word not in transfer.tags
    with pytest.raises(MissingTag):
        transfer.fetch(word, "numpy")


@pytest.mark.parametrize("thing", [None, 3, b"a", ["a"]])
def test_what_is_no_text_is_no_tag(transfer: LegacyWorkerTransfer, thing: object) -> None:
    assert thing not in transfer.tags
