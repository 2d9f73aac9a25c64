"""The watch of what somebody writes by hand, while files take each other's place."""

from __future__ import annotations

import os
from contextlib import closing
from itertools import chain, combinations, count
from pathlib import Path
from typing import Any

import pytest

from tr_mmap.base import system
from tr_mmap.channel.by_hand import HandWatch
from tr_mmap.wire.messages import MESSAGE_NUMBER_OFFSET, MESSAGE_REST_OFFSET, MIRROR_NBYTES


def test_a_request_that_takes_anothers_place_while_it_is_looked_at_is_taken_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[bytes] = []
    watch = HandWatch(str(tmp_path), taken.append, *[lambda: None] * 3)
    names, open_private_file = ["second"], system.open_private_file

    def put(name: str) -> None:
        (tmp_path / "new").write_text(f'{{"cmd": "note", "params": "{name}"}}')
        (tmp_path / "new").rename(tmp_path / "request.json")

    def put_and_open(path: str, **options: Any) -> int:
        if names:
            put(names.pop())
        return open_private_file(path, **options)

    monkeypatch.setattr(system, "open_private_file", put_and_open)
    put("first")
    for _ in range(3):
        watch.look()
    watch.close()
    assert taken == [b'{"cmd": "note", "params": "second"}']


TEXT = b'{"cmd": "note", "params": "x"}'
MIRROR = (b'{"seq": ' + b"7".rjust(MESSAGE_REST_OFFSET - MESSAGE_NUMBER_OFFSET) + b', "cmd": "own"}').ljust(
    MIRROR_NBYTES
)
LONG_AGO = count(1)  # never twice the same second: the clock of some systems is too coarse to tell two writes apart


class Place:
    """A session directory, what two writers do there, and what the watch takes."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700)
        (directory / "status.txt").touch(0o600)
        self.path = directory / "request.json"
        self.path.touch(0o600)
        self.taken: list[bytes] = []
        self.watch = HandWatch(str(directory), self.taken.append, *[lambda: None] * 3)
        self._mirror = self.path.open("r+b", buffering=0)  # the controller's; it stays open
        self._files: dict[str, Any] = {}

    def close(self) -> None:
        self.watch.close()
        for file in (self._mirror, *self._files.values()):
            file.close()

    def do(self, writer: str, deed: str) -> None:
        if deed == "open":
            self._files[writer] = self.path.open("wb", buffering=0)
        elif deed == "write":
            self._files[writer].write(TEXT)
        elif deed == "touch":
            os.utime(self._files[writer].fileno(), (second := next(LONG_AGO), second))
            os.fchmod(self._files[writer].fileno(), 0o644)
        elif deed == "close":
            self._files.pop(writer).close()
        elif deed == "answer":  # which the writer waits for
            if not self.taken:
                self.watch.look()
        elif deed == "mode":  # that a mirror gives a file which it has not made
            os.fchmod(self._mirror.fileno(), 0o600)
        else:
            os.ftruncate(self._mirror.fileno(), 0)
            os.pwrite(self._mirror.fileno(), MIRROR, 0)


WRITTEN = ["open", "write", "touch"]
COURSES = {
    "one after the other": [*WRITTEN, "close", "answer", "/", *WRITTEN, "close"],
    "a mirror between": [*WRITTEN, "close", "answer", "mode", "mirror", "/", *WRITTEN, "close"],
    "no more than two closes": [*WRITTEN, "close", "answer", "/", "open", "write", "close"],
    "two closes and a mirror": [*WRITTEN, "close", "answer", "mirror", "/", "open", "write", "close"],
    "closed behind the mirror": [*WRITTEN, "answer", "mirror", "close", "/", *WRITTEN, "close"],
    "never closed": [*WRITTEN, "answer", "mirror", "mode", "look", "/", *WRITTEN, "close"],
}


@pytest.mark.parametrize("course", COURSES)
def test_the_same_request_written_twice_is_taken_twice_whenever_the_watch_looks(tmp_path: Path, course: str) -> None:
    deeds = COURSES[course]
    places = range(len(deeds))
    for looks in chain.from_iterable(combinations(places, many) for many in range(4)):
        writer, story = "first", []
        with closing(Place(tmp_path / ("looks" + "-".join(map(str, looks))))) as place:
            for number, deed in enumerate(deeds):
                if deed == "/":
                    writer = "second"
                elif deed != "look":
                    place.do(writer, deed)
                is_look = deed == "look" or number in looks
                if is_look:
                    place.watch.look()
                story.append(f"{writer} {deed}{', look' * is_look}: {len(place.taken)}")
            place.watch.look()
            assert place.taken == [TEXT, TEXT], story
