"""Legacy peers of every kind pass one suite, in either place: many requests, and no wrong answer.

The peers in ``tests/peers`` become other programs of their time by words in their environment.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from legacy_peers import OLD_WORKER, OldController, old_controller
from support import BOUND_S, FOREVER_MS, wait_until

from tr_mmap import PythonSession, RemoteError, ResponseTimeout, UnexpectedResponse, UnknownCommand, WorkerDied

WORKERS = [
    "",
    "late",
    "doubles",
    "doubles late",
    "doubles late silent",
    "doubles late running",
    "doubles late running raw exits",
    "late raw in_place",
    "running in_place",
    "silent",
]


@pytest.fixture
def requests(is_full: bool) -> int:
    """Each 36 have each form and each kind, in each way."""
    return 360 if is_full else 36


def old_worker(patch: pytest.MonkeyPatch, words: str) -> PythonSession:
    patch.setenv("OLD_WORKER", words)
    return PythonSession(OLD_WORKER, quiet_mode=True, channel="legacy")


@pytest.fixture
def original(monkeypatch: pytest.MonkeyPatch) -> Iterator[PythonSession]:
    """A session with a worker as the original framework's own."""
    with old_worker(monkeypatch, "doubles late running exits") as session:
        yield session


# -- our controller ---------------------------------------------------------------------------------------------------


def ask_in_vain(session: PythonSession, words: str, number: int) -> None:
    if number % 2 and "exits" not in words:
        if "doubles" in words:  # such a worker knows no other complaint
            assert session.fetch_response("unheard_of x") == "invalid"
        elif "silent" in words:
            assert session.fetch_response("unheard_of x") == ""
        else:
            with pytest.raises(UnknownCommand, match="unheard_of"):
                session.fetch_response("unheard_of x")
    elif "doubles" in words or "silent" in words:
        with pytest.raises(UnexpectedResponse) as caught:
            session.fetch_tensor("echo not_there")
        assert caught.value.result == ("invalid" if "doubles" in words else "")
    else:
        with pytest.raises(RemoteError, match="not_there"):
            session.fetch_tensor("echo not_there")


@pytest.mark.long
@pytest.mark.parametrize("words", WORKERS)
def test_every_old_worker_answers_our_controller_rightly(
    monkeypatch: pytest.MonkeyPatch, requests: int, words: str
) -> None:
    with old_worker(monkeypatch, words) as session:
        session.send_tensor(np.float32([3, 4]), "kept")
        for number in range(requests):
            kind = number % 6
            values = np.arange(number, number + 3, dtype=(np.float32, np.int32)[number % 2])
            if kind == 0:
                assert session.fetch_response(f"say text {number}") == f"text {number}"
            elif kind == 1:
                assert session.calculate("echo", values).tolist() == values.tolist()
            elif kind == 2:
                first, last = session.calculate("ends", values)
                assert (first.tolist(), last.tolist()) == ([number], [number + 2])
            elif kind == 3:
                assert session.fetch_tensor("echo kept").tolist() == [3, 4]
            elif kind == 4:
                ask_in_vain(session, words, number // 6)
            else:
                total = session.calculate("add", values, values)
                assert total.tolist() == (values * 2).tolist()
        assert session.please_exit(FOREVER_MS)
        assert not session.is_alive()


def test_a_worker_of_three_and_more_responses_is_not_stuck_in_whatever_order_they_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for words in ("doubles late", "doubles late silent", "doubles late running raw"):
        with old_worker(monkeypatch, words) as session:
            for number in range(8):
                x = np.int32([number, 7])
                assert session.calculate("progress", x).tolist() == [number, 7]  # two texts, tensors, two texts
                assert session.fetch_response("chatter 5") == "0 of 5"
                session.send_tensor(x, "x")
                session.send_request("progress x")
                wait_until(session.new_response)
                assert session.wait_for_tensor().tolist() == [number, 7]
                session.send_request("chatter 3")
                wait_until(session.new_response)
                assert session.read_response() == "0 of 3"
            assert session.please_exit(FOREVER_MS)


def test_a_worker_in_the_middle_of_its_responses_ends_when_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_answered in (True, False) * 3:
        with old_worker(monkeypatch, "doubles late running") as session:
            session.send_tensor(np.float32([1]), "x")
            session.send_request("progress x")  # two texts, tensors, two texts
            if is_answered:
                assert session.wait_for_tensor().tolist() == [1]
            assert session.please_exit(FOREVER_MS, ensure=False)
            assert not session.is_alive()


@pytest.mark.parametrize("timeout_ms", [200.0, FOREVER_MS])
def test_a_handler_that_goes_on_after_its_answer_delays_it_by_a_moment_only(
    original: PythonSession, tmp_path: Path, timeout_ms: float
) -> None:
    """By no more than the caller has, either; the next request waits for the handler."""
    fifo = tmp_path / "gate"
    os.mkfifo(fifo)
    assert original.fetch_response("say first") == "first"  # its start may take longer than the caller has
    assert original.fetch_response(f"linger {fifo}", timeout_ms) == "answered"
    with pytest.raises(ResponseTimeout, match="has not ended the last request"):
        original.fetch_response("say next", 50)
    with fifo.open("w") as file:
        file.write("go on")
    assert original.fetch_response("say next") == "next"


def test_a_response_that_waits_to_be_read_is_new_only_when_it_is_the_answer(original: PythonSession) -> None:
    assert not original.new_response()
    assert original.read_response() is None
    original.send_request("say something")
    wait_until(original.new_response)
    assert original.read_response() == "something"
    assert not original.new_response()
    assert original.read_response() is None


def test_an_original_worker_ends_at_an_unknown_command_and_the_next_one_serves(original: PythonSession) -> None:
    for number in range(3):
        with pytest.raises(WorkerDied, match="UnknownCommand: unknown command: unheard_of") as caught:
            original.fetch_response("unheard_of x")
        assert caught.value.exit_code == 1
        original.start()
        assert original.fetch_response(f"say {number}") == f"{number}"
        assert original.calculate("echo", np.float32([number])).tolist() == [number]


def test_an_answer_of_a_worker_that_dies_before_it_removes_the_request_is_given(
    original: PythonSession, tmp_path: Path
) -> None:
    fifo = tmp_path / "gate"
    os.mkfifo(fifo)
    original.send_request(f"linger {fifo}")
    with fifo.open("w"):  # it has written its answer
        original.terminate()
    assert original.wait_for_response() == "answered"
    original.start()
    assert original.fetch_response("say next") == "next"


def test_threads_get_their_own_answers_from_an_original_worker(original: PythonSession) -> None:
    wrong: list[object] = []

    def ask(who: int) -> None:
        for number in range(15):
            x = np.int32([who, number])
            if original.calculate("echo", x).tolist() != x.tolist():
                wrong.append((who, number))
            if (text := original.fetch_response(f"say {who} {number}")) != f"{who} {number}":
                wrong.append(text)

    threads = [threading.Thread(target=ask, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_S)
    assert wrong == []


def test_a_second_response_that_nobody_by_hand_takes_keeps_no_request_waiting_for_ever(
    original: PythonSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tr_mmap.channel import legacy

    monkeypatch.setattr(legacy, "_PATIENCE_S", 0.1)
    directory = Path(original.session_dir())
    (directory / "new").write_text('{"cmd": "chatter", "params": "4"}')
    (directory / "new").rename(directory / "request.json")
    assert original.fetch_response("say next", FOREVER_MS) == "next"


# -- our worker -------------------------------------------------------------------------------------------------------


def request_of(form: str, command: str, params: str) -> str:
    """A request as some program of that time writes it."""
    return {
        "json": json.dumps({"cmd": command, "params": params}),
        "raw": '{"cmd": "' + command + '", "params": "' + params + '"}',
        "our keys": json.dumps({"command": command, "parameters": params}),
        "a list": json.dumps({"cmd": command, "params": params.split(",")}),
        "words": f"{command} {params}",
        "words and a newline": f"{command} {params}\n",
        "words with commas": f"{command} {params.replace(' ', ',')}\r\n",
        "a JSON text": json.dumps(f"{command} {params}"),
        "an object in a JSON text": json.dumps(json.dumps({"cmd": command, "params": params})),
    }[form]


FORMS = [
    "json",
    "raw",
    "our keys",
    "a list",
    "words",
    "words and a newline",
    "words with commas",
    "a JSON text",
    "an object in a JSON text",
]


@pytest.mark.long
@pytest.mark.parametrize("words", ["", "json", "in_place", "json in_place"])
def test_every_old_controller_is_answered_rightly_by_our_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requests: int, words: str
) -> None:
    monkeypatch.setenv("OLD_CONTROLLER", words)
    with old_controller(tmp_path) as old:
        old.write("kept", np.float32([3, 4]))
        for number in range(requests):
            form = FORMS[number % len(FORMS)]
            kind = number // len(FORMS) % 4
            if kind == 0:
                assert ask(old, form, "hello", f"you{number}", "text")["params"] == f"Hello You{number}"
            elif kind == 1:
                values = np.arange(number, number + 3, dtype=(np.float32, np.int32)[number % 2])
                old.write("x", values)
                answer = ask(old, form, "echo", "kept,x", "tensors")
                assert [each["values"] for each in answer["tensors"]] == [[3, 4], values.tolist()]
            elif kind == 2:
                old.write("x", np.int32([number]))
                (only,) = ask(old, form, "echo", "x", "tensors")["tensors"]
                assert only["values"] == [number]
            else:
                command, params = ("echo", "not_there") if number % 2 else ("unheard_of", "x")
                assert ask(old, form, command, params, "text")["params"].startswith("error: ")
        assert old.do(exit=True)["exit_code"] == 0


def ask(old: OldController, form: str, command: str, params: str, want: str) -> dict[str, Any]:
    answer = old.do(request=request_of(form, command, params), want=want)
    assert "params" in answer, (form, answer)
    return answer


def test_what_is_meant_as_json_and_is_no_request_is_answered_with_an_error(tmp_path: Path) -> None:
    with old_controller(tmp_path) as old:
        for text in ('{"cmd": "hel', '{"params": "x"}', '{"cmd": ""}', "[1]", '["hello"]', '"', "{}", "{"):
            assert old.do(request=text, want="text")["params"].startswith("error: "), text
            assert old.text("hello", "again") == "Hello Again", text


def test_a_request_that_comes_in_parts_is_read_when_it_is_whole(tmp_path: Path) -> None:
    with old_controller(tmp_path) as old:
        assert old.text("hello") == "Hello World"
        with (tmp_path / "request.json").open("w") as file:
            for part in ('{"cmd": "hello", ', '"params": "in ', 'parts"}'):
                file.write(part)
                file.flush()
                time.sleep(0.1)  # the worker looks meanwhile
        wait_until((tmp_path / "response.json").exists)
        assert json.loads((tmp_path / "response.json").read_text())["params"] == "Hello In Parts"
        (tmp_path / "response.json").unlink()
        assert old.text("hello", "again") == "Hello Again"
