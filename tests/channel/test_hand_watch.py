"""The watch of what somebody writes by hand, while files take each other's place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tr_mmap.base import system
from tr_mmap.channel.by_hand import HandWatch


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


@pytest.mark.parametrize("is_seen_between", [False, True])
def test_the_same_request_written_twice_is_taken_twice_however_late_the_watch_looks(
    tmp_path: Path, is_seen_between: bool
) -> None:
    taken: list[bytes] = []
    text = b'{"cmd": "note", "params": "x"}'
    watch = HandWatch(str(tmp_path), taken.append, *[lambda: None] * 3)
    (tmp_path / "request.json").touch()
    watch.look()
    with (tmp_path / "request.json").open("wb") as file:
        file.write(text)
        file.flush()
        os.utime(file.fileno(), (1, 1))
        watch.look()  # it is whole, although its writer has not closed it
    assert taken == [text]
    if is_seen_between:
        watch.look()
    with (tmp_path / "request.json").open("wb") as file:
        file.write(text)
        file.flush()
        os.utime(file.fileno(), (2, 2))
    watch.look()
    watch.close()
    assert taken == [text, text]
