"""A tensor of a TSR file that was loaded from tmpfs reaches a worker by a link to the file, and is copied nowhere."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import TOOLS

import tr_mmap
from tr_mmap import PythonSession, StaleTensor
from tr_mmap.native import drain
from tr_mmap.shm.reader import SegmentReader

MIB = 1 << 20


@pytest.fixture
def own(workspace: Path) -> Iterator[PythonSession]:
    with PythonSession(TOOLS, "own", quiet_mode=True) as session:
        yield session


@pytest.fixture
def path(workspace: Path) -> Iterator[Path]:
    """Of a file on the tmpfs of the workspace, with a MiB of the number 5."""
    with tempfile.TemporaryDirectory(prefix="tr_test_", dir=workspace.parent) as folder:
        made = Path(folder) / "weights.tsr"
        tr_mmap.save(made, np.full(MIB, 5, np.uint8))
        yield made


def inode_of(session: PythonSession, tensor: Any) -> int:
    return int(json.loads(session.calculate("where", tensor))["inode"])


def links(session: PythonSession) -> list[str]:
    return [name for name in os.listdir(session.session_dir()) if name.startswith("given-")]


@pytest.mark.parametrize("options", [{}, {"verify": True}])
@pytest.mark.parametrize("version", [0, 1, 2])
def test_a_loaded_file_is_sent_by_name(own: PythonSession, path: Path, version: int, options: dict[str, Any]) -> None:
    x = np.full((1, 1, 1024, 256), 7, np.float32)
    tr_mmap.save(path, x, version=version, checksum=version == 2)
    loaded = tr_mmap.load(path, **options if version == 2 else {})
    for _ in range(3):
        assert inode_of(own, loaded) == path.stat().st_ino
    own.send_tensor(loaded, "w")
    assert own.calculate("total w") == own.calculate("total", {"x": loaded}) == str(7 * loaded.size)
    assert own.stats().copied_nbytes == 0
    assert len(links(own)) == 1


def test_a_loaded_file_under_a_tag_is_there_for_the_next_worker(own: PythonSession, path: Path) -> None:
    own.send_tensor(tr_mmap.load(path), "w")
    assert own.calculate("total w") == str(5 * MIB)
    own.terminate()
    own.join()
    own.start()
    own.wait_until_ready()
    assert own.calculate("total w") == str(5 * MIB)
    assert own.stats().copied_nbytes == 0


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_a_worker_may_write_into_a_copy_on_write_view_and_the_file_stays(path: Path, framework: str) -> None:
    pytest.importorskip(framework)
    link = path.with_name("given-file_0.tsr")
    os.link(path, link)
    reader = SegmentReader(str(path.parent), views="copy_on_write")
    view = reader.receive(link.name, 9, framework)
    view[:] = 1
    assert (tr_mmap.load(path) == 5).all()
    shared = SegmentReader(str(path.parent)).receive(link.name, 9, "numpy")
    assert not shared.flags.writeable
    link.unlink()
    with pytest.raises(StaleTensor):
        reader.receive(link.name, 9, framework)


def test_a_file_that_was_saved_again_is_sent_as_it_was_loaded(own: PythonSession, path: Path) -> None:
    loaded = tr_mmap.load(path)
    tr_mmap.save(path, np.full(MIB, 6, np.uint8))
    assert own.calculate("total", loaded) == str(5 * MIB)  # its file has no name any more, so it is copied
    assert own.stats().copied_nbytes == MIB
    fresh = tr_mmap.load(path)
    own.send_tensor(fresh, "w")
    tr_mmap.save(path, np.full(MIB, 8, np.uint8))
    assert own.calculate("total w") == str(6 * MIB)
    path.unlink()
    assert own.calculate("total w") == str(6 * MIB)
    own.send_tensor(fresh, "w")  # its name is gone, but not our link
    assert own.calculate("total w") == str(6 * MIB)
    assert own.stats().copied_nbytes == MIB


def test_what_is_no_whole_loaded_file_is_copied(own: PythonSession, path: Path) -> None:
    loaded = tr_mmap.load(path)
    small = path.with_name("small.tsr")
    tr_mmap.save(small, np.ones(9))
    before = 0
    for each in (
        loaded[1:],
        loaded[::2],
        loaded.reshape(1024, 1024),
        loaded.view(np.int8),
        tr_mmap.load(path, mode="c"),
        tr_mmap.load(small),
    ):
        assert own.calculate("echo", each).tobytes() == each.tobytes()
        before += each.nbytes
        assert own.stats().copied_nbytes == before


def test_a_file_on_another_file_system_is_copied(own: PythonSession) -> None:
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as folder:
        path = Path(folder) / "x.tsr"
        tr_mmap.save(path, np.full(MIB, 5, np.uint8))
        assert own.calculate("total", tr_mmap.load(path)) == str(5 * MIB)
    assert own.stats().copied_nbytes == MIB


def test_a_link_goes_with_the_array_and_its_tag(own: PythonSession, path: Path) -> None:
    loaded = tr_mmap.load(path)
    own.send_tensor(loaded, "w")
    own.calculate("total w")
    del loaded
    own.send_tensor(np.ones(9), "w")
    assert own.calculate("total w") == "9"
    again = tr_mmap.load(path)
    drain()
    assert own.calculate("total", again) == str(5 * MIB)
    assert len(links(own)) == 1


def test_tags_of_files_that_are_sent_at_once_are_all_announced(own: PythonSession, path: Path) -> None:
    """Each announcement has a number of its own, though a file has none."""
    files = []
    for number in range(3):
        each = path.with_name(f"f{number}.tsr")
        tr_mmap.save(each, np.full(MIB, number, np.uint8))
        files.append(tr_mmap.load(each))
    for _ in range(5):
        for number, loaded in enumerate(files):
            own.send_tensor(loaded, "w")
            assert own.calculate("total w") == str(number * MIB)
    assert own.stats().copied_nbytes == 0


@pytest.mark.parametrize("options", [{"auth": True}, {"checksum": True}, {"budget_nbytes": 8 * MIB}])
def test_a_session_with_a_pool_of_its_own_copies_loaded_files(
    workspace: Path, path: Path, options: dict[str, Any]
) -> None:
    with PythonSession(TOOLS, "apart", quiet_mode=True, **options) as session:
        assert session.calculate("total", tr_mmap.load(path)) == str(5 * MIB)
        assert session.stats().copied_nbytes == MIB
