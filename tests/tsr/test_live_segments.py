"""A file that is a live segment is loaded whole and marked, or refused."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from strategies import bits
from support import FRAMEWORKS
from tsr_files import ARRAY, F32, fault_of

from tr_mmap.base import system
from tr_mmap.errors import Fault
from tr_mmap.tsr import Header, files, load, read_header, save
from tr_mmap.tsr.header import encode_v2
from tr_mmap.wire.header import GUEST_OFFSET, SEQ_COPY_OFFSET, SEQ_OFFSET, SEQ_RETIRED


class Segment:
    """A segment's owner in miniature: the file, and its header mapped."""

    def __init__(self, path: Path, seq: int = 5) -> None:
        raw = encode_v2(F32, (3, 5), seq=seq, created_ns=1, is_segment=True)
        path.write_bytes(raw + ARRAY.tobytes() + bytes(4096))
        self.file = open(path, "r+b")  # noqa: SIM115 - closed below
        self.map = mmap.mmap(self.file.fileno(), 0)

    def store(self, offset: int, value: int) -> None:
        self.map[offset : offset + 8] = struct.pack("<Q", value)

    def word(self, offset: int) -> int:
        return int.from_bytes(self.map[offset : offset + 8], "little")

    def close(self) -> None:
        self.map.close()
        self.file.close()


@pytest.fixture
def segment(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Segment]:
    monkeypatch.setattr(files, "_WAITS_S", (0.0, 0.0, 0.0))
    made = Segment(path)
    yield made
    made.close()


@FRAMEWORKS
def test_loading_a_live_segment_leaves_the_guest_mark(path: Path, segment: Segment, framework: str) -> None:
    before = bytes(segment.map)
    loaded = load(path, framework=framework)
    assert bits(loaded) == bits(ARRAY)
    assert segment.word(GUEST_OFFSET) == 1
    segment.store(GUEST_OFFSET, 0)
    assert bytes(segment.map) == before, "nothing but the mark was touched"


def test_reading_a_live_segments_header_leaves_no_mark(path: Path, segment: Segment) -> None:
    assert read_header(path) == Header(2, F32, (3, 5), 5, 256, 60, 1, None, True)
    assert segment.word(GUEST_OFFSET) == 0


@pytest.mark.parametrize("change", ["recycled", "being_written"])
def test_a_segment_recycled_while_it_is_opened_is_never_returned(
    path: Path, segment: Segment, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    original = system.map_write
    opened = 0

    def interfere(*args: Any) -> memoryview:
        nonlocal opened
        opened += 1
        mapping = original(*args)
        if change == "recycled":
            segment.store(SEQ_COPY_OFFSET, 5 + opened)
            segment.store(SEQ_OFFSET, 5 + opened)
        else:
            segment.store(SEQ_OFFSET, 0)
        return mapping

    monkeypatch.setattr(system, "map_write", interfere)
    fault = fault_of(lambda: load(path))
    assert fault is (Fault.TORN if change == "recycled" else Fault.UNPUBLISHED)
    assert opened == (4 if change == "recycled" else 1)


def test_a_segment_given_up_while_it_is_opened_is_never_returned(
    path: Path, segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = system.open_path

    def open_then_retire(name: str, *, write: bool = False) -> int:
        fd = original(name, write=write)
        segment.store(SEQ_OFFSET, SEQ_RETIRED)
        segment.store(SEQ_COPY_OFFSET, SEQ_RETIRED)
        path.unlink()
        return fd

    monkeypatch.setattr(system, "open_path", open_then_retire)
    with pytest.raises(FileNotFoundError):
        load(path)
    assert segment.word(GUEST_OFFSET) == 0


def test_a_segment_that_settles_is_loaded_after_all(
    path: Path, segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment.store(SEQ_OFFSET, 0)
    original = files._header_of
    looks = 0

    def settle(fd: int, name: str) -> Header:
        nonlocal looks
        looks += 1
        if looks == 3:
            segment.store(SEQ_OFFSET, 5)
        return original(fd, name)

    monkeypatch.setattr(files, "_header_of", settle)
    assert bits(load(path)) == bits(ARRAY)


def test_the_mark_is_stored_before_the_second_look(
    path: Path, segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = files._header_of
    marks: list[int] = []

    def look(fd: int, name: str) -> Header:
        marks.append(segment.word(GUEST_OFFSET))
        return original(fd, name)

    monkeypatch.setattr(files, "_header_of", look)
    load(path)
    assert marks == [0, 0, 1]


def test_a_name_that_leads_elsewhere_between_two_looks_gives_the_new_tensor(
    path: Path, segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = system.open_path

    def replace_then_open(name: str, *, write: bool = False) -> int:
        if write:
            save(path, -ARRAY)
        return original(name, write=write)

    monkeypatch.setattr(system, "open_path", replace_then_open)
    assert bits(load(path)) == bits(-ARRAY)
    assert segment.word(GUEST_OFFSET) == 0
