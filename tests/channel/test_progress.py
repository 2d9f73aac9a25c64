"""The progress page: a reader gets what a request said last, whole, or nothing."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tr_mmap.channel.progress import ProgressReader, ProgressWriter, _line_of, _parse
from tr_mmap.wire.messages import PROGRESS_FILE, PROGRESS_NBYTES, PROGRESS_SLOT_NBYTES, RING_SLOTS

FRACTIONS = st.floats(0, 1)
LINES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=300)


@pytest.fixture
def sides(tmp_path: Path) -> tuple[ProgressWriter, ProgressReader]:
    return ProgressWriter(str(tmp_path)), ProgressReader(str(tmp_path))


@given(st.integers(1, 99_999_999), FRACTIONS, LINES)
def test_a_slot_gives_back_the_fraction_and_as_much_text_as_it_has_room_for(
    seq: int, fraction: float, text: str
) -> None:
    line = _line_of(seq, fraction, text)
    assert len(line) <= PROGRESS_SLOT_NBYTES
    found = _parse(line.ljust(PROGRESS_SLOT_NBYTES), b"%8d" % seq)
    assert found is not None
    assert found.fraction == fraction
    assert text.startswith(found.text)
    assert found.text == text or len(line) > PROGRESS_SLOT_NBYTES - 4
    assert _parse(line.ljust(PROGRESS_SLOT_NBYTES), b"%8d" % (seq + 1)) is None


@given(st.data(), FRACTIONS, LINES, FRACTIONS, LINES)
def test_a_read_in_the_middle_of_a_write_never_gives_a_mix(
    data: st.DataObject, old: float, old_text: str, new: float, new_text: str
) -> None:
    number = b"%8d" % 7
    before = _line_of(7, old, old_text).ljust(PROGRESS_SLOT_NBYTES)
    line = _line_of(7, new, new_text)
    after = line + before[len(line) :]
    start = data.draw(st.integers(0, PROGRESS_SLOT_NBYTES))
    end = data.draw(st.integers(start, PROGRESS_SLOT_NBYTES))
    for mix in (before[:start] + after[start:end] + before[end:], after[:start] + before[start:end] + after[end:]):
        assert _parse(mix, number) in (None, _parse(before, number), _parse(after, number))


def test_a_reader_beside_a_writer_gets_whole_lines_only(sides: tuple[ProgressWriter, ProgressReader]) -> None:
    writer, reader = sides
    is_over = threading.Event()

    def write() -> None:
        for number in range(20_000):
            writer.write(3, (number % 10) / 10, f"{number % 10}" * (number % 10) * 20)
        is_over.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen = 0
    while not is_over.is_set():
        found = reader.read(3)
        if found is not None:
            digit = round(found.fraction * 10)
            assert found.text == (str(digit) * digit * 20)[: len(found.text)]
            seen += 1
    thread.join()
    assert seen


def test_no_request_under_way_loses_its_slot_to_another_one(sides: tuple[ProgressWriter, ProgressReader]) -> None:
    writer, reader = sides
    for seq in range(1, RING_SLOTS + 1):
        writer.write(seq, seq / 100, f"of {seq}")
    for seq in (5, 60):
        writer.forget(seq)
    writer.write(1001, 0.5, "late")
    writer.write(1002, 0.5, "later")
    for seq in set(range(1, RING_SLOTS + 1)) - {5, 60}:
        assert reader.read(seq) == (seq / 100, f"of {seq}")
    assert [reader.read(seq) for seq in (1001, 1002, 5, 60)] == [(0.5, "late"), (0.5, "later"), None, None]


def test_there_is_no_progress_before_the_first_or_of_an_earlier_worker(tmp_path: Path) -> None:
    reader = ProgressReader(str(tmp_path))
    assert reader.read(1) is None
    ProgressWriter(str(tmp_path)).write(1, 0.25, "")
    assert reader.read(1) == (0.25, "")
    ProgressWriter(str(tmp_path)).write(2, 0.75, "x")
    assert reader.read(1) is None
    assert reader.read(2) == (0.75, "x")


def test_a_page_that_cannot_be_mapped_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / PROGRESS_FILE
    page.write_bytes(b"short")
    ProgressWriter(str(tmp_path)).write(1, 0.5, "")
    assert ProgressReader(str(tmp_path)).read(1) is None
    assert page.read_bytes() == b"short"
    page.unlink()
    page.mkdir()
    ProgressWriter(str(tmp_path)).write(1, 0.5, "")
    assert ProgressReader(str(tmp_path)).read(1) is None


def test_garbage_on_the_page_is_no_progress(tmp_path: Path) -> None:
    (tmp_path / PROGRESS_FILE).write_bytes((b"%8d zzzzzzzz 0.5 x\n" % 1).ljust(PROGRESS_NBYTES, b"\xff"))
    (tmp_path / PROGRESS_FILE).chmod(0o600)
    assert ProgressReader(str(tmp_path)).read(1) is None
