"""Command words that somebody writes into ``request.json`` are served on every channel, and torn JSON is an error."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
from support import TOOLS, at_rest

import tr_mmap
from tr_mmap import PythonSession
from tr_mmap.base import system
from tr_mmap.channel.by_hand import HandWatch
from tr_mmap.wire.messages import MIRROR_NBYTES


@pytest.fixture(scope="module", params=["mapped", "files", "legacy"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PythonSession]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TR_WORKSPACE", str(tmp_path_factory.mktemp("words")))
        with PythonSession(TOOLS, "words", quiet_mode=True, channel=request.param) as session:
            patch.undo()
            yield session


@pytest.fixture
def session(shared: PythonSession) -> Iterator[PythonSession]:
    """A session that serves its controller before and after what a test does to it."""
    assert shared.fetch_response("hello before") == "Hello Before"
    yield shared
    assert shared.fetch_response("hello after") == "Hello After"


def answer(session: PythonSession) -> dict[str, Any]:
    """The answer to a request by hand, which is removed."""
    path = Path(session.session_dir()) / "response.json"
    found = at_rest(path, lambda fields: "params" in fields)
    path.unlink()
    return found


def shell(session: PythonSession, command: str) -> str:
    """The params of the answer to what a shell does in the session's directory."""
    subprocess.run(["/bin/sh", "-c", command], cwd=session.session_dir(), check=True, timeout=30)
    params: str = answer(session)["params"]
    return params


@pytest.mark.parametrize(
    "command",
    [
        "echo 'hello you' > request.json",
        "printf 'hello you' > request.json",
        "printf '  hello\\tyou\\r\\n' > request.json",
        "echo '\"hello you\"' > request.json",
        "echo 'hello you' > new; mv new request.json",
        "printf 'hello you' > new; mv new request.json",
        """echo '"{\\"cmd\\": \\"hello\\", \\"params\\": \\"you\\"}"' > request.json""",
        """echo '{"command": "hello", "parameters": "you"}' > request.json""",
        """echo '{"cmd": "hello", "params": ["you"]}' > request.json""",
        """printf '{"cmd": "hello", "params": "you"}' > request.json""",
        """(printf '{"cmd": "hel'; sleep 0.1; printf 'lo", "params": "you"}') > request.json""",
    ],
)
def test_words_and_every_spelling_that_a_shell_writes_are_served(session: PythonSession, command: str) -> None:
    assert shell(session, command) == "Hello You"


def test_one_word_is_a_command_without_parameters(session: PythonSession) -> None:
    assert shell(session, "echo hello > request.json") == "Hello World"


def test_words_name_tensors_as_a_request_of_the_controller_does(session: PythonSession) -> None:
    import numpy as np

    session.send_tensor(np.float32([1, 2]), "x")
    tag = shell(session, "echo 'scale x 3' > request.json")
    directory = Path(session.session_dir())
    assert tr_mmap.load(directory / f"{tag}.tsr").tolist() == [3, 6]


def test_a_text_that_its_writer_has_not_escaped_is_read_up_to_its_quote(session: PythonSession) -> None:
    assert shell(session, """echo '{"cmd": "say", "params": "C:\\dir "x""}' > request.json""") == "C:\\dir "


@pytest.mark.parametrize(
    "text", ['{"cmd": "hello"', '{"params": "you"}', '{"cmd": ""}', '["hello"]', '"hello', "{hello}", "unheard_of word"]
)
def test_torn_or_headless_json_and_unknown_words_are_answered_with_an_error(session: PythonSession, text: str) -> None:
    Path(session.session_dir(), "request.json").write_text(text)
    found = answer(session)
    assert found["params"].startswith("error: ")
    assert found["error"]["message"]
    json.dumps(found)


def test_a_file_that_was_read_in_the_middle_of_a_look_is_not_read_again_when_the_mirror_makes_it_its_own(
    tmp_path: Path,
) -> None:
    path, taken = tmp_path / "request.json", list[bytes]()
    path.write_text("first")
    watch = HandWatch(str(tmp_path), taken.append, lambda: None, lambda: None, lambda: None)
    taken.clear()
    new = tmp_path / "new"
    new.write_text('{"cmd": "note", "params": ""}')
    new.chmod(0o644)
    new.rename(path)
    watch._look_at_request(is_other=True)  # the name led to another file when this began
    path.chmod(0o600)  # as the mirror does
    watch.look()
    watch.look()
    watch.close()
    assert len(taken) == 1


@pytest.mark.parametrize("found", ["emptied", "begun", "an earlier text"])
def test_a_file_that_is_written_in_the_middle_of_a_look_is_taken_once_although_its_writer_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    """What a look finds of the file's size and time may be older than the text that it then reads."""
    path, taken, text = tmp_path / "request.json", list[bytes](), '{"cmd": "note", "params": "x"}'
    path.write_text("")
    watch = HandWatch(str(tmp_path), taken.append, lambda: None, lambda: None, lambda: None)
    if found == "an earlier text":
        path.write_text('{"cmd": "note", "params": "an earlier one"}')
        watch.look()
        taken.clear()
    real = system.open_private_file
    path.chmod(0o600)  # an event, which is looked at late
    with path.open("w") as file:
        file.write(text[:7] if found == "begun" else "")
        file.flush()

        def open_private_file(name: str, **options: Any) -> int:
            file.write(text[file.tell() :])
            file.flush()
            return real(name, **options)

        with monkeypatch.context() as patch:
            patch.setattr(system, "open_private_file", open_private_file)
            watch.look()
        assert taken == [text.encode()]
        for _ in range(3):  # as "cp -p" does
            os.utime(file.fileno(), (1, 1))
            watch.look()
            os.fchmod(file.fileno(), 0o644)
            watch.look()
    watch.look()
    path.chmod(0o600)  # as the mirror does
    watch.look()
    assert taken == [text.encode()]
    path.write_text(text)
    watch.look()
    watch.close()
    assert taken == [text.encode()] * 2


def test_a_request_whose_writer_closes_it_only_when_the_mirror_is_back_is_served_again_when_it_comes_again(
    tmp_path: Path,
) -> None:
    path, taken, text = tmp_path / "request.json", list[bytes](), '{"cmd": "note", "params": "x"}'
    mirror = (b'{"seq": %8d,"command":"note"}' % 1).ljust(MIRROR_NBYTES)
    path.write_text("")
    watch = HandWatch(str(tmp_path), taken.append, lambda: None, lambda: None, lambda: None)
    with path.open("w") as file:
        file.write(text)
        file.flush()
        path.chmod(0o644)  # an event
        watch.look()
        assert taken == [text.encode()]
        ours = os.open(path, os.O_RDWR)  # which stays open, as the mirror's
        os.pwrite(ours, mirror, 0)
    watch.look()
    path.write_text(text)
    watch.look()
    watch.close()
    os.close(ours)
    assert taken == [text.encode()] * 2


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_file_that_is_made_just_as_its_watch_is_lost_is_read_when_its_writer_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Before or after the directory begins to be watched, and then nothing ever tells that the file was made."""
    path, taken = tmp_path / "request.json", list[bytes]()
    (tmp_path / "status.txt").touch()
    path.write_text("")
    watch = HandWatch(str(tmp_path), taken.append, lambda: None, lambda: None, lambda: None)
    real, files = system.add_watch, list[TextIO]()

    def add_watch(fd: int, name: str, mask: int) -> int:
        if moment == "before" and name == str(tmp_path) and not files:
            files.append(path.open("w"))
        found = real(fd, name, mask)
        if moment == "after" and name == str(tmp_path) and not files:
            files.append(path.open("w"))
        return found

    monkeypatch.setattr(system, "add_watch", add_watch)
    path.unlink()
    watch.look()
    (file,) = files
    file.write('{"cmd": "note", "params": ""}')
    file.close()
    (tmp_path / "status.txt").write_text("busy")  # an event of another file
    watch.look()
    watch.look()
    watch.close()
    assert taken == [b'{"cmd": "note", "params": ""}']
