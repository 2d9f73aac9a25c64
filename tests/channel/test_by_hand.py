"""What a person or another program writes by hand into a live session's files: served, answered or ignored."""

from __future__ import annotations

import json
import os
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import BOUND_S, FOREVER_MS, ROOT, TOOLS, Gate, at_rest, script, wait_until

import tr_mmap
from tr_mmap import PythonSession
from tr_mmap.wire.messages import MAX_MESSAGE_NBYTES, MIRROR_DELAY_S, MIRROR_NBYTES

LIAR = ROOT / "tests" / "attacks" / "liar.py"


@pytest.fixture
def session(shared_mapped: PythonSession) -> Iterator[PythonSession]:
    """A session that serves its controller before and after what a test does to it."""
    assert shared_mapped.fetch_response("hello before") == "Hello Before"
    path_of(shared_mapped, "response.json").unlink(missing_ok=True)  # an earlier test's answer
    yield shared_mapped
    assert shared_mapped.fetch_response("hello after") == "Hello After"
    assert shared_mapped.calculate("echo", np.arange(3.0)).tolist() == [0, 1, 2]


def path_of(session: PythonSession, name: str) -> Path:
    return Path(session.session_dir()) / name


def write(session: PythonSession, text: str | bytes, name: str = "request.json") -> None:
    """As most programs do it: truncate the file, write, close."""
    path_of(session, name).write_bytes(text.encode() if isinstance(text, str) else text)


def answer(session: PythonSession, part: str) -> dict[str, Any]:
    """The answer by hand whose params have this part; only such an answer has params."""
    return at_rest(path_of(session, "response.json"), lambda fields: part in fields.get("params", ""))


SPELLINGS = {
    "the legacy spelling": '{"cmd": "hello", "params": "by hand"}',
    "our spelling": '{"command": "hello", "parameters": "by hand"}',
    "a list": '{"cmd": "hello", "params": ["by", "hand"]}',
    "a number of its own": '{"seq": 5, "command": "hello", "parameters": "by hand"}',
    "a number in the place of ours": '{"seq":       1,"command":"hello","parameters":"by hand"}\n',
    "after a byte order mark": b'\xef\xbb\xbf{"cmd": "hello", "params": "by hand"}',
    "words": "hello by hand",
    "words and a newline": "hello by hand\n",
    "words in a JSON text": '"hello by hand"',
    "over several lines": json.dumps({"cmd": "hello", "params": "by hand"}, indent=4) + "\n\n",
    "tensors of its own": '{"command": "hello", "parameters": "by hand", "tensors": [["x", "segment_9.tsr", 4]]}',
}


@pytest.mark.parametrize("text", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_a_request_by_hand_is_served_and_its_answer_is_shown(session: PythonSession, text: str | bytes) -> None:
    write(session, text)
    found = answer(session, "Hello By Hand")
    assert found["result"] == found["params"] == "Hello By Hand"
    assert next(iter(found)) == "params"  # where legacy readers search for it


def replace(path: Path, text: bytes) -> None:
    new = path.with_name("new")
    new.write_bytes(text)
    new.rename(path)


def remove_and_make(path: Path, text: bytes) -> None:
    path.unlink()
    path.write_bytes(text)


def truncate_late(path: Path, text: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    os.ftruncate(fd, 0)
    for part in (text[:7], text[7:]):
        os.write(fd, part)
    os.close(fd)


def write_padded_by_old_program(path: Path, text: bytes) -> None:
    with open(path, "r+b") as file:
        file.write(text.ljust(65536))


@pytest.mark.parametrize("put", [replace, remove_and_make, truncate_late, write_padded_by_old_program])
def test_however_the_request_is_put_there_it_is_served_and_so_is_the_next(session: PythonSession, put: Any) -> None:
    for word in ("first", "second", "third"):
        put(path_of(session, "request.json"), b'{"cmd": "hello", "params": "%b"}' % word.encode())
        answer(session, f"Hello {word.title()}")
        assert session.fetch_response("hello between") == "Hello Between"


@pytest.mark.parametrize("spoil", ["", '{"cmd": '], ids=["emptied", "begun"])
def test_no_mirror_is_written_into_a_request_that_is_being_written(session: PythonSession, spoil: str) -> None:
    path = path_of(session, "request.json")
    session.fetch_response("say on")
    with path.open("w") as file:  # as a shell does before it starts the program that writes
        file.write(spoil)
        file.flush()
        for number in range(20):
            os.utime(path, (1, 1))  # a time that says nothing of when it was written
            assert session.fetch_response(f"hello {number}") == f"Hello {number}"
            assert path.read_text() == spoil
            time.sleep(0.01)  # longer than a side waits until it shows what the mirrors lack
        file.write('{"cmd": "hello", "params": "late"}'[len(spoil) :])
    answer(session, "Hello Late")


GARBAGE = {
    "an open brace": b"{",
    "a word of no command": b"helo",
    "a list": b'["hello"]',
    "two megabytes": b"x" * (2 << 20),
    "too long for a message": b"x" * (MAX_MESSAGE_NBYTES + 1),
    "no utf-8": b'{"cmd": "hello", "params": "\xff"}',
    "no command": b'{"params": "by hand"}',
    "an empty command": b'{"cmd": "", "params": "by hand"}',
    "both spellings that differ": b'{"cmd": "hello", "command": "echo"}',
    "a key twice": b'{"cmd": "hello", "cmd": "echo"}',
    "deep": b"[" * 100_000,
    "an unknown command": b'{"cmd": "no_such_command", "params": "x"}',
    "a missing tensor": b'{"cmd": "echo", "params": "no_such_tensor"}',
}


@pytest.mark.parametrize("text", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_by_hand_is_answered_with_an_error_and_harms_nobody(session: PythonSession, text: bytes) -> None:
    write(session, text)
    found = answer(session, "error: ")
    assert found["error"]["message"]


@pytest.mark.parametrize("put", [replace, remove_and_make, truncate_late])
def test_however_garbage_is_put_there_it_is_answered_and_the_next_request_served(
    session: PythonSession, put: Any
) -> None:
    for text in (b"{", b'{"cmd": "hello", "params": "by ha', b"helo"):
        put(path_of(session, "request.json"), text)
        answer(session, "error: ")
        put(path_of(session, "request.json"), b'{"cmd": "hello", "params": "by hand"}')
        answer(session, "Hello By Hand")
        path_of(session, "response.json").unlink()


def test_a_request_that_is_written_in_parts_into_a_new_file_is_served_once_it_is_whole(session: PythonSession) -> None:
    for word in ("first", "second", "third"):
        path_of(session, "request.json").unlink()
        with open(path_of(session, "request.json"), "w") as file:
            for part in ('{"cmd": ', '"hello", "params": ', f'"{word}"}}'):
                file.write(part)
                file.flush()
                write(session, "busy: by hand\n", "status.txt")  # an event of another file
        answer(session, f"Hello {word.title()}")


def test_of_a_request_by_hand_that_is_too_long_it_is_said_that_it_is(session: PythonSession) -> None:
    write(session, b'{"cmd": "hello", "params": "%b"}' % (b"x" * MAX_MESSAGE_NBYTES))
    assert str(MAX_MESSAGE_NBYTES) in answer(session, "error: ")["error"]["message"]


def put(path: Path, made: Path) -> None:
    """Put something in a mirror's place, which the worker may make again at any moment."""
    while True:
        try:
            os.replace(made, path)
            return
        except OSError:  # a directory does not replace a file
            path.unlink(missing_ok=True)


def symlink(path: Path) -> None:
    target = path.with_name("target")
    target.write_text('{"cmd": "hello", "params": "from elsewhere"}')
    path.with_name("new").symlink_to(target)
    put(path, path.with_name("new"))


def fifo(path: Path) -> None:
    os.mkfifo(path.with_name("new"))
    put(path, path.with_name("new"))


def directory(path: Path) -> None:
    path.with_name("new").mkdir()
    put(path, path.with_name("new"))


def nothing(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def moved_away(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


def second_name(path: Path) -> None:
    own = path.with_name("own")
    own.write_text("mine")
    os.link(own, path.with_name("new"))
    put(path, path.with_name("new"))


SPOILT = [symlink, fifo, directory, nothing, empty, moved_away, second_name]


@pytest.mark.parametrize("name", ["request.json", "response.json", "status.txt"])
@pytest.mark.parametrize("spoil", SPOILT, ids=lambda each: each.__name__)
def test_whatever_takes_a_mirrors_place_the_session_goes_on(session: PythonSession, spoil: Any, name: str) -> None:
    path = path_of(session, name)
    session.fetch_response("say on")
    wait_until(path.exists)
    spoil(path)
    for number in range(3):
        assert session.fetch_response(f"hello {number}") == f"Hello {number}"
    if spoil is symlink:
        assert "from elsewhere" in path.with_name("target").read_text()  # nothing was written through it
    if spoil is second_name:
        assert path.with_name("own").read_text() == "mine"
    if spoil is directory:
        path.rmdir()
    wait_until(lambda: are_back(session, name))  # other tests look at the mirrors of this session


def are_back(session: PythonSession, *names: str) -> bool:
    session.fetch_response("hello again")
    time.sleep(2 * MIRROR_DELAY_S)  # in a burst of requests no side writes what the mirrors lack
    return all(path_of(session, name).is_file() for name in names)


def is_served_again(session: PythonSession) -> bool:
    write(session, '{"cmd": "hello", "params": "again"}')
    try:
        return "Hello Again" in path_of(session, "response.json").read_text()
    except FileNotFoundError:
        return False


def writable_by_all(path: Path) -> None:
    new = path.with_name("new")
    new.write_text('{"cmd": "hello", "params": "from elsewhere"}')
    new.chmod(0o666)
    new.rename(path)


def dangling(path: Path) -> None:
    path.with_name("new").symlink_to(path.with_name("no_such_file"))
    put(path, path.with_name("new"))


def is_mirror(path: Path) -> bool:
    """Whether a whole mirror is there: what is written into half of one would be written over."""
    info = path.lstat() if path.exists() else None
    return info is not None and (info.st_mode, info.st_size) == (stat.S_IFREG | 0o600, MIRROR_NBYTES)


@pytest.mark.parametrize("spoil", [symlink, dangling, fifo, writable_by_all], ids=lambda each: each.__name__)
def test_what_may_not_be_read_as_a_request_gives_way_to_the_mirror(session: PythonSession, spoil: Any) -> None:
    path = path_of(session, "request.json")
    for _ in range(2):
        spoil(path)
        wait_until(lambda: is_mirror(path))
        write(session, '{"cmd": "hello", "params": "by hand"}')  # as most programs do it: not by rename
        answer(session, "Hello By Hand")
        path_of(session, "response.json").unlink()
    assert not path.with_name("no_such_file").exists()


@pytest.mark.parametrize("spoil", [nothing, moved_away, fifo], ids=lambda each: each.__name__)
def test_mirrors_that_are_gone_come_back(session: PythonSession, spoil: Any) -> None:
    names = ("request.json", "response.json", "status.txt")
    session.fetch_response("say on")
    for name in names:
        wait_until(path_of(session, name).exists)
        spoil(path_of(session, name))

    wait_until(lambda: are_back(session, *names))
    at_rest(path_of(session, "response.json"), lambda fields: fields.get("result") == "Hello Again")
    if spoil is not fifo:  # there its writer would wait for a reader
        wait_until(lambda: is_served_again(session))


def test_tags_are_tensors_of_the_session_and_results_are_files_that_anybody_loads(session: PythonSession) -> None:
    session.send_tensor(np.arange(4.0), "x")
    kept = session.calculate("echo", np.arange(5.0))
    write(session, '{"cmd": "echo", "params": "x"}')
    tag = answer(session, "by_hand")["params"]
    assert tr_mmap.load(path_of(session, f"{tag}.tsr")).tolist() == [0, 1, 2, 3]
    assert kept.tolist() == [0, 1, 2, 3, 4]  # the controller's own result is still its own


def test_a_request_by_hand_releases_no_result_that_the_controller_has_not_taken(session: PythonSession) -> None:
    session.send_tensor(np.arange(1000.0), "x")
    session.send_request("echo x")
    wait_until(session.new_response)
    write(session, '{"cmd": "hello", "params": "by hand"}')
    answer(session, "Hello By Hand")
    session.send_tensor(np.zeros(1000), "y")
    write(session, '{"cmd": "echo", "params": "y"}')
    answer(session, "by_hand")
    assert np.array_equal(session.wait_for_tensor(), np.arange(1000.0))


def test_a_request_by_hand_waits_for_the_controllers_own_and_answers_only_for_itself(
    session: PythonSession, gate: Gate
) -> None:
    session.send_request(gate.message)
    gate.wait_for_worker()
    assert path_of(session, "status.txt").read_text().startswith("busy")
    write(session, '{"cmd": "hello", "params": "by hand"}')
    gate.let_go("real")
    assert session.wait_for_response(FOREVER_MS) == "real"
    answer(session, "Hello By Hand")


def shows(session: PythonSession, word: str) -> bool:
    path = path_of(session, "status.txt")  # another test may have removed it, and the mirror comes back a second later
    return path.exists() and path.read_bytes().startswith(word.encode() + b"\n")


def test_while_a_handler_runs_the_status_says_busy_and_ok_afterwards_whether_the_controller_waits_or_not(
    session: PythonSession, gate: Gate
) -> None:
    for is_waited_for in (True, False, True, False):
        wait_until(lambda: shows(session, "ok"))
        if is_waited_for:
            waiting = threading.Thread(target=session.fetch_response, args=(gate.message, FOREVER_MS))
            waiting.start()
            gate.wait_for_worker()
            wait_until(lambda: shows(session, "busy"))
            gate.let_go("done")
            waiting.join(BOUND_S)
        else:
            session.send_request(gate.message)
            gate.wait_for_worker()
            assert shows(session, "busy")
            gate.let_go("done")
            assert session.wait_for_response(FOREVER_MS) == "done"
        wait_until(lambda: shows(session, "ok"))


def test_after_a_burst_of_requests_that_nobody_waits_for_the_status_says_ok(session: PythonSession) -> None:
    for _ in range(20):
        for number in range(30):
            session.send_request(f"say {number}")
        for number in range(30):
            assert session.wait_for_response(FOREVER_MS) == str(number)
        wait_until(lambda: shows(session, "ok"))


def test_after_a_request_by_hand_the_controllers_own_shows_that_the_worker_is_busy(
    session: PythonSession, gate: Gate, tmp_path: Path
) -> None:
    first = Gate(tmp_path)
    write(session, json.dumps({"cmd": "gate", "params": str(first.path)}))
    first.wait_for_worker()
    waiting = threading.Thread(target=session.fetch_response, args=(gate.message, FOREVER_MS))
    waiting.start()
    wait_until(lambda: b"gate-" in path_of(session, "request.json").read_bytes())  # it has waited
    first.let_go("by hand")
    gate.wait_for_worker()
    wait_until(lambda: shows(session, "busy"))
    gate.let_go("done")
    waiting.join(BOUND_S)
    answer(session, "by hand")


def test_an_exit_by_hand_that_the_worker_has_not_seen_stays_while_its_controller_waits(
    workspace: Path, gate: Gate
) -> None:
    with PythonSession(TOOLS, quiet_mode=True) as session:
        channel = session._worker_or_none().channel  # type: ignore[union-attr]
        session.send_request(gate.message)
        gate.wait_for_worker()
        write(session, "exit\n", "status.txt")
        channel._status_mirror.forget()
        channel._status_mirror.update()
        channel._status_mirror.foretell_busy()
        assert path_of(session, "status.txt").read_bytes().startswith(b"exit")
        gate.let_go("the answer still comes")
        assert session.wait_for_response(FOREVER_MS) == "the answer still comes"
        assert session.join(FOREVER_MS)


def test_the_controllers_own_requests_go_on_while_another_writes_by_hand(session: PythonSession) -> None:
    is_over = threading.Event()

    def write_on() -> None:
        texts = ['{"cmd": "hello", "params": "by hand"}', "{", '{"cmd": "no_such_command"}']
        for number in range(300):
            write(session, texts[number % 3])
        is_over.set()

    writer = threading.Thread(target=write_on)
    writer.start()
    count = 0
    while not is_over.is_set() or count < 100:
        assert session.fetch_response(f"say {count}") == str(count)
        assert session.calculate("echo", np.full(3, count)).tolist() == [count] * 3
        count += 1
    writer.join(BOUND_S)


def test_in_a_burst_of_requests_one_by_hand_is_served(session: PythonSession) -> None:
    write(session, '{"cmd": "hello", "params": "by hand"}')
    shown = path_of(session, "response.json")

    def is_answered() -> bool:
        for _ in range(50):
            session.fetch_response("say on")
        return shown.exists() and "Hello By Hand" in shown.read_text()

    wait_until(is_answered)


def test_exit_by_hand_ends_the_worker_after_its_request(workspace: Path, gate: Gate) -> None:
    with PythonSession(TOOLS, quiet_mode=True) as session:
        session.send_request(gate.message)
        gate.wait_for_worker()
        write(session, "exit\n", "status.txt")
        gate.let_go("the answer still comes")
        assert session.wait_for_response(FOREVER_MS) == "the answer still comes"
        assert session.join(FOREVER_MS)


@pytest.mark.parametrize("channel", ["mapped", "files", "legacy"])
def test_a_request_and_exit_by_hand_may_begin_with_a_byte_order_mark(workspace: Path, channel: str) -> None:
    with PythonSession(TOOLS, quiet_mode=True, channel=channel) as session:
        session.fetch_response("hello you")
        replace(path_of(session, "request.json"), b'\xef\xbb\xbf{"cmd": "hello", "params": "by hand"}\r\n')
        answer(session, "Hello By Hand")
        path_of(session, "response.json").unlink()
        assert session.fetch_response("hello you") == "Hello You"
        replace(path_of(session, "status.txt"), b"\xef\xbb\xbfexit\r\n")
        assert session.join(FOREVER_MS)


@pytest.mark.parametrize("text", ['{"cmd": "exit"}', '{"command": "exit", "parameters": ""}'])
def test_a_request_to_exit_by_hand_ends_the_worker(workspace: Path, text: str) -> None:
    with PythonSession(TOOLS, quiet_mode=True) as session:
        session.fetch_response("hello you")
        write(session, text)
        assert session.join(FOREVER_MS)


@pytest.mark.parametrize(
    "text", ["ready\n", "terminated\n", "exiting\n", "nonsense", "", "busy: by hand\n", "\xff\xfe"]
)
def test_any_other_word_by_hand_is_ignored_and_the_status_is_restored(session: PythonSession, text: str) -> None:
    write(session, text.encode("latin-1"), "status.txt")
    wait_until(
        lambda: path_of(session, "status.txt").read_bytes().split(b"\n")[0] in (b"ok", b"ready") or text == "ready"
    )
    assert session.is_ready()
    assert session.is_alive()


def test_with_auth_a_request_by_hand_is_counted_and_exit_ignored(workspace: Path) -> None:
    with PythonSession(LIAR, quiet_mode=True, auth=True) as session:
        for number in range(1, 4):
            write(session, '{"cmd": "hello", "params": "by hand"}')
            wait_until(lambda number=number: int(session.fetch_response("rejected")) >= number)  # type: ignore[misc]
        write(session, "exit\n", "status.txt")
        wait_until(lambda: not path_of(session, "status.txt").read_text().startswith("exit"))
        assert session.calculate("echo", np.arange(3.0)).tolist() == [0, 1, 2]
        assert "By Hand" not in path_of(session, "response.json").read_text()


def test_a_request_that_was_there_before_the_worker_is_served(workspace: Path, tmp_path: Path) -> None:
    script = tmp_path / "late.py"
    script.write_text(
        "import json, os, sys\n"
        f"place = {str(workspace)!r} + '/python_session/tr_session_early'\n"
        "with open(place + '/request.json', 'w') as file:\n"
        "    json.dump({'cmd': 'hello', 'params': 'early'}, file)\n"
        f"import runpy\nrunpy.run_path({str(TOOLS)!r}, run_name='__main__')\n"
    )
    with PythonSession(script, "early", quiet_mode=True) as session:
        answer(session, "Hello Early")
        assert session.fetch_response("hello you") == "Hello You"


# -- the same file again, and the mirror itself -----------------------------------------------------------------------


@pytest.fixture
def noted(tmp_path: Path) -> Iterator[tuple[PythonSession, Path]]:
    """A session whose worker appends the words that it gets to a file."""
    notes = tmp_path / "notes"
    worker = script(
        tmp_path,
        "from tr_mmap import Server\nserver = Server()\n"
        f"@server.command('note')\ndef note(text: str):\n    open({str(notes)!r}, 'a').write(text + ';')\n"
        "    return 'noted ' + text\nserver.run()\n",
    )
    with PythonSession(worker, "noted", True) as session:
        yield session, notes


def rename_with_times(source: Path, target: Path) -> None:
    shutil.copy2(source, target.with_name("new"))
    target.with_name("new").rename(target)


def copy_then_touch(source: Path, target: Path) -> None:
    shutil.copy(source, target)
    os.utime(target, (0, 0))
    target.chmod(0o600)


def copy_as_cp_p(source: Path, target: Path) -> None:
    with target.open("wb") as file:
        file.write(source.read_bytes())
        file.flush()
        for _ in range(3):
            os.utime(file.fileno(), (1, 1))
            os.fchmod(file.fileno(), 0o644)
            time.sleep(0.01)  # so that the watch sees it before the file is closed, mostly


@pytest.mark.parametrize("put", [shutil.copy2, rename_with_times, copy_then_touch, copy_as_cp_p])
def test_the_same_file_put_there_again_is_served_again_once(noted: tuple[PythonSession, Path], put: Any) -> None:
    session, notes = noted
    mine = path_of(session, "mine.json")
    mine.write_text('{"cmd": "note", "params": "x"}')
    for count in range(1, 5):
        put(mine, path_of(session, "request.json"))
        answer(session, "noted x")
        path_of(session, "response.json").unlink()
        assert session.fetch_response("note own") == "noted own"  # after what came before it
        at_rest(path_of(session, "request.json"), lambda fields: fields.get("parameters") == "own")
        assert sorted(notes.read_text().split(";")) == sorted(["", *["own"] * count, *["x"] * count])


def edit_in_place(path: Path, old: bytes, new: bytes) -> None:
    with path.open("r+b") as file:
        text = file.read()
        file.seek(text.index(old))
        file.write(new)


def edit_as_sed(path: Path, old: bytes, new: bytes) -> None:
    text = path.read_bytes()
    assert old in text
    path.with_name("sedA").write_bytes(text.replace(old, new))
    path.with_name("sedA").rename(path)


def write_again_edited(path: Path, old: bytes, new: bytes) -> None:
    path.write_bytes(path.read_bytes().replace(old, new))


@pytest.mark.parametrize("edit", [edit_in_place, edit_as_sed, write_again_edited])
def test_an_edit_of_the_shown_message_is_a_request(session: PythonSession, edit: Any) -> None:
    path = path_of(session, "request.json")
    session.fetch_response("hello one")
    at_rest(path, lambda fields: fields.get("parameters") == "one")
    edit(path, b"one", b"two")
    answer(session, "Hello Two")
    edit(path, b"two", b"six")
    answer(session, "Hello Six")


def test_what_is_written_behind_the_shown_message_is_answered_with_an_error(session: PythonSession) -> None:
    path = path_of(session, "request.json")
    session.fetch_response("hello one")
    at_rest(path, lambda fields: fields.get("parameters") == "one")
    with path.open("a") as file:
        file.write('{"cmd": "hello", "params": "behind"}')
    assert answer(session, "error: ")["error"]["message"]


@pytest.mark.parametrize("save", [write_again_edited, edit_as_sed])
def test_the_shown_message_saved_without_a_change_is_no_request(noted: tuple[PythonSession, Path], save: Any) -> None:
    session, notes = noted
    path = path_of(session, "request.json")
    session.fetch_response("note one")
    at_rest(path, lambda fields: fields.get("parameters") == "one")
    save(path, b"one", b"one")
    path_of(session, "new").write_text('{"cmd": "note", "params": "last"}')
    path_of(session, "new").rename(path)
    answer(session, "noted last")
    assert notes.read_text() == "one;last;"
